"""Rows of the weights stage."""

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.weights import weights


def _weights(sigma: Tensor, delta: Tensor) -> Tensor:
    tau = sigma * delta
    return torch.exp(tau - tau.cumsum(-1)) * -torch.expm1(-tau)


CASES = {
    "weights": Case(
        weights,
        _weights,
        lambda n: (5 * torch.rand(n, 48), torch.rand(n, 48)),
        bytes_per_ray=576,
        differentiable=(0,),
    ),
}
