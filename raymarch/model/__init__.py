"""The pipeline, in the order a ray meets it: poses, rays, sampler, fields, renderer, losses."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from raymarch.model.exact import density_at_once
from raymarch.model.fields import Fields, FieldsConfig
from raymarch.model.intrinsics import Intrinsics, IntrinsicsConfig
from raymarch.model.losses import LossesConfig, losses
from raymarch.model.poses import Poses, PosesConfig
from raymarch.model.rays import RaysConfig, generate
from raymarch.model.reduced import ReducedConfig
from raymarch.model.renderer import Renderer, RendererConfig
from raymarch.model.sampler import Sampler, SamplerConfig
from raymarch.model.trust import Trust
from raymarch.ops.losses import scale_gradients
from raymarch.types import Cameras, Field, Pixels, Rendering, Samples, Sight

# What a rendering may hold besides rgb. `depth` stands for median and expected depth.
HEADS = ("rgb", "depth", "opacity", "normals", "predicted_normals", "feature")


@dataclass(frozen=True)
class ModelConfig:
    poses: PosesConfig = field(default_factory=PosesConfig)
    intrinsics: IntrinsicsConfig = field(default_factory=IntrinsicsConfig)
    rays: RaysConfig = field(default_factory=RaysConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    renderer: RendererConfig = field(default_factory=RendererConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    reduced: ReducedConfig = field(default_factory=ReducedConfig)


def calmed(field: Field, samples: Samples) -> Field:
    """The same field, whose gradients shrink near the camera (Philip and Deschaintre 2023). Not those of
    features, as in F3RM."""

    def calm(x: Tensor | None) -> Tensor | None:
        return None if x is None else scale_gradients(x, samples.t)

    density = scale_gradients(field.density, samples.t)
    return replace(
        field, density=density, rgb=calm(field.rgb), predicted_normals=calm(field.predicted_normals)
    )


class Model(nn.Module):
    """Pixels in, rendering out.

    `cameras` is the number of training cameras: each has a pose adjustment and an appearance code.
    """

    def __init__(self, config: ModelConfig, cameras: int):
        super().__init__()
        self.config = config
        self.poses = Poses(config.poses, cameras)
        self.intrinsics = Intrinsics(config.intrinsics, cameras)
        factor = config.poses.outlier_factor
        self.trust = Trust(cameras, factor) if factor and config.poses.mode != "off" else None
        self.sampler = Sampler(config.sampler, config.poses.through_proposals)
        self.fields = Fields(config.fields, cameras)
        self.renderer = Renderer(config.renderer)

    @property
    def native(self) -> bool:
        """Whether all of it runs in raymarch's own kernels, which fuse and which CUDA graphs may hold."""
        return self.config.fields.backend == "native"

    @property
    def refines(self) -> bool:
        """Whether training moves rays: poses or lenses."""
        return self.poses.adjustment is not None or self.intrinsics.numbers is not None

    def heads(self) -> frozenset[str]:
        """The heads that training needs."""
        wanted = {"rgb", "depth", "opacity"}
        if self.fields.feature is not None:
            wanted.add("feature")
        if self.config.fields.radiance.predicted_normals:
            wanted |= {"normals", "predicted_normals"}
        return frozenset(wanted)

    def forward(
        self,
        pixels: Pixels,
        cameras: Cameras,
        *,
        train: bool = False,
        counter: Tensor | None = None,
        anneal: Tensor | None = None,
        detail: Tensor | None = None,
        update_proposals: bool = True,
        move: bool = True,
        heads: frozenset[str] | None = None,
    ) -> Rendering:
        """Render pixels of cameras.

        `train` refines poses and lenses, jitters samples and uses each camera's appearance; `counter` [2]
        int64 = (seed, step) feeds the jitter, `anneal` [1] sharpens proposal weights, and `detail` [1] is the
        log2 of the finest grid resolution that leads poses, all on the device. Without `move` no gradient
        flows to poses and lenses.
        """
        heads = self.heads() if heads is None else heads
        with contextlib.nullcontext() if move else torch.no_grad():
            rays = generate(
                pixels,
                self.intrinsics(cameras) if train else cameras,
                self.poses() if train else None,
                self.config.rays,
                train,
                compose=self.config.poses.compose,
            )
        if detail is not None and self.refines:
            poses = self.config.poses
            rays = replace(rays, sight=Sight(detail, poses.smooth_slope, poses.blur_map))
        densities: list = list(self.fields.proposals)
        if train and not update_proposals and rays.sight is None and pixels.xy.is_cuda and self.native:
            densities = [density_at_once(field) for field in densities]  # as the fused stages do
        samples, proposals = self.sampler(rays, densities, counter, anneal, train, update_proposals)
        field = self.fields(rays, samples, heads, train, self.config.poses.through_directions)
        if train and self.config.losses.gradient_scaling:
            field = calmed(field, samples)
        detach = self.config.fields.feature.detach_weights
        return self.renderer(rays, samples, field, proposals, train, detach)

    def losses(
        self, rendering: Rendering, pixels: Pixels, counter: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Named losses, each already weighted; training minimises their sum."""
        return losses(
            rendering,
            pixels,
            self.config.losses,
            poses_regulariser=self.poses.regulariser(),
            counter=counter,
            background=self.config.renderer.background,
            feature_heads=None if self.fields.feature is None else self.fields.feature.heads,
            trust=self.trust,
        )

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the schedule they follow."""
        named = {
            "proposals": list(self.fields.proposals.parameters()),
            "fields": list(self.fields.radiance.parameters()),
            "feature": list(self.fields.feature.parameters()) if self.fields.feature is not None else [],
            "poses": list(self.poses.parameters()),
            "intrinsics": list(self.intrinsics.parameters()),
        }
        return {name: params for name, params in named.items() if params}


__all__ = ["HEADS", "Model", "ModelConfig"]
