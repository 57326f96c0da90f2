"""Rows of the contract stage."""

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.contract import contract, contract_unit, uncontract


def length(x: Tensor, norm: str) -> Tensor:
    return x.abs().amax(-1, keepdim=True) if norm == "linf" else x.norm(dim=-1, keepdim=True)


def _contract(x: Tensor, norm: str) -> Tensor:
    r = length(x, norm)
    return torch.where(r < 1, x, (2 - 1 / r) * x / r)


def _uncontract(y: Tensor, norm: str) -> Tensor:
    r = length(y, norm)
    return torch.where(r < 1, y, y / (r * (2 - r)))


def _contract_unit(x: Tensor, norm: str) -> Tensor:
    return (_contract(x, norm) + 2) / 4


def _points(norm: str):
    return lambda n: (3 * torch.randn(n, 3), norm)


def _contracted(n: int):
    return (_contract(3 * torch.randn(n, 3), "linf"), "linf")


CASES = {
    "contract": Case(contract, _contract, _points("linf"), bytes_per_ray=24, differentiable=(0,)),
    "contract_l2": Case(contract, _contract, _points("l2"), bytes_per_ray=24, differentiable=(0,)),
    "uncontract": Case(
        uncontract, _uncontract, _contracted, bytes_per_ray=24, differentiable=(0,), tolerance=1e-5
    ),
    "contract_unit": Case(
        contract_unit, _contract_unit, _points("linf"), bytes_per_ray=24, differentiable=(0,)
    ),
}
