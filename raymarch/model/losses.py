"""From what rays saw and what they should have seen to named losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymarch.model.trust import Trust
from raymarch.ops.losses import (
    depth_ds_nerf,
    depth_urf,
    distortion,
    interlevel,
    orientation,
    predicted_normals,
    random_colour,
)
from raymarch.types import Pixels, Rendering, Samples

BACKGROUNDS = ("last_sample", "black", "white", "random")
DEPTH_KINDS = ("ds_nerf", "urf")
COLOUR_STREAM = 64  # of the random colours; pixels use 0 and the sampler the numbers after it


@dataclass(frozen=True)
class LossesConfig:
    """Weights of the losses. The defaults are those of F3RM on nerfacto."""

    rgb: float = 1.0
    interlevel: float = 1.0
    distortion: float = 0.002
    orientation: float = 1e-4  # reaches ray directions, so poses; a field's normals have no graph
    predicted_normals: float = 1e-3
    feature: float = 1e-3
    depth: float = 0.0  # 1e-3 in nerfstudio's depth-nerfacto
    depth_kind: str = "ds_nerf"  # or urf
    depth_sigma: float = 0.01  # scene units; how well the measured depths are known
    # Gradients of the field times min(1, distance^2): near the camera many pixels share few samples, and
    # floaters grow there. On in all presets: +1.1 dB on held-out fox photos (docs/performance.md).
    # nerfacto: off.
    gradient_scaling: bool = True


def losses(
    rendering: Rendering,
    pixels: Pixels,
    config: LossesConfig,
    poses_regulariser: Tensor | None = None,
    counter: Tensor | None = None,
    background: str = "last_sample",
    feature_heads: dict[str, slice] | None = None,
    trust: Trust | None = None,
) -> dict[str, Tensor]:
    """Named losses, each a scalar already weighted; training minimises their sum.

    Always rgb; interlevel and distortion where the rendering has proposals and samples; feature, orientation,
    predicted_normals and depth where the rendering and the pixels have what they compare; poses if
    `poses_regulariser` is given. Truth with an alpha channel is put over `background`: black (also for
    last_sample), white, or a random colour per ray, which then also lies behind the rendering. The colour
    comes from `counter` [2] int64 = (seed, step), or from torch's generator without one. A loss's value is
    reported even where nothing it depends on can change, as on steps that leave the proposals alone.

    `feature_heads` says which channels belong to which head; where there are several, each has a loss of its
    own, `feature_` and its name, with the same weight: the mean square over the channels of that head.

    With `trust`, a ray's colour error counts as its camera is trusted, and the errors are remembered.

    interlevel holds the final weights constant, orientation and predicted_normals all weights; distortion,
    feature and depth move them. ValueError for unknown words and where there is no truth.
    """
    if config.depth_kind not in DEPTH_KINDS:
        raise ValueError(
            f"losses: depth_kind is {config.depth_kind!r}, expected one of {', '.join(DEPTH_KINDS)}"
        )
    pred, truth = blended(rendering, pixels, background, counter)
    if trust is None:
        found = {"rgb": config.rgb * F.mse_loss(pred, truth)}
    else:
        squared = (pred - truth).square().mean(-1)
        found = {"rgb": config.rgb * (trust.weights()[pixels.camera] * squared).mean()}
        trust.observe(pixels.camera, squared.detach())
    weights, samples, field = rendering.weights, rendering.samples, rendering.field
    if weights is not None and samples is not None:
        if rendering.proposals:
            levels = [interlevel(samples.s, weights, p.samples.s, p.weights) for p in rendering.proposals]
            found["interlevel"] = config.interlevel * _mean(levels)
        found["distortion"] = config.distortion * distortion(samples.s, weights).mean()
    if rendering.feature is not None and pixels.feature is not None:
        seen, wanted = rendering.feature, pixels.feature.float()
        heads = {"feature": slice(None)}
        if feature_heads is not None and len(feature_heads) > 1:
            heads = {f"feature_{name}": channels for name, channels in feature_heads.items()}
        for name, channels in heads.items():
            found[name] = config.feature * F.mse_loss(seen[:, channels], wanted[:, channels])
    if weights is not None and field is not None and field.normals is not None:
        still = weights.detach()
        if rendering.rays is not None:
            away = orientation(still, field.normals, rendering.rays.directions)
            found["orientation"] = config.orientation * away.mean()
        if field.predicted_normals is not None:
            off = predicted_normals(still, field.normals, field.predicted_normals)
            found["predicted_normals"] = config.predicted_normals * off.mean()
    if pixels.depth is not None and config.depth > 0:
        found["depth"] = config.depth * _depth(rendering, pixels.depth, config)
    if poses_regulariser is not None:
        found["poses"] = poses_regulariser
    return found


def blended(
    rendering: Rendering, pixels: Pixels, background: str, counter: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rendered and true colours over the same background, [R, 3] each."""
    pred, truth = rendering.rgb, pixels.rgb
    if background not in BACKGROUNDS:
        raise ValueError(f"losses: background is {background!r}, expected one of {', '.join(BACKGROUNDS)}")
    if pred is None or truth is None:
        missing = "rendering" if pred is None else "pixels"
        raise ValueError(f"losses: {missing}.rgb is None, expected colours")
    if truth.shape[-1] == 3:
        return pred, truth
    colour, alpha = truth[..., :3], truth[..., 3:]
    if background == "white":
        return pred, torch.lerp(torch.ones_like(colour), colour, alpha)
    if background != "random":
        return pred, colour * alpha
    if rendering.opacity is None:
        raise ValueError("losses: rendering.opacity is None, expected it where the background is random")
    behind = (
        random_colour(counter, len(pred), COLOUR_STREAM) if counter is not None else torch.rand_like(pred)
    )
    return pred + behind * (1 - rendering.opacity[:, None]), torch.lerp(behind, colour, alpha)


def _mean(levels: list[Tensor]) -> Tensor:
    """The mean over rays of the levels' sum."""
    total = levels[0]
    for level in levels[1:]:
        total = total + level
    return total.mean()


def _depth(rendering: Rendering, depth: Tensor, config: LossesConfig) -> Tensor:
    """The mean over rays and levels, proposals included."""
    levels: list[tuple[Samples, Tensor]] = [(p.samples, p.weights) for p in rendering.proposals]
    if rendering.samples is not None and rendering.weights is not None:
        levels.append((rendering.samples, rendering.weights))
    expected = rendering.expected_depth
    if not levels or (config.depth_kind == "urf" and expected is None):
        lacking = "weights" if not levels else "expected_depth"
        raise ValueError(f"losses: rendering.{lacking} is None, expected it for the depth loss")
    if config.depth_kind == "urf":
        assert expected is not None
        terms = [depth_urf(w, s.t, depth, expected, config.depth_sigma) for s, w in levels]
    else:
        terms = [depth_ds_nerf(w, s.t, depth, config.depth_sigma) for s, w in levels]
    return _mean(terms) / len(terms)
