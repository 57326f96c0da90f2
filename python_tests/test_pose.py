"""The exponential maps of pose refinement."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from raymarch.ops.pose import pose
from raymarch.ops.rays import rays
from raymarch.types import LENSES

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
MODES = ("SO3xR3", "SE3")
XI = [0.1, -0.2, 0.3, 0.4, 0.5, -0.6]
ROTATION = [[0.714075, 0.619657, 0.325764], [-0.432165, 0.756261, -0.491226], [-0.550754, 0.209988, 0.807821]]


@pytest.fixture(scope="module")
def golden():
    if not (GOLDEN / "exp_maps.npz").exists():
        pytest.skip("../shared/golden is absent")
    return np.load(GOLDEN / "exp_maps.npz")


def close(got, want, rtol=1e-5, atol=1e-6):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert_close(got.detach().cpu().double(), want, rtol=rtol, atol=atol)


def one(xi, mode, device="cpu", **options):
    return pose(torch.tensor([xi], device=device), mode, **options)[0]


def test_so3_r3_turns_and_keeps_the_translation(device):  # O14
    got = one(XI, "SO3xR3", device)
    close(got[:, :3], ROTATION, atol=2e-6)
    close(got[:, 3], XI[:3])


def test_se3_bends_the_translation(device):  # O15
    got = one(XI, "SE3", device)
    close(got[:, :3], ROTATION, atol=2e-6)
    close(got[:, 3], [0.086318, -0.278919, 0.225113])


def test_small_rotations_are_exact_unless_nerfstudio_is_asked_for(device):  # O16
    xi = [0.1, -0.2, 0.3, 1e-3, 2e-3, -3e-3]
    exact, clamped = one(xi, "SO3xR3", device), one(xi, "SO3xR3", device, small_angle="nerfstudio")
    close(clamped[0, 1], 0.00300095, rtol=2e-6, atol=0)
    close(clamped[1, 2], -0.00100298, rtol=5e-6, atol=0)
    close(exact[0, 1], 0.00300099, rtol=2e-6, atol=0)
    close(exact[1, 2], -0.00100300, rtol=5e-6, atol=0)
    bent = one(xi, "SE3", device)
    close(bent[0, 1], 0.00300099, rtol=2e-6, atol=0)
    close(bent[:, 3], [0.0999996, -0.2002999, 0.2997999])


def test_the_exponential_of_a_sum_is_not_a_product(device):  # O17
    turns = torch.zeros(3, 6, device=device)
    turns[0, 3], turns[1, 4] = 1, 1
    turns[2] = turns[0] + turns[1]
    a, b, both = pose(turns)[..., :3].cpu()
    close((a @ b)[0], [0.540302, 0, 0.841471], atol=1e-6)
    close(both[0], [0.577972, 0.422028, 0.698456])
    assert float((a @ b - both).abs().max()) == pytest.approx(0.422028, abs=1e-6)


def test_a_screw_of_a_quarter_turn(device):  # O18
    close(one([1.0, 0, 0, 0, 0, math.pi / 2], "SE3", device)[:, 3], [0.636620, 0.636620, 0])


@pytest.mark.parametrize(
    ("mode", "small_angle", "slope"),
    [("SO3xR3", "nerfstudio", 0.9999833), ("SO3xR3", "exact", 1.0), ("SE3", "exact", 1.0)],
)
def test_the_derivative_at_zero_is_the_generator(device, mode, small_angle, slope):  # O18
    xi = torch.zeros(1, 6, device=device, requires_grad=True)
    pose(xi, mode, small_angle)[0, 1, 0].backward()
    close(xi.grad[0], [0, 0, 0, 0, 0, slope], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_matches_scipy_from_tiny_to_whole_turns(golden, device, mode):
    xi = torch.from_numpy(golden["tangent_t_then_w"]).float().to(device)
    want = golden["SO3xR3_expm" if mode == "SO3xR3" else "SE3_expm"]
    size = 1 + np.linalg.norm(golden["tangent_t_then_w"][:, :3], axis=1).max()
    close(pose(xi, mode), want, rtol=0, atol=1e-6 * size)


def test_se3_jacobian_matches_the_golden_one(golden):
    xi = torch.from_numpy(golden["tangent_t_then_w"]).requires_grad_()
    want = torch.from_numpy(golden["SE3_jacobian_3x4x6"])
    got = torch.stack(
        [torch.autograd.grad(pose(xi, "SE3")[:, i, j].sum(), xi)[0] for i in range(3) for j in range(4)],
        1,
    ).view(-1, 3, 4, 6)
    close(got, want, rtol=0, atol=1e-9 * float(want.abs().max()))


def test_the_named_clamp_is_nerfstudios(golden):
    xi = torch.from_numpy(golden["tangent_t_then_w"])
    close(pose(xi, small_angle="nerfstudio"), golden["nerfstudio_SO3xR3_f64"], rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=6, max_size=6), st.sampled_from(MODES))
def test_is_a_rigid_motion_and_its_negative_undoes_it(xi, mode):
    there = one(xi, mode)
    R = there[:, :3]
    assert_close(R @ R.T, torch.eye(3), atol=2e-6, rtol=0)
    assert torch.linalg.det(R) > 0
    back = one([-x for x in xi], mode)
    assert_close(back[:, :3], R.T, atol=2e-6, rtol=0)
    if mode == "SE3":
        assert_close(R @ back[:, 3] + there[:, 3], torch.zeros(3), atol=2e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-4, 0.009, 0.011, 1.0, 3.1, 3.17, math.pi, 6.28, 9.0])
def test_gradient_is_finite_and_right_at_every_angle(mode, angle):
    xi = torch.tensor([[0.3, -0.2, 0.5, 0.6 * angle, -0.8 * angle, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: pose(x, mode), xi.requires_grad_(), atol=1e-7)


def test_the_clamped_gradient_is_that_of_the_held_coefficients():
    xi = torch.tensor([[0.1, 0.2, 0.3, 0.3, -0.4, 0.5]] * 2, dtype=torch.float64) * torch.tensor(
        [[1], [1e-3]]
    )
    assert torch.autograd.gradcheck(lambda x: pose(x, "SO3xR3", "nerfstudio"), xi.requires_grad_())


@pytest.mark.parametrize("small_angle", ["exact", "nerfstudio"])
def test_gradient_from_a_ray_to_the_six_numbers(device, small_angle):  # O11
    poses = torch.tensor([[[0.0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3]]], device=device)
    lens = torch.tensor([LENSES.index("perspective")], device=device)
    intrinsics, xy = (torch.tensor([x], device=device) for x in ([500.0, 400, 320, 240], [50.5, 100.5]))
    camera, distortion = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(1, 12, device=device)

    def gradient(xi):
        xi = torch.tensor([xi], device=device, requires_grad=True)
        o, d, *_ = rays(camera, xy, poses, intrinsics, distortion, lens, pose(xi, "SO3xR3", small_angle))
        g_o, g_d = torch.tensor([[0.3, -0.1, 0.2], [0.5, 0.7, -0.4]], device=device)
        ((o * g_o).sum() + (d * g_d).sum()).backward()
        return o[0], d[0], xi.grad[0]

    o, d, grad = gradient(XI)
    close(o, [1.3, 1.8, 2.9])
    close(d, [-0.368356, 0.831336, 0.416166])
    close(grad, [-0.2, -0.1, 0.3, 0.762716, 0.179742, -0.465216])
    held = 1.0 if small_angle == "nerfstudio" else 1 / 0.99998333  # that library's slope at zero
    want = [-0.2, -0.1, 0.3, *(held * x for x in (0.735784, -0.109815, -0.434886))]
    close(gradient([0.0] * 6)[2], want, rtol=3e-6, atol=1e-6)


def test_unknown_words_and_shapes_are_refused():
    xi = torch.zeros(2, 6)
    with pytest.raises(ValueError, match="pose: mode is 'SO3', expected one of SO3xR3, SE3"):
        pose(xi, "SO3")
    with pytest.raises(ValueError, match="SO3xR3 only"):
        pose(xi, "SE3", "nerfstudio")
    with pytest.raises(ValueError, match="xi has 5 columns, expected 6"):
        pose(torch.zeros(2, 5))
