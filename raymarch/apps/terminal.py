"""What is said, and to whom: result lines on standard output, all else on standard error.

Whoever reads along may stop (`| head`): work goes on, and what it writes is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO


def prepare() -> None:
    """Print names that the terminal's encoding does not have as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def tell(lines: Iterable[object]) -> None:
    """Lines of results, each as soon as it is known."""
    for line in lines:
        _print(str(line), sys.stdout)


def say(*lines: object) -> None:
    """Lines about what is going on."""
    for line in lines:
        _print(str(line), sys.stderr)


def _print(line: str, stream: TextIO) -> None:
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        _forget(stream)


def _forget(stream: TextIO) -> None:
    """Nobody reads a stream any more: what is still said goes nowhere, also when Python ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def console() -> Any:
    """Where rich draws progress bars: standard error. Once nobody reads it, nothing is drawn."""
    from rich.console import Console

    class Unread(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            _forget(sys.stderr)

    return Unread(stderr=True)
