"""A training step's pipeline in fused stages, forward and backward by hand: few launches and no autograd.

    rays_to_samples -> samples_to_field -> field_to_pixels      and, back, the same in reverse: rays_to_pixels

Each stage equals its composition in `raymarch.model` (python_tests/test_fused.py): the same numbers from
the same counter, the same losses, the same gradients. What the fused ops do not cover stays composed;
`unsupported` says why. Shapes: R rays, P = R * S points of the last level, ray after ray.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raymarch.model import Model
from raymarch.model.field_to_pixels import FieldToPixels, Seen, Weighing
from raymarch.model.gradients import Gradients
from raymarch.model.rays_to_samples import RaysToSamples
from raymarch.model.samples_to_field import SamplesToField
from raymarch.types import Cameras, Pixels


def unsupported(model: Model) -> str | None:
    """Why a model cannot train in fused stages, or None where it can."""
    config = model.config
    if not model.native:
        return "grids and networks of another backend are composed only (model.fields.backend)"
    if config.losses.depth > 0:
        return "the depth loss is composed only (model.losses.depth)"
    if model.fields.feature is not None and len(model.fields.feature.heads) > 1:
        return "the losses of several feature heads are composed only (model.fields.feature.heads)"
    poses = config.poses
    if model.trust is not None:
        return "cameras are distrusted by the composed losses only (model.poses.outlier_factor)"
    if model.refines and (poses.coarse_resolution > 0 or poses.smooth_slope):
        return "coarse and smooth slopes are composed only (model.poses.coarse_resolution, smooth_slope)"
    if config.renderer.feature_path != "deferred":
        return "features are composited hidden only (model.renderer.feature_path)"
    return None


class FusedPipeline:
    """A model's training step. Owns nothing but room for sums of gradients and constants on the device."""

    def __init__(self, model: Model, cameras: Cameras):
        if (why := unsupported(model)) is not None:
            raise ValueError(f"fused stages cannot train this model: {why}; use train.trainer.fused=false")
        # What networks read on tensor cores is rounded anyway.
        encoded = torch.float16 if cameras.camera_to_worlds.is_cuda else None
        self.rays_to_samples = RaysToSamples(model, cameras, encoded)
        self.samples_to_field = SamplesToField(model, encoded, cameras.camera_to_worlds.device)
        self.field_to_pixels = FieldToPixels(model)
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._unit: Tensor | None = None

    @torch.no_grad()
    def rays_to_pixels(
        self,
        pixels: Pixels,
        counter: Tensor | None = None,
        anneal: Tensor | None = None,
        update: bool = True,
        jitter: str | None = None,
        move: bool = True,
    ) -> tuple[Seen, Weighing, Tensor | None, Gradients]:
        """Losses of pixels and their gradients: what is seen, how to weigh it, the poses' penalty, gradients.

        Arguments as `Model.forward` while training; gradients are those of the weighted losses' sum, without
        those of poses and lenses where not `move`. Adds to the gradients of tables and codes: whoever uses
        them sets them to zero again.
        """
        found = Gradients(self._sums)
        rays = self.rays_to_samples(pixels, counter, anneal, jitter, update, move)
        at = self.samples_to_field(pixels, rays)
        seen = self.field_to_pixels(pixels, rays, at, counter)
        weighing = self.field_to_pixels.weighing(pixels, seen)
        t: list[Tensor] = []
        grads_y: list[Tensor] = []
        if update:  # first, because their activations are large
            t, grads_y = self.rays_to_samples.proposals_backward(rays, seen.w, weighing.scales[1:2], found)
        back = self.field_to_pixels.backward(pixels, rays, at, seen, weighing, counter, found)
        grad_y, *to_rays = self.samples_to_field.backward(rays, at, seen.w, *back, found)
        if grad_y is not None:
            t.append(rays.last.t)
            grads_y.append(grad_y.view(rays.last.y.shape))
        penalised = "poses" in weighing.names
        one = self._one(pixels.xy) if penalised else None
        self.rays_to_samples.backward(pixels, rays, t, grads_y, to_rays[0], to_rays[1], one, found)
        return seen, weighing, rays.penalty if penalised else None, found

    def _one(self, like: Tensor) -> Tensor:
        if self._unit is None:
            self._unit = torch.ones(1, device=like.device)
        return self._unit

    def forget(self) -> None:
        """Set all sums of gradients to zero."""
        for total in self._sums.values():
            total.zero_()
