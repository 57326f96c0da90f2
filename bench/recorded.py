"""Which registered ops a piece of Python runs, and with what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


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
