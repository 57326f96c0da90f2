"""Whose a run folder is: never somebody else's files, never a run that another process is training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from weakref import WeakValueDictionary

from raymarch.config import ConfigError, from_dict
from raymarch.train import checkpoint

LOCK = ".lock"
CONFIG = "config.json"


class Claim:
    """Held as long as it is referred to: no other process can claim the folder. Ends with the process."""

    def __init__(self, run: Path):
        try:
            self._file = open(run / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
        except PermissionError as error:
            raise PermissionError(error.errno, error.strerror, str(run)) from None
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            who = self._file.read(20).strip()
            self._file.close()
            raise ConfigError(
                f"{run} is being trained by another process{f' (id {who})' if who.isdigit() else ''}: "
                "wait for it or stop it, or train into another folder"
            ) from None
        except (ImportError, OSError):  # a system or a file system without locks
            return
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


_held: WeakValueDictionary[Path, Claim] = WeakValueDictionary()  # one per folder and process


def claim(run: Path) -> Claim:
    """Claim a run folder for this process. ConfigError where another one trains it."""
    key = run.resolve()
    found = _held.get(key)
    if found is None:
        found = _held[key] = Claim(run)
    return found


def check_vacant(run: Path) -> None:
    """ConfigError where a new run in this folder would be mixed with what lies there, or write over it.

    Empty folders will do, and those of runs that were stopped before they saved anything.
    """
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run} is a file: choose another folder with --out")
    if checkpoint.saved(run):
        raise ConfigError(
            f"{run} already holds a run: `raymarch resume {run}` continues it, --out names another folder"
        )
    if run.is_dir() and not _never_saved(run):
        names = sorted(path.name for path in run.iterdir())
        raise ConfigError(
            f"{run} holds other files ({names[0]}{' and more' if len(names) > 1 else ''}): "
            "choose an empty or a new folder with --out"
        )


def _never_saved(run: Path) -> bool:
    """Whether a folder holds nothing, or what a run leaves before its first checkpoint."""
    others = [path for path in run.iterdir() if path.name != LOCK]
    if not others:
        return True
    try:
        from_dict(json.loads((run / CONFIG).read_text("utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return True
