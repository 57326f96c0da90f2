"""The one exception that bad scene input raises, and how its messages list names."""

from __future__ import annotations

from collections.abc import Sequence


class SceneError(ValueError):
    """Something in a scene cannot be used: one sentence that names the file or array at fault."""


def some(names: Sequence[str], most: int = 6) -> str:
    """`a, b, c and 4 more`: enough to find the files without filling the screen."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def printable(name: str) -> str:
    """A name that any terminal and JSON can hold: bytes that are not UTF-8, and line ends, as escapes."""
    safe = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in safe)
