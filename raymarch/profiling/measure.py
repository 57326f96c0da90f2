"""Figures of a step or a frame: as it really runs, stage by stage, and op by op.

Every step is run three times: as always, in a graph where there is one, which is what a step takes; eagerly
with marks around stages; and eagerly with marks around every op as well. A CPU is timed by its clock; a GPU
by events in its stream, which is held up so that the host runs ahead and the gaps between marks are its own.
"""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from raymarch.profiling.ceilings import floor_seconds
from raymarch.profiling.ranges import BY_NAME, listening, nvtx_ranges
from raymarch.profiling.recorder import STEP, DeviceClock, Event, HostClock, Ops, Stages, clock_for
from raymarch.profiling.subjects import Subject, Training, waits

BETWEEN = "between stages"
HEADS = {
    "fields.feature": "feature",
    "fields.radiance.colour": "rgb",
    "fields.radiance.normals": "predicted_normals",
}  # by the beginning of a module's name
HEADS_OF_OPS = {
    "feature_loss": "feature", "gather_features": "feature", "slope_normals": "normals",
    "normal_inputs": "predicted_normals", "normal_head": "predicted_normals", "radiance_inputs": "rgb",
    "colour_inputs": "rgb", "orientation": "normals", "predicted_normals": "predicted_normals",
}  # fmt: skip


@dataclass
class StageRow:
    """One stage of one step: its own time, without that of stages inside it."""

    stage: str
    phase: str
    head: str
    ms: float = 0.0
    share: float = 0.0
    launches: float = 0.0
    waits: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0


@dataclass
class OpRow:
    """Calls of one op in one stage and one part of the model, in one step."""

    op: str
    stage: str
    module: str
    head: str
    native: bool
    ms: float = 0.0
    share: float = 0.0
    calls: float = 0.0
    launches: float = 0.0
    waits: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0
    gbs: float = 0.0
    tflops: float = 0.0
    floor_ms: float = 0.0
    percent_of_floor: float = 0.0
    bound: str = ""  # bytes or arithmetic: which makes the floor


@dataclass
class Measured:
    """What one profile found. Times are milliseconds of one step (or frame)."""

    what: str
    ran: dict[str, object]
    step: dict[str, Any]
    stages: list[StageRow] = field(default_factory=list)
    ops: list[OpRow] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)  # of the timeline
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        rows = {"stages": [asdict(r) for r in self.stages], "ops": [asdict(r) for r in self.ops]}
        return {"what": self.what, "ran": self.ran, "step": self.step, **rows}


def measure(
    subject: Subject,
    steps: int,
    limits: dict[str, float],
    nvtx: bool = False,
    told: Callable[[str], object] = lambda words: None,
) -> Measured:
    """Profile `steps` steps of a subject. `told` hears what happens meanwhile."""
    on_gpu = subject.device.type == "cuda"
    clock = clock_for(subject.device)
    staged, seen = Stages(clock), Stages(clock)
    notes: list[str] = []
    with subject.open():
        told("warming up")
        subject.go_to(0)
        subject.real(max(steps, 8) if on_gpu else 2)
        laps: list[float] = []
        waited = False
        if on_gpu:
            told(f"timing {steps} as they are")
            torch.cuda.reset_peak_memory_stats()
            subject.go_to(0)
            laps = subject.real(steps)
            waited = isinstance(subject, Training) and waits(subject.trainer, 4)
        for i in range(steps):  # the three in turn, so that what else the machine does hits all of them
            told(f"{i + 1} of {steps}")
            if not on_gpu:
                subject.go_to(i)
                laps += subject.real(1)
            record(subject, i, staged, clock)
            record(subject, i, seen, clock, Ops(seen, *subject.owners()))
        if nvtx:
            told("once more, with NVTX ranges")
            subject.go_to(0)
            with nvtx_ranges():
                subject.eager()
    in_stages, in_ops = staged.close(), seen.close()
    rows = stage_rows(in_stages, in_ops, steps)
    ops = op_rows(in_ops, steps, 1e3 * statistics.fmean(laps), limits)
    step = totals(laps, steps, rows, ops, subject.device)
    if isinstance(subject, Training):
        step["proposals_learn_in"] = subject.updates(steps)
        step["real_step_waits"] = waited  # whether the host waits for the GPU in the step as it is
        if on_gpu and subject.trainer._fused is None:
            notes.append(
                "Gradients of torch's own ops run in a thread that is not watched: stages have their time."
            )
    return Measured(subject.what, subject.ran(), step, rows, ops, last_of(in_ops), notes)


