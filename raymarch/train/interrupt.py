"""Ctrl-C between steps and not in them: a step that was begun is finished, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupts:
    """Whether somebody pressed Ctrl-C, and whether again."""

    asked = False  # stop after this step, and save
    forced = False  # stop now: the step at hand is lost


@contextmanager
def kept_back(found: Interrupts) -> Iterator[None]:
    """While open, the first Ctrl-C is only noted; the second raises KeyboardInterrupt where it falls.

    Nothing changes outside the main thread, or where a program handles SIGINT itself.
    """
    found.asked = found.forced = False
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def note(number: int, frame: object) -> None:
        if found.asked:
            found.forced = True
            raise KeyboardInterrupt
        found.asked = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
