"""From the field to losses: weights, the heads that losses need, the losses of each ray, and their sums.

Losses come with constant weights, so gradients of per-ray losses are one number for all rays. Parts of the
fused stage `raymarch.model.field_to_pixels`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, empty_like

from raymarch.ops._op import launch, op

BACKGROUNDS = {"last_sample": 2, "black": 0, "white": 3, "random": 4}  # as in math/composite.h


def field_to_pixels_into(
    losses: Tensor,
    sigma: Tensor,
    s: Tensor,
    t: Tensor,
    rgb: Tensor,
    hidden: Tensor | None,
    normals: Tensor | None,
    predicted: Tensor | None,
    directions: Tensor | None,
    truth: Tensor,
    counter: Tensor | None,
    s_proposal: list[Tensor],
    w_proposal: list[Tensor],
    background: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`field_to_pixels_forward` whose losses are written into rows of `losses` [3 to 5, R]."""
    rays = sigma.shape[0]
    w, colour, opacity = empty_like(sigma), sigma.new_empty(rays, 3), sigma.new_empty(rays)
    summed = sigma.new_empty(0) if hidden is None else sigma.new_empty(rays, hidden.shape[2])
    given = (sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter, s_proposal, w_proposal)
    out = (w, colour, opacity, None if hidden is None else summed, losses)
    launch("field_to_pixels_forward", *given, background, stream, *out)
    return w, colour, opacity, summed


