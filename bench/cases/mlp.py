"""Rows of the mlp stage: the networks of the presets, and two shapes that divide nothing."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from bench.cases._case import Case
from raymarch.ops.mlp import density, mlp, parameters, shapes


def _mlp(x, params, hidden, layers, outputs, output_activation="none", padding=0.0) -> Tensor:
    matrices = shapes(x.shape[-1], hidden, layers, outputs)
    h = pad(x, (0, matrices[0][1] - x.shape[-1]), value=padding)
    at = 0
    for i, (rows, columns) in enumerate(matrices):
        h = h @ params[at : at + rows * columns].reshape(rows, columns).T
        h = h.relu() if i < layers else h
        at += rows * columns
    y = h[:, :outputs]
    return {"none": y, "sigmoid": y.sigmoid(), "relu": y.relu()}[output_activation]


def _margin(x, params, hidden, layers, outputs, output_activation, padding) -> Tensor:
    """How far each point's units are from the kink of relu."""
    matrices = shapes(x.shape[-1], hidden, layers, outputs)
    h = pad(x, (0, matrices[0][1] - x.shape[-1]), value=padding)
    at, margin = 0, torch.full(x.shape[:1], torch.inf, dtype=x.dtype)
    for i, (rows, columns) in enumerate(matrices):
        z = h @ params[at : at + rows * columns].reshape(rows, columns).T
        if i == layers:
            z = z[:, :outputs]
        if i < layers or output_activation == "relu":
            margin = torch.minimum(margin, z.abs().amin(-1))
        h, at = z.relu(), at + rows * columns
    return margin


def _network(inputs, hidden, layers, outputs, output_activation="none", padding=0.0) -> Case:
    def arguments(n: int):
        params = torch.cat(
            [
                (2 * torch.rand(r * c) - 1) * (6 / (r + c)) ** 0.5
                for r, c in shapes(inputs, hidden, layers, outputs)
            ]
        )
        settings = (hidden, layers, outputs, output_activation, padding)
        # Many times too many points, of which the n farthest from a kink stay: finite differences and
        # rounding to halves must not cross one.
        x = torch.randn(4 * n + 32 if n < 1000 else n, inputs)
        if n < 1000:
            x = x[_margin(x.double(), params.double(), *settings).argsort(descending=True)[:n]]
        return (x.contiguous(), params, *settings)

    return Case(
        mlp,
        _mlp,
        arguments,
        bytes_per_ray=4 * (inputs + outputs),
        flops_per_ray=2 * parameters(inputs, hidden, layers, outputs),
        tf32=True,
        differentiable=(0, 1),
        gradient_tolerance=2e-5,
        cuda_tolerance=1e-3,
        cuda_gradient_tolerance=3e-3,
        gradcheck=parameters(inputs, hidden, layers, outputs) < 20000,  # two evaluations for each of them
        bench_rays=196608,
    )


def _density(h: Tensor, y: Tensor, scale: float) -> Tensor:
    return torch.where((y > 0).any(-1), scale * h[:, 0].exp(), torch.zeros_like(h[:, 0]))


CASES = {
    "mlp_proposal": _network(10, 16, 1, 1),
    "mlp_base": _network(32, 64, 1, 16),
    "mlp_colour": _network(63, 64, 2, 3, "sigmoid", 1.0),
    "mlp_normals": _network(27, 64, 2, 64, padding=1.0),
    "mlp_feature": _network(132, 64, 1, 64, "relu", 1.0),
    "mlp_uneven": _network(5, 48, 3, 17, "none", 1.0),
    "mlp_largest": _network(256, 128, 4, 128),
    "density": Case(
        density,
        _density,
        lambda n: (2 * torch.randn(n, 16), torch.rand(n, 3) * (torch.rand(n, 1) < 0.8), 0.01),
        bytes_per_ray=32 + 12 + 4,  # of a row of h one number is read, and memory moves 32 bytes for it
        differentiable=(0,),
        bench_rays=196608,
    ),
}
