"""The op tests on a core built with AddressSanitizer and UndefinedBehaviorSanitizer.

Both builds, float and double, are instrumented; Python and torch are not. Any report counts, in tests that
pass, too. Conversions of numbers that do not fit (float-cast-overflow), which UBSan leaves out by default,
are included. The sanitized core lies in build/proof/address and never replaces the normal one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.checks import junit
from bench.proof import trees

SANITIZERS = "address,undefined,float-cast-overflow"
# One file per stage, and what every op must do. Tracing asks torch, not the core, and takes long.
TESTS = (
    *("ops", "adam", "beside", "box", "composite", "contract", "fused", "harmonics", "hashgrid", "inputs"),
    *("losses", "mlp", "pixels", "pose", "rays", "sample", "weights"),
)
LEFT_OUT = "not traces_without_graph_breaks and not registered_ops and not cuda and not compile"
ERROR = re.compile(r"runtime error:|ERROR: AddressSanitizer|SUMMARY: \w+Sanitizer")


NOTHING_RAN: dict[str, Any] = {"passed": 0, "failed": 1, "skipped": 0, "failures": ["pytest itself"]}


def runtime(name: str) -> str:
    """The path of a sanitizer's runtime, as the compiler knows it."""
    said = subprocess.run(("g++", f"-print-file-name={name}"), check=True, capture_output=True, text=True)
    return said.stdout.strip()


def instrumented(core: Path) -> bool:
    """Whether a core calls both runtimes: tests of a normal build would prove nothing."""
    symbols = core.read_bytes()
    return b"__asan_report" in symbols and b"__ubsan_handle" in symbols


def reports(text: str) -> list[str]:
    """What the sanitizers said, each place once."""
    found = [line.strip() for line in text.splitlines() if ERROR.search(line)]
    return list(dict.fromkeys(re.sub(r"==\d+==|0x[0-9a-f]+", "", line) for line in found))


def run() -> dict[str, Any]:
    tree = trees.copy("address")
    began = time.perf_counter()
    trees.build(tree, RAYMARCH_SANITIZE=SANITIZERS)
    built = time.perf_counter() - began
    cores = sorted((tree / "raymarch").glob("_C*.so"))
    if len(cores) != 2 or not all(instrumented(core) for core in cores):
        raise SystemExit(
            f"bench.proof sanitize: the cores in {tree} are not instrumented; delete that folder"
        )
    logs = tree / "reports"
    logs.mkdir(exist_ok=True)
    for old in logs.iterdir():
        old.unlink()
    env = os.environ | {
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')} {runtime('libstdc++.so.6')}",
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={logs}/asan",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={logs}/ubsan",
        "RAYMARCH_THREADS": "2",
    }
    files = [f"python_tests/test_{name}.py" for name in TESTS]
    xml = logs / "tests.xml"
    command = (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *files)
    command += ("-k", LEFT_OUT, f"--junitxml={xml}")
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    said = done.stdout + done.stderr + "".join(p.read_text(errors="replace") for p in logs.glob("*san*"))
    found = reports(said)
    counts: dict[str, Any] = junit(xml) if xml.exists() else NOTHING_RAN
    if found or counts["failed"] or not counts["passed"]:
        print("\n".join(found) or said[-4000:])
    return {
        "sanitizers": SANITIZERS,
        "reports": len(found),
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "failures": counts["failures"],
        "build_seconds": round(built),
        "seconds": round(time.perf_counter() - began - built),
        "ok": not found and not counts["failed"] and counts["passed"] > 0,
    }
