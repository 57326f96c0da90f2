"""Rows of the hashgrid stage."""

from functools import partial

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.hashgrid import hashgrid, table_layout

# Dense at 4, hashed at 8 (7.5 rounded up) and 14: few enough entries to nudge one by one.
SMALL = (3, 4, 14, 7)
NERFACTO = (16, 16, 2048, 19)
FEATURE = (12, 16, 128, 19)


def _corners(cell: Tensor, level, dense: bool, resolution: int) -> list[Tensor]:
    """The eight entries around each cell [P, 3] int64."""
    found = []
    for c in range(8):
        x, y, z = (cell[:, d] + (c >> d & 1) for d in range(3))
        if dense:
            found.append(level.offset + (x + y * resolution + z * resolution**2) % level.entries)
        else:
            hashed = x ^ (y * 2654435761 & 0xFFFFFFFF) ^ (z * 805459861 & 0xFFFFFFFF)
            found.append(level.offset + hashed % level.entries)
    return found


def _hashgrid(x, table, levels, base, top, log2_size, interpolation="linear", stored=None, layout="tcnn"):
    tcnn = layout == "tcnn"
    values = table if stored is None else stored.to(table) + (table - table.detach())
    columns = []
    for level in table_layout(levels, base, top, log2_size, layout):
        p = level.scale * x + (0.5 if tcnn else 0)
        cell = p.detach().floor()
        f = p - cell
        u = f * f * (3 - 2 * f) if interpolation == "smoothstep" else f
        dense = tcnn and level.resolution**3 <= level.entries
        entries = _corners(cell.long(), level, dense, level.resolution)
        total = x.new_zeros(len(x), values.shape[1])
        for c, entry in enumerate(entries):
            weight = torch.stack([u[:, d] if c >> d & 1 else 1 - u[:, d] for d in range(3)], -1).prod(-1)
            total = total + weight[:, None] * values[entry]
        columns.append(total)
    return torch.cat(columns, -1)


def _inputs(n: int, features: int, large: tuple, words: tuple, dtype: torch.dtype | None = None):
    """Small for the tests, a grid that people train for the benchmark. Consecutive points lie on a ray."""
    settings, layout = large if n > 1000 else SMALL, words[1]
    last = table_layout(*settings, layout)[-1]
    table = torch.rand(last.offset + last.entries, features) - 0.5
    rays = n // 48 + 1
    directions = torch.nn.functional.normalize(torch.randn(rays, 1, 3), dim=-1)
    along = directions * torch.linspace(0, 0.4, 48)[:, None]
    x = (0.3 + 0.4 * torch.rand(rays, 1, 3) + along).reshape(-1, 3)[:n].clamp(0, 1).contiguous()
    stored = None if dtype is None else table.to(dtype)
    return x, table, *settings, words[0], stored, words[1]


def _row(features: int, large: tuple, words=("linear", "tcnn"), dtype=None) -> Case:
    size = 4 if dtype is None else 2
    levels = large[0]
    return Case(
        hashgrid,
        _hashgrid,
        partial(_inputs, features=features, large=large, words=words, dtype=dtype),
        bytes_per_ray=12 + levels * features * (8 * size + 4),
        flops_per_ray=levels * 16 * features,
        differentiable=(0, 1),
        tolerance=1e-5,
        gradient_tolerance=1e-4,
        gathers=True,
        gradcheck=dtype is None,  # the double build looks up float64 only
    )


CASES = {
    "hashgrid": _row(2, NERFACTO),
    "hashgrid_half": _row(2, NERFACTO, dtype=torch.float16),
    "hashgrid_bfloat": _row(4, FEATURE, dtype=torch.bfloat16),
    "hashgrid_one": _row(1, FEATURE),
    "hashgrid_wide": _row(8, FEATURE, dtype=torch.float16),
    "hashgrid_smooth": _row(2, NERFACTO, ("smoothstep", "tcnn")),
    "hashgrid_nerfstudio": _row(2, NERFACTO, ("linear", "nerfstudio")),
}
