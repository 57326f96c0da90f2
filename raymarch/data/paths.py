"""Camera paths: made from a run's cameras, or read from and written to nerfstudio's camera_path.json.

All in one frame, that of the cameras given; OpenGL axes. A camera_path.json holds poses in the frame that
nerfstudio trains in, which is our scene frame where the scene was turned, centred and scaled as there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymarch.data import arrays
from raymarch.data.atomic import write_text
from raymarch.data.error import SceneError
from raymarch.data.nerfstudio import number, read_json
from raymarch.types import LENSES, Cameras

KINDS = ("orbit", "spiral", "interpolate")
TYPES = ("perspective", "fisheye", "equirectangular")  # camera types of nerfstudio that a path may have
FPS = 24.0
LARGEST = 1 << 14  # pixels on a side


@dataclass(frozen=True, eq=False)
class CameraPath:
    cameras: Cameras  # one per frame, all of one size
    fps: float = FPS


def is_camera_path(path: Path) -> bool:
    """Whether a file is a camera_path.json rather than a transforms.json. SceneError where it is no JSON."""
    return "camera_path" in read_json(path)


def read_camera_path(path: str | Path) -> CameraPath:
    """A camera_path.json of nerfstudio. SceneError says what is missing or cannot be."""
    path = Path(path)
    meta = read_json(path)
    frames = meta.get("camera_path")
    if not isinstance(frames, list) or not frames or not all(isinstance(f, dict) for f in frames):
        raise SceneError(f"{path} should list frames under camera_path")
    kind = str(meta.get("camera_type", "perspective")).lower()
    if kind not in TYPES:
        raise SceneError(f"{path} has camera_type {kind!r}, expected one of {', '.join(TYPES)}")
    width, height = (_side(meta, f"render_{x}", path) for x in ("width", "height"))
    poses, focals = [], []
    for i, frame in enumerate(frames):
        name = f"{path}, frame {i}"
        poses.append(_matrix(frame.get("camera_to_world"), name))
        angle = number(frame, "fov", name)
        if angle is None or not 0 < angle < 180:
            raise SceneError(f"{name} has a fov of {angle} degrees: it must lie between 0 and 180")
        focals.append(0.5 * height / math.tan(0.5 * math.radians(angle)))
    names = [f"{path}, frame {i}" for i in range(len(frames))]
    rigid = arrays.pose_array(poses, names)
    flat = kind == "equirectangular"
    numbers = [[width / 2, float(height)] if flat else [f, f] for f in focals]
    intrinsics = torch.tensor([[*n, width / 2, height / 2] for n in numbers], dtype=torch.float32)
    fps = number(meta, "fps", str(path)) or FPS
    return CameraPath(cameras_of(torch.from_numpy(rigid), intrinsics, width, height, kind), fps)


def write_camera_path(path: str | Path, made: CameraPath) -> None:
    """Write a path as nerfstudio reads it: a vertical field of view per frame, square pixels, no distortion.

    SceneError for lenses that the format lacks.
    """
    cameras = made.cameras
    lenses = {LENSES[i] for i in cameras.lens.tolist()}
    if len(lenses) != 1 or not lenses <= set(TYPES):
        raise SceneError(
            f"a camera_path.json takes one lens of {', '.join(TYPES)}, not {', '.join(sorted(lenses))}"
        )
    width, height = cameras.size[0].tolist()
    frames = []
    for pose, numbers in zip(
        cameras.camera_to_worlds.double().tolist(), cameras.intrinsics.tolist(), strict=True
    ):
        fov = math.degrees(2 * math.atan(0.5 * height / numbers[1]))
        flat = [x for row in (*pose, [0.0, 0.0, 0.0, 1.0]) for x in row]
        frames.append({"camera_to_world": flat, "fov": fov, "aspect": width / height})
    stored = {
        "keyframes": [],
        "camera_type": lenses.pop(),
        "render_height": height,
        "render_width": width,
        "camera_path": frames,
        "fps": made.fps,
        "seconds": len(frames) / made.fps,
        "smoothness_value": 0.5,
        "is_cycle": False,
        "crop": None,
    }
    write_text(Path(path), json.dumps(stored, indent=1) + "\n")


def orbit(cameras: Cameras, frames: int, turns: float = 1.0) -> Cameras:
    """A circle about what the cameras look at, as far away and as high as they are in the mean."""
    poses = cameras.camera_to_worlds.double().cpu()
    target, up = focus(poses), upward(poses)
    away = poses[:, :, 3] - target
    heights = away @ up
    radius = float((away - heights[:, None] * up).norm(dim=1).mean())
    across = _perpendicular(up, away.mean(0))
    other = torch.linalg.cross(up, across)
    angles = torch.arange(frames, dtype=torch.float64) / frames * (2 * math.pi * turns)
    flat = angles.cos()[:, None] * across + angles.sin()[:, None] * other
    eyes = target + heights.mean() * up + max(radius, 1e-6) * flat
    return _like(cameras, looking(eyes, target.expand_as(eyes), up))


def spiral(cameras: Cameras, frames: int, turns: float = 2.0, size: float = 0.15) -> Cameras:
    """Small circles about the middle camera, in and out, looking at what it looks at.

    For scenes seen from one side. `size` is the circle's radius as a share of the distance to that.
    """
    poses = cameras.camera_to_worlds.double().cpu()
    middle = poses[:, :, 3].mean(0)
    base = poses[int((poses[:, :, 3] - middle).norm(dim=1).argmin())]
    ahead = -base[:, 2]
    distance = float(((focus(poses) - base[:, 3]) @ ahead).clamp_min(1e-3))
    angles = torch.arange(frames, dtype=torch.float64) / frames * (2 * math.pi * turns)
    aside = torch.stack([angles.cos(), angles.sin(), (angles / turns).sin()], 1) * size * distance
    eyes = base[:, 3] + aside @ base[:, :3].T
    target = (base[:, 3] + distance * ahead).expand_as(eyes)
    return _like(cameras, looking(eyes, target, base[:, 1]))


def interpolate(cameras: Cameras, frames: int, loop: bool = False) -> Cameras:
    """Through the given cameras in their order: positions along a Catmull-Rom curve, rotations along great
    arcs, focal lengths evenly. The first camera is the first frame and, without `loop`, the last the last."""
    poses = cameras.camera_to_worlds.double().cpu()
    count = len(poses)
    stretches = count if loop else count - 1
    place = torch.arange(frames, dtype=torch.float64) * stretches / max(frames if loop else frames - 1, 1)
    first = place.floor().long().clamp_max(max(stretches - 1, 0))
    part = (place - first)[:, None]

    def at(shift: int) -> Tensor:
        index = first + shift
        return index % count if loop else index.clamp(0, count - 1)

    p = [poses[at(k), :, 3] for k in (-1, 0, 1, 2)]
    positions = p[1] + 0.5 * part * (
        p[2]
        - p[0]
        + part * (2 * p[0] - 5 * p[1] + 4 * p[2] - p[3] + part * (3 * (p[1] - p[2]) + p[3] - p[0]))
    )
    rotations = _between(poses[at(0), :, :3], poses[at(1), :, :3], part)
    numbers = cameras.intrinsics.double().cpu()
    size = cameras.size.double().cpu()
    relative = numbers / size.repeat(1, 2)  # sizes may differ; the path has the first camera's
    mixed = torch.lerp(relative[at(0)], relative[at(1)], part) * size[0].repeat(2)
    width, height = (int(v) for v in cameras.size[0])
    made = torch.cat([rotations, positions[:, :, None]], -1)
    return cameras_of(made, mixed.float(), width, height)


def make_path(kind: str, cameras: Cameras, frames: int, loop: bool = False) -> Cameras:
    """A path by its word. SceneError names the words there are."""
    if frames < 1:
        raise SceneError(f"a camera path has at least one frame, not {frames}")
    if kind == "orbit":
        return orbit(cameras, frames)
    if kind == "spiral":
        return spiral(cameras, frames)
    if kind == "interpolate":
        return interpolate(cameras, frames, loop)
    raise SceneError(f"a camera path is one of {', '.join(KINDS)}, not {kind!r}")


def focus(poses: Tensor) -> Tensor:
    """The point [3] nearest to all optical axes of poses [N, 3, 4]; a little ahead if they are parallel.

    Least squares over distances to the axes, drawn weakly (1e-3) to the point one camera spread ahead.
    """
    eyes, ahead = poses[:, :, 3], -poses[:, :, 2]
    spread = (eyes - eyes.mean(0)).norm(dim=1).mean().clamp_min(1e-3)
    guess = eyes.mean(0) + spread * ahead.mean(0)
    across = torch.eye(3, dtype=poses.dtype) - ahead[:, :, None] * ahead[:, None, :]
    weak = 1e-3 * torch.eye(3, dtype=poses.dtype)
    return torch.linalg.solve(across.mean(0) + weak, (across @ eyes[:, :, None]).mean(0)[:, 0] + weak @ guess)


def upward(poses: Tensor) -> Tensor:
    """The mean of the cameras' y axes [3], of unit length."""
    mean = poses[:, :, 1].mean(0)
    return mean / mean.norm() if mean.norm() > 1e-6 else poses[0, :, 1]


