"""Where rays meet boxes, and the stretch of each ray that the model will search."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bench.cases.rays import inputs
from raymarch.model.rays import RaysConfig, generate, span
from raymarch.ops.box import near_far
from raymarch.ops.rays import rays
from raymarch.types import Cameras, Pixels

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


def close(got, want, rtol=1e-5, atol=1e-6):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert_close(got.detach().cpu().double(), want, rtol=rtol, atol=atol)


def golden(name):
    if not (GOLDEN / name).exists():
        pytest.skip("../shared/golden is absent")
    return np.load(GOLDEN / name)


UNIT = [[-1.0, -1, -1], [1, 1, 1]]


def spans(device, rows, box=UNIT, **placement):
    o, d = (torch.tensor([row[i] for row in rows], device=device) for i in (0, 1))
    near, far = near_far(o, d, torch.tensor(box, device=device), **placement)
    return torch.stack([near, far], -1)


def test_rays_enter_and_leave_the_unit_cube(device):  # O21
    rows = [([-2, 0, 1.5], [0.6, 0, -0.8]), ([0.2, 0.3, 0.4], [0, 0, -1.0]), ([0, 5.0, 0], [1.0, 0, 0])]
    close(spans(device, rows), [[1.666667, 3.125], [0, 1.4], [1e10, 1e10]])


def test_a_turned_box(device):  # O22
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], device=device)
    move = torch.tensor([0.5, 0, 0], device=device)
    box = [[-0.5, -1, -1.5], [0.5, 1, 1.5]]
    got = spans(device, [([-2, 0.1, 0], [1.0, 0, 0])], box, rotation=turn, translation=move)
    close(got, [[1.864915, 3.019615]])


def test_a_moved_box(device):
    got = spans(device, [([-5.0, 0, 0], [1.0, 0, 0])], translation=torch.tensor([2.0, 0, 0], device=device))
    close(got, [[6, 8]])


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("face", [-1.0, 1.0])
def test_a_ray_along_a_face_is_never_nan(device, axis, face):  # O23
    rows = []
    for along in {0, 1, 2} - {axis}:
        for sign in (-1.0, 1.0):
            o, d = [0.0] * 3, [0.0] * 3
            o[axis], d[along] = face, sign
            rows.append((o, d))
    close(spans(device, rows), [[0, 1]] * 4)


def test_never_nan_whatever_the_ray(device):
    corners = torch.cartesian_prod(*[torch.tensor([-2.0, -1, 0, 1, 2])] * 3)
    ways = torch.cartesian_prod(*[torch.tensor([-1.0, -0.0, 0.0, 1e-38, 1])] * 3)
    o, d = corners[:, None].expand(-1, len(ways), -1), ways[None].expand(len(corners), -1, -1)
    near, far = near_far(o.to(device), d.to(device), torch.tensor(UNIT, device=device))
    assert near.shape == far.shape == (125, 125)
    assert not (near.isnan() | far.isnan()).any()
    assert ((far > near) | (near == 1e10)).all()


def test_any_batch_shape(device):  # O13, and the flat bundle that the reference refuses
    yx = torch.cartesian_prod(torch.arange(4.0), torch.arange(6.0)) + 0.5
    tables = (torch.tensor([[5.0, 5, 3, 2]]), torch.zeros(1, 12), torch.zeros(1, dtype=torch.int64))
    start = torch.eye(3, 4)[None]
    o, d, *_ = (x.to(device) for x in rays(torch.zeros(24, dtype=torch.int64), yx.flip(-1), start, *tables))
    box = torch.tensor([[-1.0, -1, -5], [1, 1, -3]], device=device)
    flat = torch.stack(near_far(o, d, box), -1)
    image = torch.stack(near_far(o.view(4, 6, 3), d.view(4, 6, 3), box), -1)
    close(image[2, 3], [3.029851, 5.049753])
    close(image[0, 0], [1e10, 1e10])
    assert torch.equal(flat.view(4, 6, 2), image)
    assert torch.equal(torch.stack(near_far(o[17], d[17], box)), flat[17])


def test_boxes_of_the_wrong_shape_are_refused():
    o = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"expected the same \[\.\.\., 3\]"):
        near_far(o, torch.zeros(3, 3), torch.tensor(UNIT))
    with pytest.raises(ValueError, match="box has 3 columns, expected 2"):
        near_far(o, o, torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"expected \(3, 3\) and \(3,\)"):
        near_far(o, o, torch.tensor(UNIT), rotation=torch.eye(4))


def test_golden_box(device):
    g = golden("aabb.npz")
    o, d, box = (torch.from_numpy(g[k]).float().to(device) for k in ("origins", "dirs", "aabb"))
    near, far = near_far(o, d, box.view(2, 3))
    close(near, g["t_min"])
    close(far, g["t_max"])


def scene(device, count=20):
    camera, xy, poses, intrinsics, distortion, lens, adjustment, _ = (
        x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs(count, "camera")
    )
    size = torch.tensor([[64, 48]] * len(lens), device=device)
    return Pixels(camera, xy), Cameras(poses, intrinsics, distortion, lens, size), adjustment


def test_planes_of_training_and_evaluation(device):  # O21
    pixels, cameras, adjustment = scene(device)
    made = generate(pixels, cameras, adjustment, RaysConfig(), True, "world")
    close(made.near, torch.full((20,), 0.05))
    close(made.far, torch.full((20,), 1000.0))
    assert made.camera is pixels.camera and made.converged.all()
    close(generate(pixels, cameras, None, RaysConfig(), False).near, torch.full((20,), 0.05))
    close(generate(pixels, cameras, None, RaysConfig(eval_near=0.0), False).near, torch.zeros(20))
    close(generate(pixels, cameras, None, RaysConfig(eval_near=0.0), True).near, torch.full((20,), 0.05))


def test_planes_inside_a_box(device):  # O21: exact slabs, where the reference adds 1e-6 to directions
    o = torch.tensor([[-2.0, 0, 1.5], [0.2, 0.3, 0.4], [0, 5, 0]], device=device)
    d = torch.tensor([[0.6, 0, -0.8], [0, 0, -1], [1, 0, 0]], device=device)
    near, far = span(o, d, RaysConfig(box=(-1.0, -1, -1, 1, 1, 1)), True)
    close(near, [1.666664, 0.05, 0.05], rtol=3e-6)
    close(far, [3.125004, 1.400002, 0.050001], rtol=3e-6)
    assert (far > near).all()
    close(span(o, d, RaysConfig(box=(-1.0, -1, -1, 1, 1, 1), far=2.0), True)[1][0], 2.0)


def test_the_adjustment_gets_a_gradient_and_near_does_not(device):
    pixels, cameras, adjustment = scene(device)
    adjustment.requires_grad_()
    box = (-1.0, -1, -1, 1, 1, 1)
    made = generate(pixels, cameras, adjustment, RaysConfig(box=box), True, "camera")
    assert not made.near.requires_grad and not made.far.requires_grad
    (made.origins.sum() + made.directions.sum()).backward()
    assert adjustment.grad.isfinite().all() and (adjustment.grad != 0).any()


def test_settings_that_make_no_sense_are_refused(device):
    pixels, cameras, adjustment = scene(device)
    with pytest.raises(ValueError, match="an adjustment was given without compose"):
        generate(pixels, cameras, adjustment, RaysConfig(), True)
    with pytest.raises(ValueError, match="expected 0 <= near < far"):
        generate(pixels, cameras, None, RaysConfig(near=2.0, far=1.0), True)
    with pytest.raises(ValueError, match="expected six numbers"):
        generate(pixels, cameras, None, RaysConfig(box=(1.0, 1, 1, -1, -1, -1)), True)
