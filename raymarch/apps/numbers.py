"""How numbers are written for people."""

from __future__ import annotations

import math


def told_to(value: float, finest: float, least: int = 4) -> str:
    """A number with `least` digits, or as many as it takes to tell it to within `finest`."""
    digits = least
    if 0 < finest < abs(value) < math.inf:
        digits = max(least, math.floor(math.log10(abs(value))) - math.floor(math.log10(finest)) + 1)
    return f"{value:.{min(digits, 17)}g}"
