"""A photo to localise, its camera and where to start: read, checked, and laid out as a grid of cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymarch.data.images import read_photo
from raymarch.data.similarity import rotation_fault
from raymarch.train.evaluate import over_background
from raymarch.train.runs import OpenRun, subset
from raymarch.types import Cameras


class LocalizeError(ValueError):
    """A photo, camera or start that cannot be used; the message says which and what would."""


@dataclass(frozen=True)
class View:
    """One photo as a grid of cells, on the device."""

    xy: Tensor  # [N, 2] where the cells' centres lie, in the camera's pixels
    target: Tensor  # [rows, columns, 3] colour there, 0..1
    keep: Tensor  # [N] 1 for cells to compare, 0 for those to leave out
    rows: int
    columns: int


def grid_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Columns and rows of a grid whose longer side has `side` cells, no more than there are pixels."""
    scale = min(side / max(width, height), 1.0)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def make_view(photo: Tensor, side: int, photo_side: int, keep: Tensor | None = None) -> View:
    """A photo [h, w, 3] as cells: averaged down to `photo_side` pixels, then read at the cells' centres.

    keep [h, w] bool: only cells all of whose pixels it keeps are compared.
    """
    height, width = photo.shape[:2]
    columns, rows = grid_size(width, height, side)
    fine = grid_size(width, height, max(photo_side, side))
    image = F.adaptive_avg_pool2d(photo.permute(2, 0, 1)[None], (fine[1], fine[0]))
    if fine != (columns, rows):
        across = (torch.arange(columns, device=photo.device) + 0.5) / columns * 2 - 1
        down = (torch.arange(rows, device=photo.device) + 0.5) / rows * 2 - 1
        y, x = torch.meshgrid(down, across, indexing="ij")
        places = torch.stack([x, y], -1)[None]
        image = F.grid_sample(image, places, mode="bilinear", padding_mode="border", align_corners=False)
    x = (torch.arange(columns, device=photo.device) + 0.5) * (width / columns)
    y = (torch.arange(rows, device=photo.device) + 0.5) * (height / rows)
    xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2).contiguous()
    kept = torch.ones(rows * columns, device=photo.device)
    if keep is not None:
        share = F.adaptive_avg_pool2d(keep.float()[None, None], (rows, columns))
        kept = (share.flatten() > 0.999).float()
    return View(xy, image[0].permute(1, 2, 0).contiguous(), kept, rows, columns)


def shrunk(photo: Tensor, camera: Cameras, side: int) -> tuple[Tensor, Cameras]:
    """A photo [h, w, 3] and its camera with at most `side` pixels on the longer side."""
    columns, rows = grid_size(photo.shape[1], photo.shape[0], side)
    if (rows, columns) == photo.shape[:2]:
        return photo, camera
    small = F.adaptive_avg_pool2d(photo.permute(2, 0, 1)[None], (rows, columns))[0].permute(1, 2, 0)
    scale = torch.tensor([columns / photo.shape[1], rows / photo.shape[0]] * 2, device=photo.device)
    size = torch.tensor([[columns, rows]], device=photo.device)
    return small, replace(camera, intrinsics=camera.intrinsics * scale, size=size)


def read_image(image: Any, background: str = "none") -> Tensor:
    """A photo [h, w, 3] float in 0..1 from a path, or from [h, w, 3 or 4] uint8 or float 0..1."""
    if isinstance(image, (str, Path)):
        image = read_photo(Path(image)).pixels
    image = torch.as_tensor(np.asarray(image) if not isinstance(image, Tensor) else image)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or 0 in image.shape:
        raise LocalizeError(f"localize: image has shape {list(image.shape)}, expected [h, w, 3 or 4]")
    if image.dtype == torch.uint8:
        return over_background(image, background)
    if not image.is_floating_point():
        raise LocalizeError(f"localize: image holds {image.dtype}, expected uint8, or floats in 0..1")
    if not bool(image.isfinite().all()) or float(image.min()) < 0 or float(image.max()) > 1:
        raise LocalizeError("localize: image holds numbers outside 0..1 or not finite; scale it to 0..1")
    return over_background(image.float() * 255, background)


def kept_pixels(keep: Any, photo: Tensor) -> Tensor | None:
    """keep [h, w] as bool on the photo's device, or None for all pixels."""
    if keep is None:
        return None
    found = torch.as_tensor(keep)
    if found.shape != photo.shape[:2] or found.dtype != torch.bool:
        raise LocalizeError(
            f"localize: keep is {found.dtype} of shape {list(found.shape)}, expected bool of the photo's "
            f"{list(photo.shape[:2])}"
        )
    if not bool(found.any()):
        raise LocalizeError("localize: keep leaves out every pixel of the photo")
    return found.to(photo.device)


