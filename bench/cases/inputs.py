"""Rows of the inputs stage: the pieces put side by side by torch."""

from functools import partial

import torch
from torch import Tensor

from bench.cases._case import Case
from bench.cases.harmonics import _fourier
from bench.cases.hashgrid import FEATURE, NERFACTO, _hashgrid, _inputs
from bench.cases.mlp import _density
from raymarch.ops.inputs import colour_inputs, encode

SAMPLES = 48


def _colour_inputs(h, y, scale, direction, code=None) -> tuple[Tensor, Tensor]:
    samples = len(h) // len(direction) if len(direction) else 0
    pieces = [direction.repeat_interleave(samples, 0), h[:, 1:]]
    pieces += [] if code is None else [code.repeat_interleave(samples, 0)]
    return _density(h, y, scale), torch.cat(pieces, -1)


def _rows(n: int, samples: int, geometry: int, widths: tuple[int, ...]):
    y = torch.rand(n * samples, 3) * (torch.rand(n * samples, 1) < 0.8)
    h = torch.randn(n * samples, 1 + geometry)
    return (h, y, 0.01, *(torch.randn(n, width) for width in widths))


def _colour_row(samples: int, geometry: int, widths: tuple[int, ...]) -> Case:
    bytes_per_sample = 4 * (1 + geometry + 3 + 1 + sum(widths) + geometry)
    return Case(
        colour_inputs,
        _colour_inputs,
        partial(_rows, samples=samples, geometry=geometry, widths=widths),
        bytes_per_ray=samples * bytes_per_sample + 4 * sum(widths),
        differentiable=(0, *range(3, 3 + len(widths))),
        bench_rays=4096,
    )


def _encode(x, table, frequencies, *settings) -> Tensor:
    *grid, fourier_layout = settings
    return torch.cat([_hashgrid(x, table, *grid), _fourier(x, frequencies, fourier_layout)], -1)


def _encode_inputs(n: int, frequencies: int, words: tuple, fourier_layout: str, **grid):
    x, table, *settings = _inputs(n, words=words, **grid)
    return x, table, frequencies, *settings, fourier_layout


def _encode_row(
    features: int, large: tuple, frequencies: int, words=("linear", "tcnn"), fourier="tcnn", dtype=None
) -> Case:
    size, levels = 4 if dtype is None else 2, large[0]
    return Case(
        encode,
        _encode,
        partial(
            _encode_inputs,
            frequencies=frequencies,
            words=words,
            fourier_layout=fourier,
            features=features,
            large=large,
            dtype=dtype,
        ),
        bytes_per_ray=12 + levels * features * (8 * size + 4) + 24 * frequencies,
        flops_per_ray=levels * 16 * features,
        differentiable=(0, 1),
        tolerance=1e-5,
        gradient_tolerance=1e-4,
        gathers=True,
        gradcheck=dtype is None,  # the double build looks up float64 only
        bench_rays=196608,
    )


CASES = {
    "colour_inputs": _colour_row(SAMPLES, 15, (16, 32)),
    "colour_inputs_no_code": _colour_row(5, 15, (16,)),
    "colour_inputs_uneven": _colour_row(7, 2, (1, 130)),
    "encode": _encode_row(8, FEATURE, 6),
    "encode_half": _encode_row(8, FEATURE, 6, dtype=torch.float16),
    # 6 more columns than a multiple of 4: vectors cannot read these rows in place.
    "encode_uneven": _encode_row(4, FEATURE, 3, ("smoothstep", "tcnn"), "nerfstudio"),
    "encode_pairs": _encode_row(2, NERFACTO, 1, ("linear", "nerfstudio")),
}
