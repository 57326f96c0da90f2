"""Rows of the ops around the fields' networks: oracles made of those of their parts."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.cases._case import Case
from bench.cases.contract import _contract_unit
from bench.cases.harmonics import _fourier, _harmonics
from bench.cases.inputs import _colour_inputs
from bench.cases.losses import _unit
from bench.cases.sample import _along, _positions
from raymarch.ops.samples_to_field import normal_head, normal_inputs, radiance_inputs, slope_normals


def _radiance_inputs(h, y, scale, directions, codes=None, camera=None) -> tuple[Tensor, Tensor]:
    code = None if codes is None else codes[camera]
    return _colour_inputs(h, y, scale, _harmonics(directions), code)


def _radiance_rows(n: int, codes: bool):
    h = torch.randn(n * 24, 16)
    y = torch.rand(n * 24, 3) * (torch.rand(n * 24, 1) < 0.8)
    rest = (torch.randn(5, 32), torch.randint(5, (n,))) if codes else ()
    return h, y, 0.01, _unit(n), *rest


def _slope_normals(origins, directions, t, slope, norm) -> Tensor:
    x = _positions(origins, directions, t).requires_grad_()
    with torch.enable_grad():
        (pulled,) = torch.autograd.grad(_contract_unit(x, norm), x, slope)
    return -normalize(pulled, dim=-1)


def _normal_inputs(origins, directions, t, h, frequencies) -> Tensor:
    waves = _fourier(_positions(origins, directions, t).reshape(-1, 3), frequencies)
    return torch.cat([waves, h[:, 1:]], -1)


def _normal_head(z, weight, bias) -> Tensor:
    return normalize(torch.tanh(z @ weight.T + bias), dim=-1)


CASES = {
    "radiance_inputs": Case(
        radiance_inputs,
        _radiance_inputs,
        lambda n: _radiance_rows(n, True),
        bytes_per_ray=24 * 4 * (16 + 3 + 1 + 63) + 20,
        differentiable=(0, 3, 4),
        bench_rays=4096,
    ),
    "radiance_inputs_no_code": Case(
        radiance_inputs,
        _radiance_inputs,
        lambda n: _radiance_rows(n, False),
        bytes_per_ray=24 * 4 * (16 + 3 + 1 + 31) + 12,
        differentiable=(0, 3),
        bench_rays=4096,
    ),
    "slope_normals": Case(
        slope_normals,
        _slope_normals,
        lambda n: (*_along(n), torch.randn(n, 48, 3), "linf"),
        bytes_per_ray=24 + 4 * 49 + 24 * 48,
        tolerance=1e-5,
        bench_rays=4096,
    ),
    "normal_inputs": Case(
        normal_inputs,
        _normal_inputs,
        lambda n: (*_along(n), torch.randn(n * 48, 16), 2),
        bytes_per_ray=24 + 4 * 49 + 48 * 4 * (16 + 27),
        differentiable=(0, 1, 3),
        bench_rays=4096,
    ),
    "normal_head": Case(
        normal_head,
        _normal_head,
        lambda n: (torch.randn(n, 64), 0.2 * torch.randn(3, 64), 0.1 * torch.randn(3)),
        bytes_per_ray=4 * 67,
        differentiable=(0, 1, 2),
        tolerance=1e-5,
        gradient_tolerance=1e-4,
    ),
}
