"""The shape of a row: what one op is asked to do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One row, read by the tests and by the benchmark.

    `inputs(n)` gives the arguments for n rays (or points), on the CPU, in float32; tensors are moved and
    widened by whoever asks, settings are passed as they are. `oracle` is the formula written once more in
    plain torch; it receives the same arguments in float64. Both return a tensor or a tuple of tensors.
    """

    op: Callable
    oracle: Callable
    inputs: Callable[[int], tuple[Any, ...]]
    bytes_per_ray: float  # what the op cannot avoid moving: each input read once, each output written once
    flops_per_ray: float = 0  # matrix products
    tf32: bool = False  # its products take float32 for TF32 on CUDA
    scalar_flops_per_ray: float = 0  # the least that the formula needs besides; a multiply-add is two
    differentiable: tuple[int, ...] = ()  # which arguments get gradients
    tolerance: float = 1e-6  # of ||got - want|| / ||want||, per output
    gradient_tolerance: float = 1e-5
    cuda_tolerance: float | None = None  # where CUDA computes in another precision (tensor cores)
    cuda_gradient_tolerance: float | None = None
    gradcheck: bool = True  # False only where the double build has no such op; say why beside the row
    gathers: bool = False  # it looks numbers up in a table, at places that its inputs choose
    bench_rays: int = 65536
    timed: Callable | None = None  # what the benchmark calls where `op` does more than the op


def several(outputs: Any) -> tuple[Tensor, ...]:
    """The outputs of an op as a tuple, whatever it returned."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
