"""Numbers -> inline SVG: curves over steps, paired dots before and after, dots under a roof.

The page's style colours them.

Every function returns one <svg> element that scales with its container; nothing is fetched and nothing runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

WIDTH, HEIGHT = 640, 290
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 14, 46  # margins: the right one holds the names of the curves
NAMES = 210  # more of it, for the names of ops


@dataclass(frozen=True)
class Series:
    """One curve. Points that are not finite, or not positive on a log axis, are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(series: Sequence[Series], x_label: str, y_label: str, log: bool = True) -> str:
    """Curves over a shared x axis, each named at its end."""
    curves = [(s.name, _usable(s, log)) for s in series]
    curves = [(name, points) for name, points in curves if points]
    if not curves:
        return f'<svg viewBox="0 0 {WIDTH} 40"><text x="8" y="24">no data</text></svg>'
    xs = [x for _, points in curves for x, _ in points]
    ys = [y for _, points in curves for _, y in points]
    x_axis, y_axis = _linear_axis(min(xs), max(xs)), (_log_axis if log else _linear_axis)(min(ys), max(ys))
    parts = [_frame(x_axis, y_axis, x_label, y_label)]
    ends = []
    for i, (name, points) in enumerate(curves):
        path = " ".join(f"{_x(x, x_axis):.1f},{_y(y, y_axis):.1f}" for x, y in _thinned(points))
        parts.append(f'<polyline class="curve c{i % 6}" points="{path}"/>')
        ends.append((_y(points[-1][1], y_axis), i, name))
    for y, i, name in _spread(ends):
        parts.append(
            f'<text class="name c{i % 6}" x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}">{escape(name)}</text>'
        )
    return _svg(parts, f"{y_label} over {x_label}")


def before_after_chart(before: Sequence[float], after: Sequence[float], x_label: str, y_label: str) -> str:
    """One pair of dots per item, sorted by what it was before, with the medians as lines."""
    pairs = sorted(
        (b, a) for b, a in zip(before, after, strict=True) if math.isfinite(b) and math.isfinite(a)
    )
    if not pairs:
        return line_chart([], x_label, y_label)
    x_axis = _Axis(-0.5, len(pairs) - 0.5, [], False)
    y_axis = _linear_axis(0.0, max(max(p) for p in pairs))
    parts, ends = [_frame(x_axis, y_axis, x_label, y_label)], []
    for i, (b, a) in enumerate(pairs):
        x, low, high = _x(i, x_axis), _y(b, y_axis), _y(a, y_axis)
        parts.append(f'<line class="pair" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle class="dot c1" cx="{x:.1f}" cy="{low:.1f}" r="3.2"/>')
        parts.append(f'<circle class="dot c0" cx="{x:.1f}" cy="{high:.1f}" r="3.2"/>')
    for i, name, side in ((1, "before", 0), (0, "after", 1)):
        middle = median(p[side] for p in pairs)
        y = _y(middle, y_axis)
        parts.append(
            f'<line class="median c{i}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        ends.append((y, i, f"{name} {_number(middle)}"))
    for y, i, name in _spread(ends):
        parts.append(f'<text class="name c{i}" x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}">{name}</text>')
    return _svg(parts, f"{y_label} before and after")


@dataclass(frozen=True)
class Dot:
    """One op under the roof: arithmetic per byte, arithmetic per second, its share of the time, its group."""

    name: str
    intensity: float  # FLOP per byte
    rate: float  # FLOP per second
    share: float  # 0..1, the dot's area
    group: int = 0  # colour


def roofline(dots: Sequence[Dot], bandwidth: float, peak: float, named: int = 12) -> str:
    """Dots under the roof that a machine's bandwidth (bytes/s) and arithmetic (FLOP/s) make; log axes.

    The dots with the largest shares are numbered and named. Dots without arithmetic are left out.
    """
    usable = sorted((d for d in dots if d.intensity > 0 and d.rate > 0), key=lambda d: -d.share)
    if not usable:
        return line_chart([], "FLOP per byte", "GFLOP/s")
    ridge = peak / bandwidth
    low, high = (pick([*(d.intensity for d in usable), ridge]) for pick in (min, max))
    roof = [(x, min(peak, bandwidth * x) / 1e9) for x in (low / 2, ridge, high * 2)]
    rates = [*(d.rate / 1e9 for d in usable), *(y for _, y in roof)]
    x_axis, y_axis = _log_axis(low / 2, high * 2), _log_axis(min(rates), max(rates))
    parts = [_frame(x_axis, y_axis, "arithmetic per byte moved, FLOP/byte", "GFLOP/s")]
    line = " ".join(f"{_x(x, x_axis):.1f},{_y(y, y_axis):.1f}" for x, y in roof)
    parts.append(f'<polyline class="roof" points="{line}"/>')
    for dot in usable:
        x, y, radius = _x(dot.intensity, x_axis), _y(dot.rate / 1e9, y_axis), 3 + 16 * math.sqrt(dot.share)
        words = f"{dot.name}: {100 * dot.share:.1f} %, {_number(dot.rate / 1e9)} GFLOP/s"
        parts.append(
            f'<circle class="dot seen c{dot.group % 6}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>{escape(words)}</title></circle>"
        )
    left = WIDTH - RIGHT + 10
    known = f"roof: {_number(bandwidth / 1e9)} GB/s, {_number(peak / 1e9)} GFLOP/s"
    parts.append(f'<text class="small" x="{left}" y="{TOP + 8}">{known}</text>')
    for i, dot in enumerate(usable[:named]):
        x, y = _x(dot.intensity, x_axis), _y(dot.rate / 1e9, y_axis)
        parts.append(f'<text class="number" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{i + 1}</text>')
        place = f'x="{left}" y="{TOP + 28 + 17 * i}"'
        words = f"{i + 1}: {100 * dot.share:.1f} % {dot.name}"
        parts.append(f'<text class="name small c{dot.group % 6}" {place}>{escape(words)}</text>')
    opening = f'<svg class="chart roofed" viewBox="0 0 {WIDTH + NAMES} {HEIGHT}" role="img" '
    label = "arithmetic per second over arithmetic per byte"
    return opening + f'aria-label="{label}">' + "".join(parts) + "</svg>"


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    ticks: list[float]
    log: bool


def _usable(series: Series, log: bool) -> list[tuple[float, float]]:
    points = zip(series.x, series.y, strict=True)
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)]


