"""The same rows, inputs and run through raymarch, plain torch, torch.compile and other libraries, in turn.

    python -m bench peers [--device cpu|cuda] [--rows weights,mlp_base] [--ways torch,compile] [--no-compile]

Every way must agree with plain torch (bench/plain.py) before it is timed, outputs and gradients, within the
row's tolerance; one that does not is reported and fails the run. Then the ways take turns, the order turning
with every round, and ratios are taken within rounds: what slows the machine down slows all of them. `forward`
is without gradients, `train` forward and backward. On a CPU the times are the clock's; with --threads 1 the
processor time of the process, which waiting for a busy core does not lengthen. On a GPU they are the sum of
what its kernels took, on cold inputs (`_wall_us` beside it is the clock's, Python and launches included).
nerfacc, tiny-cuda-nn and nerfstudio take part where they can be imported (bench/peers.sh builds them).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench import record
from bench.cases import several
from bench.libraries import Bound, without_viewer
from bench.peer_rows import ROWS, Row
from bench.running import error, floats, seeds_of
from bench.timing import clock_of, quantile, spread, wait

OURS, REFERENCE = "raymarch", "torch"
ROUNDS, FEWEST = 15, 5
LAP = 4e-3  # seconds of a lap at least, by repeating the call
MOST_PROFILED = 20  # calls: reading the trace of more takes longer than running them
BUDGET = 4.0  # seconds for all ways of one row, after the fewest rounds
MOST_SETS, MOST_BYTES = 8, 4e9
GRADIENTS_LOOSER = 10  # a gradient may be off by so many times the outputs' tolerance


class Disagreement(RuntimeError):
    """A way that computes something else; the message says by how much."""


def bound_ways(
    row: Row, args: tuple, wanted: Sequence[str] | None, compiled: bool
) -> tuple[dict[str, Bound], dict[str, str]]:
    """What can be called here, raymarch first; and why the others cannot."""
    found, absent = {}, {}
    makers = dict(row.ways)
    if compiled and row.compiled:
        makers["compile"] = lambda *args: Bound(
            torch.compile(row.ways[REFERENCE](*args).call, fullgraph=True, dynamic=False)
        )
    for name, make in makers.items():
        if (wanted and name not in (OURS, REFERENCE, *wanted)) or (
            name.startswith("compile") and not compiled
        ):
            continue
        try:
            found[name] = make(*args)
        except ImportError as missing:
            absent[name] = str(missing)
    return found, absent


def leaves_of(row: Row, args: Sequence[Any]) -> list[Any]:
    return [a.detach().clone().requires_grad_() if i in row.differentiable else a for i, a in enumerate(args)]


def wanted_of(row: Row, bound: Bound, leaves: Sequence[Any]) -> list[Tensor]:
    """What a way takes gradients of: the row's inputs, its own parameters in place of the row's."""
    own = [leaves[i] for i in row.differentiable if i not in row.kept]
    kept = [leaves[i] for i in row.differentiable if i in row.kept]
    return own + (list(bound.parameters) or kept)


def gradients(row: Row, bound: Bound, leaves: Sequence[Any]) -> list[Tensor | None] | None:
    """None where the way gives none."""
    outputs = floats(bound.call(*leaves))
    if not outputs or not row.differentiable:
        return None
    return list(
        torch.autograd.grad(outputs, wanted_of(row, bound, leaves), seeds_of(outputs), allow_unused=True)
    )


def agree(row: Row, name: str, bound: Bound, args: tuple, tolerance: float) -> float:
    """The largest relative error of outputs and gradients; Disagreement where it is beyond the tolerance."""
    reference = row.ways[REFERENCE](*args)  # a new one: some take a step further with every call
    rule = bound.reference or reference.call
    with torch.no_grad():
        got, want = several(bound.call(*args)), several(rule(*args))
    if bound.outputs is not None:
        want = tuple(want[i] for i in bound.outputs)
    if len(got) != len(want):
        raise Disagreement(f"{name} gives {len(got)} outputs, expected {len(want)}")
    worst = max(error(g.float(), w.float()) if g.numel() else 0.0 for g, w in zip(got, want, strict=True))
    if not worst <= tolerance:
        raise Disagreement(f"{name} is off by {worst:.1e}, more than {tolerance:.0e}")
    if bound.reference is None and bound.outputs is None:
        leaves = leaves_of(row, args)
        mine, theirs = gradients(row, bound, leaves), gradients(row, reference, leaves)
        for g, w in zip(mine or [], theirs or [], strict=False):
            if g is None or w is None or g.numel() != w.numel():
                continue  # parameters laid out another way
            off = error(g.float().view(-1), w.float().view(-1))
            limit = bound.gradient_tolerance or GRADIENTS_LOOSER * tolerance
            if not off <= limit:
                raise Disagreement(f"{name}'s gradient is off by {off:.1e}, more than {limit:.0e}")
    return worst


def sets_of(row: Row, args: tuple, device: torch.device) -> list[tuple]:
    """On a GPU the inputs as often as it takes to push each other out of its cache; parameters once."""
    if device.type != "cuda":
        return [args]
    each = sum(a.nbytes for i, a in enumerate(args) if isinstance(a, Tensor) and i not in row.kept)
    cold = 3 * getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
    count = int(max(1, min(MOST_SETS, cold // max(each, 1) + 1, MOST_BYTES // max(each, 1))))

    def copied() -> tuple:
        return tuple(
            a.clone() if isinstance(a, Tensor) and i not in row.kept else a for i, a in enumerate(args)
        )

    return [args, *(copied() for _ in range(count - 1))]


def forward_call(bound: Bound, sets: list[tuple]) -> Callable[[], Any]:
    turn = itertools.cycle(sets)

    def call() -> Any:
        with torch.no_grad():
            return bound.call(*next(turn))

    return call


def train_call(row: Row, bound: Bound, sets: list[tuple]) -> Callable[[], Any] | None:
    """Forward and backward; None where there is nothing to differentiate."""
    prepared = [leaves_of(row, args) for args in sets]
    for other in prepared[1:]:  # one copy of parameters, as libraries have of theirs
        for i in row.kept:
            other[i] = prepared[0][i]
    outputs = floats(bound.call(*prepared[0]))
    if not outputs or not row.differentiable:
        return None
    seeds = seeds_of(outputs)
    turn = itertools.cycle([(leaves, wanted_of(row, bound, leaves)) for leaves in prepared])

    def call() -> Any:
        leaves, wanted = next(turn)
        return torch.autograd.grad(floats(bound.call(*leaves)), wanted, seeds, allow_unused=True)

    return call


def lap(call: Callable[[], Any], count: int, device: torch.device) -> float:
    """Seconds of a call, the one before not counted: others had the caches and threads."""
    _, clock = clock_of(device)
    call()
    wait(device)
    begin = clock()
    for _ in range(count):
        call()
    wait(device)
    return (clock() - begin) / count


def busy(call: Callable[[], Any], count: int) -> float:
    """Seconds that the GPU's kernels and copies of a call take, added up."""
    from torch.profiler import ProfilerActivity, profile

    count = min(count, MOST_PROFILED)
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(count):
            call()
        torch.cuda.synchronize()
    on_gpu = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    events = [e for e in on_gpu if not e.name.startswith("Optimizer.")]  # which spans what it launched
    return sum(e.device_time_total for e in events) / count / 1e6


