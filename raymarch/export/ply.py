"""PLY files: points or a mesh, binary, little-endian, with any number of named columns per vertex."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from raymarch.data.atomic import write_bytes

TYPES = {"f4": "float", "u1": "uchar", "i4": "int", "f8": "double", "u2": "ushort", "u4": "uint"}
FINEST = 1e-5  # of the extent of what is written: a coordinate that float32 rounds by more is a double
FACE = np.dtype([("count", "u1"), ("corners", "<i4", 3)])


def coordinates(points: np.ndarray) -> dict[str, np.ndarray]:
    """Columns x, y, z of points [P, 3]: float32, or float64 where they lie far from the origin.

    That is for their extent, as in a map's coordinates: float32 knows a northing of 4,000 km to 25 cm. The
    extent is that of all but 2 % of the points on either side, so that a few stray ones do not hide it.
    """
    rounded = np.abs(points).max(initial=0.0) * 2.0**-24
    extent = np.ptp(np.quantile(points, (0.02, 0.98), axis=0), axis=0).max() if len(points) else 0.0
    kind = np.float64 if rounded > FINEST * extent else np.float32
    return dict(zip(("x", "y", "z"), points.astype(kind).T, strict=True))


def write_ply(
    path: Path, columns: Mapping[str, np.ndarray], faces: np.ndarray | None = None, comment: str = ""
) -> Path:
    """Write vertices, one array [P] per property name (x, y, z, nx, red, ...), and faces [F, 3] if given.

    The file is at every moment absent, the old one or the whole new one. ValueError where columns differ in
    length or hold a type that PLY lacks.
    """
    kinds = [(name, np.dtype(values.dtype).newbyteorder("<")) for name, values in columns.items()]
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1 or any(kind.str[1:] not in TYPES for _, kind in kinds):
        raise ValueError(
            f"write_ply: columns of lengths {sorted(lengths)} and types {[k.str for _, k in kinds]}"
        )
    count = lengths.pop()
    table = np.empty(count, dtype=kinds)
    for name, values in columns.items():
        table[name] = values
    head = ["ply", "format binary_little_endian 1.0", *([f"comment {comment}"] if comment else [])]
    head += [f"element vertex {count}", *(f"property {TYPES[k.str[1:]]} {name}" for name, k in kinds)]
    if faces is not None:
        head += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    body = "\n".join([*head, "end_header", ""]).encode() + table.tobytes()
    if faces is not None:
        rows = np.empty(len(faces), dtype=FACE)
        rows["count"], rows["corners"] = 3, faces
        body += rows.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, body)
    return path


def read_ply(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """What `write_ply` wrote: columns by name, and faces [F, 3] or None. ValueError for anything else."""
    body = path.read_bytes()
    try:
        return _parsed(body, path)
    except (KeyError, IndexError, TypeError, OverflowError, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is no PLY file as raymarch writes them: {error!r}") from None


def _parsed(body: bytes, path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    head, found, rest = body.partition(b"end_header\n")
    lines = head.decode("ascii", "replace").splitlines()
    if not found or lines[:2] != ["ply", "format binary_little_endian 1.0"]:
        raise ValueError(f"{path} is not a binary little-endian PLY file")
    named = {word: code for code, word in TYPES.items()}
    fields: list[tuple[str, str]] = []
    counts = {"vertex": 0, "face": -1}
    for line in lines[2:]:
        words = line.split()
        if words[0] == "element" and int(words[2]) < 0:
            raise ValueError(f"{path} has a negative count of {words[1]}")
        if words[0] == "element":
            counts[words[1]] = int(words[2])
        elif words[0] == "property" and words[1] != "list":
            fields.append((words[2], "<" + named[words[1]]))
    kind = np.dtype(fields)
    vertices = np.frombuffer(rest, kind, counts["vertex"])
    columns = {name: vertices[name] for name, _ in fields}
    if counts["face"] < 0:
        return columns, None
    rows = np.frombuffer(rest, FACE, counts["face"], vertices.nbytes)
    return columns, rows["corners"]
