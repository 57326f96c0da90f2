"""How many kernels a training step launches: a bound that a change must not exceed unnoticed."""

import pytest
import torch

from bench.launches import launches
from raymarch.config import override, preset
from raymarch.ops.weights import weights
from raymarch.profiling.launches import Launches

NORMALS = "model.fields.radiance.predicted_normals=true"
BOUNDS = {  # of the longest kind of step, in which proposals learn and poses move
    "nerfacto": ("nerfacto", (), 44),
    "f3rm": ("f3rm", (), 53),
    "f3rm with predicted normals": ("f3rm", (NORMALS,), 64),
}


@pytest.mark.parametrize("row", BOUNDS)
def test_a_training_step_stays_within_its_launches(row):
    name, settings, most = BOUNDS[row]
    config = preset(name)
    for setting in settings:
        config = override(config, setting)
    found = launches(config, update_proposals=True)
    assert sum(found.values()) <= most, found


def test_launches_are_counted_in_native_ops_and_outside_but_not_for_views():
    sigma, delta = torch.rand(4, 8, requires_grad=True), torch.rand(4, 8)
    with Launches() as counted:
        w = weights(sigma, delta)
        (w * 2)[:3].view(-1).sum().backward()
    assert counted.found["weights_forward"] == counted.found["weights_backward"] == 1
    assert counted.found["sum"] == 1 and counted.found["mul"] == 2
    assert "view" not in counted.found and "slice" not in counted.found
