"""Samples, Field -> Rendering: the weights once, then every head under them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from raymarch.ops.composite import composite
from raymarch.ops.weights import weights
from raymarch.types import Field, Proposal, Rays, Rendering, Samples

BACKGROUNDS = ("last_sample", "black", "white", "random")
FEATURE_PATHS = ("deferred", "per_sample")
DEPTH_CLIPS = ("ray", "batch")


@dataclass(frozen=True)
class RendererConfig:
    background: str = "last_sample"  # last_sample | black | white | random
    feature_path: str = "deferred"  # deferred: last layer once per ray | per_sample: the same, the slow way
    expected_depth_clip: str = "ray"  # ray | batch (nerfstudio's: depends on what else is in the batch)


class Renderer(nn.Module):
    def __init__(self, config: RendererConfig):
        super().__init__()
        for name, known in (
            ("background", BACKGROUNDS),
            ("feature_path", FEATURE_PATHS),
            ("expected_depth_clip", DEPTH_CLIPS),
        ):
            if (value := getattr(config, name)) not in known:
                raise ValueError(f"model.renderer.{name} is {value!r}, expected one of {', '.join(known)}")
        self.config = config

    def forward(
        self,
        rays: Rays,
        samples: Samples,
        field: Field,
        proposals: tuple[Proposal, ...] = (),
        train: bool = False,
        detach_feature_weights: bool = False,
    ) -> Rendering:
        """Composite whatever heads the field has. While training, what losses need is kept.

        `detach_feature_weights` keeps the feature loss away from the density. Outside training NaN colours
        become black and rgb is clamped to 0..1.
        """
        w = weights(field.density, samples.t.diff().clamp_min(0))
        hidden = field.feature
        per_sample = self.config.feature_path == "per_sample" and field.feature_layer is not None
        if hidden is not None and per_sample:
            hidden = hidden @ field.feature_layer.T  # type: ignore[union-attr]
        apart = hidden is not None and detach_feature_weights
        out = composite(
            w,
            samples.t,
            field.rgb,
            field.normals,
            field.predicted_normals,
            None if apart else hidden,
            self.config.background,
            clean=not train,
        )
        summed = composite(w.detach(), samples.t, feature=hidden).feature if apart else out.feature
        return Rendering(
            rgb=out.rgb,
            opacity=out.opacity,
            depth=out.depth,
            expected_depth=self._expected(out.expected_depth, w, samples),
            normals=out.normals,
            predicted_normals=out.predicted_normals,
            feature=summed if per_sample else self._features(summed, field),
            feature_hidden=None if per_sample else summed,
            weights=w if train else None,
            samples=samples if train else None,
            field=field if train else None,
            rays=rays if train else None,
            proposals=proposals if train else (),
        )

    def _features(self, summed: Tensor | None, field: Field) -> Tensor | None:
        """The last, linear layer commutes with compositing: W sum_i w_i h_i = sum_i w_i W h_i."""
        if summed is None or field.feature_layer is None:
            return None
        return summed @ field.feature_layer.T

    def _expected(self, clipped: Tensor, w: Tensor, samples: Samples) -> Tensor:
        if self.config.expected_depth_clip == "ray":
            return clipped
        middles = (samples.t[:, 1:] + samples.t[:, :-1]) / 2
        mean = (w * middles).sum(-1) / (w.sum(-1) + 1e-10)
        return mean.clamp(middles.min(), middles.max())
