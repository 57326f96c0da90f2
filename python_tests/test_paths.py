"""Camera paths: made, written, read."""

import json
import math

import pytest
import torch

from raymarch.data.error import SceneError
from raymarch.data.paths import (
    CameraPath,
    cameras_of,
    focus,
    interpolate,
    is_camera_path,
    looking,
    make_path,
    orbit,
    quaternions,
    read_camera_path,
    spiral,
    through,
    write_camera_path,
)
from raymarch.data.synthetic import ring_of_cameras

TARGET = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64)


def ring(count=8, radius=2.0, height=0.5):
    angle = torch.arange(count).double() / count * 2 * math.pi
    eyes = TARGET + torch.stack(
        [radius * angle.cos(), radius * angle.sin(), torch.full_like(angle, height)], 1
    )
    poses = looking(eyes, TARGET.expand_as(eyes), torch.tensor([0.0, 0, 1]).double())
    return cameras_of(poses, torch.tensor([[50.0, 50, 32, 24]]).expand(count, 4), 64, 48)


def rigid(poses):
    R = poses[:, :, :3].double()
    torch.testing.assert_close(R.transpose(1, 2) @ R, torch.eye(3).double().expand_as(R), rtol=0, atol=1e-5)
    assert (torch.linalg.det(R) > 0.99).all()


def test_focus_is_where_the_axes_meet():
    torch.testing.assert_close(focus(ring().camera_to_worlds.double()), TARGET, rtol=0, atol=5e-3)


def test_focus_of_parallel_cameras_lies_ahead():
    eyes = torch.randn(6, 3).double() * torch.tensor([1.0, 0, 1])
    poses = looking(eyes, eyes + torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1]).double())
    found = focus(poses)
    assert found.isfinite().all() and found[1] > 0.1 and (found - eyes.mean(0)).norm() < 10


