"""Rows of the contract stage."""

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.contract import contract


def _contract(x: Tensor) -> Tensor:
    r = x.norm(dim=-1, keepdim=True)
    return torch.where(r <= 1, x, (2 - 1 / r) * x / r)


CASES = {
    "contract": Case(
        contract, _contract, lambda n: (3 * torch.randn(n, 3),), bytes_per_ray=24, differentiable=(0,)
    ),
}
