"""Rendering, Pixels -> named losses, each already weighted; training minimises their sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymarch.ops.losses import (
    depth_ds_nerf,
    depth_urf,
    distortion,
    interlevel,
    orientation,
    predicted_normals,
    random_colour,
)
from raymarch.types import Pixels, Rendering

RANDOM_STREAM = 101  # of the generator: background colours must not repeat the jitter's numbers


@dataclass(frozen=True)
class LossesConfig:
    """How much each term weighs."""

    rgb: float = 1.0  # mean squared error
    interlevel: float = 1.0  # proposals must cover the final weights (mip-NeRF 360)
    distortion: float = 0.002  # weights along a ray gather (mip-NeRF 360)
    orientation: float = 1e-4  # normals that face away (Ref-NeRF); reaches poses only, spec 0.5
    predicted_normals: float = 1e-3
    feature: float = 1e-3  # mean squared error of features
    depth: float = 0.0
    depth_kind: str = "ds_nerf"  # ds_nerf | urf
    depth_sigma: float = 0.01  # how sure measured depths are, scene units


def losses(
    rendering: Rendering,
    pixels: Pixels,
    config: LossesConfig,
    poses_regulariser: Tensor | None = None,
    counter: Tensor | None = None,
    background: str = "last_sample",
) -> dict[str, Tensor]:
    """Weighted scalar terms by name.

    `rendering` must come from a training pass. rgb and whatever truth `pixels` brings are compared; with a
    transparent truth the background decides what it lies on. `counter` [2] int64 feeds random backgrounds.
    """
    assert rendering.rgb is not None and rendering.weights is not None and rendering.samples is not None
    assert pixels.rgb is not None and rendering.field is not None and rendering.rays is not None
    predicted, truth = blended(rendering.rgb, rendering.opacity, pixels.rgb, background, counter)
    terms = {"rgb": config.rgb * F.mse_loss(predicted, truth)}
    w, s = rendering.weights, rendering.samples.s
    seen = w.detach()
    if rendering.proposals:
        levels = [interlevel(s, seen, p.samples.s, p.weights) for p in rendering.proposals]
        terms["interlevel"] = config.interlevel * torch.stack(levels).sum(0).mean()
    terms["distortion"] = config.distortion * distortion(s, w).mean()
    if rendering.feature is not None and pixels.feature is not None:
        terms["feature"] = config.feature * F.mse_loss(rendering.feature, pixels.feature)
    normals, guesses = rendering.field.normals, rendering.field.predicted_normals
    if normals is not None and guesses is not None:
        terms["orientation"] = config.orientation * orientation(seen, normals, rendering.rays.directions).mean()
        terms["predicted_normals"] = config.predicted_normals * predicted_normals(seen, normals, guesses).mean()
    if config.depth and pixels.depth is not None:
        terms["depth"] = config.depth * depth_term(rendering, pixels.depth, config)
    if poses_regulariser is not None:
        terms["poses"] = poses_regulariser
    return terms


def blended(
    rgb: Tensor, opacity: Tensor | None, truth: Tensor, background: str, counter: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Prediction and truth [R, 3] on the same background; a truth without alpha is left as it is."""
    if truth.shape[-1] == 3:
        return rgb, truth
    colour, alpha = truth[:, :3], truth[:, 3:]
    if background == "white":
        return rgb, colour * alpha + (1 - alpha)
    if background != "random":
        return rgb, colour * alpha
    assert opacity is not None and counter is not None
    behind = random_colour(counter, len(rgb), RANDOM_STREAM)
    return rgb + behind * (1 - opacity[:, None]), colour * alpha + behind * (1 - alpha)


def depth_term(rendering: Rendering, depth: Tensor, config: LossesConfig) -> Tensor:
    """The chosen depth loss, a mean over rays; rays without a measurement count as zero."""
    assert rendering.weights is not None and rendering.samples is not None
    t = rendering.samples.t
    if config.depth_kind == "ds_nerf":
        return depth_ds_nerf(rendering.weights, t, depth, config.depth_sigma).mean()
    if config.depth_kind == "urf":
        assert rendering.expected_depth is not None
        return depth_urf(rendering.weights, t, depth, rendering.expected_depth, config.depth_sigma).mean()
    raise ValueError(f"model.losses.depth_kind is {config.depth_kind!r}, expected ds_nerf or urf")
