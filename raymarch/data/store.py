"""Where decoded pixels lie: in memory, or in files that are mapped into it, so that they may exceed it.

Each array is one .npy file under a name made from what it was made of (the photo's path, size and times, and
how it was shrunk), so that a photo that changes is decoded anew and nothing of the user's is written over.
Mapped arrays are read through the system's page cache and never written back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from raymarch.data.error import SceneError

VERSION = 2  # of what the files hold: a change forgets them all
SHARE = 0.5  # of free memory that decoded photos may take before they are mapped from disk
UNUSED_DAYS = 30  # files that nobody asked for in so long are removed
PREFIX = "raymarch-"
OURS = re.compile(PREFIX + r"([0-9a-f]{40}\.npy|\w{8}\.draft)")  # no other file is ever removed
PLACES = ("auto", "memory", "disk")


def default_folder() -> Path:
    """RAYMARCH_CACHE, or the user's cache folder."""
    if named := os.environ.get("RAYMARCH_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raymarch" / "pixels"


def free_memory() -> int:
    """Bytes that may be taken without swapping, and without passing the limit of a container."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if hasattr(os, "sysconf") else 1 << 33
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (group / "memory.max").read_text(), int((group / "memory.current").read_text())
        cached = dict(x.split() for x in (group / "memory.stat").read_text().splitlines()).get("file", "0")
        free = min(free, int(limit) - used + int(cached))
    except (OSError, ValueError):  # no limit
        pass
    return max(free, 0)


class Store:
    """Arrays by what they were made of. Without a folder they are made each time and live in memory."""

    def __init__(self, folder: Path | None = None, mapped: bool = False):
        self.folder, self.mapped = folder, mapped
        self.made = self.found = 0
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _refused(folder, error) from None
            _remove_unused(folder)

    def array(self, made_of: object, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array that `make` returns, from the file where there is one. `made_of` becomes its name."""
        if self.folder is None:
            return make()
        text = json.dumps([VERSION, made_of], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
        path = self.folder / f"{PREFIX}{digest}.npy"
        kept = _open(path)
        if kept is None:
            _write(path, make())
            self.made += 1
            kept = _open(path)
            if kept is None:
                raise SceneError(f"{path} cannot be read right after it was written: is the disk full?")
        else:
            self.found += 1
        return kept if self.mapped else np.array(kept)


def identity(path: Path) -> list:
    """What changes when a file does: its place, size and times."""
    try:
        facts = path.stat()
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error.strerror or error}") from None
    return [str(path.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]


def _open(path: Path) -> np.ndarray | None:
    """The mapped array; None where there is no file or not a whole one. Writing to it changes no file."""
    try:
        kept = np.load(path, mmap_mode="c", allow_pickle=False)
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    return kept


def _write(path: Path, values: np.ndarray) -> None:
    """Absent or whole at every moment."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=PREFIX, suffix=".draft")
    try:
        with open(handle, "wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
        os.replace(draft, path)
    except BaseException as error:
        Path(draft).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _refused(path.parent, error) from None
        raise


def _refused(folder: Path, error: OSError) -> SceneError:
    return SceneError(f"decoded photos cannot be kept in {folder}: {error.strerror or error}; free space "
                      "there, or name another folder by cache or RAYMARCH_CACHE")  # fmt: skip


def ours(folder: Path) -> bool:
    """Whether decoded photos were kept in a folder before."""
    try:
        return any(OURS.fullmatch(path.name) for path in folder.glob(f"{PREFIX}*"))
    except OSError:
        return False


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 86400
    for path in folder.glob(f"{PREFIX}*"):
        if OURS.fullmatch(path.name):
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except OSError:  # somebody else's, or gone already
                continue
