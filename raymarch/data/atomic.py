"""Text files that are never half written."""

from __future__ import annotations

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 so that `path` is at every moment absent, the old file or the whole new one.

    Names that came from a file system with bytes that are not text keep those bytes. OSError, with the name
    of the file; nothing half written is left then.
    """
    draft = path.with_name(f"{path.name}.partial")
    try:
        draft.write_text(text, "utf-8", "surrogateescape")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror, str(path)) from error
