"""Rows of the weights stage."""

from itertools import pairwise

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.weights import transmittance, weights, weights_from_alpha, weights_packed


def _weights(sigma: Tensor, delta: Tensor) -> Tensor:
    tau = sigma * delta
    return torch.exp(tau - tau.cumsum(-1)) * -torch.expm1(-tau)


def _front(sigma: Tensor, delta: Tensor) -> Tensor:
    tau = sigma * delta
    return torch.exp(tau - tau.cumsum(-1))


def _per_ray(formula):
    def oracle(sigma: Tensor, delta: Tensor, offsets: Tensor) -> Tensor:
        ends = offsets.tolist()
        parts = [formula(sigma[a:b], delta[a:b]) for a, b in pairwise(ends)]
        return torch.cat(parts) if parts else sigma * 0

    return oracle


def _from_alpha(alpha: Tensor) -> tuple[Tensor, Tensor]:
    front = torch.nn.functional.pad((1 - alpha).cumprod(-1), (1, 0), value=1.0)
    return alpha * front[:, :-1], front


def _rays(n: int):
    return 5 * torch.rand(n, 48), torch.rand(n, 48)


def _ragged(n: int):
    lengths = torch.randint(0, 96, (n,))
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    total = int(offsets[-1])
    return 5 * torch.rand(total), torch.rand(total), offsets


CASES = {
    "weights": Case(weights, _weights, _rays, bytes_per_ray=576, differentiable=(0, 1)),
    "weights_packed": Case(
        weights_packed, _per_ray(_weights), _ragged, bytes_per_ray=576, differentiable=(0, 1), tolerance=2e-6
    ),
    "weights_from_alpha": Case(
        weights_from_alpha,
        _from_alpha,
        lambda n: (0.3 * torch.rand(n, 48),),
        bytes_per_ray=580,
        differentiable=(0,),
    ),
    "transmittance": Case(transmittance, _front, _rays, bytes_per_ray=576, differentiable=(0, 1)),
}
