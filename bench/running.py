"""Running a row of bench.cases: moving its inputs, taking gradients, comparing, seeing which ops it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from bench.cases import Case, several
from raymarch import _C


def moved(args: Sequence[Any], device: torch.device | str) -> list[Any]:
    return tree_map(lambda a: a.to(device) if isinstance(a, Tensor) else a, list(args))


def widened(args: Sequence[Any]) -> list[Any]:
    """In float64: what the oracles take, and the double build."""
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]


def with_grad(case: Case, args: Sequence[Any]) -> list[Any]:
    """Leaves of their own, those that the row calls differentiable asking for gradients."""
    return [
        a.detach().clone().requires_grad_(i in case.differentiable) if isinstance(a, Tensor) else a
        for i, a in enumerate(args)
    ]


def floats(outputs: Any) -> list[Tensor]:
    """The outputs that gradients flow back from."""
    return [o for o in several(outputs) if o.is_floating_point() and o.requires_grad]


def seeds_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Incoming gradients that are the same on every device and vary from number to number.

    Along a ray they must not be nearly constant: the gradient of an opaque ray's weights would then be what
    is left of two equal numbers, and two correct backends would differ by all of it.
    """
    places = [torch.arange(o.numel(), device=o.device, dtype=torch.float64) for o in outputs]
    return [torch.cos(2.4 * p).view(o.shape).to(o.dtype) for p, o in zip(places, outputs, strict=True)]


def run(case: Case, args: Sequence[Any]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs, and the gradients of the differentiable arguments."""
    outputs = several(case.op(*args))
    plain = [o.detach() for o in outputs]
    if not case.differentiable:
        return plain, []
    kept = floats(outputs)
    wanted = [args[i] for i in case.differentiable]
    return plain, list(torch.autograd.grad(kept, wanted, seeds_of(kept), allow_unused=True))


def error(got: Tensor, want: Tensor) -> float:
    """Relative to the size of the wanted array; NaN and unequal infinities count as infinite."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    if not torch.equal(got.isfinite(), want.isfinite()):
        return float("inf")
    got, want = got[want.isfinite()], want[want.isfinite()]
    return float((got - want).norm() / want.norm().clamp_min(1e-30)) if want.norm() > 0 else float(got.norm())


def worst(got: Sequence[Tensor | None], want: Sequence[Tensor | None]) -> float:
    """The largest error over several arrays; a missing gradient must be missing on both sides."""
    pairs = list(zip(got, want, strict=True))
    if any((g is None) != (w is None) for g, w in pairs):
        return float("inf")
    return max((error(g, w) for g, w in pairs if g is not None and w is not None), default=0.0)


def backend(device: torch.device | str) -> str:
    """Whose kernels run for tensors on a device, "cpu" or "cuda": a core may emulate the GPU's on the CPU."""
    return "cuda" if _C.emulated else torch.device(device).type


def tolerances(case: Case, device: torch.device | str) -> tuple[float, float]:
    """Of outputs and of gradients."""
    forward, backward = case.tolerance, case.gradient_tolerance
    if backend(device) == "cuda":
        forward = case.cuda_tolerance or forward
        backward = case.cuda_gradient_tolerance or backward
    return forward, backward


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "raymarch":
            self.calls.append((func, tree_map(_detached, args), result))
        return result


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def recorded(body: Callable[[], object]) -> list[tuple[Any, tuple, Any]]:
    """(op, arguments, result) of every raymarch op that `body` runs, backward passes included."""
    recorder = _Recorder()
    with recorder:
        body()
    return recorder.calls