def race(
    calls: dict[str, Callable[[], Any]], take: Callable[[Callable[[], Any], int], float], rounds: int
) -> dict[str, list[float]]:
    """Laps of every way, one a round, the order turning."""
    counts = {name: max(1, min(200, round(LAP / max(take(call, 1), 1e-7)))) for name, call in calls.items()}
    laps: dict[str, list[float]] = {name: [] for name in calls}
    names, began = list(calls), time.perf_counter()
    for turn in range(rounds):
        if turn >= FEWEST and time.perf_counter() - began > BUDGET:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            laps[name].append(take(calls[name], counts[name]))
    return laps


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times longer they took, round by round."""
    return [b / a for a, b in zip(ours, theirs, strict=True)]


def verdict(against: Sequence[float]) -> str:
    low, high = quantile(against, 0.1), quantile(against, 0.9)
    return "yes" if low > 1 else "no" if high < 1 else "tie"


def summary(laps: dict[str, list[float]], end: str = "") -> dict[str, Any]:
    """Microseconds of every way, and how many times as long as raymarch the best of the others takes."""
    found: dict[str, Any] = {}
    for name, taken in laps.items():
        found |= spread(f"{name}{end}_us", taken, 1e6)
    others = {n: ratios(laps[OURS], taken) for n, taken in laps.items() if n != OURS}
    if not others:
        return found
    best = min(others, key=lambda n: statistics.median(others[n]))
    found |= {f"best_peer{end}": best} | spread(f"ratio{end}", others[best])
    return found | {f"fastest{end}": verdict(others[best])}


def timed(calls: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, Any]:
    if device.type != "cuda":
        return summary(race(calls, lambda call, count: lap(call, count, device), rounds))
    found = summary(race(calls, busy, FEWEST))
    return found | summary(race(calls, lambda call, count: lap(call, count, device), rounds), "_wall")


def measure(
    row: Row, device: torch.device, rounds: int, wanted: Sequence[str] | None, compiled: bool
) -> tuple[dict[str, Any], list[str]]:
    """{forward: ..., train: ...} of one row, and what has to be said about it."""
    torch.manual_seed(0)
    size = row.cuda_size if device.type == "cuda" else row.cpu_size
    args = tuple(a.to(device) if isinstance(a, Tensor) else a for a in row.inputs(size))
    if device.type == "cuda":
        args = row.on_cuda(args)
    ways, absent = bound_ways(row, args, wanted, compiled)
    said = [f"{name} absent: {why}" for name, why in absent.items()]
    worst = 0.0
    for name in [n for n in ways if n != REFERENCE]:
        try:
            tolerance = row.tolerance_of(name, device.type)
            worst = max(worst, agree(row, name, ways[name], args, tolerance))
        except Exception as failure:
            del ways[name]
            first = (str(failure).splitlines() or [""])[0][:200]
            said.append(f"FAILED {name}: {type(failure).__name__}: {first}")
    said += [f"{name}: {bound.note}" for name, bound in ways.items() if bound.note]
    if OURS not in ways:
        return {}, said
    sets = sets_of(row, args, device)
    found = {"forward": timed({n: forward_call(b, sets) for n, b in ways.items()}, device, rounds)}
    train = {n: train_call(row, b, sets) for n, b in ways.items()} if row.differentiable else {}
    trained = {n: call for n, call in train.items() if call is not None}
    if OURS in trained:
        found["train"] = timed(trained, device, rounds)
    return {k: {"size": size, **v, "worst_error": worst} for k, v in found.items()}, said


def group_of(device: torch.device) -> str:
    if device.type == "cuda":
        return "cuda"
    threads = os.environ.get("RAYMARCH_THREADS") or str(os.cpu_count())
    return f"cpu_{threads}_threads"


def show(name: str, found: dict[str, Any], said: list[str]) -> None:
    for part, row in found.items():
        times = {k.removesuffix("_us"): v for k, v in row.items() if k.endswith("_us") and "_wall" not in k}
        print(f"{name:22} {part:8}" + "  ".join(f"{k} {v:.0f} us" for k, v in times.items()), flush=True)
        if "ratio" in row:
            ends = f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
            print(f"{'':31}best peer {row['best_peer']}: {row['ratio']:.2f} {ends} of raymarch's time")
    for line in said:
        print(f"{'':22} {line}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--rows", help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--ways", help="beside raymarch and torch: torch_bmm, torch_half, compile, nerfacc, ..."
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out: minutes of compiling"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, help="on a CPU, for torch and for raymarch; default all cores")
    parser.add_argument("--record", action="store_true", help="merge the figures into bench/results")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("peers: --device cuda needs a GPU and none was found; use --device cpu", file=sys.stderr)
        return 2
    names = args.rows.split(",") if args.rows else list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if args.threads:
        os.environ["RAYMARCH_THREADS"] = str(args.threads)  # read when the first op starts its threads
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    command = f"python -m bench peers --device {device.type}" + (
        f" --threads {args.threads}" if args.threads else ""
    )
    ways = args.ways.split(",") if args.ways else None
    failed, slower = [], []
    for name in names:
        try:
            with without_viewer():
                found, said = measure(ROWS[name], device, args.rounds, ways, not args.no_compile)
        except Exception as failure:  # one row must not cost the others
            found, said = (
                {},
                [f"FAILED {type(failure).__name__}: {(str(failure).splitlines() or [''])[0][:200]}"],
            )
        show(name, found, said)
        failed += [f"{name}: {line}" for line in said if line.startswith("FAILED")]
        slower += [
            f"{name}.{part} ({row['best_peer']})" for part, row in found.items() if row.get("fastest") == "no"
        ]
        if found and args.record:
            record.merge("peers", {group_of(device): {name: found}}, command)
        torch._dynamo.reset()
    print(f"raymarch is not the fastest in: {', '.join(slower) or 'no row'}")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
