"""Encodings without parameters: spherical harmonics of directions, Fourier features of positions."""

import torch
from torch import Tensor

from raymarch.ops._op import differentiable, launch, op
from raymarch.ops._vector import vectorisable

SIGNS = ("nerfstudio", "tcnn", "nerfstudio_torch")
LAYOUTS = ("tcnn", "nerfstudio")


@op
def harmonics_forward(d: Tensor, signs: int) -> Tensor:
    y = d.new_empty(d.shape[0], 16)
    launch("harmonics_forward", d, signs, y)
    return y


@op
def harmonics_backward(d: Tensor, signs: int, grad_y: Tensor) -> Tensor:
    grad_d = torch.empty_like(d)
    launch("harmonics_backward", d, signs, vectorisable(grad_y), grad_d)
    return grad_d


@op
def fourier_forward(x: Tensor, frequencies: int, layout: int) -> Tensor:
    y = x.new_empty(x.shape[0], 6 * frequencies)
    launch("fourier_forward", x, frequencies, layout, 0, y)
    return y


@op
def fourier_backward(x: Tensor, frequencies: int, layout: int, column: int, grad_y: Tensor) -> Tensor:
    grad_x = torch.empty_like(x)
    launch("fourier_backward", x, frequencies, layout, column, grad_y, grad_x)
    return grad_x


def _harmonics_backward(inputs, saved, grads, needs):
    return harmonics_backward(*inputs, *grads), None


def _fourier_backward(inputs, saved, grads, needs):
    return fourier_backward(*inputs, 0, *grads), None, None


_harmonics = differentiable(harmonics_forward, _harmonics_backward)
_fourier = differentiable(fourier_forward, _fourier_backward)


def harmonics(d: Tensor, signs: str = "nerfstudio") -> Tensor:
    """Real spherical harmonics of degrees 0 to 3 at unit directions d [P, 3]: [P, 16], gradient to d.

    `signs="tcnn"` negates the terms of odd order, as tiny-cuda-nn does. `signs="nerfstudio_torch"` is
    nerfstudio's torch fallback, which evaluates the polynomials at (d + 1) / 2 instead of at d.
    Raises ValueError for another word.
    """
    if signs not in SIGNS:
        raise ValueError(f"harmonics: signs is {signs!r}, expected one of {', '.join(SIGNS)}")
    return _harmonics(d.contiguous(), SIGNS.index(signs))


def fourier(x: Tensor, frequencies: int, layout: str = "tcnn") -> Tensor:
    """Sines and cosines of positions x [P, 3] at octaves k < frequencies: [P, 6 * frequencies].

    `layout="tcnn"`: angles pi 2^k x, columns ordered (dimension, k, sin or cos), as tiny-cuda-nn's Frequency.
    `layout="nerfstudio"`: angles 2 pi 2^k x, all sines in order (dimension, k), then all cosines.
    frequencies: 1 to 24. Gradient to x. Raises ValueError for others or for another layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"fourier: layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if not 1 <= frequencies <= 24:
        raise ValueError(f"fourier: frequencies is {frequencies}, expected 1 to 24")
    return _fourier(x.contiguous(), frequencies, LAYOUTS.index(layout))
