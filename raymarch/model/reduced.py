"""Pictures of rays for less: samples from a baked grid, early termination, few samples for costly heads.

Each saving has a switch and a bound (docs/performance.md has what they cost in dB):

- `stop`: what lies behind an optical thickness of stop changes a colour by at most exp(-stop).
- `least`: colours of weights up to least may be left out: at most samples * least.
- `empty`: cells whose optical thickness is below empty count as nothing: at most empty per cell crossed.
- `kept`: normals and features are composited from kept samples, each for an equal share of the weight.
- `feature_step`: features are rendered at every feature_step-th pixel and filled in along the depth.
- `samples`, `steps`, `resolution`: samples come from a baked grid instead of the proposal fields. No bound:
  the PSNR against the exact mode says it, and `raymarch render --mode reduced` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from raymarch.model.baked import Baked
from raymarch.model.fields import RadianceField
from raymarch.ops.composite import composite
from raymarch.ops.contract import contract_unit
from raymarch.ops.march import march, representatives
from raymarch.ops.samples_to_pixels import PIXEL_HIDDEN, PIXEL_OUTPUTS, Pictures, samples_to_pixels
from raymarch.ops.weights import weights
from raymarch.types import Rays, Samples

if TYPE_CHECKING:
    from raymarch.model import Model


COSTLY_RAYS = 1 << 16  # of which normals and features are made at once; colours take many more at a time


@dataclass(frozen=True)
class ReducedConfig:
    samples: int = 46  # per ray
    steps: int = 160  # of the march that places them
    padding: float = 0.5  # of a ray's mass 1: spread evenly over the steps, so that no place is out of reach
    resolution: int = 384  # of the baked grid, cells along an axis
    stop: float = 6.9  # optical thickness behind which nothing is looked at: 0.1 % of the light is left
    empty: float = 2e-3  # optical thickness of a cell that counts as empty; 0 looks everywhere
    least: float = 1e-4  # weights up to this may go without colour
    kept: int = 4  # samples of a ray that normals and features are made of
    feature_step: int = 2  # features at every so many pixels, both ways: 1, 2 or 4


def networks_fit(field: RadianceField) -> bool:
    """Whether `samples_to_pixels` runs this field's networks."""
    config, grid = field.config, field.grid
    return (
        grid.native
        and (config.hidden, config.layers) == (PIXEL_HIDDEN, 1)
        and (config.colour_hidden, config.colour_layers) == (PIXEL_HIDDEN, 2)
        and config.geometry_features == PIXEL_OUTPUTS - 1
        and field.harmonics.outputs == 16
        and grid.table.shape[1] == 2
        and grid.settings[0] <= 16
    )


def in_one(model: Model) -> bool:
    """Whether colours come from `samples_to_pixels`: on a CPU the stages one after another are faster."""
    return model.fields.radiance.grid.table.is_cuda and networks_fit(model.fields.radiance)


def pictures(
    model: Model,
    rays: Rays,
    t: Tensor,
    need_weights: bool,
    baked: Baked | None = None,
    least: float = 0.0,
    stop: float = float("inf"),
) -> Pictures:
    """Colours, depths and opacity of samples t [R, S + 1] in one pass. Evaluation only."""
    field, norm = model.fields.radiance, model.config.fields.norm
    stored = field.grid._looked_up()
    config = field.config
    code = field.shared_code() if config.appearance else None
    return samples_to_pixels(
        rays.origins,
        rays.directions,
        t,
        field.grid.table if stored is None else stored,
        field.grid.settings,
        torch.cat([field.mlp.params, field.colour.params]),
        field.harmonics(rays.directions),
        code,
        config.average_init_density,
        norm,
        field.grid.interpolation,
        field.grid.layout,
        model.config.renderer.background,
        None if baked is None else baked.occupied,
        0 if baked is None or baked.occupied is None else baked.density.shape[0],
        least,
        stop,
        need_weights,
    )


def pictured(seen: Pictures) -> dict[str, Tensor]:
    """Pictures by the names of heads."""
    names = ("rgb", "opacity", "depth", "expected_depth")
    return {name: getattr(seen, name) for name in names}


def composed(model: Model, rays: Rays, t: Tensor) -> Pictures:
    """The same by the stages one after another: any network, and what is faster on a CPU."""
    samples = Samples(t, t)
    field = model.fields(rays, samples, frozenset({"rgb"}), False)
    w = weights(field.density, t.diff().clamp_min(0))
    out = composite(w, t, field.rgb, background=model.config.renderer.background, clean=True)
    assert out.rgb is not None
    return Pictures(out.rgb, out.opacity, out.depth, out.expected_depth, w)


