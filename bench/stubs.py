"""Write raymarch/_C.pyi from csrc/ops.def, so that type checkers and readers see the core's ops.

python -m bench.stubs            write it
python -m bench.stubs --check    exit 1 where it is not current
"""

from __future__ import annotations

import keyword
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUB = ROOT / "raymarch" / "_C.pyi"
WIDTH = 110  # ruff's line length

HEAD = '''"""The native core. Written from csrc/ops.def by `python -m bench.stubs`; do not edit.

Every op takes contiguous arrays on one device, outputs last, and returns nothing.
"""

from typing import Any, Protocol

class Array(Protocol):
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

has_cuda: bool
emulated: bool
cuda_archs: str
cuda_version: str
'''


@dataclass(frozen=True)
class Argument:
    name: str
    type: str  # as ops.def spells it

    @property
    def python(self) -> str:
        several = re.fullmatch(r"Several<(.*)>", self.type)
        if several:
            return f"list[{Argument(self.name, several[1]).python}]"
        scalar = {"int64_t": "int", "double": "float", "bool": "bool"}.get(self.type)
        return scalar or ("Array | None" if self.type.startswith("Maybe") else "Array")


@dataclass(frozen=True)
class Op:
    name: str
    arguments: tuple[Argument, ...]
    comment: tuple[str, ...]  # the lines above the declaration


def split_arguments(text: str) -> list[str]:
    """At the commas outside angle brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c == "<") - (c == ">")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [" ".join(p.split()) for p in parts]


def read_ops(path: Path = ROOT / "csrc" / "ops.def") -> list[Op]:
    """Every RM_OP of ops.def, in its order."""
    _, _, body = path.read_text().partition("\n\n")  # after the file's own comment
    ops: list[Op] = []
    comment: list[str] = []
    for match in re.finditer(r"^//\s?(.*)$|^RM_OP\(([^()]*)\)|^\s*$", body, re.M):
        if match[2] is not None:
            name, *rest = split_arguments(match[2])
            arguments = tuple(Argument(*reversed(a.rsplit(" ", 1))) for a in rest)
            ops.append(Op(name, arguments, tuple(comment)))
            comment = []
        elif match[1] is not None:
            comment.append(match[1].rstrip())
        else:
            comment = []
    return ops


def declaration(op: Op) -> str:
    """One function of the stub, laid out as ruff lays it out."""

    def parameter(a: Argument) -> str:
        return f"{a.name}_" if keyword.iskeyword(a.name) else a.name

    words = [f"{parameter(a)}: {a.python}" for a in op.arguments] + ["/"]
    line = f"def {op.name}({', '.join(words)}) -> None: ..."
    if len(line) > WIDTH:
        line = f"def {op.name}(\n    " + ",\n    ".join(words) + ",\n) -> None: ..."
    comment = [line for text in op.comment for line in textwrap.wrap(text, WIDTH - 2) or [""]]
    return "".join(f"# {text}".rstrip() + "\n" for text in comment) + line + "\n"


def stub() -> str:
    text = HEAD
    for i, op in enumerate(read_ops()):
        text += ("\n" if op.comment or i == 0 else "") + declaration(op)
    return text


def main() -> int:
    want = stub()
    if "--check" not in sys.argv[1:]:
        STUB.write_text(want)
        return 0
    if STUB.exists() and STUB.read_text() == want:
        return 0
    print("raymarch/_C.pyi is not what csrc/ops.def says: run python -m bench.stubs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
