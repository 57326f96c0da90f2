"""Small faults in C++ formulas: where they can be planted, and which to plant.

A fault is one change to one function: a sign, an operator, a comparison, a constant, a component, a name of a
function, or a factor or term left out. Comments, preprocessor lines and what only a GPU compiles stay.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

SEED = 6

# (what it is, what it looks like, what it becomes); a pattern's whole match is replaced.
SWAPS = (
    ("sign", r" \+ ", " - "),
    ("sign", r" - ", " + "),
    ("sign", r"(?<=return )-(?=[\w(])", ""),
    ("sign", r"(?<=[({,?:=] )-(?=[a-z(])|(?<=[({])-(?=[a-z(])", ""),
    ("operator", r" \* ", " / "),
    ("operator", r" / ", " * "),
    ("operator", r" \+= ", " -= "),
    ("operator", r" \*= ", " /= "),
    ("comparison", r" < ", " >= "),
    ("comparison", r" > ", " <= "),
    ("comparison", r" <= ", " > "),
    ("comparison", r" >= ", " < "),
    ("comparison", r" == ", " != "),
    ("comparison", r" != ", " == "),
    ("comparison", r" && ", " || "),
    ("comparison", r" \|\| ", " && "),
    ("constant", r"(?<![\w.])0x[0-9a-f]{6,}(?=u|ull)", "0x9e3779b1"),
    ("component", r"(?<=\w)\.x\b(?!\()", ".y"),
    ("component", r"(?<=\w)\.y\b(?!\()", ".z"),
    ("component", r"(?<=\w)\.z\b(?!\()", ".x"),
    ("name", r"\bsine\(", "cosine("),
    ("name", r"\bcosine\(", "sine("),
    ("name", r"\bstd::sqrt\(", "std::fabs("),
    ("name", r"\bstd::exp\(", "std::expm1("),
    ("name", r"\bstd::floor\(", "std::ceil("),
    ("name", r"\bsquare\(", "std::fabs("),
    ("name", r"\brotate\(", "rotate_transposed("),
    ("name", r"\brotate_transposed\(", "rotate("),
    ("name", r"\bquick_expm1\(", "quick_exp("),
    ("left out", r" \* [a-z_][\w.]*(\[\w+\])?(?![\w.(\[:])", ""),
    ("left out", r" [+-] [a-z_][\w.]*(\[\w+\])?(?![\w.(\[:])", ""),
)
NUMBER = re.compile(r"(?<![\w.\[])(\d+\.?\d*(?:e-?\d+)?)(?![\w.x])")
FUNCTION = re.compile(
    r"^(?:template <[^>]*>\s*)?(?:  )?(?:RM_HD|inline)\b[^;=]*?\b(\w+|operator[-+*])(?:<\w+>)?\("
)
CONSTANT = re.compile(r"^constexpr .*?\b(\w+) =")


@dataclass(frozen=True)
class Fault:
    """One change: `column` to `column + len(was)` of line `line` (from 0) of a header."""

    header: str
    function: str
    line: int
    column: int
    was: str
    now: str
    kind: str
    text: str  # the whole line as it was

    @property
    def key(self) -> str:
        """The same while the line is the same, wherever it stands."""
        words = f"{self.header} {self.function} {self.text.strip()} {self.column} {self.was} {self.now}"
        return hashlib.sha256(words.encode()).hexdigest()[:12]

    @property
    def changed(self) -> str:
        return self.text[: self.column] + self.now + self.text[self.column + len(self.was) :]

    def planted(self, source: str) -> str:
        lines = source.splitlines(keepends=True)
        assert lines[self.line].rstrip("\n") == self.text
        lines[self.line] = self.changed + "\n"
        return "".join(lines)


def host_lines(source: str) -> Iterator[tuple[int, str]]:
    """Lines of code that a CPU compiles, without their comments."""
    stack: list[bool] = []
    for number, line in enumerate(source.splitlines()):
        if line.startswith("#if"):
            device = "__CUDA" in line and "RM_DOUBLE ||" not in line
            stack.append(device)
        elif line.startswith("#else"):
            stack[-1] = False
        elif line.startswith("#endif"):
            stack.pop()
        elif not line.startswith("#") and not any(stack):
            yield number, line.split("//")[0].rstrip()


def in_numbers(code: str) -> Iterator[tuple[int, str, str]]:
    for found in NUMBER.finditer(code):
        word = found[1]
        if float(word) == 0:
            yield found.start(1), word, "1"
        elif word.isdigit():
            yield found.start(1), word, str(int(word) + 1)
        else:
            yield found.start(1), word, repr(2 * float(word))


def faults(header: str, source: str) -> list[Fault]:
    """Every place where a fault of these kinds fits."""
    found, function = [], ""
    for number, line in host_lines(source):
        code, start = line, 0
        if match := FUNCTION.match(line):
            function = match[1]
            start = line.find("{") + 1 if "{" in line else len(line)
        elif match := CONSTANT.match(line):
            function = match[1]
            start = line.find("=")
        elif not line.startswith(" ") and not line.startswith("}"):
            function = ""  # a struct, an enum, a namespace
        if line.startswith(("struct", "enum")):
            function = ""
        if (
            not function
            or "require(" in line
            or 'return "' in line
            or line.strip().startswith("static_assert")
        ):
            continue
        if line.startswith("   ") and not any(c in line for c in ";?{}=") and "(" not in line:
            continue  # a signature's second line
        places = [(m.start(), m[0], now, kind) for kind, was, now in SWAPS for m in re.finditer(was, code)]
        places += [(column, was, now, "constant") for column, was, now in in_numbers(code)]
        source_line = source.splitlines()[number]
        for column, was, now, kind in sorted(places):
            if column >= start and not re.search(r"\bfor \(", code):
                found.append(Fault(header, function, number, column, was, now, kind, source_line))
    return found


def wanted(function: str, places: int) -> int:
    """How many faults a function gets: a derivative at least three, and more the longer it is."""
    if "vjp" in function:
        return min(8, max(3, places // 12))
    return min(4, max(1, places // 25))


@dataclass(frozen=True)
class Group:
    """A function's faults in the order in which to try them, until `wanted` of them compile."""

    header: str
    function: str
    faults: tuple[Fault, ...]
    wanted: int


def groups(found: list[Fault]) -> list[Group]:
    """Of every function, a repeatable order of its faults, with as many kinds as there are near the front."""
    made = []
    for function in dict.fromkeys(fault.function for fault in found):
        mine = [fault for fault in found if fault.function == function]
        dice = random.Random(f"{SEED} {mine[0].header} {function}")
        dice.shuffle(mine)
        seen: dict[str, int] = {}
        rank = {}
        for fault in mine:
            rank[fault] = seen.get(fault.kind, 0)
            seen[fault.kind] = rank[fault] + 1
        mine.sort(key=lambda fault: rank[fault])
        made.append(Group(mine[0].header, function, tuple(mine), wanted(function, len(mine))))
    return made
