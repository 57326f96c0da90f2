"""One native op of a step, alone: timed on copies of what the step gave it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from raymarch.ops import _op
from raymarch.profiling.counting import Work
from raymarch.profiling.measure import Measured, OpRow, against, head_of, peak_memory, record
from raymarch.profiling.recorder import Event, Ops, Stages, clock_for
from raymarch.profiling.subjects import Subject


class _Taken(Ops):
    """Keeps copies of what a kernel was called with."""

    def __init__(self, stages: Stages, name: str, owners: tuple[dict[int, str], dict[tuple, str]]):
        super().__init__(stages, *owners)
        self.name = name
        self.kernels: set[str] = set()
        self.taken: dict[tuple, tuple[Event, Any, tuple, int]] = {}

    def native(self, core: Any, kernel: str, args: tuple) -> None:
        self.kernels.add(kernel)
        kept = _copied(args) if kernel == self.name or kernel.startswith(self.name + "_") else None
        super().native(core, kernel, args)
        if kept is None:
            return
        event = self.stages.events[-1]
        key = (kernel, event.stage, event.module, _shapes(kept))
        calls = self.taken[key][3] if key in self.taken else 0
        self.taken[key] = (event, core, kept, calls + 1)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return type(value)(_copied(v) for v in value) if isinstance(value, (list, tuple)) else value


def _shapes(args: tuple) -> tuple:
    return tuple(tuple(a.shape) for a in args if isinstance(a, torch.Tensor))


class OpMissing(ValueError):
    """A native op that a step does not run; the message says which it does."""


def measure_op(
    subject: Subject,
    name: str,
    rounds: int,
    limits: dict[str, float],
    seconds: Callable[[list[Callable[[], Any]], torch.device, int], float],
) -> Measured:
    """Time the calls that a step makes of one native op, each alone, on copies of what it was given.

    `name`: a kernel's, with or without _forward or _backward. OpMissing where the step has no such op.
    """
    clock, fullest = clock_for(subject.device), subject.fullest()
    with subject.open():
        subject.go_to(fullest)
        subject.real(2)
        stages = Stages(clock)
        watched = _Taken(stages, name, subject.owners())
        record(subject, fullest, stages, clock, watched)
    if not watched.taken:
        near = difflib.get_close_matches(name, watched.kernels, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise OpMissing(
            f"--op {name}: a training step runs no such native op{hint} It runs "
            f"{', '.join(sorted(watched.kernels))}"
        )
    rows = []
    for event, core, args, calls in watched.taken.values():
        sets = [args, *(_copied(args) for _ in range(_copies(args, subject.device) - 1))]
        again: list[Callable[[], Any]] = [partial(_op.call, core, event.name, a) for a in sets]
        once = seconds(again, subject.device, rounds)
        work = Work(event.work.bytes * calls, event.work.flops * calls)
        head = head_of(event.name, event.module, event.stage)
        row = OpRow(event.name, event.stage, event.module, head, True, 1e3 * once * calls, 0.0, calls)
        row.launches, row.bytes, row.flops = event.launches * calls, work.bytes, work.flops
        against(row, limits)
        rows.append(row)
    total = sum(r.ms for r in rows) or 1.0
    for row in rows:
        row.share = row.ms / total
    step = {
        "ms": total,
        "steps": rounds,
        "launches": sum(r.launches for r in rows),
        "bytes": sum(r.bytes for r in rows),
        "flops": sum(r.flops for r in rows),
        "floor_ms": sum(r.floor_ms for r in rows),
        "peak_memory_bytes": peak_memory(subject.device),
    }
    return Measured("op", subject.ran(), step, [], sorted(rows, key=lambda r: -r.ms))


def _copies(args: tuple, device: torch.device) -> int:
    """How many copies push each other out of a GPU's L2 cache; one on a CPU."""
    if device.type != "cuda":
        return 1
    flat = [t for a in args for t in (a if isinstance(a, (list, tuple)) else [a])]
    size = max(1, sum(t.nbytes for t in flat if isinstance(t, torch.Tensor)))
    cold = 3 * getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
    return int(max(1, min(16, cold // size + 1, 8e9 // size)))