def _thinned(points, limit=600):
    """At most about `limit` points: the mean of each run of neighbours."""
    run = max(1, len(points) // limit)
    groups = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _linear_axis(low: float, high: float) -> _Axis:
    if high <= low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= rough)
    ticks = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return _Axis(low, high, ticks, False)


def _log_axis(low: float, high: float) -> _Axis:
    """Bounds one step beyond the data; ticks at 1, 2, 5 over short spans, at powers of ten over long ones."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    kinds = (1, 2, 5) if last - first <= 2 else (1,)
    stride = max(1, (last - first) // 6)
    ticks = [k * 10.0**e for e in range(first, last + 1, stride) for k in kinds]
    low, high = low / 1.15, high * 1.15
    return _Axis(low, high, [t for t in ticks if low <= t <= high], True)


def _fraction(value: float, axis: _Axis) -> float:
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    return ((math.log(value) if axis.log else value) - low) / (high - low)


def _x(value: float, axis: _Axis) -> float:
    return LEFT + _fraction(value, axis) * (WIDTH - LEFT - RIGHT)


def _y(value: float, axis: _Axis) -> float:
    return HEIGHT - BOTTOM - _fraction(value, axis) * (HEIGHT - TOP - BOTTOM)


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> str:
    """Grid lines, tick labels and the names of both axes."""
    right, base = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in y_axis.ticks:
        y = _y(tick, y_axis)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        )
    for tick in x_axis.ticks:
        x = _x(tick, x_axis)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{base + 18}" text-anchor="middle">{_number(tick)}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{base}" y2="{base}"/>')
    across, down = (
        f"translate({(LEFT + right) / 2} {HEIGHT - 6})",
        f"translate(13 {(TOP + base) / 2}) rotate(-90)",
    )
    for text, place in ((x_label, across), (y_label, down)):
        parts.append(f'<text class="label" transform="{place}" text-anchor="middle">{escape(text)}</text>')
    return "".join(parts)


def _spread(ends, gap=15.0):
    """Move labels apart, top to bottom, so that none covers another."""
    placed, last = [], -math.inf
    for y, i, name in sorted(ends):
        last = max(y, last + gap)
        placed.append((last, i, name))
    excess = max(0.0, placed[-1][0] - (HEIGHT - BOTTOM)) if placed else 0.0
    return [(y - excess, i, name) for y, i, name in placed]


def _number(value: float) -> str:
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        digits, exponent = f"{value:.0e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _svg(parts: list[str], name: str) -> str:
    opening = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
    return opening + "".join(parts) + "</svg>"
