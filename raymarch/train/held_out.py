"""Held-out cameras after pose refinement: as given, aligned to the refined ones, or each refined itself.

Refinement may move all cameras together, and a held-out camera that stays behind is judged for that and not
for the field. `align` moves held-out cameras as the training cameras went together; `refine` also removes
what each held-out pose lacks on its own, without ever judging pixels that the pose was fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raymarch.data.alignment import Alignment, align_most, rotation_angle
from raymarch.train.evaluate import (
    IMAGE_HEADS,
    MASKED,
    PROTOCOL,
    ImageMetrics,
    judged,
    over_background,
    render_image,
)
from raymarch.train.localize import Level, LocalizeConfig, Localizer
from raymarch.train.metrics import ssim_protocol
from raymarch.train.runs import OpenRun, subset
from raymarch.types import Cameras

POSES = ("none", "align", "refine")
REFINE = LocalizeConfig(
    rounds=0, levels=(Level(96, 96, 1.0, 1, 8), Level(192, 384, 0.7, 1, 8), Level(256, 1024, 0.5, 1, 10))
)
BOARD = 8  # squares along each side of a photo, light and dark
_REST = (
    "mean appearance code, PSNR with data range 1 averaged over images; " + ssim_protocol() + "; " + MASKED
)
PROTOCOLS = {
    "none": PROTOCOL,
    "align": "held-out photos at the size given, poses moved by the similarity that takes the training poses "
    "as given to the refined ones (centres and rotations, least squares over cameras that do not stand "
    "out), " + _REST,
    "refine": "held-out photos at the size given, poses first aligned as by `align`; then the dark squares "
    "of an 8 x 8 board over each photo are rendered from the pose that fits the light squares best, and the "
    "light ones from the pose that fits the dark ones, fields fixed: no pixel is judged that its pose was "
    "fitted to; " + _REST,
}


@dataclass(frozen=True)
class Refined:
    """What refining one held-out pose did: the mean of the two poses, one per colour of squares."""

    degrees: float
    world_units: float
    halves: int  # of the two, those whose alignment converged; the others keep the aligned pose


def drift(run: OpenRun) -> Alignment:
    """The similarity from the training poses as given to the refined ones, scene units."""
    given = run.train_cameras(refined=False).camera_to_worlds
    return align_most(given, run.train_cameras().camera_to_worlds)


def aligned_cameras(run: OpenRun) -> Cameras:
    """The held-out cameras, moved as the training cameras went together."""
    cameras, went = run.test_cameras(), drift(run)
    return replace(cameras, camera_to_worlds=went.take_along(cameras.camera_to_worlds.double()).float())


def held_out_cameras(run: OpenRun, poses: str) -> Cameras:
    """The cameras that evaluation with `poses` begins with. ValueError for another word than POSES."""
    if poses not in POSES:
        raise ValueError(f"poses is {poses!r}, expected one of {', '.join(POSES)}")
    return run.test_cameras() if poses == "none" else aligned_cameras(run)


def chequered(height: int, width: int, device: torch.device) -> Tensor:
    """[h, w] bool: the dark squares of a board of BOARD x BOARD squares."""
    row = torch.arange(height, device=device) * BOARD // height
    column = torch.arange(width, device=device) * BOARD // width
    return (row[:, None] + column[None]) % 2 == 0


def evaluate_refined(
    run: OpenRun,
    images: list[Tensor],
    names: list[str],
    background: str = "black",
    masks: Sequence[Tensor | None] | None = None,
) -> Iterator[tuple[ImageMetrics, dict[str, Tensor], Refined]]:
    """Metrics, rendering and correction of each held-out photo, by the protocol PROTOCOLS["refine"].

    Pixels that `masks` ignore (False in [h, w]) are neither judged nor fitted to.
    """
    cameras = aligned_cameras(run)
    localizer = Localizer(run, REFINE)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        truth = over_background(image.to(run.device), background)
        keep = masks[i].to(run.device) if masks is not None and masks[i] is not None else None  # type: ignore[union-attr]
        frame, refined = _swapped(localizer, subset(cameras, (i,), run.device), truth, keep)
        yield judged(name, frame["rgb"], truth, keep), frame, refined


def _swapped(
    localizer: Localizer, camera: Cameras, truth: Tensor, keep: Tensor | None
) -> tuple[dict[str, Tensor], Refined]:
    """The dark squares of the photo from the pose that was found on the light ones, and the other way."""
    run = localizer.run
    dark = chequered(truth.shape[0], truth.shape[1], run.device)
    start = run.world_from_scene.apply_poses(camera.camera_to_worlds.cpu().double())
    frames, degrees, moved, good = [], 0.0, 0.0, 0
    for squares in (~dark, dark):
        fitted = squares if keep is None else squares & keep
        found = localizer(truth, camera, start, overlay=False, keep=fitted) if bool(fitted.any()) else None
        at = found.camera if found is not None and found.converged else camera
        frames.append(render_image(run.model, at, 0, IMAGE_HEADS))
        if found is not None and found.converged:
            world = found.camera_to_world
            good += 1
            degrees += math.degrees(float(rotation_angle(start[0, :, :3].T @ world[:, :3]))) / 2
            moved += float((start[0, :, 3] - world[:, 3]).norm()) / 2
    first, second = frames
    joined = {
        k: torch.where(dark.view(*dark.shape, *[1] * (v.ndim - 2)), v, second[k]) for k, v in first.items()
    }
    return joined, Refined(degrees, moved, good)