def test_an_orbit_keeps_distance_height_and_target():
    path = orbit(ring(), 30)
    rigid(path.camera_to_worlds)
    away = path.camera_to_worlds[:, :, 3].double() - TARGET
    torch.testing.assert_close(away[:, :2].norm(dim=1), torch.full((30,), 2.0).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(away[:, 2], torch.full((30,), 0.5).double(), rtol=0, atol=0.01)
    ahead = -path.camera_to_worlds[:, :, 2].double()
    assert ((ahead * -away).sum(1) / away.norm(dim=1)).min() > 0.9999
    steps = path.camera_to_worlds[:, :, 3].diff(dim=0).norm(dim=1)
    assert steps.max() < 1.01 * steps.min() and path.size[0].tolist() == [64, 48]
    assert (path.camera_to_worlds[:, 2, 1] > 0.9).all()  # upright


def test_a_spiral_stays_near_and_looks_at_one_point():
    cameras = through(ring(), [0, 1])
    path = spiral(cameras, 40)
    rigid(path.camera_to_worlds)
    base = cameras.camera_to_worlds[0, :, 3]
    moved = (path.camera_to_worlds[:, :, 3] - base).norm(dim=1)
    assert 0.1 < moved.max() < 0.8
    target = base - cameras.camera_to_worlds[0, :, 2] * (TARGET - base).norm()
    ahead = -path.camera_to_worlds[:, :, 2]
    to = target - path.camera_to_worlds[:, :, 3]
    assert torch.linalg.cross(ahead, to).norm(dim=1).max() < 0.05  # all axes pass the target


def test_interpolation_goes_through_its_cameras():
    cameras = cameras_of(
        torch.from_numpy(ring_of_cameras(5)),
        torch.tensor([[50.0 + i, 50 + i, 32, 24] for i in range(5)]),
        64,
        48,
    )
    path = interpolate(cameras, 4 * 10 + 1)
    rigid(path.camera_to_worlds)
    torch.testing.assert_close(path.camera_to_worlds[::10], cameras.camera_to_worlds, rtol=0, atol=1e-5)
    torch.testing.assert_close(path.intrinsics[::10], cameras.intrinsics)
    loop = interpolate(cameras, 5 * 8, loop=True)
    torch.testing.assert_close(loop.camera_to_worlds[::8], cameras.camera_to_worlds, rtol=0, atol=1e-5)


def test_interpolation_of_half_turns_and_of_one_camera():
    up = torch.tensor([0.0, 0, 1]).double()
    eyes = torch.tensor([[2.0, 0, 0], [-2, 0, 0]]).double()
    poses = looking(eyes, torch.zeros(2, 3).double(), up)
    numbers = torch.tensor([[50.0, 50, 32, 24]]).expand(2, 4)
    path = interpolate(cameras_of(poses, numbers, 64, 48), 9)
    rigid(path.camera_to_worlds)
    turns = path.camera_to_worlds[:-1, :, :3].transpose(1, 2) @ path.camera_to_worlds[1:, :, :3]
    angle = torch.rad2deg(torch.acos(((turns.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)))
    torch.testing.assert_close(angle, torch.full((8,), 22.5), rtol=0, atol=0.1)
    alone = interpolate(cameras_of(poses[:1], numbers[:1], 64, 48), 3)
    torch.testing.assert_close(alone.camera_to_worlds, poses[:1].float().expand(3, 3, 4))


def test_quaternions_of_every_angle():
    from scipy.spatial.transform import Rotation

    turns = torch.nn.functional.normalize(torch.randn(200, 3).double(), dim=1)
    angle = torch.cat([torch.linspace(0, math.pi, 190), torch.full((10,), math.pi)]).double()
    want = Rotation.from_rotvec((turns * angle[:, None]).numpy())
    got = quaternions(torch.from_numpy(want.as_matrix()))
    back = Rotation.from_quat(got[:, [1, 2, 3, 0]].numpy())
    assert (back * want.inv()).magnitude().max() < 1e-6 and (got[:, 0] >= -1e-12).all()


def test_camera_paths_come_back(tmp_path):
    path = CameraPath(orbit(ring(), 7), fps=30)
    file = tmp_path / "camera_path.json"
    write_camera_path(file, path)
    assert is_camera_path(file)
    back = read_camera_path(file)
    torch.testing.assert_close(back.cameras.camera_to_worlds, path.cameras.camera_to_worlds)
    torch.testing.assert_close(back.cameras.intrinsics, path.cameras.intrinsics)
    assert back.fps == 30 and torch.equal(back.cameras.size, path.cameras.size)
    stored = json.loads(file.read_text())
    assert (
        stored["seconds"] == pytest.approx(7 / 30) and len(stored["camera_path"][0]["camera_to_world"]) == 16
    )


def test_the_field_of_view_is_vertical_and_in_degrees(tmp_path):
    frame = {"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 90, "aspect": 2}
    meta = {"render_width": 200, "render_height": 100, "camera_path": [frame]}
    file = tmp_path / "path.json"
    file.write_text(json.dumps(meta))
    got = read_camera_path(file).cameras
    torch.testing.assert_close(got.intrinsics, torch.tensor([[50.0, 50, 100, 50]]))
    file.write_text(json.dumps(meta | {"camera_type": "fisheye"}))
    assert read_camera_path(file).cameras.lens.tolist() == [1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"camera_path": []}, "list frames"),
        ({"camera_path": 3}, "list frames"),
        ({"camera_type": "holographic"}, "holographic"),
        ({"render_width": 0}, "render_width"),
        ({"render_height": None}, "render_height"),
        ({"camera_path": [{"camera_to_world": [1, 2], "fov": 50}]}, "16 numbers"),
        ({"camera_path": [{"camera_to_world": [10**400] * 16, "fov": 50}]}, "16 numbers"),
        ({"camera_path": [{"camera_to_world": list(range(16)), "fov": 50}]}, "frame 0"),
        ({"camera_path": [{"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 190}]}, "fov of 190"),
    ],
)
def test_broken_paths_are_told(tmp_path, change, words):
    frame = {"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 50}
    file = tmp_path / "path.json"
    file.write_text(json.dumps({"render_width": 20, "render_height": 10, "camera_path": [frame]} | change))
    with pytest.raises(SceneError, match=words):
        read_camera_path(file)


def test_unknown_kinds_and_lengths():
    with pytest.raises(SceneError, match="orbit, spiral, interpolate"):
        make_path("zigzag", ring(), 5)
    with pytest.raises(SceneError, match="at least one frame"):
        make_path("orbit", ring(), 0)
