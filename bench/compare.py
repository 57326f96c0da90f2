"""Two records side by side: what became slower or larger, beyond what repeats vary by.

    python -m bench compare A B [--check] [--all] [--only ops,steps] [--markdown FILE]

A and B are JSON files of bench/record.py, A the older. `git:COMMIT` is the record as of that commit: the one
named like the other side, or this machine's; `git:COMMIT:PATH` names another. Of every time, size and count
that both have, the ratio B / A and its range from the repeats: the low end of B over the high end of A, and
the reverse. Worse means a ratio beyond 3 % whose spreads (10th to 90th percentile) do not overlap; a
difference within them, or one whose spread was not recorded, is called unclear and fails nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import ENDS, ROOT, STAMPS, path, rows_of, spelled

THRESHOLD = 0.03
SECTIONS = (
    "ceilings", "ops", "checks", "steps", "frames", "memory", "overhead", "build", "scaling", "peers",
)  # fmt: skip
LESS_IS_BETTER = ("_us", "_ms", "_s", "_gb", "_mb", "_kb", "_bytes")
MORE_IS_BETTER = (
    "copy_gbs",
    "matmul_tflops",
    "matmul_tf32_tflops",
    "fp32_tflops",
)  # other rates only repeat what the times say
WHOLE_NAMES = ("ms", "us", "kernels", "syncs", "launches")
EXACT = ("_gb", "_mb", "_kb", "_bytes", "kernels", "syncs", "launches")  # the same in every repeat
NOT_MEASURED = ("floor_us", "first_ms")  # a bound; a frame that also captures a graph


class CompareError(ValueError):
    """Something that cannot be read as a record; the message says what was expected."""


@dataclass(frozen=True)
class Value:
    """A figure and where nine tenths of its repeats lie above and below; None where that is not known."""

    middle: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Change:
    """One figure in both records."""

    name: str
    before: Value
    after: Value
    verdict: str  # worse, better, same, unclear

    @property
    def ratio(self) -> float:
        return self.after.middle / self.before.middle

    @property
    def range(self) -> tuple[float, float] | None:
        """The ratio's ends, from those of the repeats."""
        a, b = self.before, self.after
        if a.low is None or a.high is None or b.low is None or b.high is None or a.low <= 0:
            return None
        return b.low / a.high, b.high / a.low


def read(source: str, other: str = "") -> dict[str, Any]:
    """The record of a file or of `git:COMMIT[:PATH]`; CompareError says why there is none."""
    if source.startswith("git:"):
        commit, _, where = source.removeprefix("git:").partition(":")
        like = "" if other.startswith("git:") else Path(other).name
        where = where or f"bench/results/{like or path().name}"
        asked = ["git", "show", f"{commit}:{where}"]
        try:
            text = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            why = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
            raise CompareError(f"compare: {' '.join(asked)} failed: {why}") from None
    elif Path(source).is_file():
        text = Path(source).read_text()
    else:
        raise CompareError(f"compare: {source!r} is neither a file nor git:COMMIT")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise CompareError(f"compare: {source} is no JSON: {error}") from None
    if not isinstance(found, dict) or not any(section in found for section in SECTIONS):
        raise CompareError(f"compare: {source} is no record of bench/record.py: it has none of {SECTIONS}")
    return found


def less_is_better(key: str) -> bool | None:
    """None for what is not compared: rates that follow from times, bounds, settings, qualities."""
    if key in STAMPS or key.endswith(ENDS) or key.endswith(NOT_MEASURED):
        return None
    if key.endswith(MORE_IS_BETTER):
        return False
    return True if key.endswith(LESS_IS_BETTER) or key in WHOLE_NAMES else None


def values(record: dict[str, Any], only: tuple[str, ...] = SECTIONS) -> dict[str, Value]:
    """Every comparable figure by its dotted name."""
    found = {}
    for section in only:
        for name, row in rows_of(record.get(section) or {}):
            for key, value in row.items():
                numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
                others = section == "peers" and not key.startswith("raymarch")
                if less_is_better(key) is None or not numeric or others:
                    continue
                low, high = (row.get(key + end) for end in ENDS)
                if low is None and key.endswith(EXACT):
                    low = high = value
                found[".".join(filter(None, (section, name, key)))] = Value(value, low, high)
    return found


