"""What only a GPU can say, checked for every row of bench.cases and merged into the record.

python -m bench.checks tests        python_tests with `cuda` in the name: passed, failed, skipped
python -m bench.checks equal        outputs and gradients on CUDA against the CPU: largest error per op
python -m bench.checks streams      launches follow torch's current stream and never wait for the GPU
python -m bench.checks graphs       capture forward and backward in a CUDA graph, replay with other inputs
python -m bench.checks devices      tensors on cuda:1 while cuda:0 is current (needs two GPUs)
python -m bench.checks sanitizer    compute-sanitizer memcheck over the op tests
python -m bench.checks racecheck    the same tests under racecheck; initcheck and synccheck as well
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from bench import record
from bench.cases import CASES, Case
from bench.running import moved, run, tolerances, with_grad, worst

ROOT = Path(__file__).resolve().parents[1]
SLEEP_CYCLES = 400_000_000  # a fifth of a second at 2 GHz: far more than Python needs for a call
SANITIZED = "cuda and (matches_the_oracle or gradient_matches or broken_numbers)"


def over_rows(check: Callable[[Case], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One result per row; an exception is a failure with its words, and the next row goes on."""
    found: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        try:
            found[name] = check(case)
        except Exception as error:
            found[name] = {"ok": False, "why": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        if not found[name]["ok"]:
            print(f"  {name}: {found[name]}", flush=True)
    return found


def totals(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    failed = [name for name, row in found.items() if not row["ok"]]
    return {"ops": len(found), "passed": len(found) - len(failed), "failed": len(failed), "failures": failed}


def equals_cpu(case: Case) -> dict[str, Any]:
    inputs = case.inputs(
        257
    )  # below 1000 points the mlp rows keep clear of relu's kinks, where halves may flip
    got, want = run(case, with_grad(case, moved(inputs, "cuda"))), run(case, with_grad(case, inputs))
    errors = [worst(got[part], want[part]) for part in (0, 1)]
    ok = all(e <= 2 * t for e, t in zip(errors, tolerances(case, "cuda"), strict=True))
    return {"ok": ok, "outputs": errors[0], "gradients": errors[1]}


def refill(args: Any, other: Any) -> None:
    """Other numbers into the same places, nested ones too."""
    with torch.no_grad():
        for a, b in zip(tree_leaves(args), tree_leaves(other), strict=True):
            if isinstance(a, Tensor):
                a.copy_(b)


def follows_the_stream(case: Case) -> dict[str, Any]:
    """A stream sleeps, then fills the inputs, then runs the op: the result is right only if the op waited its
    turn, and the stream still sleeps when Python is done only if nobody waited for the GPU."""
    inputs = moved(case.inputs(257), "cuda")
    want = run(case, with_grad(case, inputs))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        args = with_grad(case, inputs)
        for _ in range(2):  # loads the kernels, and gives the stream's memory pool what it will need
            warm = run(case, args)
        del warm
    torch.cuda.synchronize()
    with torch.cuda.stream(side), torch.no_grad():
        for a in args:
            if isinstance(a, Tensor):
                a.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(SLEEP_CYCLES)
        refill(args, inputs)
        got = run(case, args)
        busy = not side.query()
    side.synchronize()
    error = max(worst(got[part], want[part]) for part in (0, 1))
    right = error <= 2 * max(tolerances(case, "cuda"))
    return {"ok": busy and right, "asynchronous": busy, "ordered": right}


def replays(case: Case) -> dict[str, Any]:
    """Captured once, replayed with other numbers in the same places."""
    args = with_grad(case, moved(case.inputs(64), "cuda"))
    other = moved(case.inputs(64), "cuda")
    pairs = zip(tree_leaves(args), tree_leaves(other), strict=True)
    alike = all(a.shape == b.shape for a, b in pairs if isinstance(a, Tensor))
    other = other if alike else tree_map(lambda a: a.detach().clone() if isinstance(a, Tensor) else a, args)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            run(case, args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        got = run(case, args)
    refill(args, other)
    graph.replay()
    torch.cuda.synchronize()
    want = run(case, with_grad(case, other))
    error = max(worst(got[part], want[part]) for part in (0, 1))
    return {"ok": error <= 2 * max(tolerances(case, "cuda")), "error": error}


def runs_on_the_second_device(case: Case) -> dict[str, Any]:
    inputs = case.inputs(257)
    torch.cuda.set_device(0)
    got, want = run(case, with_grad(case, moved(inputs, "cuda:1"))), run(case, with_grad(case, inputs))
    stayed = torch.cuda.current_device() == 0
    there = all(t is None or t.device == torch.device("cuda:1") for part in got for t in part)
    error = max(worst(got[part], want[part]) for part in (0, 1))
    return {"ok": stayed and there and error <= 2 * max(tolerances(case, "cuda")), "error": error}


def junit(report: Path) -> dict[str, Any]:
    """Counts and the names of what failed, from pytest's XML."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "failures": [f"{c.get('classname', '').split('.')[-1]}::{c.get('name')}" for c in failed],
    }


def pytest_counts(*words: str, before: tuple[str, ...] = (), **env: str) -> tuple[dict[str, Any], str]:
    """Run pytest, perhaps under another program; its counts and everything it printed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*before, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, f"--junitxml={report}"], cwd=ROOT, env=os.environ | env, capture_output=True, text=True
        )
        text = done.stdout + done.stderr
        counts = junit(report) if report.exists() else {"passed": 0, "failed": 1, "failures": [text[-500:]]}
    return counts | {"seconds": round(time.perf_counter() - began, 1)}, text


def tests() -> dict[str, Any]:
    spread = ["-n", "6"] if importlib.util.find_spec("xdist") and (os.cpu_count() or 1) >= 8 else []
    found, text = pytest_counts(
        "python_tests", "-k", "cuda", *spread, RAYMARCH_THREADS="2", OMP_NUM_THREADS="2"
    )
    print(text[-6000:])
    return {"op_tests_cuda": found | {"ok": found["failed"] == 0 and found["passed"] > 0}}


def sanitized(tool: str) -> dict[str, Any]:
    """The op tests under compute-sanitizer; torch's caching is off, so every array has bounds of its own."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {tool: {"ok": False, "why": "compute-sanitizer was not found"}}
    before = (program, "--tool", tool, "--report-api-errors", "no", "--print-limit", "20")
    words = ("python_tests/test_ops.py", "-k", f"({SANITIZED}) and not 1000")
    found, text = pytest_counts(*words, before=before, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    said = re.search(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", text)
    errors = int(said[1] or said[2]) if said else None
    reports = [line for line in text.splitlines() if line.startswith("=========")]
    print("\n".join(reports[:60]) if errors != 0 else (reports or [text[-2000:]])[-1])
    return {
        tool: found | {"errors": errors, "ok": errors == 0 and found["failed"] == 0 and found["passed"] > 0}
    }


def equal() -> dict[str, Any]:
    found = over_rows(equals_cpu)
    summary = totals(found) | {
        "worst_output": max(row.get("outputs", float("inf")) for row in found.values()),
        "worst_gradient": max(row.get("gradients", float("inf")) for row in found.values()),
    }
    return {"cuda_equals_cpu": {"all": summary} | found}


def devices() -> dict[str, Any]:
    count = torch.cuda.device_count()
    if count < 2:
        print("  one GPU here: nothing checked")
        return {"second_device": {"gpus": count, "ops": 0, "failed": 0}}
    return {"second_device": {"gpus": count} | totals(over_rows(runs_on_the_second_device))}


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "tests": tests,
    "equal": equal,
    "streams": lambda: {"streams": totals(over_rows(follows_the_stream))},
    "graphs": lambda: {"graphs": totals(over_rows(replays))},
    "devices": devices,
    "sanitizer": lambda: sanitized("memcheck"),
    "racecheck": lambda: sanitized("racecheck"),
    "initcheck": lambda: sanitized("initcheck"),
    "synccheck": lambda: sanitized("synccheck"),
}


def failed(result: dict[str, Any]) -> bool:
    return any(
        row.get("ok") is False
        or row.get("failed", 0) > 0
        or failed({k: v for k, v in row.items() if isinstance(v, dict)})
        for row in result.values()
    )


def main(words: list[str]) -> int:
    if not words or set(words) - set(CHECKS):
        print(__doc__)
        return 2
    if not torch.cuda.is_available():
        print("bench.checks: no GPU here")
        return 1
    bad = []
    for word in words:
        print(f"checks {word}", flush=True)
        result = CHECKS[word]()
        record.merge("checks", result, f"python -m bench.checks {word}")
        shown = {name: row.get("all", row) for name, row in result.items()}
        print(f"  {shown}", flush=True)
        if failed(result):
            bad.append(word)
    print("failed: " + ", ".join(bad) if bad else "all checks passed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
