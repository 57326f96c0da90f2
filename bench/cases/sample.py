"""Rows of the sample stage."""

import torch
from torch import Tensor

from bench.cases._case import Case
from bench.cases.contract import _contract_unit
from raymarch.ops.sample import (
    positions,
    s_from_t,
    sample_pdf,
    sample_spaced,
    sample_unit_positions,
    t_from_s,
)


def _piecewise(s: Tensor, near: Tensor, far: Tensor) -> Tensor:
    def warp(t):
        return torch.where(t < 1, t / 2, 1 - 1 / (2 * t))

    g = s * warp(far)[:, None] + (1 - s) * warp(near)[:, None]
    return torch.where(g < 0.5, 2 * g, 1 / (2 - 2 * g))


def _inverse(t: Tensor, near: Tensor, far: Tensor) -> Tensor:
    def warp(t):
        return torch.where(t < 1, t / 2, 1 - 1 / (2 * t))

    low, high = warp(near)[:, None], warp(far)[:, None]
    return ((warp(t) - low) / (high - low)).clamp(0, 1)


def _spaced(near: Tensor, far: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    s = torch.linspace(0, 1, samples + 1, dtype=near.dtype).expand(len(near), -1)
    return s, _piecewise(s, near, far)


def _pdf(
    s: Tensor, weights: Tensor, near: Tensor, far: Tensor, samples: int, *settings
) -> tuple[Tensor, Tensor]:
    w = (weights ** settings[4] if settings else weights) + 0.01
    cdf = torch.nn.functional.pad((w / w.sum(-1, keepdim=True)).cumsum(-1), (1, 0)).clamp_max(1)
    edges = samples + 1
    u = ((torch.arange(edges, dtype=s.dtype) + 0.5) / edges).expand(len(s), -1).contiguous()
    above = torch.searchsorted(cdf, u, right=True).clamp(1, weights.shape[1])
    c0, c1, s0, s1 = (x.gather(1, i) for x in (cdf, s) for i in (above - 1, above))
    found = s0 + ((u - c0) / (c1 - c0)).clamp(0, 1) * (s1 - s0)
    return found, _piecewise(found, near, far)


def _positions(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    middle = (t[:, 1:] + t[:, :-1]) / 2
    return origins[:, None] + middle[..., None] * directions[:, None]


def _unit(origins: Tensor, directions: Tensor, t: Tensor, norm: str) -> Tensor:
    return _contract_unit(_positions(origins, directions, t), norm)


def _planes(n: int) -> tuple[Tensor, Tensor]:
    return 0.05 + torch.rand(n), 2 + 8 * torch.rand(n)


def _histogram(n: int):
    near, far = _planes(n)
    s, _ = _spaced(near, far, 96)
    return s.contiguous(), torch.rand(n, 96) ** 4, near, far, 48


def _along(n: int):
    directions = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1)
    return 0.5 * torch.randn(n, 3), directions, torch.rand(n, 49).cumsum(1) / 8


CASES = {
    "sample_spaced": Case(
        sample_spaced, _spaced, lambda n: (*_planes(n), 256), bytes_per_ray=8 + 8 * 257, tolerance=1e-5
    ),
    "sample_pdf": Case(
        sample_pdf, _pdf, _histogram, bytes_per_ray=8 + 4 * (97 + 96) + 8 * 49, tolerance=1e-5
    ),
    "sample_pdf_annealed": Case(
        sample_pdf,
        _pdf,
        lambda n: (*_histogram(n), "piecewise", "none", None, 2, torch.tensor([0.3])),
        bytes_per_ray=8 + 4 * (97 + 96) + 8 * 49,
        tolerance=1e-5,
    ),
    "t_from_s": Case(
        t_from_s,
        _piecewise,
        lambda n: (torch.rand(n, 49), *_planes(n)),
        bytes_per_ray=8 + 8 * 49,
    ),
    "s_from_t": Case(
        s_from_t,
        _inverse,
        lambda n: (12 * torch.rand(n, 49), *_planes(n)),
        bytes_per_ray=8 + 8 * 49,
    ),
    "positions": Case(
        positions, _positions, _along, bytes_per_ray=24 + 4 * 49 + 12 * 48, differentiable=(0, 1)
    ),
    "sample_unit_positions": Case(
        sample_unit_positions,
        _unit,
        lambda n: (*_along(n), "linf"),
        bytes_per_ray=24 + 4 * 49 + 12 * 48,
        differentiable=(0, 1),
    ),
}