@op
def field_to_pixels_forward(
    sigma: Tensor,
    s: Tensor,
    t: Tensor,
    rgb: Tensor,
    hidden: Tensor | None,
    normals: Tensor | None,
    predicted: Tensor | None,
    directions: Tensor | None,
    truth: Tensor,
    counter: Tensor | None,
    s_proposal: list[Tensor],
    w_proposal: list[Tensor],
    background: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    losses = sigma.new_empty(3 + (normals is not None) + (predicted is not None), sigma.shape[0])
    given = (sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter, s_proposal, w_proposal)
    return *field_to_pixels_into(losses, *given, background, stream), losses


@op
def field_to_pixels_backward(
    sigma: Tensor,
    s: Tensor,
    t: Tensor,
    rgb: Tensor,
    hidden: Tensor | None,
    normals: Tensor | None,
    directions: Tensor | None,
    truth: Tensor,
    counter: Tensor | None,
    background: int,
    stream: int,
    calm: bool,
    detached: bool,
    w: Tensor,
    colour: Tensor,
    opacity: Tensor,
    grad: Tensor,
    g_hidden: Tensor | None,
    hidden_scale: Tensor | None,
    to_predicted: bool,
    to_directions: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_sigma, grad_rgb = empty_like(sigma), empty_like(rgb)
    grad_hidden = sigma.new_empty(0) if hidden is None else empty_like(hidden)
    grad_predicted = empty_like(rgb) if to_predicted else sigma.new_empty(0)
    grad_directions = sigma.new_empty(sigma.shape[0], 3) if to_directions else sigma.new_empty(0)
    given = (
        sigma,
        s,
        t,
        rgb,
        hidden,
        normals,
        directions,
        truth,
        counter,
        background,
        stream,
        calm,
        detached,
    )
    seen = (w, colour, opacity, grad, g_hidden, hidden_scale)
    launch(
        "field_to_pixels_backward", *given, *seen, grad_sigma, grad_rgb,
        None if hidden is None else grad_hidden,
        grad_predicted if to_predicted else None,
        grad_directions if to_directions else None,
    )  # fmt: skip
    return grad_sigma, grad_rgb, grad_hidden, grad_predicted, grad_directions


class _PixelLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter, levels, how):
        background, stream, _, _ = how
        given = (sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter)
        lists = ([a for a, _ in levels], [b for _, b in levels])
        w, colour, opacity, summed, losses = field_to_pixels_forward(*given, *lists, background, stream)
        ctx.save_for_backward(*given, w, colour, opacity)
        ctx.how = how
        return losses.sum(1), summed

    @staticmethod
    def backward(ctx, grad, g_hidden):
        if torch.is_grad_enabled():
            raise RuntimeError("pixel_losses is once differentiable")
        *given, w, colour, opacity = ctx.saved_tensors
        sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter = given
        parts = None if hidden is None else g_hidden.contiguous()[None]
        wanted = (predicted is not None, normals is not None and directions is not None)
        found = field_to_pixels_backward(
            sigma, s, t, rgb, hidden, normals, directions, truth, counter, *ctx.how, w, colour, opacity,
            grad.contiguous(), parts, None, *wanted,
        )  # fmt: skip
        grad_hidden = None if hidden is None else found[2]
        to_predicted = found[3] if wanted[0] else None
        to_directions = found[4] if wanted[1] else None
        heads = (grad_hidden, None, to_predicted, to_directions)
        return found[0], None, None, found[1], *heads, None, None, None, None


def pixel_losses(
    sigma: Tensor,
    s: Tensor,
    t: Tensor,
    rgb: Tensor,
    truth: Tensor,
    hidden: Tensor | None = None,
    normals: Tensor | None = None,
    predicted: Tensor | None = None,
    directions: Tensor | None = None,
    counter: Tensor | None = None,
    proposals: tuple[tuple[Tensor, Tensor], ...] = (),
    background: str = "last_sample",
    stream: int = 64,
    calm: bool = True,
    detached: bool = False,
) -> tuple[Tensor, Tensor]:
    """From the field to what losses sum up over rays, and hidden vectors composited [R, H] (or empty).

    sigma [R, S], s, t [R, S + 1], rgb [R, S, 3], hidden [R, S, H], normals, predicted [R, S, 3], directions
    [R, 3], truth [R, 3 or 4] float32; proposals: edges s and weights of each level. The first result holds
    sums over rays: the squared error of the colour (over three channels), interlevel, distortion and, with
    normals, orientation, and with predicted, predicted_normals; each as the op of that name, background as
    in `raymarch.model.losses.blended`. `calm` scales gradients as `scale_gradients`; `detached` keeps hidden
    from the weights. Gradients to sigma, rgb, hidden, predicted and directions.
    """
    if background not in BACKGROUNDS:
        raise ValueError(
            f"pixel_losses: background is {background!r}, expected one of {', '.join(BACKGROUNDS)}"
        )
    how = (BACKGROUNDS[background], stream, calm, detached)
    given = (sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter)
    return _PixelLosses.apply(*given, proposals, how)


class LossRoom(NamedTuple):
    """What `sum_losses` writes and updates, made once."""

    sums: Tensor  # [rows]
    ticket: Tensor  # [1] int32, zero between calls


def loss_room(scales: Tensor) -> LossRoom:
    return LossRoom(torch.empty_like(scales), torch.zeros(1, dtype=torch.int32, device=scales.device))


def sum_losses(
    rows: Tensor,
    scales: Tensor,
    owner: Tensor,
    penalty: Tensor | None,
    room: LossRoom,
    terms: Tensor,
    healthy: Tensor,
    steps: Tensor,
    stepping: Tensor,
) -> None:
    """terms[owner[k]] = sum over k and rays of scales[k] rows[k]; the last term is the penalty, if any.

    rows [K, R], scales [K], owner [K] int64, terms [T]. A sum of terms that is not finite makes healthy [1]
    bool false; otherwise, where healthy, steps [G] int64 grow by stepping [G]. In place; sums have one order.
    """
    launch("sum_losses", rows, scales, owner, penalty, *room, terms, healthy, steps, stepping)


def advance(counter: Tensor, healthy: Tensor, schedules: Tensor, row: Tensor) -> None:
    """Count a step in counter [2] int64 = (seed, step) where healthy, and look its row of schedules up."""
    launch("advance", counter, healthy, schedules, row)
