"""The last fused stage: weights, heads, per-ray losses and how they add up, forward and backward by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raymarch.model import Model
from raymarch.model.gradients import Gradients
from raymarch.model.losses import COLOUR_STREAM
from raymarch.model.rays_to_samples import RaySamples
from raymarch.model.samples_to_field import SampledField
from raymarch.ops.feature_loss import feature_loss_into, feature_parts
from raymarch.ops.field_to_pixels import BACKGROUNDS, field_to_pixels_backward, field_to_pixels_into
from raymarch.ops.samples_to_field import add_rows
from raymarch.types import Pixels

TERMS = ("rgb", "interlevel", "distortion", "feature", "orientation", "predicted_normals", "poses")


@dataclass(frozen=True)
class Seen:
    """What rays see and the losses of it: rows of losses [rows, R], not yet weighted."""

    w: Tensor
    colour: Tensor
    opacity: Tensor
    hidden: Tensor | None
    losses: Tensor
    grad_hidden: Tensor | None = None
    grad_layer: Tensor | None = None


@dataclass(frozen=True)
class Weighing:
    """How rows of losses become terms: row k times scales[k], summed over rays, belongs to term owner[k]."""

    names: tuple[str, ...]
    scales: Tensor  # [rows]
    owner: Tensor  # [rows] int64
    pixel_rows: int


class FieldToPixels:
    """Fields to what rays see of them and its losses."""

    def __init__(self, model: Model):
        self.model, self.config = model, model.config
        self._weighings: dict[tuple, Weighing] = {}

    def __call__(self, pixels: Pixels, rays: RaySamples, at: SampledField, counter: Tensor | None) -> Seen:
        """Weights, heads and per-ray losses; with features, the gradients of their loss already."""
        last = rays.last
        count, samples = last.t.shape[0], last.t.shape[1] - 1
        assert pixels.rgb is not None
        hidden = None if at.hidden is None else at.hidden.view(count, samples, at.hidden.shape[-1])
        predicted = None if at.predicted is None else at.predicted.view(count, samples, 3)
        directions = None if at.normals is None else rays.directions
        levels = [x for x in rays.levels[:-1] if x.w is not None]
        feature = self.model.fields.feature
        kinds = 3 + (at.normals is not None) + (predicted is not None)
        parts = 0 if feature is None or hidden is None else feature_parts(hidden, feature.layer)
        losses = at.sigma.new_empty(kinds + parts, count)
        w, colour, opacity, summed = field_to_pixels_into(
            losses[:kinds], at.sigma.view(count, samples), last.s, last.t,
            at.rgb.view(count, samples, 3), hidden, at.normals, predicted, directions, pixels.rgb,
            counter, [x.s for x in levels], [x.w for x in levels if x.w is not None],
            self._background(pixels), COLOUR_STREAM,
        )  # fmt: skip
        if hidden is None:
            return Seen(w, colour, opacity, None, losses)
        assert pixels.feature is not None and feature is not None
        grads = feature_loss_into(losses[kinds:], summed, feature.layer.detach(), pixels.feature)
        return Seen(w, colour, opacity, summed, losses, *grads)

    def _background(self, pixels: Pixels) -> int:
        return BACKGROUNDS[self.config.renderer.background]

    def weighing(self, pixels: Pixels, seen: Seen) -> Weighing:
        """Constant on the device; made in the first steps, which no graph captures."""
        rays, rows = seen.losses.shape[1], seen.losses.shape[0]
        width = 0 if pixels.feature is None else pixels.feature.shape[1]
        key = (rays, rows, width)
        if key not in self._weighings:
            self._weighings[key] = self._weigh(rays, rows, width, seen.losses.device)
        return self._weighings[key]

    def _weigh(self, rays: int, rows: int, width: int, device: torch.device) -> Weighing:
        config, fields = self.config.losses, self.config.fields
        per_ray = 1 / max(rays, 1)
        names = ["rgb", "interlevel", "distortion"]
        weights = [config.rgb * per_ray / 3, config.interlevel * per_ray, config.distortion * per_ray]
        if fields.radiance.predicted_normals:
            names += ["orientation", "predicted_normals"]
            weights += [config.orientation * per_ray, config.predicted_normals * per_ray]
        pixel_rows = len(names)
        if rows > pixel_rows:
            names += ["feature"] * (rows - pixel_rows)
            weights += [config.feature * per_ray / max(width, 1)] * (rows - pixel_rows)
        present = set(names) - (set() if self.model.fields.proposals else {"interlevel"})
        poses = self.config.poses
        if self.model.poses.adjustment is not None and (poses.translation_penalty or poses.rotation_penalty):
            present.add("poses")
        terms = tuple(term for term in TERMS if term in present)
        owner = [terms.index(name) if name in terms else 0 for name in names]
        if not self.model.fields.proposals:
            weights[1] = 0.0
        scales = torch.tensor(weights, dtype=torch.float32, device=device)
        return Weighing(terms, scales, torch.tensor(owner, device=device), pixel_rows)

    def backward(
        self,
        pixels: Pixels,
        rays: RaySamples,
        at: SampledField,
        seen: Seen,
        weighing: Weighing,
        counter: Tensor | None,
        found: Gradients,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of density, colours, hidden vectors, predicted normals and directions.

        Those of hidden vectors are of every sample [R, S, H], or where they leave the density alone of every
        ray [R, H]: a sample's is its weight times that.
        """
        last = rays.last
        count, samples = last.t.shape[0], last.t.shape[1] - 1
        alone = self.config.fields.feature.detach_weights  # hidden vectors then want nothing but weights
        hidden = None
        if at.hidden is not None and not alone:
            hidden = at.hidden.view(count, samples, at.hidden.shape[-1])
        rows, scales = weighing.pixel_rows, weighing.scales
        hidden_scale = None
        if seen.grad_layer is not None:
            hidden_scale = scales[rows : rows + 1]
            assert self.model.fields.feature is not None
            layer = self.model.fields.feature.layer
            found.of[layer] = add_rows(seen.grad_layer.flatten(1), hidden_scale).view(layer.shape)
        to_predicted = at.predicted is not None
        to_directions = at.normals is not None and rays.adjustment is not None
        directions = rays.directions if to_directions else None
        assert pixels.rgb is not None
        grad_sigma, grad_rgb, grad_hidden, grad_predicted, grad_directions = field_to_pixels_backward(
            at.sigma.view(count, samples), last.s, last.t, at.rgb.view(count, samples, 3), hidden, at.normals,
            directions, pixels.rgb, counter, self._background(pixels), COLOUR_STREAM,
            self.config.losses.gradient_scaling, alone, seen.w, seen.colour, seen.opacity, scales[:rows],
            seen.grad_hidden if hidden is not None else None, hidden_scale, to_predicted, to_directions,
        )  # fmt: skip
        if at.hidden is not None and alone:  # a row per ray, of which each sample has its weight's share
            assert seen.grad_hidden is not None and hidden_scale is not None
            grad_hidden = seen.grad_hidden.sum(0) * hidden_scale
        return (
            grad_sigma,
            grad_rgb,
            grad_hidden if at.hidden is not None else None,
            grad_predicted if to_predicted else None,
            grad_directions if to_directions else None,
        )
