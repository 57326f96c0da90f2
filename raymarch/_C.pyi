"""The native core. Written from csrc/ops.def by `python -m bench.stubs`; do not edit.

Every op takes contiguous arrays on one device, outputs last, and returns nothing.
"""

from typing import Any, Protocol

class Array(Protocol):
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

has_cuda: bool
cuda_archs: str
cuda_version: str

# Contract positions into the ball of radius two.
def contract_forward(x: Array, y: Array, /) -> None: ...
def contract_backward(x: Array, grad_y: Array, grad_x: Array, /) -> None: ...

# Rendering weights along each ray.
def weights_forward(sigma: Array, delta: Array, w: Array, /) -> None: ...
def weights_backward(sigma: Array, delta: Array, w: Array, grad_w: Array, grad_sigma: Array, /) -> None: ...

# One step of Adam on a flat parameter, in place. Learning rate, step count (from 1) and whether to step at
# all live on the device, so that a CUDA graph can replay it. A gradient that is not finite is not applied and
# clears `healthy`, which stops every later step.
def adam(
    parameter: Array,
    gradient: Array,
    first: Array,
    second: Array,
    rate: Array,
    steps: Array,
    healthy: Array,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
    /,
) -> None: ...
