"""Rows of the composite stage."""

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.composite import composite


def _present(*heads):
    return tuple(h for h in heads if h is not None)


def _composite(w, t, rgb, normals, predicted, feature, background) -> tuple[Tensor, ...]:
    middle = (t[:, 1:] + t[:, :-1]) / 2
    opacity = w.sum(-1)
    index = (w.cumsum(-1) < 0.5).sum(-1).clamp_max(w.shape[1] - 1)
    depth = middle.gather(1, index[:, None])[:, 0]
    mean = (w * middle).sum(-1) / (opacity + 1e-10)
    expected = torch.minimum(torch.maximum(mean, middle[:, 0]), middle[:, -1])

    def sums(values):
        return None if values is None else (w[..., None] * values).sum(1)

    def unit(values):
        return None if values is None else sums(values) / (sums(values).norm(dim=-1, keepdim=True) + 1e-10)

    colour = sums(rgb)
    if rgb is not None and background == "last_sample":
        colour = colour + (1 - opacity)[:, None] * rgb[:, -1]
    if rgb is not None and background == "white":
        colour = colour + (1 - opacity)[:, None]
    return _present(colour, opacity, depth.detach(), expected, unit(normals), unit(predicted), sums(feature))


def _op(*args) -> tuple[Tensor, ...]:
    return _present(*composite(*args))


def _rays(n: int, samples: int = 48):
    weights = torch.softmax(2 * torch.randn(n, samples + 1), -1)[:, 1:]
    return weights.contiguous(), torch.rand(n, samples + 1).cumsum(1)


def _all_heads(n: int):
    heads = [torch.rand(n, 48, 3), torch.randn(n, 48, 3), torch.randn(n, 48, 3), torch.randn(n, 48, 64)]
    return (*_rays(n), *heads, "last_sample")


CASES = {
    "composite": Case(
        _op, _composite, _all_heads, bytes_per_ray=4 * (48 * 74 + 49 + 76), differentiable=(0, 2, 3, 4, 5)
    ),
    "composite_rgb": Case(
        _op,
        _composite,
        lambda n: (*_rays(n), torch.rand(n, 48, 3), None, None, None, "white"),
        bytes_per_ray=4 * (48 * 4 + 49 + 6),
        differentiable=(0, 2),
    ),
    "composite_features": Case(
        _op,
        _composite,
        lambda n: (*_rays(n), None, None, None, torch.randn(n, 48, 768), "black"),
        bytes_per_ray=4 * (48 * 769 + 49 + 771),
        differentiable=(0, 5),
        bench_rays=4096,
    ),
}
