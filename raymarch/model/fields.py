"""Samples -> Field: what fills space. Proposal densities, the radiance field and the feature field.

Every field sees positions contracted into a cube and scaled to 0..1 (`raymarch.ops.sample.
sample_unit_positions`); points that contraction cannot tell from infinity arrive as (0, 0, 0) and have
density 0. Architectures follow nerfacto and F3RM (spec 7 and 8 restate them); every departure is a setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymarch.nn import NATIVE, Bricks, Fourier, Harmonics, HashGrid, bricks
from raymarch.ops.contract import contract_unit, norm_code
from raymarch.ops.inputs import colour_inputs
from raymarch.ops.mlp import density
from raymarch.ops.sample import positions, sample_unit_positions
from raymarch.types import Field, Rays, Samples


@dataclass(frozen=True)
class GridConfig:
    """A multiresolution hash grid in tiny-cuda-nn's layout."""

    levels: int = 16
    base_resolution: int = 16
    max_resolution: int = 2048
    log2_size: int = 19
    features: int = 2
    interpolation: str = "linear"  # linear | smoothstep
    storage: str = "auto"  # what lookups read: auto (half on CUDA) | float32 | float16 | bfloat16

    def build(self, bricks: Bricks = NATIVE) -> HashGrid:
        return bricks.grid(
            self.levels,
            self.base_resolution,
            self.max_resolution,
            self.log2_size,
            self.features,
            self.interpolation,
            self.storage,
        )


@dataclass(frozen=True)
class ProposalConfig:
    """A small density field that only says where to look."""

    grid: GridConfig = GridConfig(levels=5, max_resolution=128, log2_size=17)
    hidden: int = 16
    layers: int = 1
    average_init_density: float = 0.01


@dataclass(frozen=True)
class RadianceConfig:
    """Density, colour and normals."""

    grid: GridConfig = GridConfig()
    hidden: int = 64
    layers: int = 1
    geometry_features: int = 15
    colour_hidden: int = 64
    colour_layers: int = 2
    harmonics: str = "nerfstudio"  # sign convention: nerfstudio | tcnn
    appearance: int = 32  # width of the per-camera code; 0 for none
    appearance_spread: float = 0.1  # standard deviation of the codes' numbers at first
    appearance_dropout: float = 0.25  # share of training rays with the code of cameras never trained on
    eval_appearance: str = "mean"  # code of cameras never trained on: mean | zero
    average_init_density: float = 0.01
    predicted_normals: bool = False
    normals_space: str = "world"  # world | contracted (nerfstudio's, right only inside the unit cube)


@dataclass(frozen=True)
class FeatureConfig:
    """A field of feature vectors distilled from 2-D feature maps."""

    width: int = 0  # length of a feature vector, of all heads together; 0 for no feature field
    # Name and width of each head, as (("dino", 384), ("clip", 768)); none named: one head, `feature`.
    heads: tuple[tuple[str, int], ...] = ()
    encoding: str = "grid+pe"  # grid+pe | grid | pe (pe alone is what released F3RM trains, spec 8)
    grid: GridConfig = GridConfig(levels=12, max_resolution=128, features=8)
    frequencies: int = 6
    hidden: int = 64
    layers: int = 2
    detach_positions: bool = True  # the feature loss reaches poses only through the weights
    detach_weights: bool = False  # True: the feature loss does not shape the density


def feature_heads(config: FeatureConfig) -> dict[str, slice]:
    """Where each head's channels lie in a feature vector. One head that was not named is `feature`.

    ValueError where heads share a name, have no channels, or do not add up to the width.
    """
    heads = config.heads or ((("feature", config.width),) if config.width else ())
    found, begin = {}, 0
    for name, width in heads:
        if width < 1 or name in found or not name:
            raise ValueError(f"fields.feature.heads: expected different names and widths >= 1, got {heads}")
        found[name] = slice(begin, begin + width)
        begin += width
    if begin != config.width:
        raise ValueError(
            f"fields.feature.heads are {begin} wide together, fields.feature.width is {config.width}"
        )
    return found


