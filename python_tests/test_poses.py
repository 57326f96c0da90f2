"""Pose refinement: conventions, freezing, regulariser."""

import math

import pytest
import torch
from torch.testing import assert_close

from raymarch.data.alignment import align
from raymarch.model.gauge import common_motions, gauge, without
from raymarch.model.poses import Poses, PosesConfig, compose
from raymarch.ops.pose import pose
from raymarch.ops.rays import rays
from raymarch.types import Cameras

MODES = ("SO3xR3", "SE3")
XI = [0.1, -0.2, 0.3, 0.4, 0.5, -0.6]


def close(got, want, rtol=1e-5, atol=1e-6):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert_close(got.detach().cpu().double(), want, rtol=rtol, atol=atol)


def random_poses(n, seed=0):
    return pose(torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)))


def cameras_at(poses):
    count = len(poses)
    return Cameras(
        poses,
        torch.tensor([60.0, 60, 32, 32]).expand(count, 4).contiguous(),
        torch.zeros(count, 12),
        torch.zeros(count, dtype=torch.int64),
        torch.full((count, 2), 64),
    )


def filled(cameras=3, **settings):
    poses = Poses(PosesConfig(**settings), cameras)
    with torch.no_grad():
        poses.adjustment.copy_(torch.randn(cameras, 6, generator=torch.Generator().manual_seed(1)))
    return poses


def test_refinement_starts_at_the_identity():
    given_poses = random_poses(4)
    for mode in MODES:
        poses = Poses(PosesConfig(mode=mode), 4)
        assert_close(poses.optimized_camera_to_worlds(given_poses), given_poses)


def test_off_has_no_parameters_and_changes_nothing():
    poses, given_poses = Poses(PosesConfig(mode="off"), 4), random_poses(4)
    assert list(poses.parameters()) == [] and poses() is None and poses.regulariser() is None
    assert poses.optimized_camera_to_worlds(given_poses) is given_poses


def test_adjustments_can_be_read_in_both_ways():
    poses, given_poses = filled(compose="camera"), random_poses(3)
    last = torch.tensor([2])
    by_numbers = pose(poses.adjustment[2:3])
    assert_close(poses(last), by_numbers)
    assert_close(poses()[last], by_numbers)
    square = torch.cat(
        [torch.stack([given_poses[2], by_numbers[0]]), torch.tensor([[[0.0, 0, 0, 1]]] * 2)], 1
    )
    assert_close(poses.optimized_camera_to_worlds(given_poses)[2], (square[0] @ square[1])[:3])


def test_the_world_convention_turns_about_the_centre():  # O20
    poses = Poses(PosesConfig(compose="world"), 1)
    with torch.no_grad():
        poses.adjustment.copy_(torch.tensor([XI]))
    start = torch.tensor([[[1.0, 0, 0, 1], [0, 1, 0, 2], [0, 0, 1, 3]]])
    moved = poses.optimized_camera_to_worlds(start)[0]
    close(moved[:, 3], [1.1, 1.8, 3.3])
    close(-moved[:, 2], [-0.325764, 0.491226, -0.807821])


@pytest.mark.parametrize("how", ["camera", "world"])
def test_rays_and_optimized_poses_agree(device, how):
    poses, start = filled(compose=how).to(device), random_poses(3).to(device)
    camera = torch.arange(3, device=device).repeat(5)
    xy = 64 * torch.rand(15, 2).to(device)
    intrinsics, distortion = torch.tensor([[60.0, 60, 32, 32]] * 3), torch.zeros(3, 12)
    rest = (intrinsics.to(device), distortion.to(device), torch.tensor([0, 3, 5], device=device))
    got = rays(camera, xy, start, *rest, poses(), how)
    want = rays(camera, xy, poses.optimized_camera_to_worlds(start), *rest)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, atol=2e-6, rtol=1e-5)


