"""Rows of the stages in one: each the composition of its stages' own oracles."""

import torch
from torch import Tensor

from bench.cases._case import Case
from bench.cases.hashgrid import NERFACTO, SMALL, _hashgrid
from bench.cases.march import _rays, _weights
from bench.cases.mlp import _density, _mlp
from bench.cases.sample import _unit
from raymarch.ops.hashgrid import table_layout
from raymarch.ops.mlp import parameters, shapes
from raymarch.ops.samples_to_pixels import samples_to_density, samples_to_pixels

PROPOSAL = (5, 16, 256, 17)
CODE = 5


def _encoded(origins, directions, t, table, grid, norm) -> tuple[Tensor, Tensor]:
    y = _unit(origins, directions, t, norm).reshape(-1, 3)
    return y, _hashgrid(y, table.to(y), *grid)


def _to_density(origins, directions, t, table, grid, params, hidden, scale=1.0, padding=1.0, norm="linf"):
    y, x = _encoded(origins, directions, t, table, grid, norm)
    z = _mlp(x, params, hidden, 1, 1, padding=padding)
    return _density(z, y, scale).view(len(t), t.shape[1] - 1)


def _bits(occupied: Tensor, y: Tensor, resolution: int) -> Tensor:
    cell = (y * resolution).long().clamp_max(resolution - 1)
    number = (cell[..., 2] * resolution + cell[..., 1]) * resolution + cell[..., 0]
    return (occupied.long()[number >> 3] >> (number & 7)) & 1


def _to_pixels(
    origins, directions, t, table, grid, params, direction, code, scale, norm, interpolation, layout,
    background, occupied, resolution, least, stop, need_weights,
) -> tuple[Tensor, ...]:  # fmt: skip
    rays, samples = len(t), t.shape[1] - 1
    y, x = _encoded(origins, directions, t, table, grid, norm)
    split = parameters(x.shape[1], 64, 1, 16)
    h = _mlp(x, params[:split], 64, 1, 16)
    shared = torch.cat([direction, code.expand(rays, -1)], -1).repeat_interleave(samples, 0)
    rgb = _mlp(
        torch.cat([shared[:, :16], h[:, 1:], shared[:, 16:]], -1), params[split:], 64, 2, 3, "sigmoid", 1.0
    )
    rgb = rgb.view(rays, samples, 3)
    keep = _bits(occupied, y, resolution).view(rays, samples)
    if background == "last_sample":
        keep[:, -1] = 1
    sigma = _density(h, y, scale).view(rays, samples) * keep
    tau = sigma * t.diff()
    sigma = torch.where(tau.cumsum(-1) - tau < stop, sigma, 0)
    w = _weights(sigma, t)
    opacity, middle = w.sum(-1), (t[:, 1:] + t[:, :-1]) / 2
    behind = rgb[:, -1] if background == "last_sample" else background.to(rgb)
    seen = ((w[..., None] * rgb).sum(1) + (1 - opacity)[:, None] * behind).clamp(0, 1)
    reached = w.cumsum(-1) >= 0.5
    median = torch.where(reached.any(-1), reached.long().argmax(-1), samples - 1)
    depth = middle.gather(1, median[:, None])[:, 0]
    expected = ((w * middle).sum(-1) / (opacity + 1e-10)).clamp(middle[:, 0], middle[:, -1])
    return seen, opacity, depth, expected, w


def _table(large: tuple[int, int, int, int] | None) -> tuple[Tensor, tuple[int, int, int, int]]:
    grid = large or SMALL
    last = table_layout(*grid)[-1]
    table = 2 * (torch.rand(last.offset + last.entries, 2) - 0.5)
    return (table.half() if large else table), grid


def _params(inputs: int, hidden: int, layers: int, outputs: int) -> Tensor:
    drawn = [torch.randn(r * c) * (2 / c) ** 0.5 for r, c in shapes(inputs, hidden, layers, outputs)]
    return torch.cat(drawn)


def _edges(n: int, samples: int) -> Tensor:
    return 0.1 + (0.05 + torch.rand(n, samples + 1)).cumsum(-1) * 3 / samples


def _density_inputs(n: int):
    table, grid = _table(PROPOSAL if n > 1000 else None)
    t = _edges(n, 256 if n > 1000 else 20)
    return *_rays(n)[:2], t, table, grid, _params(grid[0] * 2, 16, 1, 1), 16, 0.7


def _pixels_inputs(n: int, background):
    large = n > 1000
    table, grid = _table(NERFACTO if large else None)
    code = torch.randn(32 if large else CODE)
    params = torch.cat([_params(grid[0] * 2, 64, 1, 16), _params(31 + len(code), 64, 2, 3)])
    direction, resolution = torch.randn(n, 16), 16
    occupied = torch.randint(0, 256, (resolution**3 // 8,)).to(torch.uint8)
    words = ("linf", "linear", "tcnn", background)
    return (
        *_rays(n)[:2], _edges(n, 32 if large else 9), table, grid, params, direction, code, 0.8, *words,
        occupied, resolution, 0.0, 30.0, True,
    )  # fmt: skip


def _pixels(background, bench_rays: int = 65536) -> Case:
    return Case(
        lambda *args: tuple(samples_to_pixels(*args)),
        _to_pixels,
        lambda n: _pixels_inputs(n, background),
        bytes_per_ray=24 + 4 * 33 + 64 + 24 + 4 * 32,
        flops_per_ray=32 * 2 * (64 * 48 + 64 * 64 + 64 * 64 + 16 * 64),
        tolerance=2e-6,
        cuda_tolerance=4e-3,
        gathers=True,
        bench_rays=bench_rays,
    )


CASES = {
    "samples_to_density": Case(
        samples_to_density,
        _to_density,
        _density_inputs,
        bytes_per_ray=24 + 4 * 257 + 4 * 256,
        flops_per_ray=256 * 2 * (16 * 16 + 16),
        tolerance=5e-6,
        gathers=True,
    ),
    "samples_to_pixels": _pixels("last_sample"),
    "samples_to_pixels_over_colour": _pixels(torch.tensor([0.1, 0.5, 0.9])),
}
