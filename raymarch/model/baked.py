"""A grid of densities made once per model: where to look, in place of the proposal fields, and where not to.

Contracted space as a cube of cells. The density comes from the last proposal field, blurred a little, because
a histogram should be wider than what it stands for. A cell is empty where neither the proposals nor the
radiance field, in it or in its neighbours, hold enough to be seen across it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymarch.model.fields import Fields, ProposalField
from raymarch.ops.contract import uncontract
from raymarch.ops.mlp import density

_SLICE = 1 << 20  # points evaluated at once
_PLANES = 16  # of cells, blurred at once; so many of any size fill whole bytes of bits
_DENSEST = 6e4  # what half precision holds


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


def by_slabs(cube: Tensor, work: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """`work` on the planes [n, N, N] of a cube, some at a time with a neighbour on either side, as float."""
    planes = cube.shape[0]
    for first in range(0, planes, _PLANES):
        last, low = min(first + _PLANES, planes), max(first - 1, 0)
        yield work(cube[low : last + 1].float()[None, None])[0, 0, first - low : last - low]


def blurred(cells: Tensor) -> Tensor:
    """Half the cells [1, 1, n, N, N] and half their mean over 3^3 cells."""
    return (cells + F.avg_pool3d(cells, 3, 1, 1, count_include_pad=False)) / 2


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
    cells, cube = resolution**3, (resolution,) * 3
    raw = torch.empty(cells, device=device, dtype=torch.float16)
    seen = torch.empty(cells if empty > 0 else 0, device=device, dtype=torch.bool)
    for first in range(0, cells, _SLICE):
        last = min(first + _SLICE, cells)
        y = cell_centres(resolution, first, last, device)
        sigma = proposal_density(fields, y)
        raw[first:last] = sigma.clamp(0, _DENSEST)
        if empty > 0:
            most = torch.maximum(sigma, radiance_density(fields, y))
            seen[first:last] = most * cell_lengths(y, resolution, fields.config.norm) > empty
    smooth = torch.empty_like(raw)
    for planes, slab in zip(smooth.view(cube).split(_PLANES), by_slabs(raw.view(cube), blurred), strict=True):
        planes.copy_(slab)
    if empty <= 0:
        return Baked(smooth.view(cube), None)
    near = by_slabs(seen.view(cube), lambda some: F.max_pool3d(some, 3, 1, 1))
    return Baked(smooth.view(cube), torch.cat([bits(slab > 0) for slab in near]))
