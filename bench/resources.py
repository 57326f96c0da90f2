"""Registers, stack, spills and shared memory of every CUDA kernel, as ptxas reports them for sm_90.

python -m bench.resources            compile csrc/cuda/*.cu and write bench/resources.txt
python -m bench.resources --check    exit 1 where resources.txt is not current (same nvcc only)
python -m bench.resources --archs 80,86,89,90    only see whether everything compiles for these
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from raymarch.profiling.kernel_names import shortened

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "bench" / "resources.txt"
ARCH = "sm_90"
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas=-v", "-cubin", "-Icsrc")
JOBS = 2


@dataclass(frozen=True, order=True)
class Kernel:
    file: str
    name: str
    registers: int
    stack: int
    spills: int  # bytes stored and loaded
    shared: int  # static; what a launch adds is not the compiler's to know


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")


def nvcc_version() -> str | None:
    """As 13.0.88; None where there is no nvcc."""
    if not (compiler := nvcc()):
        return None
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", text)
    return match[1] if match else None


def demangled(names: list[str]) -> list[str]:
    """Without namespaces, return types and parameters: composite_forward_kernel<half, 8>."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    return [shortened(line) for line in text.splitlines()]


def read_ptxas(file: str, log: str) -> list[Kernel]:
    """The kernels in one compiler log: ptxas names each, then says what it and its callees use."""
    rows: list[tuple[str, int, int, int, int]] = []
    for part in re.split(r"Compiling entry function '", log)[1:]:
        mangled = part[: part.index("'")]

        def number(pattern: str, text: str) -> int:
            return sum(int(n) for n in re.findall(pattern, text))

        rows.append(
            (
                mangled,
                number(r"Used (\d+) registers", part),
                number(r"(\d+) bytes stack frame", part),
                number(r"(\d+) bytes spill (?:stores|loads)", part),
                number(r"(\d+) bytes smem", part),
            )
        )
    names = demangled([row[0] for row in rows]) if rows else []
    return [Kernel(file, name, *row[1:]) for name, row in zip(names, rows, strict=True)]


def compile_one(source: Path, arch: str = ARCH) -> list[Kernel]:
    command = [nvcc() or "nvcc", *FLAGS, f"-arch={arch}", "-o", os.devnull, str(source.relative_to(ROOT))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return read_ptxas(source.stem, done.stdout + done.stderr)


def compile_all(archs: list[str]) -> list[Kernel]:
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(JOBS) as pool:
        found = pool.map(compile_one, *zip(*((s, a) for a in archs for s in sources), strict=True))
        return sorted(k for part in found for k in part)


def table(version: str) -> str:
    kernels = compile_all([ARCH])
    width = max([len("kernel"), *(len(k.name) for k in kernels)])
    lines = [
        f"nvcc {version}, {ARCH}; written by python -m bench.resources",
        f"{'kernel':{width}} {'registers':>9} {'stack':>6} {'spills':>6} {'shared':>6}",
    ]
    lines += [f"{k.name:{width}} {k.registers:9} {k.stack:6} {k.spills:6} {k.shared:6}" for k in kernels]
    return "\n".join(lines) + "\n"


def main() -> int:
    version = nvcc_version()
    if version is None:
        print("bench.resources: nvcc was not found, nothing compared", file=sys.stderr)
        return 0 if "--check" in sys.argv[1:] else 1
    if "--archs" in sys.argv[1:]:
        archs = sys.argv[sys.argv.index("--archs") + 1].split(",")
        spilling = [k for k in compile_all([f"sm_{a}" for a in archs]) if k.spills]
        print(f"compiled for {', '.join(archs)}; kernels that spill registers: {len(spilling)}")
        return 0
    if "--check" not in sys.argv[1:]:
        TABLE.write_text(table(version))
        return 0
    committed = TABLE.read_text() if TABLE.exists() else ""
    if not committed.startswith(f"nvcc {version},"):
        print(
            f"bench.resources: {TABLE.name} was not made with nvcc {version}, nothing compared",
            file=sys.stderr,
        )
        return 0
    diff = list(
        difflib.unified_diff(committed.splitlines(), table(version).splitlines(), "committed", "now", n=0)
    )
    print("\n".join(diff), end="\n" if diff else "")
    return 1 if diff else 0


if __name__ == "__main__":
    sys.exit(main())