def looking(eyes: Tensor, targets: Tensor, up: Tensor) -> Tensor:
    """Poses [N, 3, 4] of cameras at eyes [N, 3] that look at targets [N, 3]."""
    back = torch.nn.functional.normalize(eyes - targets, dim=-1)
    right = torch.linalg.cross(up.expand_as(back), back)
    short = right.norm(dim=-1, keepdim=True) < 1e-6  # looking along up: any right will do
    right = torch.where(short, torch.linalg.cross(_other(up).expand_as(back), back), right)
    right = torch.nn.functional.normalize(right, dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, eyes], -1)


def cameras_of(
    poses: Tensor, intrinsics: Tensor, width: int, height: int, lens: str = "perspective"
) -> Cameras:
    """Cameras of one size without distortion; poses [N, 3, 4], intrinsics [N, 4]."""
    count = len(poses)
    return Cameras(
        poses.float(),
        intrinsics.float(),
        torch.zeros(count, 12),
        torch.full((count,), LENSES.index(lens), dtype=torch.int64),
        torch.tensor([[width, height]]).expand(count, 2).contiguous(),
    )


def _like(cameras: Cameras, poses: Tensor) -> Cameras:
    """Poses with the first camera's size and the mean focal length, seen through a plain lens."""
    width, height = (int(v) for v in cameras.size[0])
    scale = height / cameras.size[:, 1].double().cpu()
    focal = float((cameras.intrinsics[:, 1].double().cpu() * scale).median())
    numbers = torch.tensor([[focal, focal, width / 2, height / 2]]).expand(len(poses), 4)
    return cameras_of(poses, numbers, width, height)


