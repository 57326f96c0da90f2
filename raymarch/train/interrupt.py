"""Ctrl-C between steps and not in them: a step that was begun is finished, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interrupts:
    """Whether somebody pressed Ctrl-C or ended the process, and whether again."""

    asked = False  # stop after this step, and save
    forced = False  # stop now: the step at hand is lost


@contextmanager
def kept_back(found: Interrupts) -> Iterator[None]:
    """While open, the first SIGINT or SIGTERM is only noted; the second raises KeyboardInterrupt at once.

    Nothing changes outside the main thread, or for a signal that the program handles itself.
    """
    found.asked = found.forced = False

    def note(number: int, frame: object) -> None:
        if found.asked:
            found.forced = True
            raise KeyboardInterrupt
        found.asked = True

    main = threading.current_thread() is threading.main_thread()
    ours = [number for number, handler in USUAL.items() if main and signal.getsignal(number) is handler]
    for number in ours:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, USUAL[number])
