"""A step drawn as the pipeline: its parts from left to right, a box for each stage with its time.

Pre-processing, model and post-processing lie in one row, what follows (backward, optimiser) in another. The
bar in a box is as long as its stage's share; below the name stand whose work it is and the longest ops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, GAP, PAD = 1080, 26, 10
LINE, SMALL, BAR = 19, 15, 5  # heights: lines of text, and the bar
LETTER = 6.2  # width of a small letter, about
FORWARD = ("pre-processing", "model", "post-processing")
BACK = ("backward", "optimiser")


@dataclass(frozen=True)
class Box:
    """One stage: its time, its share of the step, and lines about what is in it."""

    name: str
    phase: str
    ms: float
    share: float
    heads: Mapping[str, float] = field(default_factory=dict)  # milliseconds by head
    lines: Sequence[str] = ()


def draw(boxes: Sequence[Box]) -> str:
    """One <svg> element. Boxes of phases that nobody knows are left out."""
    parts: list[str] = []
    bottom = 0.0
    for row in (FORWARD, BACK):
        phases = [p for p in row if any(b.phase == p for b in boxes)]
        if not phases:
            continue
        across = (WIDTH - GAP * (len(phases) - 1)) / len(phases)
        top = bottom + (26 if bottom else 4)
        heights = []
        for i, phase in enumerate(phases):
            inside = [b for b in boxes if b.phase == phase]
            x = i * (across + GAP)
            heights.append(_column(parts, phase, inside, x, top, across, (*FORWARD, *BACK).index(phase)))
            if i:
                parts.append(_arrow(x - GAP + 4, x - 4, top + 10))
        bottom = max(heights)
    opening = f'<svg class="chart wide" viewBox="0 0 {WIDTH} {bottom + 6:.0f}" role="img" '
    return opening + 'aria-label="a step as its pipeline">' + "".join(parts) + "</svg>"


def _column(
    parts: list[str], phase: str, boxes: Sequence[Box], x: float, top: float, width: float, colour: int
) -> float:
    """One phase: its name and time, then its boxes. Returns where it ends."""
    took, share = sum(b.ms for b in boxes), sum(b.share for b in boxes)
    parts.append(_text(x, top + 14, f"{phase}: {_ms(took)}, {100 * share:.0f} %", f"name c{colour}"))
    y = top + 26
    for box in boxes:
        y = _box(parts, box, x, y, width, colour) + 8
    return y


def _box(parts: list[str], box: Box, x: float, y: float, width: float, colour: int) -> float:
    letters = int((width - 2 * PAD) / LETTER)
    heads = [f"{head.replace('_', ' ')} {ms:.3g}" for head, ms in box.heads.items()]
    lines = [*_wrapped(heads, letters), *(_cut(line, letters) for line in box.lines)]
    height = PAD + LINE + SMALL * len(lines) + PAD + BAR
    filled = max(0.0, min(1.0, box.share)) * width
    place, low = f'x="{x:.1f}" width=', y + height - BAR
    parts.append(f'<rect class="box" {place}"{width:.1f}" y="{y:.1f}" height="{height}" rx="3"/>')
    parts.append(f'<rect class="part c{colour}" {place}"{filled:.1f}" y="{low:.1f}" height="{BAR}"/>')
    parts.append(_text(x + PAD, y + PAD + 12, box.name, "head"))
    words = f"{_ms(box.ms)}  {100 * box.share:.1f} %"
    parts.append(_text(x + width - PAD, y + PAD + 12, words, "head", "end"))
    for i, line in enumerate(lines):
        parts.append(_text(x + PAD, y + PAD + LINE + 10 + SMALL * i, line, "small"))
    return y + height


def _wrapped(items: Sequence[str], letters: int) -> list[str]:
    """The items with commas between, in lines of so many letters."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(item) + 2 <= letters:
            lines[-1] += f", {item}"
        else:
            lines.append(item)
    return [*lines[:-1], lines[-1] + " ms"] if lines else []


def _cut(line: str, letters: int) -> str:
    return line if len(line) <= letters else line[: letters - 1] + "…"


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _arrow(x: float, to: float, y: float) -> str:
    return f'<path class="flow" d="M{x:.1f} {y:.1f}H{to:.1f}m-5 -4l5 4l-5 4"/>'


def _ms(ms: float) -> str:
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1e3:.3g} s"
