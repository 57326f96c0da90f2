"""What a GPU would launch, counted without one, and where the host would wait for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raymarch.ops import _op

# Native ops of more or fewer launches than one, given their arguments (memsets count).
SEVERAL: dict[str, Callable[[dict[str, Any]], int]] = {
    "rays_backward": lambda a: (
        (1 if a["same_every_time"] else 2)
        * ((a["grad_camera_to_worlds"] is not None) + (a["grad_adjustment"] is not None))
    ),
    "rays_lens_backward": lambda a: 1 if a["same_every_time"] else 2,
    "mlp_backward": lambda a: 1 + (a["grad_params"] is not None),
    "composite_forward": lambda a: 1 + (a["feature"] is not None),
    "composite_backward": lambda a: (
        1 + (a["feature"] is not None and (a["grad_feature"] is not None or a["g_feature"] is not None))
    ),
    "hashgrid_backward": lambda a: 1 if a["exact"] is None else 3,
    "hashgrid_layout": lambda a: 0,
}

# torch ops that launch nothing though their schema does not call them views.
SILENT = {
    "detach", "alias", "_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "_reshape_alias", "lift_fresh", "set_", "resize_", "is_same_size", "reshape",
}  # fmt: skip


# torch ops that make the host wait until the device has an answer.
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive",
    "equal", "is_nonzero",
}  # fmt: skip


class Watching(TorchDispatchMode):
    """While open, sees every op that runs, in native ops and in gradients too.

    What it sees it runs itself: override `native` and `torch_op`, and call `super` for the op to happen.
    """

    def __enter__(self) -> Self:
        self._through = _op.launches_through(self.native)
        self._through.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._through.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "raymarch":
            with _Reopened(self):
                return _op.bodies[func._schema.name](*args, **kwargs)
        return self.torch_op(func, func._schema.name.split("::")[1], args, kwargs)

    def native(self, core: Any, kernel: str, args: tuple) -> None:
        """A native kernel, with arguments in their order."""
        _op.call(core, kernel, args)

    def torch_op(self, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


class _Reopened:
    """The mode again, inside one of its ops, without what it does to launches, which goes on."""

    def __init__(self, mode: Watching):
        self.mode = mode

    def __enter__(self) -> None:
        TorchDispatchMode.__enter__(self.mode)

    def __exit__(self, *error: Any) -> None:
        TorchDispatchMode.__exit__(self.mode, *error)


class Launches(Watching):
    """While open, counts in `found` what a GPU would launch, and in `waits` where the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def torch_op(self, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        result = super().torch_op(func, name, args, kwargs)
        if launches_of_torch(func, name, args, result):
            self.found[name] += 1
        if name in WAITING:
            self.waits[name] += 1
        return result

    def native(self, core: Any, kernel: str, args: tuple) -> None:
        self.found[kernel] += launches_of(core, kernel, args)
        super().native(core, kernel, args)


def launches_of(core: Any, kernel: str, args: tuple) -> int:
    """How many launches a native kernel's call takes on a GPU, memsets included."""
    if kernel not in SEVERAL:
        return 1
    return SEVERAL[kernel](dict(zip(_op.declared(core, kernel), args, strict=True)))


def launches_of_torch(func: Any, name: str, args: tuple, result: Any) -> int:
    """At least how many launches a call of one of torch's ops takes."""
    return int(not func.is_view and name not in SILENT and not _unmoved(func, args, result))


def _unmoved(func: Any, args: tuple, result: Any) -> bool:
    """Whether the result of an op that might copy is its argument."""
    return (
        bool(args) and isinstance(result, torch.Tensor) and result is args[0] and not func._schema.is_mutable
    )
