"""How a cost grows with a size: a power law with its confidence, and a fixed cost plus one per unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95 % points of Student's t for 1, 2, 3, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160)
NORMAL = 1.960


@dataclass(frozen=True)
class Growth:
    """What was fitted to (n, cost) points.

    cost ~ n^slope, by least squares between logarithms, with the half-width of the slope's 95 % confidence
    (None for two points); and cost = fixed + each * n by least squares of relative errors, neither below 0,
    off by at most `worst` of the cost at any point.
    """

    slope: float
    confidence: float | None
    fixed: float
    each: float
    worst: float


def fitted(sizes: Sequence[float], costs: Sequence[float]) -> Growth:
    """ValueError for fewer than two different sizes, or numbers that are not positive."""
    if len(set(sizes)) < 2 or min(*sizes, *costs) <= 0:
        raise ValueError(
            f"growth: needs positive costs at two sizes at least, got {list(costs)} at {list(sizes)}"
        )
    slope, confidence = power(sizes, costs)
    fixed, each = line(sizes, costs)
    worst = max(abs(fixed + each * n - c) / c for n, c in zip(sizes, costs, strict=True))
    return Growth(slope, confidence, fixed, each, worst)


def power(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float | None]:
    """The slope between logarithms and the half-width of its 95 % confidence interval."""
    x, y = [math.log(n) for n in sizes], [math.log(c) for c in costs]
    n, mx, my = len(x), sum(x) / len(x), sum(y) / len(y)
    sxx = sum((a - mx) ** 2 for a in x)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sxx
    if n < 3:
        return slope, None
    rest = sum((b - my - slope * (a - mx)) ** 2 for a, b in zip(x, y, strict=True))
    quantile = STUDENT[n - 3] if n - 3 < len(STUDENT) else NORMAL
    return slope, quantile * math.sqrt(rest / (n - 2) / sxx)


def line(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """(fixed, each) that make the relative errors of fixed + each * n small, neither negative."""
    # Divided by the cost: (1 / c) fixed + (n / c) each = 1.
    a = [1 / c for c in costs]
    b = [n / c for n, c in zip(sizes, costs, strict=True)]
    aa, bb = sum(v * v for v in a), sum(v * v for v in b)
    ab = sum(v * w for v, w in zip(a, b, strict=True))
    sa, sb = sum(a), sum(b)
    det = aa * bb - ab * ab
    fixed, each = (sa * bb - sb * ab) / det, (sb * aa - sa * ab) / det
    if fixed < 0:
        return 0.0, sb / bb
    return (sa / aa, 0.0) if each < 0 else (fixed, each)


def stated(growth: Growth, unit: str, cost: str) -> str:
    """The law in words: ms = 5.2 + 0.031 per ray (within 4 %); slope 0.93 +- 0.05."""
    sure = "" if growth.confidence is None else f" +- {growth.confidence:.2f}"
    law = f"{cost} = {growth.fixed:.3g} + {growth.each:.3g} per {unit} (within {100 * growth.worst:.0f} %)"
    return f"{law}; power {growth.slope:.2f}{sure}"
