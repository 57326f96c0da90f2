"""Pictures of pixels at full quality: the pipeline as it trains, and on CUDA the same with stages in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raymarch.model.fields import ProposalField
from raymarch.model.rays import generate
from raymarch.model.reduced import networks_fit, pictured, pictures
from raymarch.ops.composite import composite
from raymarch.ops.rays_to_samples import resample
from raymarch.ops.sample import sample_spaced
from raymarch.ops.samples_to_pixels import samples_to_density
from raymarch.types import Cameras, Pixels, Rays, Rendering, Samples

if TYPE_CHECKING:
    from raymarch.model import Model

FEATURE_RAYS = 4096  # whose feature samples are in memory at once
FUSED_HEADS = frozenset({"rgb", "depth", "opacity", "feature_hidden"})


def heads_of(rendering: Rendering) -> dict[str, Tensor]:
    """The per-ray tensors of a rendering by name."""
    names = [f.name for f in fields(Rendering)]
    skip = {"weights", "samples", "field", "rays", "proposals"}
    found = {n: getattr(rendering, n) for n in names if n not in skip}
    return {n: v for n, v in found.items() if isinstance(v, Tensor)}


def density_in_one(field: ProposalField) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The field's density of origins, directions [R, 3] and edges [R, S + 1] through `samples_to_density`.

    None where that does not run its network.
    """
    config = field.config
    if field.grid.outputs > 16 or config.layers != 1 or config.hidden > 64:
        return None

    def density(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
        stored = field.grid._looked_up()
        return samples_to_density(
            origins,
            directions,
            t,
            field.grid.table if stored is None else stored,
            field.grid.settings,
            field.mlp.params,
            config.hidden,
            config.average_init_density,
            field.mlp.padding,
            field.norm,
            field.grid.interpolation,
            field.grid.layout,
        )

    return density


def density_at_once(field: ProposalField) -> Callable[[Rays, Samples], Tensor]:
    """The field, through one op where that runs its network."""
    density = density_in_one(field)
    return field if density is None else lambda rays, at: density(rays.origins, rays.directions, at.t)


def final_samples(model: Model, rays: Rays) -> Samples:
    """The sampler's last samples in evaluation, a proposal level in two ops where these run its network."""
    densities = [density_in_one(field) for field in model.fields.proposals]  # type: ignore[arg-type]
    if any(density is None for density in densities):
        return model.sampler(rays, list(model.fields.proposals))[0]  # type: ignore[arg-type]
    config, near, far = model.config.sampler, rays.near, rays.far
    samples = Samples(*sample_spaced(near, far, config.samples[0], config.spacing))
    for density, count in zip(densities, config.samples[1:], strict=True):
        assert density is not None
        found = density(rays.origins, rays.directions, samples.t).view(-1, 1)
        _, s, t, _ = resample(
            found, None, 1.0, samples.s, samples.t, near, far, rays.origins, rays.directions, count,
            config.spacing, padding=config.padding, norm=model.config.fields.norm, positions=False,
        )  # fmt: skip
        samples = Samples(s, t)
    return samples


def render_pixels(
    model: Model, pixels: Pixels, cameras: Cameras, heads: frozenset[str], fused: bool = True
) -> dict[str, Tensor]:
    """The heads of pixels by name, in evaluation; `feature_hidden` is the composited hidden layer alone.

    `fused` allows ops that do several stages at once, on CUDA: the same samples, colours to rounding.
    """
    renderer = model.config.renderer
    plain = renderer.expected_depth_clip == "ray" and renderer.feature_path == "deferred"
    allowed = fused and pixels.xy.is_cuda and plain and heads <= FUSED_HEADS
    if not allowed or not networks_fit(model.fields.radiance):
        return heads_of(model(pixels, cameras, train=False, heads=heads))
    rays = generate(pixels, cameras, None, model.config.rays, False)
    samples = final_samples(model, rays)
    seen = pictures(model, rays, samples.t, "feature_hidden" in heads)
    found = pictured(seen)
    if "feature_hidden" in heads:
        assert seen.weights is not None
        found["feature_hidden"] = hidden(model, rays, samples, seen.weights)
    return found


def hidden(model: Model, rays: Rays, samples: Samples, w: Tensor) -> Tensor:
    """The composited hidden layer [R, H] under weights w [R, S], few rays at a time: samples are wide."""
    assert model.fields.feature is not None
    parts = []
    for first in range(0, len(w), FEATURE_RAYS):
        part = slice(first, first + FEATURE_RAYS)
        some = Samples(samples.s[part], samples.t[part])
        lines = replace(rays, origins=rays.origins[part], directions=rays.directions[part])
        summed = composite(w[part], some.t, feature=model.fields.feature(lines, some)).feature
        assert summed is not None
        parts.append(summed)
    return torch.cat(parts)
