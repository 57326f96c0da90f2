"""Known noise on a scene's poses and errors of its lenses: what refinement is measured against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raymarch.data.alignment import perturb
from raymarch.data.scene import Scene


@dataclass(frozen=True)
class PoseNoise:
    """How poses are disturbed. Every chosen camera is turned and moved by exactly these amounts."""

    degrees: float = 2.0  # about a random axis through the camera's centre
    part_of_scene: float = 0.02  # in a random direction, as a part of `scene_size`
    seed: int = 0
    outliers: int = 0  # how many of the chosen cameras are made wildly wrong instead
    outlier_degrees: float = 40.0
    outlier_part: float = 0.4


def scene_size(camera_to_worlds: Tensor) -> float:
    """How far the outermost camera [C, 3, 4] is from the mean of their centres; 1 where they coincide."""
    centres = camera_to_worlds[:, :, 3].detach().cpu().double()
    size = float((centres - centres.mean(0)).norm(dim=-1).max()) if len(centres) else 0.0
    return size if size > 1e-9 else 1.0


def disturb(camera_to_worlds: Tensor, noise: PoseNoise) -> tuple[Tensor, tuple[int, ...]]:
    """Poses [C, 3, 4] with noise, and which of them are outliers. The same seed gives the same noise.

    ValueError for noise that is negative or not finite, or more outliers than cameras.
    """
    for name in ("degrees", "part_of_scene", "outlier_degrees", "outlier_part"):
        value = getattr(noise, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"disturb: {name} is {value}, expected a number of at least 0")
    count = len(camera_to_worlds)
    if not 0 <= noise.outliers <= count:
        raise ValueError(f"disturb: outliers is {noise.outliers}, expected 0 to the {count} cameras chosen")
    size = scene_size(camera_to_worlds)
    moved = perturb(camera_to_worlds, noise.degrees, noise.part_of_scene * size, noise.seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(noise.seed + 1))
    wild = sorted(order[: noise.outliers].tolist())
    if wild:
        far = perturb(camera_to_worlds, noise.outlier_degrees, noise.outlier_part * size, noise.seed + 2)
        moved[wild] = far[wild]
    return moved, tuple(wild)


def disturbed(
    scene: Scene, noise: PoseNoise, cameras: Sequence[int] | None = None
) -> tuple[Scene, tuple[int, ...]]:
    """The scene with noise on the poses of `cameras` (indices of photos; default: the training photos).

    Also which photos became outliers. The scene's size is that of the chosen cameras; the other photos keep
    their poses. ValueError for a photo that does not exist or is named twice, and as `disturb`.
    """
    chosen = list(scene.train if cameras is None else cameras)
    count = len(scene.images)
    if wrong := [i for i in chosen if not 0 <= i < count]:
        raise ValueError(f"disturbed: photo {wrong[0]} was named, expected 0 to {count - 1}")
    if len(set(chosen)) != len(chosen):
        raise ValueError("disturbed: a photo was named twice, expected each at most once")
    poses = scene.cameras.camera_to_worlds.clone()
    moved, wild = disturb(poses[chosen], noise)
    poses[chosen] = moved
    return replace(scene, cameras=replace(scene.cameras, camera_to_worlds=poses)), tuple(
        chosen[i] for i in wild
    )


def with_wrong_lenses(scene: Scene, focal_percent: float = 0.0, k1: float = 0.0) -> Scene:
    """The scene, saying of all its photos focal lengths so many per cent longer and so much more k1."""
    lenses = scene.cameras
    factor = torch.tensor([1 + focal_percent / 100] * 2 + [1.0] * 2).to(lenses.intrinsics)
    distortion = lenses.distortion.clone()
    distortion[:, 0] += k1
    wrong = replace(lenses, intrinsics=lenses.intrinsics * factor, distortion=distortion)
    return replace(scene, cameras=wrong)
