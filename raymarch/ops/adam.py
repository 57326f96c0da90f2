"""One step of Adam on one parameter, in place."""

from torch import Tensor
from torch.autograd.graph import increment_version

from raymarch.ops._op import launch


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
) -> None:
    """Update `parameter` and its moments as torch.optim.Adam does (Kingma and Ba 2015).

    parameter, gradient, first, second: contiguous tensors of one shape. rate [1] float32, steps [1] int64
    (this step's number, from 1) and healthy [1] bool lie on the same device; where `healthy` is false nothing
    changes. ValueError where shapes differ.
    """
    flat = (x.detach().view(-1) for x in (parameter, gradient, first, second))
    launch("adam", *flat, rate, steps, healthy, *betas, epsilon, weight_decay)
    increment_version((parameter, first, second))
