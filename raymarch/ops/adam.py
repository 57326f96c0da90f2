"""One step of Adam, in place: on one parameter, or on many in one pass."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.autograd.graph import increment_version

from raymarch.ops._op import launch

MOST = 32  # parameters of one launch, kSeveral in csrc/array.h


class AdamItem(NamedTuple):
    """One parameter of `adam_many`, with arguments as `adam` describes them."""

    parameter: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor
    rate: Tensor
    steps: Tensor
    epsilon: float = 1e-15
    weight_decay: float = 0.0
    stored: Tensor | None = None
    clear: bool = False


def adam_many(items: Sequence[AdamItem], healthy: Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> None:
    """`adam` on several parameters, in one launch for every 32 of them."""
    for begin in range(0, len(items), MOST):
        parameters, gradients, first, second, rates, steps, epsilon, decay, stored, clear = (
            list(column) for column in zip(*items[begin : begin + MOST], strict=True)
        )
        flat = ([x.detach().view(-1) for x in column] for column in (parameters, gradients, first, second))
        copies = [None if x is None else x.detach().view(-1) for x in stored]
        launch("adam", *flat, copies, rates, steps, epsilon, decay, clear, healthy, *betas)
        increment_version([*parameters, *first, *second])


def adam(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    rate: Tensor,
    steps: Tensor,
    healthy: Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-15,
    weight_decay: float = 0.0,
    stored: Tensor | None = None,
    clear: bool = False,
) -> None:
    """Update `parameter` and its moments as torch.optim.Adam does (Kingma and Ba 2015).

    parameter, gradient, first, second: contiguous float32 tensors of one shape. rate [1] float32, steps [1]
    int64 (this step's number, from 1) and healthy [1] bool lie on the same device; where `healthy` is false
    nothing changes, and a gradient that is not finite is not applied and makes it false. stored: a copy of
    the parameter in float16 or bfloat16, brought up to date in the same pass where the parameter changes.
    clear: whether to set the gradient to zero afterwards, healthy or not.
    ValueError where shapes differ.
    """
    item = AdamItem(parameter, gradient, first, second, rate, steps, epsilon, weight_decay, stored, clear)
    adam_many([item], healthy, betas)
