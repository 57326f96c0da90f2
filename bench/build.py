"""Seconds to build the native core from nothing, to notice that nothing changed, and the binaries' size.

python -m bench --only build [--builds 3]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from bench.record import ROOT
from bench.timing import spread

MODULES = ("_C", "_C64")


class BuildError(RuntimeError):
    """The build failed; the message holds its last line."""


def build(folder: Path, cuda: str) -> float:
    """Seconds of one build into a folder, incremental where it holds one already."""
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    command += ["--build-temp", str(folder / "temp"), "--build-lib", str(folder / "lib")]
    begin = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"RAYMARCH_CUDA": cuda}
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise BuildError(f"build: {' '.join(command[1:4])} failed: {' '.join(last)}")
    return time.perf_counter() - begin


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each module, as built and without symbols."""
    found = {}
    for name in MODULES:
        file = folder / "lib" / "raymarch" / f"{name}{EXTENSION_SUFFIXES[0]}"
        found[f"{name.strip('_').lower()}_bytes"] = file.stat().st_size
        if strip := shutil.which("strip"):
            bare = folder / "bare.so"
            subprocess.run([strip, "-o", str(bare), str(file)], check=True)
            found[f"{name.strip('_').lower()}_stripped_bytes"] = bare.stat().st_size
    return found


def measure(builds: int, cuda: str) -> dict[str, Any]:
    """Builds from nothing, each in a folder of its own; then one with nothing to do."""
    full: list[float] = []
    for _ in range(builds):
        with tempfile.TemporaryDirectory() as place:
            full.append(build(Path(place), cuda))
            if len(full) == builds:
                idle = [build(Path(place), cuda) for _ in range(builds)]
                found = sizes(Path(place))
    several = {"from_nothing_s": full, "nothing_changed_s": idle}
    timed: dict[str, Any] = {}
    for name, laps in several.items():
        timed |= spread(name, laps) if len(laps) > 1 else {name: laps[0]}
    return timed | found | {"builds": builds, "cuda": cuda, "jobs": os.cpu_count()}
