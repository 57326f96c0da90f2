"""Rendering weights along each ray: w_i = exp(-sum_{j<i} tau_j) (1 - exp(-tau_i))."""

from torch import Tensor, empty_like

from raymarch.ops._op import differentiable, launch, op


@op
def weights_forward(sigma: Tensor, delta: Tensor) -> Tensor:
    w = empty_like(sigma)
    launch("weights_forward", sigma, delta, w)
    return w


@op
def weights_backward(sigma: Tensor, delta: Tensor, w: Tensor, grad_w: Tensor) -> Tensor:
    grad_sigma = empty_like(sigma)
    launch("weights_backward", sigma, delta, w, grad_w, grad_sigma)
    return grad_sigma


def _backward(inputs, saved, grads, needs):
    return weights_backward(*inputs, *saved, *grads), None


weights = differentiable(weights_forward, _backward, save=(0,))
