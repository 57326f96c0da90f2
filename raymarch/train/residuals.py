"""Rendering against photo on a grid: blur, exposure, robust weights, and small systems of equations.

Plain torch on any device; nothing here waits for it. Letters: K poses, N cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 0.25  # of the photo's variance: how strongly a gain is held at 1
LEAST_GAIN = 0.3  # below, a rendering would be explained by making it flat


def blur_matrix(count: int, sigma: float, device: torch.device) -> Tensor:
    """A Gaussian blur of `count` cells as a matrix [count, count] whose rows sum to one, borders included."""
    place = torch.arange(count, device=device, dtype=torch.float32)
    if sigma <= 0:
        return torch.eye(count, device=device)
    weights = torch.exp(-0.5 * ((place[:, None] - place[None]) / sigma).square())
    return weights / weights.sum(1, keepdim=True)


@dataclass(frozen=True)
class Fit:
    """Rendering against photo for K poses: residuals [K, N, 3], their weights, and what they cost [K]."""

    residual: Tensor
    weight: Tensor
    gain: Tensor  # [K, 1, 3]
    seen: Tensor  # [K, N, 3] the blurred rendering
    cost: Tensor  # [K]
    explained: Tensor  # [K] share of the photo's variance, 0 to 1; 0 where it has none
    spread: Tensor  # [K] root mean square of the residuals


def compare(seen: Tensor, target: Tensor, keep: Tensor, scale: float) -> Fit:
    """Fit gain and offset per channel, robustly: seen [K, N, 3] against target [N, 3] where keep [N] is 1.

    The loss is 2 s^2 (sqrt(1 + (r / s)^2) - 1), quadratic for residuals below `scale` and linear above.
    """
    keep = keep[:, None]
    cells = keep.sum().clamp_min(1)
    middle = (keep * target).sum(0) / cells
    variance = (keep * (target - middle).square()).sum(0) / cells
    weight = keep.expand_as(seen)
    for _ in range(2):
        total = weight.sum(1, keepdim=True).clamp_min(1e-6)
        mean = (weight * seen).sum(1, keepdim=True) / total
        mean_target = (weight * target).sum(1, keepdim=True) / total
        off, off_target = seen - mean, target - mean_target
        ridge = RIDGE * variance + 1e-8
        both = (weight * off * off_target).sum(1, keepdim=True) / total
        own = (weight * off * off).sum(1, keepdim=True) / total
        gain = ((both + ridge) / (own + ridge)).clamp_min(LEAST_GAIN)
        residual = gain * off - off_target
        root = (1 + (residual / scale).square()).sqrt()
        weight = keep / root
    cost = 2 * scale**2 * (keep * (root - 1)).sum((1, 2)) / (3 * cells)
    square = (keep * residual.square()).sum((1, 2)) / (3 * cells)
    varies = variance.mean()
    explained = (1 - square / (varies + 1e-12)).clamp_min(0) * (varies > 1e-9)
    return Fit(residual, weight, gain, seen, cost, explained, square.sqrt())


def project(jacobian: Tensor, fit: Fit) -> Tensor:
    """The part of d seen / d xi [K, N, 3, 6] that neither gain nor offset explains, times the gain."""
    weight, seen = fit.weight, fit.seen
    total = weight.sum(1, keepdim=True).clamp_min(1e-6)
    off = seen - (weight * seen).sum(1, keepdim=True) / total
    j = jacobian - (weight[..., None] * jacobian).sum(1, keepdim=True) / total[..., None]
    share = ((weight * off)[..., None] * j).sum(1, keepdim=True)
    share = share / ((weight * off * off).sum(1, keepdim=True)[..., None] + 1e-8)
    return fit.gain[..., None] * (j - off[..., None] * share)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix^-1 right for [K, n, n] positive definite and [K, n, m]; Gauss-Jordan, n steps, no host."""
    rows = torch.cat([matrix, right], -1)
    count = matrix.shape[-1]
    for i in range(count):
        pivot = rows[:, i : i + 1] / rows[:, i : i + 1, i : i + 1].clamp_min(1e-30)
        below = rows - rows[:, :, i : i + 1] * pivot
        rows = torch.cat([below[:, :i], pivot, below[:, i + 1 :]], 1)
    return rows[..., count:]