def text_head(heads: Mapping[str, slice]) -> str:
    """The feature head that text is compared with: `clip` among several, else the only one.

    ValueError where there is none.
    """
    names = list(heads)
    if len(names) == 1:
        return names[0]
    if "clip" not in names:
        raise ValueError(f"no feature head is compared with text; this run has {', '.join(names) or 'none'}")
    return "clip"


@dataclass(frozen=True)
class FieldsConfig:
    norm: str = "linf"  # of the contraction: linf | l2
    backend: str = "native"  # of grids and networks: native | tcnn (tiny-cuda-nn; docs/tcnn.md)
    proposals: tuple[ProposalConfig, ...] = field(
        default=(
            ProposalConfig(),
            ProposalConfig(grid=GridConfig(levels=5, max_resolution=256, log2_size=17)),
        )
    )
    radiance: RadianceConfig = RadianceConfig()
    feature: FeatureConfig = FeatureConfig()


# What settings that are words may be.
RADIANCE_WORDS = {"normals_space": ("world", "contracted"), "eval_appearance": ("mean", "zero")}


def unit_positions(rays: Rays, samples: Samples, norm: str) -> Tensor:
    """Interval midpoints in the contracted unit cube, [R * S, 3]."""
    return sample_unit_positions(rays.origins, rays.directions, samples.t, norm).view(-1, 3)


class ProposalField(nn.Module):
    """Density only, from a small grid and a narrow MLP."""

    def __init__(self, config: ProposalConfig, norm: str, bricks: Bricks = NATIVE):
        super().__init__()
        self.config, self.norm = config, norm
        self.grid = config.grid.build(bricks)
        self.mlp = bricks.mlp(self.grid.outputs, 1, config.hidden, config.layers, padding=1.0)

    def forward(self, rays: Rays, samples: Samples) -> Tensor:
        """Density at the intervals' midpoints, [R, S]."""
        y = unit_positions(rays, samples, self.norm)
        sigma = density(self.mlp(self.grid(y, rays.sight)), y, self.config.average_init_density)
        return sigma.view(samples.t.shape[0], samples.t.shape[1] - 1)


