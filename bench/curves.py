"""Curves on two logarithmic axes, with their spread and fitted laws, as SVG and as PNG, from one drawing."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, LINE = 70, 20, 36, 17  # margins; LINE: height of one line of the caption
COLOURS = ("#0b6e99", "#c2571a", "#4a7c2c", "#8a3ffc", "#a11d33", "#555555")
GREY, DARK = "#cccccc", "#444444"


@dataclass(frozen=True)
class Curve:
    """Points (x, y), the ends of each y's spread, the fitted line, and what the caption says of it."""

    name: str
    points: Sequence[tuple[float, float]]
    ends: Sequence[tuple[float, float]] = ()
    law: Sequence[tuple[float, float]] = ()
    caption: str = ""


@dataclass
class Drawing:
    """Lines, dots and words, in order; both writers read it."""

    width: float
    height: float
    lines: list[tuple[list[tuple[float, float]], str, float, bool]] = field(default_factory=list)
    dots: list[tuple[float, float, float, str]] = field(default_factory=list)
    words: list[tuple[float, float, str, str, str]] = field(
        default_factory=list
    )  # x, y, text, anchor, colour


def drawn(title: str, x_label: str, y_label: str, curves: Sequence[Curve]) -> Drawing:
    """One chart; ValueError where no curve has a point."""
    points = [p for c in curves for p in c.points]
    if not points:
        raise ValueError(f"curves: {title} has no points")
    captions = [
        (c.name + (f": {c.caption}" if c.caption else ""), COLOURS[i % 6]) for i, c in enumerate(curves)
    ]
    below = 44 + LINE * len(captions)
    picture = Drawing(WIDTH, HEIGHT + below)
    spans = [(v, v) for _, v in points] + [e for c in curves for e in c.ends]
    across = _bounds([p[0] for p in points])
    up = _bounds([v for pair in spans for v in pair if v > 0])

    def place(p: tuple[float, float]) -> tuple[float, float]:
        share = [math.log(v / lo) / math.log(hi / lo) for v, (lo, hi) in zip(p, (across, up), strict=True)]
        return LEFT + share[0] * (WIDTH - LEFT - RIGHT), HEIGHT - share[1] * (HEIGHT - TOP)

    _axes(picture, place, across, up)
    picture.words.append((LEFT, 20, f"{title}: {y_label}", "start", "#000000"))
    picture.words.append(((LEFT + WIDTH - RIGHT) / 2, HEIGHT + 36, x_label, "middle", DARK))
    for i, curve in enumerate(curves):
        colour = COLOURS[i % 6]
        if curve.law:
            kept = [p for p in curve.law if up[0] <= p[1] <= up[1]]
            picture.lines.append(([place(p) for p in kept], colour, 1, True))
        picture.lines.append(([place(p) for p in curve.points], colour, 2, False))
        for (x, _), (low, high) in zip(curve.points, curve.ends, strict=False):
            if low > 0:
                picture.lines.append(([place((x, low)), place((x, high))], colour, 1, False))
        picture.dots += [(*place(p), 3.2, colour) for p in curve.points]
    for i, (text, colour) in enumerate(captions):
        picture.words.append((LEFT, HEIGHT + 44 + LINE * (i + 0.6), text, "start", colour))
    return picture


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max((high / low) ** 0.04, 1.05)
    return low / pad, high * pad


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten over two decades or less, else the powers alone."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    kinds = (1, 2, 5) if high / low <= 100 else (1,)
    return [k * 10.0**d for d in decades for k in kinds if low <= k * 10.0**d <= high]


def _axes(picture: Drawing, place, across, up) -> None:
    for x in _ticks(*across):
        at = place((x, up[0]))
        picture.lines.append(([at, place((x, up[1]))], GREY, 0.6, False))
        picture.words.append((at[0], at[1] + 17, number(x), "middle", DARK))
    for y in _ticks(*up):
        at = place((across[0], y))
        picture.lines.append(([at, place((across[1], y))], GREY, 0.6, False))
        picture.words.append((at[0] - 6, at[1] + 4, number(y), "end", DARK))


def number(value: float) -> str:
    """1 000 as 1k, 1 000 000 as 1M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def svg(picture: Drawing, name: str) -> str:
    parts = []
    for points, colour, width, dashed in picture.lines:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>'
        )
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{c}"/>' for x, y, r, c in picture.dots]
    parts += [
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
        for x, y, text, anchor, colour in picture.words
    ]
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {picture.width} {picture.height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(name)}">'
    )
    return opening + '<rect width="100%" height="100%" fill="white"/>' + "".join(parts) + "</svg>\n"


def png(picture: Drawing, scale: int = 2) -> bytes:
    """The same with Pillow; dashes become thin lines."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (int(picture.width * scale), int(picture.height * scale)), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=12 * scale)
    for points, colour, width, _ in picture.lines:
        if len(points) > 1:
            pen.line(
                [(x * scale, y * scale) for x, y in points], fill=colour, width=max(1, round(width * scale))
            )
    for x, y, r, colour in picture.dots:
        pen.ellipse([(x - r) * scale, (y - r) * scale, (x + r) * scale, (y + r) * scale], fill=colour)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for x, y, text, anchor, colour in picture.words:
        pen.text((x * scale, y * scale), text, fill=colour, font=font, anchor=anchors[anchor])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
