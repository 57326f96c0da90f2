"""Rows of the losses of a field: oracles made of those of their parts."""

import torch
from torch import Tensor

from bench.cases._case import Case
from bench.cases.composite import _composite
from bench.cases.losses import _distortion, _edges, _interlevel, _orientation, _predicted_normals, _unit
from bench.cases.losses import _weights as _histogram
from bench.cases.weights import _weights
from raymarch.ops.field_to_pixels import pixel_losses


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


def _pixel_losses(
    sigma, s, t, rgb, truth, hidden, normals, predicted, directions, counter, proposals, background, calm
) -> tuple[Tensor, ...]:
    if calm:
        near = ((t[:, 1:] + t[:, :-1]) / 2).square().clamp_max(1)
        sigma, rgb = _Scaled.apply(sigma, near), _Scaled.apply(rgb, near[..., None])
        predicted = None if predicted is None else _Scaled.apply(predicted, near[..., None])
    w = _weights(sigma, t.diff())
    colour, *_ = _composite(w, t, rgb, None, None, None, background)
    summed = () if hidden is None else ((w[..., None] * hidden).sum(1),)
    alpha = truth[:, 3:] if truth.shape[1] == 4 else torch.ones_like(truth[:, :1])
    behind = 1.0 if background == "white" else 0.0
    wanted = truth[:, :3] * alpha + behind * (1 - alpha)
    excess = sum(_interlevel(s, w.detach(), a.double(), b.double()) for a, b in proposals)
    rows = [(colour - wanted).square().sum(-1), excess, _distortion(s, w)]
    if normals is not None:
        rows.append(_orientation(w.detach(), normals, directions))
    if predicted is not None:
        rows.append(_predicted_normals(w.detach(), normals, predicted))
    return torch.stack([row.sum() if isinstance(row, Tensor) else w.sum() * 0 for row in rows]), *summed


def _pixel_losses_op(
    sigma, s, t, rgb, truth, hidden, normals, predicted, directions, counter, proposals, background, calm
):
    levels = tuple((a.to(sigma), b.to(sigma)) for a, b in proposals)
    heads = (hidden, normals, predicted, directions)
    out = pixel_losses(sigma, s, t, rgb, truth, *heads, counter, levels, background, calm=calm)
    return out[:1] if hidden is None else out


def _field(n: int, samples: int = 24, channels: int = 4):
    t = 0.3 * torch.rand(n, samples + 1).cumsum(1)
    return (
        3 * torch.rand(n, samples),
        _edges(n, samples),
        t,
        torch.rand(n, samples, 3),
        torch.rand(n, channels),
    )


def _all_heads(n: int):
    levels = tuple((_edges(n, bins), _histogram(n, bins)) for bins in (33, 48))
    heads = (torch.randn(n, 24, 64), _unit(n, 24), _unit(n, 24), _unit(n))
    return *_field(n), *heads, None, levels, "last_sample", True


CASES = {
    "pixel_losses": Case(
        _pixel_losses_op,
        _pixel_losses,
        _all_heads,
        bytes_per_ray=4 * (24 * 77 + 2 * 25 + 64 + 4 + 3 + 2 * (33 + 48)),
        differentiable=(0, 3, 5, 7, 8),
        tolerance=1e-5,
        gradient_tolerance=1e-4,
        gradcheck=False,  # gradients are scaled near the camera, and three losses hold the weights constant
        bench_rays=4096,
    ),
    "pixel_losses_rgb": Case(
        _pixel_losses_op,
        _pixel_losses,
        lambda n: (*_field(n, 37, 3), None, None, None, None, None, (), "white", False),
        bytes_per_ray=4 * (37 * 5 + 2 * 38 + 6),
        differentiable=(0, 3),
        tolerance=1e-5,
        gradient_tolerance=1e-4,
        bench_rays=4096,
    ),
}
