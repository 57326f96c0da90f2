"""Samples from a baked grid of densities, and a few samples that stand for all of a ray."""

import torch
from torch import Tensor

from raymarch.ops._op import launch, op
from raymarch.ops.contract import norm_code
from raymarch.ops.sample import SPACINGS

MOST_CELLS = 1290  # along an axis of a baked grid


@op
def march_forward(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    baked: Tensor,
    resolution: int,
    norm: int,
    spacing: int,
    steps: int,
    padding: float,
    stop: float,
    samples: int,
) -> Tensor:
    t = near.new_empty(near.shape[0], samples + 1)
    launch("march", origins, directions, near, far, baked, resolution, norm, spacing, steps, padding, stop, t)
    return t


@op
def representatives_forward(
    origins: Tensor, directions: Tensor, t: Tensor, weights: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    x = weights.new_empty(weights.shape[0], count, 3)
    kept = weights.new_empty(weights.shape[0], count)
    launch("representatives", origins, directions, t, weights, x, kept)
    return x, kept


def march(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    baked: Tensor,
    samples: int,
    steps: int = 256,
    norm: str = "linf",
    spacing: str = "piecewise",
    padding: float = 0.0,
    stop: float = 9.2,
) -> Tensor:
    """Edges t [R, samples + 1] of samples drawn from the densities of a grid.

    origins, directions [R, 3]; near, far [R]. baked [N, N, N] (float32, float16 or bfloat16) holds densities
    per unit of distance of the cells of the contracted unit cube, z slowest. What `sample_spaced` (`steps`
    even bins), a lookup at every bin's middle, `weights` and `sample_pdf` (with `padding` on every weight)
    would give, in one pass over each ray. Behind an optical thickness of `stop` nothing has weight: the light
    left there is exp(-stop), 1e-4 by default.

    No gradient. ValueError for shapes and words that do not fit.
    """
    if baked.dim() != 3 or len(set(baked.shape)) != 1 or not 1 <= baked.shape[0] <= MOST_CELLS:
        raise ValueError(
            f"march: baked has shape {list(baked.shape)}, expected [N, N, N] with N up to {MOST_CELLS}"
        )
    if spacing not in SPACINGS:
        raise ValueError(f"march: spacing is {spacing!r}, expected one of {', '.join(SPACINGS)}")
    if samples < 1 or not 1 <= steps <= 4096:
        raise ValueError(f"march: samples is {samples}, steps is {steps}, expected at least 1 and 1 to 4096")
    with torch.no_grad():
        rays = [x.detach().contiguous() for x in (origins, directions, near, far)]
        grid = baked.detach().contiguous().view(-1)
        where = norm_code(norm, "march"), SPACINGS.index(spacing)
        return march_forward(*rays, grid, baked.shape[0], *where, steps, float(padding), float(stop), samples)


def representatives(
    origins: Tensor, directions: Tensor, t: Tensor, weights: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """`count` samples of each ray that stand for all of them under its weights, in order along the ray.

    origins, directions [R, 3], edges t [R, S + 1], weights [R, S]. The weight of a ray is cut into `count`
    equal shares, and each is represented by the sample that holds its middle: positions x [R, count, 3] of
    these samples' middles, and the shares [R, count], which sum to what the ray's weights do. NaN weighs
    nothing. Systematic resampling (Carpenter, Clifford and Fearnhead 1999) without its random offset: a head
    composited from them has each share's value replaced by that of its median. No gradient. ValueError for a
    count below 1.
    """
    if count < 1:
        raise ValueError(f"representatives: count is {count}, expected at least 1")
    with torch.no_grad():
        arrays = [x.detach().contiguous() for x in (origins, directions, t, weights)]
        return representatives_forward(*arrays, count)