def judged(name: str, before: Value, after: Value, threshold: float = THRESHOLD) -> Change:
    ratio = after.middle / before.middle
    if not less_is_better(name.rpartition(".")[2]):
        ratio = 1 / ratio if ratio else float("inf")
        flipped = (after, before)
    else:
        flipped = (before, after)
    if 1 / (1 + threshold) <= ratio <= 1 + threshold:
        return Change(name, before, after, "same")
    worse = ratio > 1
    small, large = flipped if worse else flipped[::-1]
    apart = small.high is not None and large.low is not None and small.high < large.low
    return Change(name, before, after, ("worse" if worse else "better") if apart else "unclear")


def compare(
    before: dict[str, Any],
    after: dict[str, Any],
    only: tuple[str, ...] = SECTIONS,
    threshold: float = THRESHOLD,
) -> list[Change]:
    """Of every figure that both have and that is not zero, the worst first."""
    a, b = values(before, only), values(after, only)
    both = [n for n in a if n in b and a[n].middle > 0 and b[n].middle > 0]
    order = {"worse": 0, "unclear": 1, "better": 2, "same": 3}
    changes = [judged(n, a[n], b[n], threshold) for n in both]
    return sorted(changes, key=lambda c: (order[c.verdict], -abs(c.ratio - 1)))


def machines(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A sentence for everything that makes the two hard to compare."""
    found = []
    for part, keys in (("gpu", ("name", "cpu", "cores", "host_cores")), ("versions", ("torch", "nvcc"))):
        for key in keys:
            a, b = (r.get(part, {}).get(key) for r in (before, after))
            if a is not None and b is not None and a != b:
                found.append(f"different {key}: {a}, {b}")
    return found


def cells(change: Change) -> tuple[str, ...]:
    ends = change.range
    spelt = f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "not recorded"
    a, b = spelled(float(change.before.middle)), spelled(float(change.after.middle))
    return change.name, a, b, f"{change.ratio:.3f}", spelt, change.verdict


HEAD = ("", "A", "B", "B / A", "range", "")


def terminal(changes: list[Change]) -> str:
    rows = [HEAD, *map(cells, changes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            text.ljust(w) if i in (0, 5) else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown(changes: list[Change], summary: str) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|---|--:|--:|--:|---|---|"]
    lines += ["| " + " | ".join(cells(change)) + " |" for change in changes]
    return "\n".join([summary, "", *(lines if changes else ["Nothing differs."]), ""])


def counted(changes: list[Change]) -> str:
    numbers = {v: sum(c.verdict == v for c in changes) for v in ("worse", "better", "unclear", "same")}
    return f"{len(changes)} figures in both: " + ", ".join(f"{n} {v}" for v, n in numbers.items()) + "."


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", metavar="A", help="JSON file, or git:COMMIT[:PATH]")
    parser.add_argument("after", metavar="B", help="JSON file, or git:COMMIT[:PATH]")
    parser.add_argument("--check", action="store_true", help="exit with 1 if anything became worse")
    parser.add_argument("--all", action="store_true", help="show what stayed the same, too")
    parser.add_argument("--only", help=f"sections, separated by commas, of {', '.join(SECTIONS)}")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="0.03: 3 per cent")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    args = parser.parse_args(argv)
    try:
        before, after = read(args.before, args.after), read(args.after, args.before)
    except CompareError as error:
        print(error, file=sys.stderr)
        return 2
    only = tuple(args.only.split(",")) if args.only else SECTIONS
    if unknown := set(only) - set(SECTIONS):
        print(
            f"compare: no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}",
            file=sys.stderr,
        )
        return 2
    changes = compare(before, after, only, args.threshold)
    for sentence in machines(before, after):
        print(f"note: {sentence}")
    shown = [c for c in changes if args.all or c.verdict != "same"]
    if shown:
        print(terminal(shown))
    print(counted(changes))
    if args.markdown:
        args.markdown.write_text(markdown(shown, counted(changes)))
    return 1 if args.check and any(c.verdict == "worse" for c in changes) else 0


if __name__ == "__main__":
    sys.exit(main())
