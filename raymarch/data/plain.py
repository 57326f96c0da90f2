"""JSON that every reader takes: numbers that are not finite, which JSON cannot say, become null."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Only what JSON can say; other objects as their text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def json_text(value: Any, indent: int | None = 1) -> str:
    """`plain` values as JSON; on one line without an indent. No line end."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)