class RadianceField(nn.Module):
    def __init__(self, config: RadianceConfig, cameras: int, norm: str, bricks: Bricks = NATIVE):
        super().__init__()
        for name, words in RADIANCE_WORDS.items():
            if (word := getattr(config, name)) not in words:
                raise ValueError(f"fields.radiance.{name} is {word!r}, expected one of {', '.join(words)}")
        self.config, self.norm = config, norm
        self.grid = config.grid.build(bricks)
        self.mlp = bricks.mlp(self.grid.outputs, 1 + config.geometry_features, config.hidden, config.layers)
        self.harmonics = Harmonics(config.harmonics)
        inputs = self.harmonics.outputs + config.geometry_features + config.appearance
        self.colour = bricks.mlp(
            inputs, 3, config.colour_hidden, config.colour_layers, output_activation="sigmoid", padding=1.0
        )
        if config.appearance:
            drawn = torch.randn(max(cameras, 1), config.appearance)
            self.appearance = nn.Parameter(drawn * config.appearance_spread)
        if not 0 <= config.appearance_dropout <= 1:
            raise ValueError(
                f"fields.radiance.appearance_dropout is {config.appearance_dropout}, expected 0 .. 1"
            )
        if config.predicted_normals:
            self.fourier = Fourier(2, "tcnn")
            self.normals = bricks.mlp(self.fourier.outputs + config.geometry_features, 64, 64, 2, padding=1.0)
            self.normals_layer = nn.Linear(64, 3)

    def density(self, h: Tensor, y: Tensor) -> Tensor:
        """Density [P] from the base MLP's output [P, 1 + G] at unit positions [P, 3]."""
        return density(h, y, self.config.average_init_density)

    def density_and_colours(self, h: Tensor, y: Tensor, rays: Rays, train: bool) -> tuple[Tensor, Tensor]:
        """Density [P] and colour [P, 3], P = R * S, from the base MLP's output [P, 1 + G]."""
        direction = self.harmonics(rays.directions)
        code = self.codes(rays, train) if self.config.appearance else None
        sigma, inputs = colour_inputs(h, y, self.config.average_init_density, direction, code)
        return sigma, self.colour(inputs)

    def shared_code(self) -> Tensor:
        """The appearance code [A] of cameras never trained on."""
        return self.appearance.mean(0) if self.config.eval_appearance == "mean" else self.appearance[0] * 0

    def sharing(self, rays: int) -> int:
        """How many of so many rays have `shared_code` while training, so that what it gives was looked at."""
        return round(self.config.appearance_dropout * rays)

    def codes(self, rays: Rays, train: bool) -> Tensor:
        """Appearance codes [R, A]: each camera's own while training, but for `sharing` rays; else one.

        The first rays share: pixels are drawn one by one, so these are as good as any. The mean takes no
        gradient from them.
        """
        count = rays.origins.shape[0]
        shared = self.sharing(count) if train else count
        code = self.shared_code().expand(shared, -1)
        # Unlike [], its gradient needs no sort.
        own = self.appearance.index_select(0, rays.camera[shared:]) if train else None
        return code.contiguous() if own is None else torch.cat([code.detach(), own])

    @torch.no_grad()
    def normals_at(self, x: Tensor, y: Tensor, encoded: Tensor) -> Tensor:
        """Unit normals [P, 3] against the density gradient at positions x, in the unit cube y; no graph."""
        seed = torch.zeros(y.shape[0], 1 + self.config.geometry_features, device=y.device, dtype=y.dtype)
        seed[:, 0] = 1  # d z / d z, z the density before its activation
        slope = self.grid.input_gradient(y, self.mlp.input_gradient(encoded, seed))
        if self.config.normals_space == "world":  # pull back through the contraction
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(contract_unit(x, self.norm), x, slope)
        return -F.normalize(slope, dim=-1)

    def gradient_normals(self, rays: Rays, samples: Samples, y: Tensor, encoded: Tensor) -> Tensor:
        """The same at the samples, [R, S, 3]."""
        with torch.no_grad():
            x = positions(rays.origins, rays.directions, samples.t).view(-1, 3)
        return self.normals_at(x, y, encoded).view(*samples.t.shape[:1], -1, 3)

    def predicted_at(self, x: Tensor, h: Tensor) -> Tensor:
        """Unit normals [P, 3] that their own network predicts at positions x from the base's output h."""
        inputs = torch.cat([self.fourier(x), h[:, 1:]], -1)
        return F.normalize(torch.tanh(self.normals_layer(self.normals(inputs))), dim=-1)

    def predict_normals(self, rays: Rays, samples: Samples, h: Tensor) -> Tensor:
        x = positions(rays.origins, rays.directions, samples.t).view(-1, 3)
        return self.predicted_at(x, h).view(*samples.t.shape[:1], -1, 3)

    def forward(
        self, rays: Rays, samples: Samples, heads: frozenset[str], train: bool, turns: bool = True
    ) -> Field:
        y = unit_positions(rays, samples, self.norm)
        encoded = self.grid(y, rays.sight)
        h = self.mlp(encoded)
        rgb = None
        if "rgb" in heads:
            facing = rays if turns else replace(rays, directions=rays.directions.detach())
            sigma, rgb = self.density_and_colours(h, y, facing, train)
        else:
            sigma = self.density(h, y)
        count, per_ray = samples.t.shape[0], samples.t.shape[1] - 1
        predict = self.config.predicted_normals and ("predicted_normals" in heads or train)
        gradient = "normals" in heads or (train and self.config.predicted_normals)
        return Field(
            density=sigma.view(count, per_ray),
            rgb=None if rgb is None else rgb.view(count, per_ray, 3),
            normals=self.gradient_normals(rays, samples, y.detach(), encoded.detach()) if gradient else None,
            predicted_normals=self.predict_normals(rays, samples, h) if predict else None,
        )


