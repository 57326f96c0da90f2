"""Scene contraction into the ball of radius two."""

from torch import Tensor, empty_like

from raymarch.ops._op import differentiable, launch, op


@op
def contract_forward(x: Tensor) -> Tensor:
    y = empty_like(x)
    launch("contract_forward", x, y)
    return y


@op
def contract_backward(x: Tensor, grad_y: Tensor) -> Tensor:
    grad_x = empty_like(x)
    launch("contract_backward", x, grad_y, grad_x)
    return grad_x


def _backward(inputs, saved, grads, needs):
    return (contract_backward(inputs[0], grads[0]),)


contract = differentiable(contract_forward, _backward)
