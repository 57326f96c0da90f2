"""Pixels and cameras to rays, with the stretch of each ray that will be searched."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from raymarch.ops.box import MISS, near_far
from raymarch.ops.rays import EYE_DISTANCE, rays
from raymarch.types import Cameras, Pixels, Rays


@dataclass(frozen=True)
class RaysConfig:
    """Where rays begin and end, and how lenses are read. Distances are in scene units."""

    near: float = 0.05
    far: float = 1000.0
    eval_near: float | None = None  # None: as in training, which never saw what is nearer; nerfstudio uses 0
    box: tuple[float, ...] | None = None  # six numbers, low corner then high: search inside it only
    tangential: str = "opencv"  # or nerfstudio_0.3, whose p1 has the other sign
    eye_distance: float = EYE_DISTANCE  # of stereo panoramas


@lru_cache(maxsize=16)
def box_on(box: tuple[float, ...], device: torch.device) -> Tensor:
    """The box on a device, kept: a captured step must not copy from the host."""
    if len(box) != 6 or any(low >= high for low, high in zip(box[:3], box[3:], strict=False)):
        raise ValueError(f"rays: box is {box}, expected six numbers, the low corner and then the high one")
    return torch.tensor(box, dtype=torch.float32, device=device).view(2, 3)


def span(origins: Tensor, directions: Tensor, config: RaysConfig, train: bool) -> tuple[Tensor, Tensor]:
    """near and far [R]: the planes of the config or, inside them, where a ray crosses its box.

    A ray that misses the box gets a stretch of almost no length at the near plane.
    """
    plane = config.near if train or config.eval_near is None else config.eval_near
    if not 0 <= plane < config.far:
        raise ValueError(f"rays: near is {plane} and far is {config.far}, expected 0 <= near < far")
    near, far = (origins.new_full((origins.shape[0],), x) for x in (plane, config.far))
    if config.box is None:
        return near, far
    enters, leaves = near_far(origins, directions, box_on(config.box, origins.device))
    missed = enters >= MISS
    near = torch.where(missed, near, enters.clamp(plane, config.far))
    far = torch.where(missed, near, leaves.clamp_max(config.far))
    return near, torch.maximum(far, near + 1e-6 * (1 + near))


def generate(
    pixels: Pixels,
    cameras: Cameras,
    adjustment: Tensor | None,
    config: RaysConfig,
    train: bool,
    compose: str | None = None,
) -> Rays:
    """The rays of pixels. `adjustment` [C, 3, 4] refines the cameras' poses, as PosesConfig.compose says.

    Gradients flow from origins and directions to the adjustment and the poses, not through near and far.
    """
    if adjustment is not None and compose is None:
        raise ValueError("generate: an adjustment was given without compose; pass poses.config.compose")
    origins, directions, area, norm, converged = rays(
        pixels.camera,
        pixels.xy,
        cameras.camera_to_worlds,
        cameras.intrinsics,
        cameras.distortion,
        cameras.lens,
        adjustment,
        compose or "camera",
        tangential=config.tangential,
        eye_distance=config.eye_distance,
    )
    near, far = span(origins, directions, config, train)
    return Rays(origins, directions, area, norm, near, far, pixels.camera, converged)