def camera_of(run: OpenRun, camera: Any, size: tuple[int, int]) -> Cameras:
    """One camera for a photo of `size` = (width, height): a Cameras, fx fy cx cy, or the run's own lens."""
    if camera is None:
        return _own_lens(run, size)
    if isinstance(camera, Cameras):
        if len(camera.size) != 1:
            raise LocalizeError(f"localize: camera holds {len(camera.size)} cameras, expected one")
        stated = tuple(int(v) for v in camera.size[0])
        if stated != size:
            raise LocalizeError(
                f"localize: the photo has {size[0]} x {size[1]} pixels, but its camera is for "
                f"{stated[0]} x {stated[1]}; scale the intrinsics, or give the photo at that size"
            )
        return subset(camera, (0,), run.device)
    numbers = _floats(camera, "intrinsics")
    if numbers.shape != (4,) or not (numbers[:2] > 0).all():
        raise LocalizeError(
            f"localize: intrinsics are {numbers.tolist()}, expected fx, fy, cx, cy in pixels, the first two "
            "positive"
        )
    if not (0 < numbers[2] < size[0] and 0 < numbers[3] < size[1]):
        raise LocalizeError(
            f"localize: the intrinsics' centre ({numbers[2]:g}, {numbers[3]:g}) lies outside the photo of "
            f"{size[0]} x {size[1]} pixels; they must be for this photo's size"
        )
    return Cameras(
        camera_to_worlds=torch.zeros(1, 3, 4, device=run.device),
        intrinsics=numbers.float()[None].to(run.device),
        distortion=torch.zeros(1, 12, device=run.device),
        lens=torch.zeros(1, dtype=torch.int64, device=run.device),
        size=torch.tensor([size], device=run.device),
    )


def _own_lens(run: OpenRun, size: tuple[int, int]) -> Cameras:
    """The first training camera's lens, scaled to the photo, where all training cameras share it."""
    own = run.train_cameras()
    per_width = own.intrinsics / own.size[:, :1]
    if not bool(((per_width - per_width[0]).abs() < 0.01).all()) or bool((own.lens != own.lens[0]).any()):
        raise LocalizeError(
            "localize: the training cameras have different lenses; give the photo's own with "
            "--intrinsics fx,fy,cx,cy"
        )
    width, height = (int(v) for v in own.size[0])
    if abs(size[0] * height - size[1] * width) > max(*size, width, height):  # a pixel of the smaller photo
        raise LocalizeError(
            f"localize: the photo has {size[0]} x {size[1]} pixels, the run's photos {width} x {height}: "
            "that is not the same picture scaled; give --intrinsics fx,fy,cx,cy"
        )
    one = subset(own, (0,), run.device)
    scale = torch.tensor([size[0] / width, size[1] / height] * 2, device=run.device)
    return replace(one, intrinsics=one.intrinsics * scale, size=torch.tensor([size], device=run.device))


def starts_of(run: OpenRun, init: Any) -> Tensor:
    """Poses [S, 3, 4] in scene units to start from.

    init: None or "all" (every training view), "train:K" or "test:K" (that view's pose), or poses in world
    units, [3, 4], [4, 4], [S, 3, 4] or [S, 4, 4].
    """
    if init is None or (isinstance(init, str) and init == "all"):
        return run.train_cameras().camera_to_worlds
    if isinstance(init, str):
        which, _, index = init.removeprefix("near ").partition(":")
        if which not in ("train", "test") or not index.isdigit():
            raise LocalizeError(f"localize: init is {init!r}, expected all, train:K, test:K or a pose")
        poses = (run.train_cameras() if which == "train" else run.test_cameras()).camera_to_worlds
        if int(index) >= len(poses):
            raise LocalizeError(f"localize: init is {init!r}, but the run has {len(poses)} {which} cameras")
        return poses[int(index)][None]
    poses = _floats(init, "init")
    poses = poses[None] if poses.ndim == 2 else poses
    if poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)) or len(poses) == 0:
        raise LocalizeError(
            f"localize: init has shape {list(poses.shape)}, expected a camera-to-world pose [3, 4] or [4, 4]"
        )
    for matrix in poses[:, :3, :3].numpy():
        if fault := rotation_fault(matrix):
            raise LocalizeError(f"localize: the rotation of init {fault}")
    return run.world_from_scene.invert().apply_poses(poses[:, :3]).float()


def _floats(values: Any, name: str) -> Tensor:
    """Finite float64 numbers on the CPU."""
    try:
        found = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError):
        raise LocalizeError(f"localize: {name} is {values!r:.80}, expected numbers") from None
    if not bool(found.isfinite().all()):
        raise LocalizeError(f"localize: {name} holds numbers that are not finite")
    return found
