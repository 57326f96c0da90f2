"""The row of the feature loss."""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from bench.cases._case import Case
from raymarch.ops.feature_loss import feature_loss


def _feature_loss(hidden, layer, target) -> Tensor:
    return mse_loss(hidden @ layer.T, target)


CASES = {
    "feature_loss": Case(
        feature_loss,
        _feature_loss,
        lambda n: (torch.randn(n, 64), 0.2 * torch.randn(300, 64), torch.randn(n, 300)),
        bytes_per_ray=4 * (64 + 300 + 64),
        flops_per_ray=6 * 64 * 300,
        tf32=True,
        differentiable=(0, 1),
        cuda_tolerance=1e-3,
        cuda_gradient_tolerance=1e-3,
        bench_rays=4096,
    ),
}
