"""Held-out cameras after pose refinement: as given, aligned to the refined ones, or each refined itself.

Refinement may move all cameras together, and a held-out camera that stays behind is judged for that and not
for the field. `align` moves held-out cameras as the training cameras went together; `refine` also removes
what each held-out pose lacks on its own, without ever judging pixels that the pose was fitted to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raymarch.data.alignment import Alignment, align, rotation_angle
from raymarch.train.evaluate import IMAGE_HEADS, PROTOCOL, ImageMetrics, over_background, render_image
from raymarch.train.localize import Level, LocalizeConfig, Localizer
from raymarch.train.metrics import psnr, ssim, ssim_protocol
from raymarch.train.runs import OpenRun, subset
from raymarch.types import LENSES, Cameras

POSES = ("none", "align", "refine")
REFINE = LocalizeConfig(
    rounds=0, levels=(Level(96, 96, 1.0, 1, 8), Level(192, 384, 0.7, 1, 8), Level(256, 1024, 0.5, 1, 10))
)
CUTTABLE = ("perspective", "fisheye", "fisheye624")  # half of whose photo is a photo of the same lens
_REST = "mean appearance code, PSNR with data range 1 averaged over images; " + ssim_protocol()
PROTOCOLS = {
    "none": PROTOCOL,
    "align": "held-out photos at the size given, poses moved by the similarity that takes the training poses "
    "as given to the refined ones (centres and rotations, least squares), " + _REST,
    "refine": "held-out photos at the size given, poses first aligned as by `align`; then the right half of "
    "each photo is rendered from the pose that fits its left half best, and the left half from the pose that "
    "fits the right one, fields fixed: no pixel is judged that its pose was fitted to; " + _REST,
}


@dataclass(frozen=True)
class Refined:
    """What refining one held-out pose did: the mean of its two halves."""

    degrees: float
    world_units: float
    halves: int  # of the two, those whose alignment converged; the others keep the aligned pose


def drift(run: OpenRun) -> Alignment:
    """The similarity from the training poses as given to the refined ones, scene units."""
    given = run.train_cameras(refined=False).camera_to_worlds
    return align(given, run.train_cameras().camera_to_worlds)


def aligned_cameras(run: OpenRun) -> Cameras:
    """The held-out cameras, moved as the training cameras went together."""
    cameras, went = run.test_cameras(), drift(run)
    poses = cameras.camera_to_worlds.double()
    rotation, translation = went.rotation.to(poses), went.translation.to(poses)
    centres = went.scale * (poses[..., 3] @ rotation.T) + translation
    moved = torch.cat([rotation @ poses[..., :3], centres[..., None]], -1)
    return replace(cameras, camera_to_worlds=moved.float())


def held_out_cameras(run: OpenRun, poses: str) -> Cameras:
    """The cameras that evaluation with `poses` begins with. ValueError for another word than POSES."""
    if poses not in POSES:
        raise ValueError(f"poses is {poses!r}, expected one of {', '.join(POSES)}")
    return run.test_cameras() if poses == "none" else aligned_cameras(run)


def cut(camera: Cameras, left: int, right: int) -> Cameras:
    """The camera of the columns left .. right of its photo."""
    shift = torch.tensor([0.0, 0.0, left, 0.0], device=camera.intrinsics.device)
    size = camera.size.clone()
    size[:, 0] = right - left
    return replace(camera, intrinsics=camera.intrinsics - shift, size=size)


def evaluate_refined(
    run: OpenRun, images: list[Tensor], names: list[str], background: str = "black"
) -> Iterator[tuple[ImageMetrics, dict[str, Tensor], Refined]]:
    """Metrics, rendering and correction of each held-out photo, by the protocol PROTOCOLS["refine"].

    ValueError for a lens whose photo cannot be cut in two.
    """
    cameras = aligned_cameras(run)
    localizer = Localizer(run, REFINE)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        camera = subset(cameras, (i,), run.device)
        lens = LENSES[int(camera.lens[0])]
        if lens not in CUTTABLE or image.shape[1] < 2:
            raise ValueError(
                f"{name}: poses 'refine' needs a photo that can be cut in two, got {lens}; use align"
            )
        truth = over_background(image.to(run.device), background)
        frame, refined = _swapped(localizer, camera, truth)
        row = ImageMetrics(name, float(psnr(frame["rgb"], truth)), float(ssim(frame["rgb"], truth)))
        yield row, frame, refined


def _swapped(localizer: Localizer, camera: Cameras, truth: Tensor) -> tuple[dict[str, Tensor], Refined]:
    """Each half of the photo, rendered from the pose that was found on the other half."""
    run, width = localizer.run, truth.shape[1]
    middle = width // 2
    start = run.world_from_scene.apply_poses(camera.camera_to_worlds.cpu().double())
    halves, degrees, moved, good = [], 0.0, 0.0, 0
    for own, other in (((middle, width), (0, middle)), ((0, middle), (middle, width))):
        found = localizer(truth[:, slice(*own)], cut(camera, *own), start, overlay=False)
        pose = found.camera.camera_to_worlds if found.converged else camera.camera_to_worlds
        good += found.converged
        if found.converged:
            world = found.camera_to_world
            degrees += math.degrees(float(rotation_angle(start[0, :, :3].T @ world[:, :3]))) / 2
            moved += float((start[0, :, 3] - world[:, 3]).norm()) / 2
        placed = replace(cut(camera, *other), camera_to_worlds=pose)
        halves.append(render_image(run.model, placed, 0, IMAGE_HEADS))
    left, right = halves
    return {k: torch.cat([left[k], right[k]], 1) for k in left}, Refined(degrees, moved, good)
