"""Pictures and arrays -> files: PNG, EXR, npz. Colours are palette.py's."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from raymarch.apps import palette
from raymarch.apps.palette import array
from raymarch.data.atomic import whole, write_bytes


def file_stems(names: Sequence[str]) -> list[str]:
    """A different file name, without an ending, for each photo: photos of two folders may share theirs."""
    plain = [PurePosixPath(name).stem or "photo" for name in names]
    if len({x.casefold() for x in plain}) == len(plain):
        return plain
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        path = PurePosixPath(name)
        stem = "_".join((*path.parent.parts, path.stem)).replace("/", "").replace("\\", "_") or "photo"
        unique, i = stem, 2
        while unique.casefold() in taken:
            unique, i = f"{stem}_{i}", i + 1
        taken.add(unique.casefold())
        found.append(unique)
    return found


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 [h, w, 3 or 4]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def save_rgb(path: str | Path, image) -> None:
    """A picture [h, w, 3 or 4], float in 0..1 or uint8."""
    write_bytes(Path(path), png_bytes(palette.rgb(image)))


def save_depth(
    path: str | Path, distances, near: float | None = None, far: float | None = None, scale: str = "inverse"
) -> None:
    """Distances [h, w] in colour, to look at; near and far default to what the image holds."""
    write_bytes(Path(path), png_bytes(palette.depth(distances, near, far, scale)))


def save_npz(path: str | Path, frame: dict) -> None:
    """Arrays by name, as they are, compressed."""
    arrays = {name: array(values) for name, values in frame.items()}
    with whole(Path(path)) as draft, open(draft, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def save_exr(path: str | Path, image, channels: tuple[str, ...] | None = None) -> None:
    """Floats [h, w] or [h, w, n], unclipped, as an uncompressed 32-bit OpenEXR file.

    Channels default to Y, RG, RGB or RGBA by their number; wider images need names.
    """
    values = array(image).astype("<f4")
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"save_exr: an image is [h, w] or [h, w, n], got {list(values.shape)}")
    height, width, count = values.shape
    if channels is None and count <= 4:
        channels = ("Y",) if count == 1 else tuple("RGBA"[:count])
    if channels is None or len(channels) != count or len(set(channels)) != count:
        raise ValueError(f"save_exr: {count} channels need {count} different names, got {channels}")
    order = sorted(
        range(count), key=lambda i: channels[i]
    )  # the format wants them in the order of their names
    header = _exr_header(width, height, [channels[i] for i in order])
    row_bytes = 4 * width * count
    first = len(header) + 8 * height
    offsets = struct.pack(f"<{height}Q", *(first + y * (8 + row_bytes) for y in range(height)))
    rows = np.ascontiguousarray(
        values[:, :, order].transpose(0, 2, 1)
    )  # each line: one channel after another
    with whole(Path(path)) as draft, open(draft, "wb") as file:
        file.write(header + offsets)
        for y in range(height):
            file.write(struct.pack("<ii", y, row_bytes) + rows[y].tobytes())


def _exr_header(width: int, height: int, channels: list[str]) -> bytes:
    """Magic number, version 2 (single part, scan lines) and the eight attributes every file must have."""
    float32 = struct.pack("<iiii", 2, 0, 1, 1)  # type, not perceptually linear, no subsampling
    listed = b"".join(name.encode() + b"\0" + float32 for name in channels) + b"\0"
    window = struct.pack("<iiii", 0, 0, width - 1, height - 1)
    attributes = (
        ("channels", "chlist", listed),
        ("compression", "compression", b"\0"),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<ff", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    )
    body = (
        b"%s\0%s\0%s%s" % (name.encode(), kind.encode(), struct.pack("<i", len(data)), data)
        for name, kind, data in attributes
    )
    return struct.pack("<ii", 20000630, 2) + b"".join(body) + b"\0"
