"""What this machine can do, measured now: copy bandwidth, matrix products, the cost of a launch.

On CUDA the calls of a round are captured in one graph and timed by events; figures are medians over replays.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

ROUNDS = 20

Calls = list[Callable[[], Any]]


def cpu_seconds(
    calls: Calls, rounds: int = ROUNDS, pick: Callable[[list[float]], float] = statistics.median
) -> float:
    """Median (or what `pick` picks) over rounds, per call."""
    for call in calls:
        call()
    laps = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for call in calls:
            call()
        laps.append((time.perf_counter() - begin) / len(calls))
    return pick(laps)


def cuda_laps(calls: Calls, rounds: int = ROUNDS) -> list[float]:
    """Seconds per call, of each replay of a graph of the calls."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()  # loads the kernels
    torch.cuda.synchronize()
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph, stream=side):
        for call in calls:
            kept.append(call())
    graph.replay()
    laps = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        laps.append(begin.elapsed_time(end) / 1e3 / len(calls))
    return laps


def cuda_seconds(calls: Calls, rounds: int = ROUNDS) -> float:
    """Median over graph replays, per call."""
    return statistics.median(cuda_laps(calls, rounds))


def seconds(calls: Calls, device: torch.device, rounds: int = ROUNDS) -> float:
    return cuda_seconds(calls, rounds) if device.type == "cuda" else cpu_seconds(calls, rounds)


def ceilings(device: torch.device, rounds: int = ROUNDS) -> dict[str, float]:
    """`copy_gbs` (bytes read plus written) and `matmul_tflops`; on CUDA `matmul_tf32_tflops`, `fp32_tflops`,
    `graph_node_us` and `launch_us` too.

    Matrix products are bfloat16 on CUDA and float32 on a CPU, with as many threads as torch has now;
    `fp32_tflops` is that of float32 products without tensor cores: multiply-adds and nothing else. On a
    CPU, which others use too, the quickest round counts: what it can do, not what it did in the middle.
    """
    on_gpu = device.type == "cuda"

    def took(call: Callable[[], Any]) -> float:
        return cuda_seconds([call], rounds) if on_gpu else cpu_seconds([call], rounds, min)

    numbers = (1 << 29) if on_gpu else (1 << 25)
    a, b = torch.rand(numbers, device=device), torch.empty(numbers, device=device)
    # A kernel, and not copy_, which a graph gives to the slower copy engine.
    copy = took(lambda: torch.mul(a, 1.0, out=b))
    n, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    m, k = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = took(lambda: m @ k)
    found = {"copy_gbs": 8 * numbers / copy / 1e9, "matmul_tflops": 2 * n**3 / product / 1e12}
    if on_gpu:
        del a, b, m, k
        m, k = (torch.randn(n // 2, n // 2, device=device) for _ in range(2))
        for name, allowed in (("matmul_tf32_tflops", True), ("fp32_tflops", False)):
            with tf32(allowed):
                found[name] = 2 * (n // 2) ** 3 / took(lambda: m @ k) / 1e12
        del m, k
        small = torch.zeros(32, device=device)
        found["graph_node_us"] = 1e6 * seconds([lambda: small.add_(1) for _ in range(200)], device, rounds)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(2000):
            small.add_(1)
        torch.cuda.synchronize()
        found["launch_us"] = (time.perf_counter() - begin) / 2000 * 1e6
    return found


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """While open, whether torch's float32 products on CUDA may round their factors to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def cores() -> int:
    """Threads that the core's loops use on a CPU (csrc/cpu/parallel.cpp)."""
    asked = os.environ.get("RAYMARCH_THREADS")
    if asked is None:
        return os.cpu_count() or 1
    return max(1, int(asked)) if asked.isdigit() else 1


def floor_seconds(
    bytes_moved: float,
    flops: float,
    limits: dict[str, float],
    scalar_flops: float = 0.0,
    matmul: str = "matmul_tflops",
) -> float:
    """The least time for so many bytes, `flops` of matrix products and other arithmetic: the largest of the
    three at its ceiling. `matmul` names that of the products; what was not measured is `matmul_tflops`."""
    rate, scalar_rate = (limits.get(x, limits["matmul_tflops"]) for x in (matmul, "fp32_tflops"))
    return max(bytes_moved / limits["copy_gbs"] / 1e9, flops / rate / 1e12, scalar_flops / scalar_rate / 1e12)
