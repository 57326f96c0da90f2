"""CUDA kernels of a step as CUPTI saw them, with registers, occupancy and spills; and timelines.

A timeline is a Chrome trace: open it in chrome://tracing or ui.perfetto.dev.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from raymarch.profiling.kernel_names import resources, shortened
from raymarch.profiling.recorder import Event

STEPS_TRACED = 6  # one of which trains proposals, once they are warm


@dataclass
class KernelRow:
    """One CUDA kernel in one step."""

    kernel: str
    ms: float
    share: float  # of all kernels' time
    launches: float
    registers: int | None = None  # per thread
    block: int | None = None  # threads
    occupancy: float | None = None  # per cent of a multiprocessor's threads, as estimated from the launch
    shared: int | None = None  # bytes per block
    spills: int | None = None  # bytes, from bench/resources.txt

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def traced(body: Callable[[], object], steps: int, path: Path) -> tuple[list[KernelRow], list[str]]:
    """Run `body`, which makes `steps` steps on the GPU, under CUPTI; the timeline goes into `path`.

    Rows are empty, and the second result says why, where the profiler saw no kernel.
    """
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            body()
            torch.cuda.synchronize()
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    except (RuntimeError, OSError, ValueError) as error:
        return [], [f"torch's profiler could not trace the GPU ({error}), so there is no table of kernels."]
    rows = kernel_rows(events, steps)
    if not rows:
        return [], [
            "torch's profiler saw no kernel (CUPTI is missing or in use), so there is no table of them."
        ]
    notes = [] if resources() else ["bench/resources.txt is not installed: spills are known in a checkout."]
    return rows, notes


def kernel_rows(events: Sequence[dict[str, Any]], steps: int) -> list[KernelRow]:
    """Kernels, memsets and copies of a Chrome trace made by torch, longest first."""
    known = resources()
    rows: dict[str, KernelRow] = {}
    for event in events:
        if event.get("cat") not in ("kernel", "gpu_memset", "gpu_memcpy") or "dur" not in event:
            continue
        name = shortened(event["name"]) if event["cat"] == "kernel" else event["name"]
        row = rows.setdefault(name, KernelRow(name, 0.0, 0.0, 0.0))
        row.ms += event["dur"] / 1e3 / steps
        row.launches += 1 / steps
        facts = event.get("args", {})
        row.registers = facts.get("registers per thread", row.registers)
        row.shared = facts.get("shared memory", row.shared)
        row.occupancy = facts.get("est. achieved occupancy %", row.occupancy)
        if "block" in facts:
            x, y, z = facts["block"]
            row.block = x * y * z
        if name in known:
            registers, row.spills = known[name]
            row.registers = row.registers or registers
    total = sum(row.ms for row in rows.values()) or 1.0
    for row in rows.values():
        row.share = row.ms / total
    return sorted(rows.values(), key=lambda r: -r.ms)


def write_timeline(events: Sequence[Event], path: Path, title: str) -> None:
    """Stages and ops of one step as a Chrome trace: a line each, times in microseconds."""
    begun = events[0].begin if events else 0.0
    made: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": title}},
        {"ph": "M", "pid": 1, "tid": 1, "name": "thread_name", "args": {"name": "stages"}},
        {"ph": "M", "pid": 1, "tid": 2, "name": "thread_name", "args": {"name": "ops"}},
    ]
    for event in events:
        facts = {"bytes": event.work.bytes, "flops": event.work.flops, "module": event.module}
        made.append(
            {
                "ph": "X",
                "pid": 1,
                "tid": 1 if event.kind == "stage" else 2,
                "name": event.name,
                "cat": event.kind,
                "ts": round(1e6 * (event.begin - begun), 3),
                "dur": round(1e6 * event.seconds, 3),
                "args": facts if event.kind == "op" else {},
            }
        )
    path.write_text(json.dumps({"traceEvents": made, "displayTimeUnit": "ms"}))