def render_rays(
    model: Model, rays: Rays, baked: Baked, heads: frozenset[str], apart: Tensor | None = None
) -> dict[str, Tensor]:
    """The heads of rays by name; `feature_hidden` [P, H] of the rays `apart` [P] alone, where it is given."""
    config, sampler = model.config.reduced, model.config.sampler
    t = march(
        rays.origins,
        rays.directions,
        rays.near,
        rays.far,
        baked.density,
        config.samples,
        config.steps,
        model.config.fields.norm,
        sampler.spacing,
        config.padding / config.steps,
        config.stop,
    )
    costly = heads & {"normals", "predicted_normals", "feature_hidden"}
    if in_one(model):
        seen = pictures(model, rays, t, bool(costly), baked, config.least, config.stop)
    else:
        seen = composed(model, rays, t)
    found = pictured(seen)
    if not costly:
        return found
    assert seen.weights is not None
    x, w = representatives(rays.origins, rays.directions, t, seen.weights, config.kept)
    if costly & {"normals", "predicted_normals"}:
        facing = [normals(model, *part, costly) for part in in_parts(x, w)]
        found |= {name: together([part[name] for part in facing]) for name in facing[0]}
    if "feature_hidden" in costly:
        if apart is not None:
            x, w = x.index_select(0, apart), w.index_select(0, apart)
        found["feature_hidden"] = together([hidden(model, *part) for part in in_parts(x, w)])
    return found


def in_parts(x: Tensor, w: Tensor) -> list[tuple[Tensor, Tensor]]:
    """COSTLY_RAYS at a time."""
    return list(zip(x.split(COSTLY_RAYS), w.split(COSTLY_RAYS), strict=True))


def together(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def normals(model: Model, x: Tensor, w: Tensor, heads: frozenset[str]) -> dict[str, Tensor]:
    """Normals [R, 3] under weights w [R, K] of samples at x [R, K, 3]."""
    field, norm = model.fields.radiance, model.config.fields.norm
    flat = x.view(-1, 3)
    y = contract_unit(flat, norm)
    encoded = field.grid(y)
    edges = w.new_zeros(w.shape[0], w.shape[1] + 1)  # only depths would read them
    found: dict[str, Tensor | None] = {}
    if "normals" in heads:
        n = field.normals_at(flat, y, encoded).view(x.shape)
        found["normals"] = composite(w, edges, normals=n).normals
    if "predicted_normals" in heads:
        n = field.predicted_at(flat, field.mlp(encoded)).view(x.shape)
        found["predicted_normals"] = composite(w, edges, predicted_normals=n).predicted_normals
    return {name: n for name, n in found.items() if n is not None}


def hidden(model: Model, x: Tensor, w: Tensor) -> Tensor:
    """The feature head's hidden layer [P, H] under weights w [P, K] of samples at x [P, K, 3]."""
    assert model.fields.feature is not None
    y = contract_unit(x.view(-1, 3), model.config.fields.norm)
    values = model.fields.feature.hidden(y).view(*w.shape, -1)
    edges = w.new_zeros(w.shape[0], w.shape[1] + 1)
    summed = composite(w, edges, feature=values).feature
    assert summed is not None
    return summed


def filled_in(low: Tensor, low_depth: Tensor, depth: Tensor, step: int) -> Tensor:
    """[h, w, C] from every step-th pixel's values `low` [ceil(h / step), ceil(w / step), C].

    Bilinear between the four pixels around, each weighted by how near its depth is to the pixel's own: joint
    bilateral upsampling (Kopf et al. 2007), exp(-|log ratio| / 0.05). Depths are median depths.
    """
    height, width = depth.shape
    y, x = (torch.arange(n, device=low.device) / step for n in (height, width))
    total, mass = low.new_zeros(height, width, low.shape[2]), low.new_zeros(height, width)
    own = depth.clamp_min(1e-6).log()
    for down in (0, 1):
        row = (y.long() + down).clamp_max(low.shape[0] - 1)
        fall = 1 - (y - (y.long() + down)).abs()
        for right in (0, 1):
            column = (x.long() + right).clamp_max(low.shape[1] - 1)
            share = fall[:, None] * (1 - (x - (x.long() + right)).abs())
            there = low_depth[row][:, column].clamp_min(1e-6).log()
            weight = share * (1e-4 + torch.exp((there - own).abs() / -0.05))
            mass += weight
            total += weight[..., None] * low[row][:, column]
    return total / mass[..., None]


def factors(layer: Tensor) -> tuple[Tensor, Tensor]:
    """The last feature layer [D, H] as Q [D, H] (columns of length 1, float64) and a triangle R [H, H]."""
    basis, triangle = torch.linalg.qr(layer.detach().double())
    return basis, triangle.float()


def folded(layer: tuple[Tensor, Tensor], embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings [K, D] folded through the `factors` of the layer: texts [K, H], triangle [H, H].

    With layer = Q R the feature of h is Q (R h): its length |R h| is the root of h^T (layer^T layer) h, and
    its product with a text t is (Q^T t) . (R h).
    """
    basis, triangle = layer
    texts = F.normalize(embeddings.to(basis), dim=-1) @ basis
    return texts.float(), triangle


def cosines(hidden: Tensor, fold: tuple[Tensor, Tensor]) -> Tensor:
    """Cosines [..., K] between embeddings and the features of hidden vectors [..., H], never formed.

    `fold` is that of `folded`. A feature of no length has cosine 0.
    """
    texts, triangle = fold
    return F.normalize(hidden.float() @ triangle.T, dim=-1) @ texts.T
