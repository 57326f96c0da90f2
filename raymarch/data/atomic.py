"""Files that are never half written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to, STEM.partial.SUFFIX beside `path`, which becomes `path` at the end.

    So `path` is at every moment absent, the old file or the whole new one. Whatever goes wrong, nothing half
    written is left; an OSError then names `path`.
    """
    draft = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, `whole` or not at all. OSError.

    Names that came from a file system with bytes that are not text keep those bytes.
    """
    with whole(path) as draft:
        draft.write_text(text, "utf-8", "surrogateescape")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes, `whole` or not at all. OSError."""
    with whole(path) as draft:
        draft.write_bytes(data)
