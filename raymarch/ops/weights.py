"""Rendering weights along each ray: w_i = exp(-sum_{j<i} tau_j) (1 - exp(-tau_i)), tau = sigma delta.

Max 1995, equation 21; intervals that are not a number, and all behind them, weigh nothing.
"""

import torch
from torch import Tensor, empty_like

from raymarch.ops._op import differentiable, launch, op


@op
def weights_forward(sigma: Tensor, delta: Tensor) -> Tensor:
    w = empty_like(sigma)
    launch("weights_forward", sigma, delta, w)
    return w


@op
def weights_backward(sigma: Tensor, delta: Tensor, w: Tensor, grad_w: Tensor) -> tuple[Tensor, Tensor]:
    grad_sigma, grad_delta = empty_like(sigma), empty_like(sigma)
    launch("weights_backward", sigma, delta, w, grad_w, grad_sigma, grad_delta)
    return grad_sigma, grad_delta


@op
def weights_density_backward(sigma: Tensor, delta: Tensor, w: Tensor, grad_w: Tensor) -> Tensor:
    grad_sigma = empty_like(sigma)
    launch("weights_backward", sigma, delta, w, grad_w, grad_sigma, None)
    return grad_sigma


@op
def weights_packed_forward(sigma: Tensor, delta: Tensor, offsets: Tensor) -> Tensor:
    w = empty_like(sigma)
    launch("weights_packed_forward", sigma, delta, offsets, w)
    return w


@op
def weights_packed_backward(
    sigma: Tensor, delta: Tensor, offsets: Tensor, w: Tensor, grad_w: Tensor
) -> tuple[Tensor, Tensor]:
    grad_sigma, grad_delta = empty_like(sigma), empty_like(sigma)
    launch("weights_packed_backward", sigma, delta, offsets, w, grad_w, grad_sigma, grad_delta)
    return grad_sigma, grad_delta


@op
def transmittance_forward(sigma: Tensor, delta: Tensor, offsets: Tensor) -> Tensor:
    front = empty_like(sigma)
    launch("transmittance_forward", sigma, delta, offsets, front)
    return front


@op
def transmittance_backward(
    sigma: Tensor, delta: Tensor, offsets: Tensor, front: Tensor, grad_front: Tensor
) -> tuple[Tensor, Tensor]:
    grad_sigma, grad_delta = empty_like(sigma), empty_like(sigma)
    launch("transmittance_backward", sigma, delta, offsets, front, grad_front, grad_sigma, grad_delta)
    return grad_sigma, grad_delta


@op
def weights_from_alpha_forward(alpha: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    w = empty_like(alpha)
    front = alpha.new_empty(alpha.shape[0], alpha.shape[1] + 1)
    launch("weights_from_alpha_forward", alpha, w, front, epsilon)
    return w, front


@op
def weights_from_alpha_backward(
    alpha: Tensor, front: Tensor, grad_w: Tensor | None, grad_front: Tensor | None, epsilon: float
) -> Tensor:
    grad_alpha = empty_like(alpha)
    launch("weights_from_alpha_backward", alpha, front, grad_w, grad_front, grad_alpha, epsilon)
    return grad_alpha


def _backward(inputs, saved, grads, needs):
    if needs[1]:
        return weights_backward(*inputs, *saved, *grads)
    return weights_density_backward(*inputs, *saved, *grads), None


_weights = differentiable(weights_forward, _backward, save=(0,))
_packed = differentiable(
    weights_packed_forward, lambda i, s, g, n: (*weights_packed_backward(*i, *s, *g), None), save=(0,)
)
_transmittance = differentiable(
    transmittance_forward, lambda i, s, g, n: (*transmittance_backward(*i, *s, *g), None), save=(0,)
)
_from_alpha = differentiable(
    weights_from_alpha_forward,
    lambda i, s, g, n: (weights_from_alpha_backward(i[0], s[0], *g, i[1]), None),
    save=(1,),
)


def weights(sigma: Tensor, delta: Tensor) -> Tensor:
    """Rendering weights [R, S] of densities sigma [R, S] in intervals of length delta [R, S].

    Their sum along a ray is its opacity, 1 - exp(-sum tau), at most 1. Gradients reach both arguments.
    ValueError where the shapes differ.
    """
    return _weights(sigma.contiguous(), delta.contiguous())


def weights_packed(sigma: Tensor, delta: Tensor, offsets: Tensor) -> Tensor:
    """Weights [M] of rays of different lengths: ray r has the samples offsets[r] to offsets[r + 1].

    sigma, delta [M]; offsets [R + 1] int64 from 0 to M, not decreasing (checked on the CPU; on CUDA, where a
    check would have to wait for the device, they are held within the arrays). Rays may be empty. Gradients
    reach sigma and delta.
    """
    return _packed(sigma.contiguous(), delta.contiguous(), offsets.contiguous())


def transmittance(sigma: Tensor, delta: Tensor, offsets: Tensor | None = None) -> Tensor:
    """The light left in front of every sample, exp(-sum_{j<i} tau_j): [R, S], or [M] for packed rays.

    Arguments as in `weights`, or with `offsets` as in `weights_packed`. Gradients reach sigma and delta.
    ValueError where the shapes differ.
    """
    if offsets is not None:
        return _transmittance(sigma.contiguous(), delta.contiguous(), offsets.contiguous())
    if sigma.ndim != 2 or sigma.shape != delta.shape:
        raise ValueError(
            f"transmittance: delta has shape {tuple(delta.shape)}, expected sigma's [R, S], "
            f"here {tuple(sigma.shape)}"
        )
    rays, samples = sigma.shape
    even = torch.arange(rays + 1, device=sigma.device) * samples
    flat = sigma.contiguous().view(-1), delta.contiguous().view(-1)
    return _transmittance(*flat, even).view(rays, samples)


def weights_from_alpha(alpha: Tensor, epsilon: float = 0.0) -> tuple[Tensor, Tensor]:
    """Weights [R, S] and transmittance at the edges [R, S + 1] from opacities alpha [R, S] in 0..1.

    `epsilon` is added to 1 - alpha; nerfstudio has 1e-7, which leaves a trace of weight behind alpha = 1.
    """
    return _from_alpha(alpha.contiguous(), float(epsilon))
