"""Writing a feature file (see feature_files.py for its layout) so that a killed run can go on."""

from __future__ import annotations

import fcntl
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymarch.data.error import SceneError
from raymarch.data.feature_files import (
    CHECKS,
    FORMAT,
    KEY,
    FeatureFile,
    Photo,
    open_feature_file,
    same_recipe,
)


class FeatureWriter:
    """Writes a feature file map by map, so that a killed run loses at most the map it was at.

    The file grows under the name PATH.partial, laid out in full from the start; the finished one takes its
    place in one step. Maps already there are kept: those of an unfinished run and of a finished file whose
    photo and recipe have not changed. Where the photos of an unfinished run have changed, its file waits as
    PATH.partial.before until its maps have moved. SceneError where PATH is not a feature file of ours, is
    being written by another process, or cannot be written.
    """

    def __init__(self, path: Path, recipe: dict[str, Any], photos: Sequence[Photo], width: int):
        self.path, self.photos, self.width = path, tuple(photos), width
        self.partial = path.with_name(path.name + ".partial")
        self._aside = path.with_name(path.name + ".partial.before")
        head = self._lay_out(recipe)
        before = self._before(recipe)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._opened()
            if not self._resumes(head) and self._mine(self.partial, recipe) is not None:
                os.replace(self.partial, self._aside)
                locked, self._file = self._file, self._opened()
                os.close(locked)
        except OSError as error:
            raise SceneError(f"{self.partial} cannot be written: {error.strerror}; choose --out") from None
        if not self._resumes(head):
            self._begin(head)
        self.done = self._verified()
        self.kept = sum(self.done)  # of an unfinished run
        unfinished = self._mine(self._aside, recipe)
        self.reused = sum(self._reuse(x) for x in (unfinished, before) if x is not None)
        self._aside.unlink(missing_ok=True)

    def _lay_out(self, recipe: dict[str, Any]) -> bytes:
        """The header, and where every map goes."""
        meta = {"format": FORMAT, "recipe": recipe, "photos": [vars(p) for p in self.photos]}
        table = 8 * len(self.photos)
        entries: dict[str, Any] = {
            "__metadata__": {KEY: json.dumps(meta, ensure_ascii=False)},
            CHECKS: {"dtype": "U32", "shape": [len(self.photos), 2], "data_offsets": [0, table]},
        }
        self._places, end = [], table
        for p in self.photos:
            shape = [p.rows, p.columns, self.width]
            begin, end = end, end + 2 * math.prod(shape)
            if p.name in entries:
                raise SceneError(f"two photos are named {p.name!r}: maps are told apart by name")
            entries[p.name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
            self._places.append((begin, end))
        text = json.dumps(entries, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of eight
        self._start = 8 + len(text)
        self._bytes = self._start + end
        return len(text).to_bytes(8, "little") + text

    def _before(self, recipe: dict[str, Any]) -> FeatureFile | None:
        """The finished file that this one replaces, if its maps can still serve."""
        if not self.path.exists():
            return None
        try:
            found = open_feature_file(self.path)
        except SceneError:
            found = None
        if found is None or not found.info:
            raise SceneError(
                f"{self.path} exists and is not a readable file of `raymarch extract`: move it away or "
                "choose another --out"
            )
        return found if same_recipe(found.info, recipe) else None

    def _mine(self, path: Path, recipe: dict[str, Any]) -> FeatureFile | None:
        """The unfinished file at `path`, if its maps can still serve."""
        try:
            found = open_feature_file(path)
        except SceneError:
            return None
        return found if found.info and same_recipe(found.info, recipe) else None

    def _opened(self) -> int:
        """The unfinished file, which nobody else writes from now on."""
        file = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise SceneError(f"{self.partial} is being written by another `raymarch extract`") from None
        return file

    def _resumes(self, head: bytes) -> bool:
        size = os.fstat(self._file).st_size
        return size == self._bytes and os.pread(self._file, len(head), 0) == head

    def _begin(self, head: bytes) -> None:
        try:
            os.ftruncate(self._file, 0)
            os.posix_fallocate(self._file, 0, self._bytes)  # a full disk is known now, not hours later
            os.pwrite(self._file, head, 0)
            os.fsync(self._file)
        except OSError as error:
            size = f"{self._bytes / 1e9:.2f} GB"
            raise SceneError(f"{self.partial} ({size}) cannot be written: {error.strerror}") from None

    def _verified(self) -> list[bool]:
        """Which maps are there, whole."""
        table = np.frombuffer(os.pread(self._file, 8 * len(self.photos), self._start), "<u4").reshape(-1, 2)
        return [
            bool(flag == 1) and zlib.crc32(self._map_bytes(i)) == crc
            for i, (flag, crc) in enumerate(table.tolist())
        ]

    def _map_bytes(self, i: int) -> bytes:
        begin, end = self._places[i]
        return os.pread(self._file, end - begin, self._start + begin)

    def _reuse(self, before: FeatureFile) -> int:
        count = 0
        for i, p in enumerate(self.photos):
            known = before.maps.get(p.name) if isinstance(before.maps, Mapping) else None
            same = before.sha256.get(p.name) == p.sha256 and p.name not in before.missing
            fits = same and known is not None and known.shape == self.shape(i)
            if not self.done[i] and fits and before.whole(p.name):
                assert known is not None
                self.write(i, known)
                count += 1
        return count

    def shape(self, i: int) -> tuple[int, int, int]:
        return self.photos[i].rows, self.photos[i].columns, self.width

    def write(self, i: int, features: Tensor) -> None:
        """Put the map [rows, columns, D] of photo i on disk, then note that it is there."""
        name = self.photos[i].name
        if tuple(features.shape) != self.shape(i):
            raise SceneError(
                f"the map of {name} has shape {list(features.shape)}, expected {list(self.shape(i))}"
            )
        half = features.to(torch.float16).contiguous()
        if not half.isfinite().all():
            raise SceneError(
                f"the features of {name} are not finite or exceed 65504: use other weights or a facet"
            )
        data = half.numpy().tobytes()
        try:
            os.pwrite(self._file, data, self._start + self._places[i][0])
            os.fsync(self._file)
            note = np.array([1, zlib.crc32(data)], "<u4").tobytes()
            os.pwrite(self._file, note, self._start + 8 * i)
        except OSError as error:
            raise SceneError(
                f"{self.partial} cannot be written: {error.strerror}; run it again to go on"
            ) from None
        self.done[i] = True

    def close(self) -> None:
        """Leave the unfinished file for the next run."""
        os.close(self._file)

    def finish(self) -> Path:
        """Give the file its name. Every map has to be there."""
        assert all(self.done)
        os.fsync(self._file)
        os.replace(self.partial, self.path)
        os.close(self._file)
        return self.path
