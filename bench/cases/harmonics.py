"""Rows of the harmonics stage."""

import math

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.harmonics import fourier, harmonics


def _legendre(l: int, m: int, z: Tensor) -> Tensor:
    """Associated Legendre function without (1 - z^2)^(m/2), by recurrence in the degree."""
    before, now = torch.zeros_like(z), torch.full_like(z, math.prod(range(1, 2 * m, 2)))
    for n in range(m, l):
        before, now = now, ((2 * n + 1) * z * now - (n + m) * before) / (n - m + 1)
    return now


def _harmonics(d: Tensor, signs: str = "nerfstudio") -> Tensor:
    """sqrt((2l+1)/4pi (l-|m|)!/(l+|m|)!) P_lm(z) times the real or imaginary part of (x + iy)^|m|."""
    x, y, z = d.unbind(-1)
    columns = []
    for l in range(4):
        for m in range(-l, l + 1):
            real, imaginary = torch.ones_like(x), torch.zeros_like(x)
            for _ in range(abs(m)):
                real, imaginary = x * real - y * imaginary, x * imaginary + y * real
            size = (2 * l + 1) / (4 * math.pi) * math.factorial(l - abs(m)) / math.factorial(l + abs(m))
            size = math.sqrt(size * (2 if m else 1)) * (-1 if signs == "tcnn" and m % 2 else 1)
            columns.append(size * _legendre(l, abs(m), z) * (imaginary if m < 0 else real))
    return torch.stack(columns, -1)


def _fourier(x: Tensor, frequencies: int, layout: str = "tcnn") -> Tensor:
    octaves = math.pi * 2.0 ** torch.arange(frequencies, dtype=x.dtype, device=x.device)
    angle = x[:, :, None] * octaves * (1 if layout == "tcnn" else 2)
    if layout == "tcnn":
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
    return torch.cat([angle.sin().flatten(1), angle.cos().flatten(1)], -1)


def _directions(n: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 3), dim=-1)


CASES = {
    # The oracle continues the harmonics off the sphere by the same polynomials in x, y and z as the op.
    "harmonics": Case(
        harmonics, _harmonics, lambda n: (_directions(n),), bytes_per_ray=76, differentiable=(0,)
    ),
    "harmonics_tcnn": Case(
        harmonics, _harmonics, lambda n: (_directions(n), "tcnn"), bytes_per_ray=76, differentiable=(0,)
    ),
    "fourier": Case(
        fourier,
        _fourier,
        lambda n: (torch.rand(n, 3), 6),
        bytes_per_ray=156,
        differentiable=(0,),
        tolerance=1e-6,
    ),
    "fourier_nerfstudio": Case(
        fourier,
        _fourier,
        lambda n: (3 * torch.randn(n, 3), 2, "nerfstudio"),
        bytes_per_ray=60,
        differentiable=(0,),
    ),
}
