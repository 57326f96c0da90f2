"""What pose refinement cannot work with, said before training begins."""

from __future__ import annotations

import torch
from torch import Tensor

from raymarch.data.scene import Scene
from raymarch.model import Model
from raymarch.model.rays import span
from raymarch.ops.rays import rays
from raymarch.types import Cameras

LATTICE = 16  # rays per image side with which a camera looks for the box


def check_refinable(model: Model, cameras: Cameras, scene: Scene) -> None:
    """ValueError where poses or lenses are refined from what cannot lead anywhere; one sentence says why.

    `cameras` are the training cameras. Frozen cameras may be anything but singular.
    """
    poses = model.poses
    names = [scene.names[i] for i in scene.train]
    if model.intrinsics.numbers is not None and len(names) == 1:
        raise ValueError(
            f"intrinsics: nothing holds the only training photo ({names[0]}) against another lens: "
            "give at least 2 photos, or set model.intrinsics.refine=off"
        )
    if poses.config.mode == "off":
        return
    _check_rigid(cameras.camera_to_worlds.cpu().double(), names)
    if len(names) == 1:
        raise ValueError(
            f"pose refinement has nothing to hold the only training photo ({names[0]}) against: "
            "give at least 2 photos, or set model.poses.mode=off"
        )
    free = [True] * len(names) if poses.free is None else poses.free.flatten().tolist()
    for camera, (photo, name) in enumerate(zip(scene.train, names, strict=True)):
        mask = scene.masks[photo] if scene.masks is not None else None
        if free[camera] and mask is not None and not bool(mask.any()):
            raise ValueError(
                f"camera {camera} ({name}) sees nothing: its mask keeps no pixel, so its pose cannot be "
                f"refined; leave the photo out or set model.poses.frozen=({camera},)"
            )
    if model.config.rays.box is not None:
        blind = [c for c in blind_cameras(model, cameras) if free[c]]
        if blind:
            raise ValueError(
                f"camera {blind[0]} ({names[blind[0]]}) sees nothing: none of its rays meets model.rays.box, "
                f"so its pose cannot be refined; widen the box or set model.poses.frozen=({blind[0]},)"
            )


def _check_rigid(poses: Tensor, names: list[str]) -> None:
    R = poses[:, :, :3]
    off = (R @ R.transpose(-1, -2) - torch.eye(3, dtype=R.dtype)).abs().amax((1, 2))
    wrong = ~(off < 1e-3) | ~(torch.linalg.det(R.nan_to_num()) > 0) | ~poses.isfinite().all(-1).all(-1)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"camera {i} ({names[i]}) starts from a pose that is not rigid ({_unlike(poses[i])}): pose "
            "refinement cannot repair it; correct the pose or leave the photo out"
        )


def _unlike(pose: Tensor) -> str:
    """What a pose [3, 4] has that no rotation and translation have."""
    if not bool(pose.isfinite().all()):
        return "some of its numbers are not finite"
    R = pose[:, :3]
    off = float((R.T @ R - torch.eye(3, dtype=R.dtype)).abs().max())
    if off >= 1e-3:
        return f"its axes are off unit length or right angles by {off:.3g}"
    return f"its axes have determinant {float(torch.linalg.det(R)):.3g}, expected 1"


def blind_cameras(model: Model, cameras: Cameras) -> list[int]:
    """Cameras none of whose rays, on a lattice over the photo, meets the box of the config."""
    count, device = len(cameras.size), cameras.camera_to_worlds.device
    steps = (torch.arange(LATTICE, device=device) + 0.5) / LATTICE
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    xy = (torch.stack([x, y], -1).view(1, -1, 2) * cameras.size[:, None]).reshape(-1, 2).float()
    which = torch.arange(count, device=device).repeat_interleave(LATTICE * LATTICE)
    pose, lens = cameras.camera_to_worlds, (cameras.intrinsics, cameras.distortion, cameras.lens)
    origins, directions, *_ = rays(which, xy, pose, *lens)
    near, far = span(origins, directions, model.config.rays, True)
    meets = (far - near > 1e-5 * (1 + near)).view(count, -1).any(-1)
    return (~meets).nonzero()[:, 0].tolist()