def _between(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    """Rotations [N, 3, 3] at shares `part` [N, 1] of the way from a to b, along the shortest arc."""
    quaternion = quaternions(a.transpose(1, 2) @ b)
    axis, sine = quaternion[:, 1:], quaternion[:, 1:].norm(dim=1, keepdim=True)
    half = part * torch.atan2(sine, quaternion[:, :1])
    axis = axis / sine.clamp_min(1e-12) * half.sin()
    w, (x, y, z) = half.cos()[:, 0], axis.unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return a @ torch.stack(rows, 1).view(-1, 3, 3)


def quaternions(R: Tensor) -> Tensor:
    """Unit quaternions [N, 4] = (w, x, y, z), w >= 0, of rotations [N, 3, 3], at any angle.

    The eigenvector of the largest eigenvalue of Bar-Itzhack's symmetric matrix (J. Guidance 23, 2000).
    """
    k = torch.zeros(len(R), 4, 4, dtype=R.dtype)
    trace = R.diagonal(dim1=1, dim2=2).sum(1)
    k[:, 0, 0] = trace
    k[:, 1:, 1:] = R + R.transpose(1, 2) - trace[:, None, None] * torch.eye(3, dtype=R.dtype)
    twist = [R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]]
    k[:, 0, 1:] = k[:, 1:, 0] = torch.stack(twist, 1)
    found = torch.linalg.eigh(k).eigenvectors[:, :, -1]
    return torch.where(found[:, :1] < 0, -found, found)


def _perpendicular(up: Tensor, towards: Tensor) -> Tensor:
    flat = towards - (towards @ up) * up
    if flat.norm() < 1e-9:
        flat = torch.linalg.cross(up, _other(up))
    return flat / flat.norm()


def _other(up: Tensor) -> Tensor:
    """An axis that is not along up."""
    return torch.eye(3, dtype=up.dtype)[int(up.abs().argmin())]


def _side(meta: dict, key: str, path: Path) -> int:
    value = number(meta, key, str(path))
    if value is None or value != int(value) or not 1 <= value <= LARGEST:
        raise SceneError(f"{path} has {key} {value}: expected a whole number of pixels from 1 to {LARGEST}")
    return int(value)


def _matrix(value: object, name: str) -> np.ndarray:
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.size not in (12, 16):
        raise SceneError(f"{name} has no camera_to_world of 16 numbers, row by row")
    return matrix.reshape(-1, 4)


def through(cameras: Cameras, indices: Sequence[int]) -> Cameras:
    """Some of the cameras, in that order, on the CPU."""
    at = torch.tensor(list(indices), dtype=torch.int64)
    return Cameras(*(getattr(cameras, f).cpu()[at] for f in cameras.__dataclass_fields__))
