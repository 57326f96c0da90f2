"""What the networks of a field read, each written by one op into one buffer instead of pieced together."""

import torch
from torch import Tensor

from raymarch.ops._op import differentiable, launch, op
from raymarch.ops._vector import vectorisable
from raymarch.ops.harmonics import LAYOUTS as FOURIER_LAYOUTS
from raymarch.ops.harmonics import fourier_backward
from raymarch.ops.hashgrid import hashgrid_backward, hashgrid_settings, hashgrid_slope
from raymarch.ops.mlp import density_backward


@op
def colour_inputs_forward(
    h: Tensor, y: Tensor, scale: float, direction: Tensor, code: Tensor | None
) -> tuple[Tensor, Tensor]:
    sigma = h.new_empty(h.shape[0])
    width = direction.shape[1] + h.shape[1] - 1 + (0 if code is None else code.shape[1])
    x = h.new_empty(h.shape[0], width)
    launch("colour_inputs_forward", h, y, scale, direction, code, sigma, x)
    return sigma, x


@op
def colour_inputs_backward(
    h: Tensor,
    y: Tensor,
    scale: float,
    direction: Tensor,
    code: Tensor | None,
    grad_sigma: Tensor | None,
    grad_x: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h, of direction and of code; an empty tensor stands for that of no code."""
    grad_h, grad_direction = torch.empty_like(h), torch.empty_like(direction)
    grad_code = None if code is None else torch.empty_like(code)
    launch("colour_inputs_backward", h, y, scale, grad_sigma, grad_x, grad_h, grad_direction, grad_code)
    return grad_h, grad_direction, h.new_empty(0) if grad_code is None else grad_code


def _colour_inputs_backward(inputs, saved, grads, needs):
    h, y, scale, _, code = inputs
    grad_sigma, grad_x = grads
    if grad_x is None:
        return density_backward(h, y, scale, grad_sigma), None, None, None, None
    grad_h, grad_direction, grad_code = colour_inputs_backward(*inputs, *grads)
    return grad_h, None, None, grad_direction, None if code is None else grad_code


_colour_inputs = differentiable(colour_inputs_forward, _colour_inputs_backward)


def colour_inputs(
    h: Tensor, y: Tensor, scale: float, direction: Tensor, code: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Where the base network's output goes: density [P], and what the colour network reads [P, D + G + A].

    h: [P, 1 + G] float32, S = P / R rows per ray, ray after ray. Column 0 becomes density as
    `raymarch.ops.mlp.density` says, with y [P, 3] the positions in the unit cube, and scale.
    direction: [R, D] and code: [R, A], shared by all samples of a ray. A row of the second result is its
    ray's direction, columns 1.. of h, its ray's code.
    Gradients to h (of both results, in one buffer), direction and code (summed along rays in a fixed order).

    Raises ValueError for shapes that do not fit.
    """
    rays = direction.shape[0]
    if h.dim() != 2 or y.shape != (h.shape[0], 3) or (h.shape[0] % rays if rays else h.shape[0]):
        raise ValueError(
            f"colour_inputs: h has shape {list(h.shape)}, y {list(y.shape)} and direction "
            f"{list(direction.shape)}, expected [rays * samples, channels], [rays * samples, 3] and [rays, D]"
        )
    held = None if code is None else code.contiguous()
    return _colour_inputs(h.contiguous(), y.contiguous(), float(scale), direction.contiguous(), held)


@op
def encode_forward(
    x: Tensor,
    table: Tensor,
    stored: Tensor | None,
    frequencies: int,
    fourier_layout: int,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    dtype: torch.dtype | None,
) -> Tensor:
    looked_up = vectorisable(table if stored is None else stored)
    width = levels * table.shape[1] + 6 * frequencies
    y = torch.empty(x.shape[0], width, dtype=dtype or x.dtype, device=x.device)
    settings = (levels, base_resolution, max_resolution, log2_size, interpolation, layout)
    launch("hashgrid_forward", x, looked_up, *settings, frequencies, fourier_layout, y)
    return y


def _encode_backward(inputs, saved, grads, needs):
    x, table, stored, frequencies, fourier_layout, *settings, _ = inputs
    grad_y = grads[0].to(x.dtype)
    width = settings[0] * table.shape[1]
    grad_x = grad_table = None
    if needs[0]:
        grad_x = hashgrid_slope(x, table if stored is None else stored, *settings, grad_y)
        grad_x += fourier_backward(x, frequencies, fourier_layout, width, grad_y)
    if needs[1]:
        exactly = torch.are_deterministic_algorithms_enabled()
        grad_table = hashgrid_backward(x, table, *settings, grad_y, exactly)
    return grad_x, grad_table, *(None for _ in inputs[2:])


_encode = differentiable(encode_forward, _encode_backward)


def encode(
    x: Tensor,
    table: Tensor,
    frequencies: int,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: str = "linear",
    stored: Tensor | None = None,
    layout: str = "tcnn",
    fourier_layout: str = "tcnn",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`raymarch.ops.hashgrid` and `raymarch.ops.fourier` of positions x [P, 3], side by side in one buffer.

    table: [N, F], looked up as there (or stored: its half copy). frequencies: 1 to 24. dtype: as there.
    Returns [P, levels * F + 6 * frequencies]. Gradients to x and table, read from one buffer too.
    Raises what the two ops raise.
    """
    if fourier_layout not in FOURIER_LAYOUTS:
        raise ValueError(
            f"encode: fourier_layout is {fourier_layout!r}, expected one of {', '.join(FOURIER_LAYOUTS)}"
        )
    if not 1 <= frequencies <= 24:
        raise ValueError(f"encode: frequencies is {frequencies}, expected 1 to 24")
    shape = (levels, base_resolution, max_resolution, log2_size)
    settings = hashgrid_settings(x, table, stored, shape, interpolation, layout, dtype)
    waves = FOURIER_LAYOUTS.index(fourier_layout)
    held = None if stored is None else stored.contiguous()
    return _encode(x.contiguous(), table.contiguous(), held, frequencies, waves, *settings, dtype)
