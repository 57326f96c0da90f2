"""LLFF: photos in a folder and poses_bounds.npy, one row of 17 numbers for each photo in the order of names.

A row is a 3 x 5 matrix [R | t | height, width, focal length], whose axes are down, right and back, and then
the nearest and farthest depth that matters. Photos may be smaller copies (images_4, images_8): the focal
length follows their size. There is no lens distortion.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np

from raymarch.data.error import SceneError, printable, some
from raymarch.data.frames import assemble
from raymarch.data.images import SUFFIXES
from raymarch.data.listing import Frame, Lens, Listing, Options
from raymarch.data.scene import Scene

LOOKS_FOR = "poses_bounds.npy (LLFF)"
FILE = "poses_bounds.npy"
ROW = 17


def recognises(path: Path) -> bool:
    return (path / FILE).is_file() if path.is_dir() else path.name == FILE


def parse(path: Path, options: Options) -> Scene:
    return assemble(listing(path / FILE if path.is_dir() else path), options)


def listing(path: Path) -> Listing:
    """What a poses_bounds.npy says of the photos beside it."""
    try:
        rows = read_rows(path.read_bytes(), str(path))
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error}") from None
    folder, photos = _photos(path.parent, len(rows))
    frames = [
        _frame(row, photo, f"{folder.name}/{photo.name}") for row, photo in zip(rows, photos, strict=True)
    ]
    return Listing(
        path,
        frames,
        format=f"LLFF ({FILE}, {folder.name}/)",
        photos=folder,
        resized=True,
    )


def read_rows(data: bytes, name: str) -> np.ndarray:
    """The rows [N, 17] float64 of a poses_bounds.npy, checked. No pickle is ever opened."""
    try:
        rows = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False, max_header_size=4096)
    except Exception as error:  # a damaged header raises what it likes
        raise SceneError(f"{name} cannot be read as an array: {first_line(error)}") from None
    if rows.ndim != 2 or rows.shape[1] != ROW or rows.dtype.kind not in "fiu" or not len(rows):
        raise SceneError(f"{name} holds {rows.dtype} of shape {list(rows.shape)}: LLFF has [photos, {ROW}]")
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        raise SceneError(f"{name} holds a number that is not finite in row {_first(~np.isfinite(rows))}")
    size = rows[:, [4, 9]]
    if ((size < 1) | (size > 1 << 20) | (size != np.rint(size))).any() or (rows[:, 14] <= 0).any():
        raise SceneError(f"{name} holds a height, width or focal length that no camera has")
    if ((rows[:, 15] <= 0) | (rows[:, 16] <= rows[:, 15])).any():
        row = _first((rows[:, 16:] <= rows[:, 15:16]) | (rows[:, 15:16] <= 0))
        raise SceneError(f"{name}: the depth bounds of row {row} are not 0 < near < far")
    return rows


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _first(wrong: np.ndarray) -> int:
    return int(np.flatnonzero(wrong.any(axis=1)).tolist()[0]) if wrong.any() else 0


def _photos(root: Path, count: int) -> tuple[Path, list[Path]]:
    """The folder of the largest photos, and as many as there are rows, by name."""
    names = [root / "images"] if (root / "images").is_dir() else []
    smaller = [x for x in root.glob("images_*") if re.fullmatch(r"images_[1-9]\d{0,3}", x.name)]
    folders = names + sorted(smaller, key=lambda x: int(x.name.split("_")[1]))
    if not folders:
        raise SceneError(f"{root / FILE} has no photos: expected a folder images, or images_4, images_8 ...")
    counts = []
    for folder in folders:
        photos = sorted(x for x in folder.iterdir() if x.suffix.lower() in SUFFIXES)
        if len(photos) == count:
            return folder, photos
        counts.append(f"{folder.name} {len(photos)}")
    raise SceneError(
        f"{root / FILE} has {count} rows, one for each photo, but the photos are: {some(counts)}"
    )


def _frame(row: np.ndarray, photo: Path, name: str) -> Frame:
    matrix = row[:15].reshape(3, 5)
    down, right, back, position = matrix[:, :4].T
    pose = np.stack([right, -down, back, position], axis=1)
    height, width, focal = matrix[:, 4].tolist()
    lens = Lens(width=int(width), height=int(height), fx=focal, fy=focal)
    return Frame(printable(name), photo, pose, lens, near_far=(float(row[15]), float(row[16])))
