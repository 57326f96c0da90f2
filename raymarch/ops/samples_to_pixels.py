"""Stages in one, for evaluation: densities and pictures of samples; nothing else per sample is stored."""

from typing import NamedTuple

import torch
from torch import Tensor

from raymarch.ops._op import launch, op
from raymarch.ops._vector import vectorisable
from raymarch.ops.composite import _background
from raymarch.ops.contract import norm_code
from raymarch.ops.hashgrid import hashgrid_settings
from raymarch.ops.mlp import parameters

PIXEL_HIDDEN, PIXEL_OUTPUTS = 64, 16  # of the networks that samples_to_pixels runs


class Pictures(NamedTuple):
    """What rays see, as `composite` says, and the weights of the samples where they were asked for."""

    rgb: Tensor  # [R, 3]
    opacity: Tensor  # [R]
    depth: Tensor  # [R] median
    expected_depth: Tensor  # [R]
    weights: Tensor | None  # [R, S]


@op
def samples_to_density_forward(
    origins: Tensor,
    directions: Tensor,
    t: Tensor,
    norm: int,
    table: Tensor,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    params: Tensor,
    hidden: int,
    padding: float,
    scale: float,
) -> Tensor:
    sigma = t.new_empty(t.shape[0], t.shape[1] - 1)
    grid = (vectorisable(table), levels, base_resolution, max_resolution, log2_size, interpolation, layout)
    launch("samples_to_density", origins, directions, t, norm, *grid, params, hidden, padding, scale, sigma)
    return sigma


@op
def samples_to_pixels_forward(
    origins: Tensor,
    directions: Tensor,
    t: Tensor,
    norm: int,
    table: Tensor,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    params: Tensor,
    scale: float,
    direction: Tensor,
    code: Tensor | None,
    occupied: Tensor | None,
    resolution: int,
    colour: Tensor | None,
    background: int,
    least: float,
    stop: float,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rays, samples = t.shape[0], t.shape[1] - 1
    rgb, weights = t.new_empty(rays, 3), t.new_empty((rays, samples) if need_weights else 0)
    opacity, depth, expected = t.new_empty(rays), t.new_empty(rays), t.new_empty(rays)
    grid = (vectorisable(table), levels, base_resolution, max_resolution, log2_size, interpolation, layout)
    launch(
        "samples_to_pixels", origins, directions, t, norm, *grid, params, scale, vectorisable(direction),
        code, occupied, resolution, colour, background, least, stop, rgb, opacity, depth, expected,
        weights if need_weights else None,
    )  # fmt: skip
    return rgb, opacity, depth, expected, weights


def samples_to_density(
    origins: Tensor,
    directions: Tensor,
    t: Tensor,
    table: Tensor,
    grid: tuple[int, int, int, int],
    params: Tensor,
    hidden: int,
    scale: float = 1.0,
    padding: float = 1.0,
    norm: str = "linf",
    interpolation: str = "linear",
    layout: str = "tcnn",
) -> Tensor:
    """Densities [R, S] at the middles of intervals t [R, S + 1] along rays (origins, directions [R, 3]).

    What `sample_unit_positions`, `hashgrid`, `mlp` (one hidden layer of 16, 32, 48 or 64) and `density` give
    one after another, for grids of at most 16 columns; `table` is the one looked up, in float32, float16 or
    bfloat16. CUDA works in float32 here, where `mlp` rounds to TF32. No gradient. ValueError for what does
    not fit.
    """
    with torch.no_grad():
        x = origins.detach()[:0]
        settings = hashgrid_settings(x, table.detach(), None, grid, interpolation, layout)
        columns = grid[0] * table.shape[1]
        if columns > 16 or params.shape != (parameters(columns, hidden, 1, 1),):
            raise ValueError(
                f"samples_to_density: {columns} columns and {params.shape[0]} parameters, expected at most "
                f"16 and those of one hidden layer of {hidden}"
            )
        rays = [a.detach().contiguous() for a in (origins, directions, t)]
        return samples_to_density_forward(
            *rays, norm_code(norm, "samples_to_density"), table.detach().contiguous(), *settings,
            params.detach().contiguous(), hidden, float(padding), float(scale),
        )  # fmt: skip


def samples_to_pixels(
    origins: Tensor,
    directions: Tensor,
    t: Tensor,
    table: Tensor,
    grid: tuple[int, int, int, int],
    params: Tensor,
    direction: Tensor,
    code: Tensor | None = None,
    scale: float = 1.0,
    norm: str = "linf",
    interpolation: str = "linear",
    layout: str = "tcnn",
    background: str | Tensor = "last_sample",
    occupied: Tensor | None = None,
    resolution: int = 0,
    least: float = 0.0,
    stop: float = float("inf"),
    need_weights: bool = False,
) -> Pictures:
    """What rays see of samples t [R, S + 1], through nerfacto's two networks, in one pass.

    What `sample_unit_positions`, `hashgrid` (two features, at most 16 levels), `mlp` (64 units, 16 outputs),
    `colour_inputs`, `mlp` (two layers of 64 units, sigmoid, padding 1), `weights` and `composite(clean=True)`
    give one after another. params: the base network's parameters followed by the colour network's, float32;
    direction [R, 16]: harmonics of the directions; code [A], shared by all rays, or None. CUDA multiplies in
    half precision and adds in float32.

    `occupied` (uint8, one bit per cell of the unit cube, `resolution` cells along an axis, x fastest, low
    bits first) leaves out samples in cells whose bit is 0: as if their density were 0. Samples behind an
    optical thickness of `stop` are left out: colours change by at most exp(-stop). Colours of weights up to
    `least` may be left out: colours change by at most S * least. No gradient. ValueError for what does not
    fit.
    """
    with torch.no_grad():
        settings = hashgrid_settings(origins.detach()[:0], table.detach(), None, grid, interpolation, layout)
        coded = 0 if code is None else code.numel()
        want = parameters(grid[0] * table.shape[1], PIXEL_HIDDEN, 1, PIXEL_OUTPUTS) + parameters(
            15 + PIXEL_OUTPUTS + coded, PIXEL_HIDDEN, 2, 3
        )
        if table.shape[1] != 2 or grid[0] > 16 or params.shape != (want,):
            raise ValueError(
                f"samples_to_pixels: {grid[0]} levels of {table.shape[1]} features and {params.shape[0]} "
                f"parameters, expected at most 16 of 2, and {want}"
            )
        mode, colour = _background(background, t)
        rays = [a.detach().contiguous() for a in (origins, directions, t)]
        found = samples_to_pixels_forward(
            *rays, norm_code(norm, "samples_to_pixels"), table.detach().contiguous(), *settings,
            params.detach().contiguous(), float(scale), direction.detach().contiguous(),
            None if code is None else code.detach().contiguous(), occupied, resolution, colour, mode,
            float(least), float(stop), need_weights,
        )  # fmt: skip
        rgb, opacity, depth, expected, weights = found
        return Pictures(rgb, opacity, depth, expected, weights if need_weights else None)
