"""How long calls take, and how much that varies: laps, their median, and their 10th and 90th percentiles."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

FEWEST, MOST = 5, 20  # laps: fewer say nothing of their spread
SECONDS = 1.0  # after which no more than the fewest are taken
SHORTEST = 2e-3  # seconds of a lap on a CPU: calls that take less are repeated within it
LOW, HIGH = 0.1, 0.9


def quantile(values: Sequence[float], share: float) -> float:
    """Between the neighbours in order where none lies there."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spread(name: str, laps: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """{name: median, name_low: 10th percentile, name_high: 90th}, what record.py and compare.py read."""
    return {
        name: scale * statistics.median(laps),
        f"{name}_low": scale * quantile(laps, LOW),
        f"{name}_high": scale * quantile(laps, HIGH),
    }


def one_thread() -> bool:
    """Whether both raymarch and torch were told to use no more."""
    return os.environ.get("RAYMARCH_THREADS") == "1" and torch.get_num_threads() == 1


def clock_of(device: torch.device) -> tuple[str, Callable[[], float]]:
    """The host's; for one thread on a CPU the time it ran, which waiting for a busy core leaves alone."""
    if device.type == "cpu" and one_thread():
        return "processor", time.process_time
    return "wall", time.perf_counter


def threads_said() -> str:
    """What stands before a recorded command, where it decides the clock."""
    return "RAYMARCH_THREADS=1 OMP_NUM_THREADS=1 " if one_thread() else ""


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def wall_laps(
    call: Callable[[], Any],
    device: torch.device,
    fewest: int = FEWEST,
    most: int = MOST,
    seconds: float = SECONDS,
    warmups: int = 1,
) -> list[float]:
    """Seconds of a call by `clock_of`, the device idle at both ends; one number per lap."""
    for _ in range(warmups):
        call()
    wait(device)
    begin = time.perf_counter()
    call()
    wait(device)
    inner = max(1, round(SHORTEST / max(time.perf_counter() - begin, 1e-7)))
    return laps_of(lambda: [call() for _ in range(inner)], device, fewest, most, seconds, inner)


def laps_of(
    block: Callable[[], Any], device: torch.device, fewest: int, most: int, seconds: float, calls: int
) -> list[float]:
    """Seconds per call of a block that makes so many calls."""
    laps: list[float] = []
    _, clock = clock_of(device)
    wait(device)
    began = time.perf_counter()
    while len(laps) < fewest or (len(laps) < most and time.perf_counter() - began < seconds):
        begin = clock()
        block()
        wait(device)
        laps.append((clock() - begin) / calls)
    return laps