def totals(
    laps: Sequence[float], steps: int, rows: Sequence[StageRow], ops: Sequence[OpRow], device: torch.device
) -> dict[str, Any]:
    """A step as a whole: as it really runs (`laps`, seconds), and what its stages and ops add up to."""
    return {
        "ms": 1e3 * statistics.fmean(laps),
        "median_ms": 1e3 * statistics.median(laps),
        "slowest_ms": 1e3 * max(laps),
        "quickest_ms": 1e3 * min(laps),
        "steps": steps,
        "eager_ms": sum(r.ms for r in rows),
        "ops_ms": sum(r.ms for r in ops),
        "outside_ops_share": max(0.0, 1 - sum(r.share for r in ops)),
        "launches": sum(r.launches for r in ops),
        "host_syncs": sum(r.waits for r in ops),
        "bytes": sum(r.bytes for r in ops),
        "flops": sum(r.flops for r in ops),
        "floor_ms": sum(r.floor_ms for r in ops),
        "peak_memory_bytes": peak_memory(device),
        "peak_memory_is": "of tensors on the GPU" if device.type == "cuda" else "of the whole process",
    }


def record(
    subject: Subject, i: int, stages: Stages, clock: HostClock | DeviceClock, ops: Ops | None = None
) -> None:
    """Repetition i, eagerly, into `stages`; every op too where there are `ops`."""
    subject.go_to(i)
    clock.ahead()
    with listening(stages), ops or nullcontext():
        stages.begin(STEP)
        subject.eager()
        stages.end(STEP)


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors since the statistics were reset, or the process's largest so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def stage_rows(staged: Sequence[Event], seen: Sequence[Event], steps: int) -> list[StageRow]:
    """Own times from `staged`; launches, bytes and arithmetic from `seen`. Shares add up to one."""
    rows: dict[str, StageRow] = {}

    def row(name: str) -> StageRow:
        if name not in rows:
            stage = BY_NAME.get(name)
            words = (BETWEEN, "", "shared") if stage is None else (name, stage.phase, stage.head)
            rows[name] = StageRow(*words)
        return rows[name]

    for event in staged:
        row(event.name).ms += 1e3 * event.seconds / steps
        if event.name != STEP:
            row(event.stage).ms -= 1e3 * event.seconds / steps
    for event in seen:
        if event.kind == "op":
            found = row(event.stage)
            found.launches += event.launches / steps
            found.waits += event.waits / steps
            found.bytes += event.work.bytes / steps
            found.flops += event.work.flops / steps
    total = sum(r.ms for r in rows.values()) or 1.0
    for found in rows.values():
        found.share = found.ms / total
    order = {name: i for i, name in enumerate(BY_NAME)}
    return [rows[name] for name in sorted(rows, key=lambda n: order.get(n, len(order)))]


def head_of(op: str, module: str, stage: str) -> str:
    """Whose an op's work is: shared, or of one head."""
    for prefix, head in HEADS.items():
        if module.startswith(prefix):
            return head
    stem = op.removesuffix("_forward").removesuffix("_backward")
    if stem in HEADS_OF_OPS:
        return HEADS_OF_OPS[stem]
    return BY_NAME[stage].head if stage in BY_NAME else "shared"


def op_rows(seen: Sequence[Event], steps: int, real_ms: float, limits: dict[str, float]) -> list[OpRow]:
    """Ops by stage and part of the model, longest first; shares of the step as it really runs.

    Where ops take longer alone than in the step, their sum is what shares are of.
    """
    rows: dict[tuple, OpRow] = {}
    for event in seen:
        if event.kind != "op":
            continue
        key = (event.name, event.stage, event.module, event.native)
        if key not in rows:
            head = head_of(event.name, event.module, event.stage)
            stage = BETWEEN if event.stage == STEP else event.stage
            rows[key] = OpRow(event.name, stage, event.module, head, event.native)
        row = rows[key]
        row.ms += 1e3 * event.seconds / steps
        row.calls += 1 / steps
        row.launches += event.launches / steps
        row.waits += event.waits / steps
        row.bytes += event.work.bytes / steps
        row.flops += event.work.flops / steps
    total = max(real_ms, sum(r.ms for r in rows.values())) or 1.0
    for row in rows.values():
        row.share = row.ms / total
        against(row, limits)
    return sorted(rows.values(), key=lambda r: -r.ms)


def against(row: OpRow, limits: dict[str, float]) -> None:
    """Fill in rates and the floor from a row's time, bytes and arithmetic."""
    took = row.ms / 1e3
    floor = floor_seconds(row.bytes, row.flops, limits)
    row.floor_ms = 1e3 * floor
    row.bound = "bytes" if floor == floor_seconds(row.bytes, 0.0, limits) else "arithmetic"
    if took > 0:
        row.gbs, row.tflops = row.bytes / took / 1e9, row.flops / took / 1e12
        row.percent_of_floor = 100 * floor / took


def last_of(seen: Sequence[Event]) -> list[Event]:
    """The events of the last step."""
    begun = [i for i, e in enumerate(seen) if e.name == STEP]
    return list(seen[begun[-1] :]) if begun else []
