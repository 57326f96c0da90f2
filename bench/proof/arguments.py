"""What the arguments of a row of bench.cases are: their names, which belong to single rays, which ops run."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bench.cases import CASES, Case, several
from bench.running import run, with_grad
from raymarch import _C
from raymarch.ops._op import call, declared, launches_through


@cache
def names(case: Case) -> list[str]:
    """The oracle's names of the arguments; the position where it has none."""
    count = len(case.inputs(1))
    try:
        parameters = [p.name for p in inspect.signature(case.oracle).parameters.values() if p.kind < 2]
    except (TypeError, ValueError):
        parameters = []
    return [parameters[i] if i < len(parameters) else str(i) for i in range(count)]


def _per_ray(few: Any, more: Any) -> int:
    """Rows of an array per ray, from its shapes for two and for three rays; 0 where all share it."""
    if not (isinstance(few, Tensor) and isinstance(more, Tensor)) or not few.dim():
        return 0
    rows = more.shape[0] - few.shape[0]
    return rows if rows > 0 and more.shape[0] == 3 * rows else 0


@cache
def rows_per_ray(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of each argument and of each output: rows per ray, or 0 where all rays share it."""
    case = CASES[name]
    few, more = case.inputs(2), case.inputs(3)
    before, after = several(case.op(*few)), several(case.op(*more))
    return tuple(map(_per_ray, few, more)), tuple(map(_per_ray, before, after))


def rows_of(args: Sequence[Any], argument_names: Sequence[str], ray: int, per_ray: int) -> slice:
    """The rows of one ray in an array that has `per_ray` for each; packed rays say where theirs are."""
    if "offsets" in argument_names:
        first, last = args[argument_names.index("offsets")][ray : ray + 2].tolist()
        return slice(first, last)
    return slice(ray * per_ray, (ray + 1) * per_ray)


def launched(case: Case, rays: int = 3) -> dict[str, dict[str, object]]:
    """The kernels that a row and its gradient run, with the arguments of the last call."""
    found: dict[str, dict[str, object]] = {}

    def noted(core: Any, kernel: str, args: tuple) -> None:
        found[kernel] = dict(zip(declared(core, kernel), args, strict=True))
        call(core, kernel, args)

    with launches_through(noted):
        run(case, with_grad(case, case.inputs(rays)))
    return found


def takes_payload(case: Case) -> bool:
    """Whether an array that the row hands over may be of 16 bits."""
    for kernel, arguments in launched(case).items():
        kinds = declared(_C, kernel)
        for word, value in arguments.items():
            is_payload = "Payload" in kinds[word] and "Out" not in kinds[word]
            if is_payload and isinstance(value, Tensor) and value.dtype is torch.float32:
                return True
    return False
