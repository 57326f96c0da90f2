"""The op tests on the CUDA kernels themselves, without a GPU: csrc/emulator runs them on the CPU.

Threads of a block take turns in three orders, forward, backward and shuffled: a kernel that lacks a barrier
gives another result in one of them. `emulate_sanitized` has AddressSanitizer in the emulated core, so that a
kernel which reads or writes beside an array is caught where it does so. First the emulator itself: kernels
with one fault each (bench/proof/planted.cpp) must be told from the same without it. The emulated cores lie in
build/proof and never replace the normal one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.checks import junit
from bench.proof import trees
from bench.proof.sanitize import NOTHING_RAN, TESTS, reports, runtime

ORDERS = ("forward", "backward", "7")  # a number seeds the shuffle
PLANTED = ("barrier", "shuffle", "beyond", "copy", "unwritten", "vector", "divided")
# Tracing and the rules of torch ask torch, not the kernels; whole trainings take minutes here.
LEFT_OUT = (
    *("traces_without_graph_breaks", "registered_ops", "compile", "finite_differences", "training_fused_is"),
    *("empty_pixels", "put_back_takes", "training_with_copies", "braked", "mapped_photos"),
)


def run_tests(tree: Path, order: str, checked: bool = False) -> dict[str, Any]:
    """Counts of one order; `checked` with the sanitizer in the core."""
    xml = tree / f"tests-{order}.xml"
    xml.unlink(missing_ok=True)
    env = os.environ | {"RAYMARCH_EMULATE_ORDER": order, "RAYMARCH_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if checked:
        env["LD_PRELOAD"] = f"{runtime('libasan.so')} {runtime('libstdc++.so.6')}"
        env["ASAN_OPTIONS"] = "detect_leaks=0"
    files = [f"python_tests/test_{name}.py" for name in TESTS]
    chosen = " and ".join(f"not {name}" for name in LEFT_OUT)
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen)
    done = subprocess.run((*command, f"--junitxml={xml}"), cwd=tree, env=env, capture_output=True, text=True)
    said = done.stdout + done.stderr
    counts: dict[str, Any] = junit(xml) if xml.exists() else NOTHING_RAN
    found = reports(said)
    if found or counts["failed"] or not counts["passed"]:
        print("\n".join(found) or said[-6000:])
    kept = {key: counts[key] for key in ("passed", "failed", "skipped", "failures")}
    return kept | {"reports": len(found), "ok": not found and not counts["failed"] and counts["passed"] > 0}


def compiled(folder: Path) -> Path:
    """The program of planted faults."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "planted"
    sources = ("bench/proof/planted.cpp", "csrc/emulator/emulator.cpp")
    macros = ("-D__CUDACC__", "-D__CUDA_ARCH__=900")
    options = ("-std=c++17", "-O1", "-w", *macros, "-Icsrc/emulator", "-Icsrc")
    subprocess.run(("g++", *options, *sources, "-o", str(program)), cwd=trees.ROOT, check=True)
    return program


def outcomes(program: Path, case: str, fault: bool) -> set[str]:
    """What the orders give: a sum, or an error."""
    found = set()
    for order in ORDERS:
        env = os.environ | {"RAYMARCH_EMULATE_ORDER": order}
        command = (str(program), case, str(int(fault)))
        said = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
        found.add(said.stdout.strip())
    return found


def planted(folder: Path) -> dict[str, bool]:
    """Case -> whether the right kernel gives one finite sum in all orders, and the faulty one does not."""
    program = compiled(folder)
    found = {}
    for case in PLANTED:
        right, wrong = outcomes(program, case, False), outcomes(program, case, True)
        sound = len(right) == 1 and not any("error" in said or "nan" in said for said in right)
        found[case] = sound and right.isdisjoint(wrong)
    return found


def run(orders: tuple[str, ...] = ORDERS) -> dict[str, Any]:
    """The emulator's planted faults, then the op tests in each order."""
    began = time.perf_counter()
    tree = trees.copy("emulator")
    faults = planted(tree / "build")
    trees.build(tree, RAYMARCH_EMULATE="ON")
    runs: dict[str, Any] = {order: run_tests(tree, order) for order in orders}
    return {
        "planted_faults": len(faults),
        "planted_faults_found": sum(faults.values()),
        "missed": [case for case, caught in faults.items() if not caught],
        "orders": {name: counts["passed"] for name, counts in runs.items()},
        "passed": sum(counts["passed"] for counts in runs.values()),
        "failed": sum(counts["failed"] for counts in runs.values()),
        "failures": sorted({failure for counts in runs.values() for failure in counts["failures"]}),
        "seconds": round(time.perf_counter() - began),
        "ok": all(faults.values()) and all(counts["ok"] for counts in runs.values()),
    }


def run_sanitized() -> dict[str, Any]:
    """The op tests in one order, with AddressSanitizer in the kernels."""
    began = time.perf_counter()
    tree = trees.copy("emulator_sanitized")
    trees.build(tree, RAYMARCH_EMULATE="ON", RAYMARCH_SANITIZE="address")
    return run_tests(tree, "forward", checked=True) | {"seconds": round(time.perf_counter() - began)}