class FeatureField(nn.Module):
    """The hidden layer of the feature heads per sample; their last, linear layers wait for compositing.

    Heads share the trunk. Each has its own last layer: its rows of `layer`, which is one matrix so that all
    heads cost one product per ray.
    """

    def __init__(self, config: FeatureConfig, norm: str, bricks: Bricks = NATIVE):
        super().__init__()
        self.config, self.norm = config, norm
        parts = config.encoding.split("+")
        if set(parts) - {"grid", "pe"}:
            raise ValueError(
                f"fields.feature.encoding: expected grid+pe, grid or pe, got {config.encoding!r}"
            )
        if config.layers < 2:
            raise ValueError(f"fields.feature.layers is {config.layers}, expected at least 2")
        self.grid = config.grid.build(bricks) if "grid" in parts else None
        self.fourier = Fourier(config.frequencies, "tcnn") if "pe" in parts else None
        inputs = sum(e.outputs for e in (self.grid, self.fourier) if e is not None)
        padding = 1.0 if self.fourier is not None else 0.0
        self.trunk = bricks.mlp(
            inputs, config.hidden, config.hidden, config.layers - 1, output_activation="relu", padding=padding
        )
        self.heads = feature_heads(config)
        self.layer = nn.Parameter(torch.empty(config.width, config.hidden))
        for rows in self.heads.values():
            padded = -(-(rows.stop - rows.start) // 16) * 16
            bound = (6 / (config.hidden + padded)) ** 0.5  # Xavier, padded as tcnn pads
            nn.init.uniform_(self.layer[rows].detach(), -bound, bound)

    @property
    def text_layer(self) -> Tensor:
        """The rows of `layer` that belong to `text_head`, [D, H]. ValueError where there is no such head."""
        return self.layer[self.heads[text_head(self.heads)]]

    def hidden(self, y: Tensor) -> Tensor:
        """Last hidden activations [P, H] at unit positions [P, 3]."""
        if self.grid is not None and self.fourier is not None:
            return self.trunk(self.grid.beside(self.fourier, y))
        (encoding,) = (e for e in (self.grid, self.fourier) if e is not None)
        return self.trunk(encoding(y))

    def forward(self, rays: Rays, samples: Samples) -> Tensor:
        """Hidden activations [R, S, H]."""
        if self.config.detach_positions:
            rays = replace(rays, origins=rays.origins.detach(), directions=rays.directions.detach())
        return self.hidden(unit_positions(rays, samples, self.norm)).view(
            *samples.t.shape[:1], -1, self.config.hidden
        )


class Fields(nn.Module):
    """Everything that is learnt about space."""

    def __init__(self, config: FieldsConfig, cameras: int):
        super().__init__()
        self.config = config
        norm_code(config.norm, "fields")
        of = bricks(config.backend)
        self.proposals = nn.ModuleList(ProposalField(p, config.norm, of) for p in config.proposals)
        self.radiance = RadianceField(config.radiance, cameras, config.norm, of)
        self.feature = FeatureField(config.feature, config.norm, of) if config.feature.width else None

    def forward(
        self, rays: Rays, samples: Samples, heads: frozenset[str], train: bool, turns: bool = True
    ) -> Field:
        """`turns`: colour's dependence on the viewing direction has a gradient to the rays."""
        found = self.radiance(rays, samples, heads, train, turns)
        if self.feature is None or heads.isdisjoint({"feature", "feature_hidden"}):
            return found
        layer = self.feature.layer if "feature" in heads else None
        return replace(found, feature=self.feature(rays, samples), feature_layer=layer)

    def at(self, points: Tensor) -> dict[str, Tensor]:
        """Density [P] and, where there is a feature field, features [P, D] at scene positions [P, 3]."""
        y = contract_unit(points, self.config.norm)
        found = {"density": self.radiance.density(self.radiance.mlp(self.radiance.grid(y)), y)}
        if self.feature is not None:
            found["feature"] = self.feature.hidden(y) @ self.feature.layer.T
        return found
