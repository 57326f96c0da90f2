"""Poses compared up to a similarity, and disturbed by a known amount."""

import math

import pytest
import torch
from torch.testing import assert_close

from raymarch.data.alignment import align, perturb, rotation_angle
from raymarch.ops.pose import pose


def close(got, want, rtol=1e-5, atol=1e-6):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert_close(got.detach().cpu().double(), want, rtol=rtol, atol=atol)


def random_poses(n, seed=0):
    return pose(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)))


def similar(poses, scale, turn, move):
    """Poses seen from a frame that differs by a similarity."""
    R, t = poses[..., :3], poses[..., 3]
    return torch.cat([turn @ R, (scale * t @ turn.T + move)[..., None]], -1)


@pytest.mark.parametrize("cues", ["centres", "centres+rotations"])
def test_alignment_undoes_a_similarity(cues):
    truth = random_poses(8).double()
    turn, move = random_poses(1, seed=5)[0, :, :3].double(), torch.tensor([1.0, -2, 3], dtype=torch.float64)
    found = align(similar(truth, 0.3, turn, move), truth, cues)
    assert found.scale == pytest.approx(1 / 0.3, rel=1e-6)
    assert_close(found.rotation, turn.T, atol=1e-6, rtol=0)
    assert_close(found.aligned, truth, atol=1e-5, rtol=0)
    assert found.rotation_error_deg.max() < 1e-4 and found.translation_error.max() < 1e-5
    others = random_poses(4, seed=3).double()
    moved = found.take_along(similar(others, 0.3, turn, move).float())
    assert moved.dtype == torch.float32
    assert_close(moved.double(), others, atol=1e-4, rtol=0)


def test_alignment_reports_the_camera_that_is_wrong():
    truth = random_poses(20).double()
    spoiled = truth.clone()
    spoiled[3:4] = perturb(truth[3:4], 5.0, 0.0)
    found = align(spoiled, truth, "centres")
    assert found.rotation_error_deg[3].item() == pytest.approx(5, abs=1e-4)
    assert found.rotation_error_deg[:3].max() < 1e-4


@pytest.mark.parametrize("centres", ["one", "same", "line"])
def test_alignment_uses_rotations_where_centres_do_not_suffice(centres):
    truth = random_poses(1 if centres == "one" else 5).double()
    if centres == "same":
        truth[..., 3] = torch.tensor([1.0, 2, 3])
    if centres == "line":
        truth[..., 3] = torch.arange(5.0)[:, None] * torch.tensor([1.0, 1, 0])
    turn = random_poses(1, seed=9)[0, :, :3].double()
    found = align(similar(truth, 1.0, turn, torch.zeros(3)), truth)
    assert_close(found.aligned, truth, atol=1e-5, rtol=0)


def test_alignment_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match=r"expected the same \[C, 3, 4\]"):
        align(random_poses(2), random_poses(3))
    with pytest.raises(ValueError, match="at least one"):
        align(random_poses(0), random_poses(0))
    with pytest.raises(ValueError, match="not finite"):
        align(random_poses(2) * float("nan"), random_poses(2))
    with pytest.raises(ValueError, match="cues is 'rotations'"):
        align(random_poses(2), random_poses(2), "rotations")


def test_noise_has_the_size_asked_for_and_repeats():
    truth = random_poses(50)
    noisy = perturb(truth, 2.0, 0.1, seed=3)
    assert noisy.dtype == truth.dtype
    turned = rotation_angle(noisy[..., :3].double() @ truth[..., :3].double().mT) * (180 / math.pi)
    close(turned, torch.full((50,), 2.0), rtol=1e-4)
    close((noisy - truth)[..., 3].norm(dim=-1), torch.full((50,), 0.1), rtol=1e-4)
    assert torch.equal(noisy, perturb(truth, 2.0, 0.1, seed=3))
    assert not torch.equal(noisy, perturb(truth, 2.0, 0.1, seed=4))
    assert_close(perturb(truth, 0.0, 0.0), truth)
