"""The engine against the float64 reference renderer: one small frame of a model with every head."""

import pytest
import torch

from bench import golden
from bench.reference import Reference, harmonics, resampled


@pytest.fixture(scope="module")
def trainer():
    return golden.trained(steps=25, size=16, views=6, rays=256)


def test_a_frame_equals_the_reference_in_every_head(trainer):
    cameras = golden.cameras_of(1, 16, trainer.source.cameras)
    found = golden.compare(trainer.model, cameras) | golden.compare_reduced(trainer.model, cameras)
    assert golden.missed(found) == [] and golden.missed_reduced(found) == []
    assert found["reduced_against_exact_db"] > 25


@pytest.mark.parametrize(
    "name",
    [
        "fields.proposals.0.mlp.params",
        "fields.radiance.grid.table",
        "fields.radiance.colour.params",
        "fields.radiance.normals_layer.weight",
        "fields.feature.layer",
    ],
)
def test_the_comparison_sees_a_planted_fault(trainer, name, monkeypatch):
    real = Reference.of

    def broken(model):
        found = real(model)
        found.numbers[name] *= 1.02 + 0.02 * torch.cos(torch.arange(found.numbers[name].shape[-1]))
        return found

    monkeypatch.setattr(Reference, "of", broken)
    found = golden.compare(trainer.model, golden.cameras_of(1, 8, trainer.source.cameras))
    assert golden.missed(found)


def test_the_reference_itself():
    d = torch.nn.functional.normalize(torch.randn(200_000, 3, dtype=torch.float64), dim=-1)
    y = harmonics(d, "nerfstudio")
    gram = y.T @ y * (4 * torch.pi / len(d))
    torch.testing.assert_close(gram, torch.eye(16).double(), atol=0.03, rtol=0)  # orthonormal on the sphere
    s = torch.linspace(0, 1, 5).double()[None]
    found = resampled(s, torch.tensor([[0.0, 1.0, 0.0, 0.0]]).double(), 3, 0.0)
    torch.testing.assert_close(found, torch.tensor([[0.28125, 0.34375, 0.40625, 0.46875]]).double())