def test_a_frozen_camera_keeps_its_pose_and_has_no_gradient(device):
    poses, given_poses = filled(frozen=(2,)).to(device), random_poses(3).to(device)
    got = poses.optimized_camera_to_worlds(given_poses)
    assert torch.equal(got[2], given_poses[2]) and not torch.equal(got[0], given_poses[0])
    picked = poses(torch.tensor([2, 0, 1], device=device))  # by id, not by place in the request
    assert torch.equal(picked[0].cpu(), torch.eye(3, 4))
    assert_close(picked[1:], poses()[:2])
    (got.square().sum() + picked.sum() + poses.regulariser()).backward()
    assert torch.equal(poses.adjustment.grad[2].cpu(), torch.zeros(6))
    assert (poses.adjustment.grad[:2] != 0).any()


def test_freezing_survives_weight_decay_and_broken_numbers():
    poses = filled(frozen=(0,))
    with torch.no_grad():
        poses.adjustment[0] = float("nan")
    assert torch.equal(poses()[0], torch.eye(3, 4))
    assert poses.regulariser().isfinite()
    assert "free" not in poses.state_dict()


def test_trainable_names_the_only_cameras_to_move():
    assert torch.equal(filled(trainable=(1,))()[0], torch.eye(3, 4))
    assert_close(filled(trainable=(1,))()[1], filled()()[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "SE(3)"}, "mode is 'SE\\(3\\)', expected one of off, SO3xR3, SE3"),
        ({"compose": "left"}, "compose is 'left', expected one of camera, world"),
        ({"frozen": (3,)}, "frozen names camera 3, expected 0 to 2"),
        ({"frozen": (-1,)}, "frozen names camera -1, expected 0 to 2"),
        ({"trainable": (7,)}, "trainable names camera 7, expected 0 to 2"),
        ({"frozen": (1,), "trainable": (1, 2)}, "camera 1 is named by both frozen and trainable"),
        ({"frozen": (0, 1, 2)}, "all 3 cameras are frozen; mode 'off' says that"),
        ({"mode": "off", "frozen": (9,)}, "frozen names camera 9"),
        ({"mode": "SE3", "small_angle": "nerfstudio"}, "SO3xR3 only"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Poses(PosesConfig(**settings), 3)


def test_the_wrong_number_of_poses_is_refused():
    with pytest.raises(ValueError, match=r"camera_to_worlds is \(2, 3, 4\), expected \(3, 3, 4\)"):
        Poses(PosesConfig(), 3).optimized_camera_to_worlds(random_poses(2))


def test_regulariser_and_its_gradient(device):  # O19
    poses = Poses(PosesConfig(), 3).to(device)
    rows = [XI, [0.0] * 6, [0.01, 0, 0, 0, 0.02, 0]]
    with torch.no_grad():
        poses.adjustment.copy_(torch.tensor(rows))
    loss = poses.regulariser()
    loss.backward()
    close(loss, 0.00157972)
    want = [0.000890870, -0.00178174, 0.00267261, 0.000151946, 0.000189932, -0.000227919]
    close(poses.adjustment.grad, [want, [0.0] * 6, [0.00333333, 0, 0, 0, 0.000333333, 0]], atol=1e-8)


def test_sizes_are_in_scene_units_and_degrees():
    poses = Poses(PosesConfig(), 2)
    with torch.no_grad():
        poses.adjustment[1] = torch.tensor([0.3, 0, -0.4, 0, math.radians(20), 0])
    moved, turned = poses.sizes()
    close(moved, [0, 0.5])
    close(turned, [0, 20.0])


def test_pose_arithmetic_stays_float32_under_autocast():
    poses, start = filled(), random_poses(3)
    want = poses.optimized_camera_to_worlds(start)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = poses.optimized_camera_to_worlds(start)
    assert got.dtype == torch.float32 and torch.equal(got, want)


def test_compose_refuses_unknown_conventions():
    with pytest.raises(ValueError, match="how is 'left', expected one of camera, world"):
        compose(random_poses(1), random_poses(1), "left")


def test_the_cameras_common_motion_is_taken_out():
    poses = Poses(PosesConfig(gauge="mean"), 5)
    poses.adjustment.data.normal_(0, 0.1)
    before = poses().detach()
    poses.adjustment.data += torch.tensor([0.1, -0.2, 0.3, 0.01, 0.02, -0.03])
    torch.testing.assert_close(poses().detach(), before, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="needs compose 'world'"):
        Poses(PosesConfig(gauge="mean", compose="camera"), 5)


def on_a_ring(n, size=1.0):
    """Cameras of a scene `size` large."""
    poses = random_poses(n, seed=4)
    poses[..., 3] *= size
    return poses


@pytest.mark.parametrize("how", ["camera", "world"])
def test_the_seven_common_motions_are_what_no_picture_sees(how):
    """Each takes the cameras to where a shift, turn or scale of the whole rig does, to first order."""
    start = random_poses(6).double()
    motions, step = common_motions(start, how), 1e-5
    for k in range(7):
        adjustment = pose((step * motions[..., k]).double())
        moved = torch.cat(
            [
                (start[..., :3] @ adjustment[..., :3])
                if how == "camera"
                else (adjustment[..., :3] @ start[..., :3]),
                start[..., 3:]
                + ((start[..., :3] @ adjustment[..., 3:]) if how == "camera" else adjustment[..., 3:]),
            ],
            -1,
        )
        went = align(start, moved)
        assert went.translation_error.max() < 1e-8 and went.rotation_error_deg.max() < 1e-6, k
        assert (moved - start).norm() > 0.5 * step, k


@pytest.mark.parametrize("how", ["camera", "world"])
@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_refinement_without_common_motion_leaves_the_rig_where_it_was(how, size):
    start = on_a_ring(8, size)
    poses = Poses(PosesConfig(gauge="similarity", compose=how), 8)
    poses.precondition(cameras_at(start))
    with torch.no_grad():
        poses.adjustment.normal_(0, 1e-3)
        poses.adjustment[:, :3] *= size
        poses.adjustment += 0.01 * common_motions(start, how)[..., 3:].sum(
            -1
        )  # two hundredths of a turn, scale
    went = align(poses.optimized_camera_to_worlds(start), start, cues="centres")
    assert abs(went.scale - 1) < 1e-4
    assert poses().detach()[:, :, 3].norm(dim=-1).max() > 1e-4 * size  # what is its own stays


def test_the_gradient_through_the_gauge_is_its_transpose():
    along, across = (x.double() for x in gauge(random_poses(5), "world"))
    xi = torch.randn(5, 6).double().requires_grad_()
    weights = torch.randn(5, 6).double()
    (without(xi, along, across) * weights).sum().backward()
    assert_close(xi.grad, without(weights, across, along))
    once = without(xi.detach(), along, across)
    assert_close(without(once, along, across), once, atol=1e-6, rtol=0)


def test_a_gauge_exists_where_cameras_coincide_and_frozen_cameras_need_none():
    start = random_poses(4)
    start[..., 3] = 1.0
    assert all(x.isfinite().all() for x in gauge(start, "world"))
    assert all(x.isfinite().all() for x in gauge(start[:1], "world"))
    assert Poses(PosesConfig(gauge="similarity", frozen=(0,)), 3).along is None


@pytest.mark.parametrize("how", ["camera", "world"])
def test_few_cameras_get_the_same_from_one_matrix_as_many_do_from_its_parts(how, device, monkeypatch):
    config = PosesConfig(gauge="similarity", compose=how, precondition=True)
    poses = Poses(config, 7).to(device)
    poses.precondition(cameras_at(on_a_ring(7)))
    numbers = torch.randn(7, 6, device=device)
    as_matrix = poses.linear(numbers), poses.linear_backward(numbers)
    kept = poses._matrix
    other = Poses(config, 7).to(device)
    other.precondition(cameras_at(on_a_ring(7, 3.0)))
    assert kept is not None
    monkeypatch.setattr("raymarch.model.poses.MOST_AS_MATRIX", 3)
    assert_close(as_matrix, (poses.linear(numbers), poses.linear_backward(numbers)), rtol=1e-4, atol=1e-5)
    monkeypatch.undo()
    poses.load_state_dict(other.state_dict())  # in its place: a graph may read it
    assert poses._matrix is kept
    assert_close(poses.linear(numbers), other.linear(numbers))
