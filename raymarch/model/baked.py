"""A grid of densities made once per model: where to look, in place of the proposal fields, and where not to.

Contracted space as a cube of cells. The density comes from the last proposal field, blurred a little, because
a histogram should be wider than what it stands for. A cell is empty where neither the proposals nor the
radiance field, in it or in its neighbours, hold enough to be seen across it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymarch.model.fields import Fields, ProposalField
from raymarch.ops.contract import uncontract
from raymarch.ops.mlp import density

_SLICE = 1 << 20  # points evaluated at once


@dataclass(frozen=True)
class Baked:
    density: Tensor  # [N, N, N] float16, per scene unit, z slowest
    occupied: Tensor | None  # [N^3 / 8] uint8, one bit per cell, x fastest, low bits first; None: all may be


def cell_centres(resolution: int, first: int, last: int, device: torch.device) -> Tensor:
    """Centres in the unit cube of cells first .. last - 1, counted x fastest: [last - first, 3]."""
    number = torch.arange(first, last, device=device)
    place = torch.stack([number % resolution, number // resolution % resolution, number // resolution**2], -1)
    return (place.float() + 0.5) / resolution


def proposal_density(fields: Fields, y: Tensor) -> Tensor:
    """What the last proposal field says at unit positions [P, 3]; without one, the radiance field."""
    if not len(fields.proposals):
        return radiance_density(fields, y)
    field = fields.proposals[-1]
    assert isinstance(field, ProposalField)
    return density(field.mlp(field.grid(y)), y, field.config.average_init_density)


def radiance_density(fields: Fields, y: Tensor) -> Tensor:
    return fields.radiance.density(fields.radiance.mlp(fields.radiance.grid(y)), y)


def cell_lengths(y: Tensor, resolution: int, norm: str) -> Tensor:
    """How long a cell is in the scene, along the direction in which contraction squeezes most: [P]."""
    x = uncontract(4 * y - 2, norm)
    far = torch.linalg.vector_norm(x, ord=2 if norm == "l2" else torch.inf, dim=-1)
    return 4 / resolution * far.clamp(1, 1e4).square()


def blurred(grid: Tensor) -> Tensor:
    """Half the grid and half its mean over 3^3 cells."""
    mean = F.avg_pool3d(grid[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    return (grid + mean) / 2


def bits(occupied: Tensor) -> Tensor:
    """Booleans as bits, eight to a byte, low bits first: uint8."""
    flat = F.pad(occupied.reshape(-1), (0, -occupied.numel() % 8)).view(-1, 8)
    places = 1 << torch.arange(8, device=flat.device)
    return (flat.long() * places).sum(-1).to(torch.uint8)


@torch.no_grad()
def bake(fields: Fields, resolution: int, empty: float) -> Baked:
    """The grid of a model in evaluation. `empty` is the optical thickness of a cell that may go; with
    0 none may, and the radiance field need not be asked."""
    device = fields.radiance.grid.table.device
    cells = resolution**3
    grid = torch.empty(cells, device=device)
    seen = torch.empty(cells if empty > 0 else 0, device=device, dtype=torch.bool)
    for first in range(0, cells, _SLICE):
        last = min(first + _SLICE, cells)
        y = cell_centres(resolution, first, last, device)
        grid[first:last] = proposal_density(fields, y)
        if empty > 0:
            most = torch.maximum(grid[first:last], radiance_density(fields, y))
            seen[first:last] = most * cell_lengths(y, resolution, fields.config.norm) > empty
    cube = (resolution,) * 3
    smooth = blurred(grid.view(cube)).clamp(0, 6e4).half()
    if empty <= 0:
        return Baked(smooth, None)
    near = F.max_pool3d(seen.view(1, 1, *cube).float(), 3, 1, 1)[0, 0] > 0
    return Baked(smooth, bits(near))
