"""Rows of the losses stage."""

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.losses import distortion, interlevel, orientation, predicted_normals


def _interlevel(s: Tensor, weights: Tensor, s_proposal: Tensor, weights_proposal: Tensor) -> Tensor:
    """Every fine bin against every proposal bin."""
    first = torch.arange(weights_proposal.shape[1]) == 0
    last = first.flip(0)
    begins = (s_proposal[:, None, 1:] > s[:, :-1, None]) | last  # the bin ends after the fine bin begins
    ends = (s_proposal[:, None, :-1] <= s[:, 1:, None]) | first  # and begins before it ends, or just there
    bound = ((begins & ends) * weights_proposal[:, None]).sum(-1)
    w = weights.detach()
    return ((w - bound).clamp_min(0).square() / (w + 1e-7)).mean(-1)


def _distortion(s: Tensor, weights: Tensor) -> Tensor:
    u = (s[:, 1:] + s[:, :-1]) / 2
    between = (weights[:, :, None] * weights[:, None] * (u[:, :, None] - u[:, None]).abs()).sum((1, 2))
    return between + (weights.square() * s.diff(dim=1)).sum(1) / 3


def _orientation(weights: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    return (weights * (normals * directions[:, None]).sum(-1).clamp_min(0).square()).sum(-1)


def _predicted_normals(weights: Tensor, normals: Tensor, predicted: Tensor) -> Tensor:
    return (weights * (1 - (normals * predicted).sum(-1))).sum(-1)


def _unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, 3), dim=-1)


def _edges(n: int, samples: int) -> Tensor:
    gaps = 0.01 + torch.rand(n, samples + 1)
    return (gaps.cumsum(1) - gaps[:, :1]) / gaps.sum(1, keepdim=True)


def _weights(n: int, samples: int) -> Tensor:
    w = torch.rand(n, samples) ** 4
    return w / w.sum(1, keepdim=True).clamp_min(1e-6)


CASES = {
    "interlevel": Case(
        interlevel,
        _interlevel,
        lambda n: (_edges(n, 48), _weights(n, 48), _edges(n, 96), _weights(n, 96)),
        bytes_per_ray=4 * (49 + 48 + 97 + 96 + 1),
        differentiable=(3,),
        tolerance=1e-5,
    ),
    "distortion": Case(
        distortion,
        _distortion,
        lambda n: (_edges(n, 48), _weights(n, 48)),
        bytes_per_ray=4 * (49 + 48 + 1),
        differentiable=(1,),
    ),
    "orientation": Case(
        orientation,
        _orientation,
        lambda n: (_weights(n, 48), _unit(n, 48), _unit(n)),
        bytes_per_ray=4 * (48 + 3 * 48 + 3 + 1),
        differentiable=(0, 1, 2),
    ),
    "predicted_normals": Case(
        predicted_normals,
        _predicted_normals,
        lambda n: (_weights(n, 48), _unit(n, 48), _unit(n, 48)),
        bytes_per_ray=4 * (48 + 6 * 48 + 1),
        differentiable=(2,),
    ),
}
