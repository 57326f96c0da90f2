"""The CPU core's thread pool under ThreadSanitizer.

bench/proof/pool.cpp is linked with csrc/cpu/parallel.cpp, both instrumented, and runs with 1, 2, 4 and 8
threads. The same program with a race planted into it must be caught, or the run proves nothing.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
POOLS = (1, 2, 4, 8)
ROUNDS = 200
LIMIT = 120  # seconds: a pool that waits for itself never ends


def compiled(folder: Path, *flags: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / ("pool_planted" if flags else "pool")
    sources = ("bench/proof/pool.cpp", "csrc/cpu/parallel.cpp")
    options = ("-std=c++17", "-O1", "-g", "-fsanitize=thread", "-Icsrc", *flags)
    subprocess.run(("g++", *options, *sources, "-o", str(program), "-pthread"), cwd=ROOT, check=True)
    return program


def reports(program: Path, threads: int, rounds: int = ROUNDS) -> tuple[int, str]:
    """How many races were reported (-1 for a crash, a wrong sum or no end), and the words."""
    env = os.environ | {"RAYMARCH_THREADS": str(threads), "TSAN_OPTIONS": "die_after_fork=0:exitcode=66"}
    try:
        done = subprocess.run(
            (str(program), str(rounds)), env=env, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end after {LIMIT} s"
    text = done.stdout + done.stderr
    return (text.count("WARNING: ThreadSanitizer") if done.returncode in (0, 66) else -1), text


def run() -> dict[str, Any]:
    began = time.perf_counter()
    folder = ROOT / "build" / "proof" / "threads"
    program = compiled(folder)
    found: dict[str, int] = {}
    for threads in POOLS:
        count, text = reports(program, threads)
        found[f"reports_{threads}_threads"] = count
        if count:
            print(text[:6000])
    planted, _ = reports(compiled(folder, "-DPLANTED"), 4, 20)
    return found | {
        "planted_race_found": planted > 0,
        "rounds": ROUNDS,
        "seconds": round(time.perf_counter() - began, 1),
        "ok": not any(found.values()) and planted > 0,
    }
