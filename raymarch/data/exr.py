"""OpenEXR images to arrays: one part, scan lines, half, float or uint channels; uncompressed, RLE or ZIP.

What cannot be read (tiles, several parts, deep data, PIZ and the lossy compressions) is refused by name.
Format: openexr.com/en/latest/OpenEXRFileLayout.html.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from raymarch.data.error import SceneError

MAGIC = 20000630
UNREAD = {0x200: "tiles", 0x800: "deep data", 0x1000: "several parts"}  # flags beside the version
COMPRESSIONS = ("NONE", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "B44A", "DWAA", "DWAB")
LINES = {0: 1, 1: 1, 2: 1, 3: 16}  # scan lines in a block, by compression
TYPES = ("<u4", "<f2", "<f4")
MOST_PIXELS = 1 << 28


@dataclass(frozen=True)
class Header:
    width: int
    height: int
    first_line: int
    compression: int
    channels: tuple[tuple[str, str], ...]  # name and NumPy type, in the order of the file
    end: int  # where the table of blocks begins


def channels(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Every channel as [h, w] float32. SceneError says what the file has that is not read."""
    header = read_header(data, name)
    row = sum(header.width * int(kind[2:]) for _, kind in header.channels)
    lines = LINES[header.compression]
    blocks = -(-header.height // lines)
    table_end = header.end + 8 * blocks
    if table_end > len(data):
        raise _cut(data, name)
    image = bytearray(row * header.height)
    seen = np.zeros(blocks, dtype=bool)
    for offset in struct.unpack_from(f"<{blocks}Q", data, header.end):
        if offset < table_end or offset + 8 > len(data):
            raise _cut(data, name)
        y, size = struct.unpack_from("<ii", data, offset)
        start = y - header.first_line
        if not 0 <= start < header.height or start % lines or size < 0 or offset + 8 + size > len(data):
            raise _cut(data, name)
        wanted = row * min(lines, header.height - start)
        image[start * row : start * row + wanted] = _block(
            data[offset + 8 : offset + 8 + size], wanted, header.compression, name
        )
        seen[start // lines] = True
    if not seen.all():
        raise _cut(data, name)
    table = np.frombuffer(bytes(image), np.uint8).reshape(header.height, row)
    found, at = {}, 0
    for channel, kind in header.channels:
        width = header.width * int(kind[2:])
        values = np.ascontiguousarray(table[:, at : at + width]).view(kind)
        found[channel] = values.astype(np.float32)
        at += width
    return found


def read_header(data: bytes, name: str) -> Header:
    """The size and channels that a file states."""
    if len(data) < 8 or struct.unpack_from("<i", data)[0] != MAGIC:
        raise SceneError(f"{name} is not an OpenEXR file: it does not begin with the format's number")
    version = struct.unpack_from("<I", data, 4)[0]
    for flag, word in UNREAD.items():
        if version & flag:
            raise SceneError(f"{name} is an OpenEXR file with {word}, which is not read: save it as scan "
                             "lines in one part")  # fmt: skip
    attributes, end = _attributes(data, name)
    try:
        (compression,) = attributes["compression"]
        x0, y0, x1, y1 = struct.unpack("<iiii", attributes["dataWindow"])
        listed = tuple(_channel_list(attributes["channels"], name))
    except (KeyError, ValueError, struct.error):
        raise SceneError(f"{name} lacks or damages what every OpenEXR header has") from None
    if compression not in LINES:
        word = COMPRESSIONS[compression] if compression < len(COMPRESSIONS) else str(compression)
        raise SceneError(f"{name} is compressed by {word}, which is not read: save it with ZIP or none")
    width, height = x1 - x0 + 1, y1 - y0 + 1
    if width < 1 or height < 1 or not listed or width * height > MOST_PIXELS:
        raise SceneError(f"{name} has {width} x {height} pixels and {len(listed)} channels: nothing to read")
    return Header(width, height, y0, compression, listed, end)


def _attributes(data: bytes, name: str) -> tuple[dict[str, bytes], int]:
    found: dict[str, bytes] = {}
    at = 8
    while data[at : at + 1] != b"\0":
        words = []
        for _ in range(2):
            end = data.find(b"\0", at, at + 256)
            if end < 0:
                raise _cut(data, name)
            words.append(data[at:end].decode("latin-1"))
            at = end + 1
        if at + 4 > len(data):
            raise _cut(data, name)
        (size,) = struct.unpack_from("<i", data, at)
        at += 4
        if size < 0 or at + size > len(data):
            raise _cut(data, name)
        found[words[0]] = data[at : at + size]
        at += size
    return found, at + 1


def _channel_list(data: bytes, name: str):
    at = 0
    while data[at : at + 1] not in (b"\0", b""):
        end = data.index(b"\0", at)
        word = data[at:end].decode("utf-8", "replace")
        kind, _, across, down = struct.unpack_from("<iiii", data, end + 1)
        if not 0 <= kind < len(TYPES):
            raise SceneError(f"{name} has a channel {word} of an unknown type")
        if (across, down) != (1, 1):
            raise SceneError(f"{name} stores channel {word} at a part of the resolution, which is not read")
        yield word, TYPES[kind]
        at = end + 17


def _block(packed: bytes, wanted: int, compression: int, name: str) -> bytes:
    """One block's bytes; a block that did not shrink is stored as it is."""
    if compression == 0 or len(packed) == wanted:
        plain = packed
    else:
        try:
            plain = _unrun(packed, wanted) if compression == 1 else _inflate(packed, wanted)
        except (zlib.error, IndexError) as error:
            raise SceneError(f"{name} is damaged: {error}") from None
        if len(plain) == wanted:
            plain = _unpredict(plain)
    if len(plain) != wanted:
        raise SceneError(f"{name} is damaged: a block has {len(plain)} bytes, not {wanted}")
    return plain


def _inflate(packed: bytes, wanted: int) -> bytes:
    return zlib.decompressobj().decompress(packed, wanted + 1)


def _unrun(packed: bytes, wanted: int) -> bytes:
    out, at = bytearray(), 0
    while at < len(packed) and len(out) <= wanted:
        count = packed[at] - 256 if packed[at] > 127 else packed[at]
        if count < 0:
            out += packed[at + 1 : at + 1 - count]
            at += 1 - count
        else:
            out += packed[at + 1 : at + 2] * (count + 1)
            at += 2
    return bytes(out)


def _unpredict(data: bytes) -> bytes:
    """Differences to values, then the two halves interleaved."""
    values = np.frombuffer(data, np.uint8).astype(np.int64)
    values[1:] -= 128
    summed = np.cumsum(values).astype(np.uint8)
    out = np.empty_like(summed)
    half = (len(summed) + 1) // 2
    out[0::2], out[1::2] = summed[:half], summed[half:]
    return out.tobytes()


def _cut(data: bytes, name: str) -> SceneError:
    return SceneError(f"{name} is cut short or damaged: its {len(data)} bytes do not hold what it announces")
