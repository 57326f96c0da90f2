"""What CUDA kernels are called, and the table of what they take: reads text alone, without torch."""

from __future__ import annotations

import re
from pathlib import Path

TABLE = Path(__file__).resolve().parents[2] / "bench" / "resources.txt"  # of a checkout


def shortened(name: str) -> str:
    """A demangled name without namespaces, return type and parameters: weights_kernel<half, 8>."""
    depth, kept = 0, ""
    for c in name.replace("(anonymous namespace)::", "").replace("raymarch::", ""):
        if c == "(" and depth == 0 and kept:
            break
        depth += (c == "<") - (c == ">")
        kept = "" if c == " " and depth == 0 else kept + c
    return re.sub(r"\((?:int|unsigned int|long|bool)\)", "", kept)


def resources(table: Path = TABLE) -> dict[str, tuple[int, int]]:
    """Registers and spilled bytes by kernel, as compiled for sm_90. Empty outside a checkout."""
    if not table.is_file():
        return {}
    rows = re.findall(r"^(\S.*?) +(\d+) +(\d+) +(\d+) +(\d+)$", table.read_text(), re.M)
    return {name: (int(registers), int(spills)) for name, registers, _, spills, _ in rows}
