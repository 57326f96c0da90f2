"""Feature maps on disk: the file that `raymarch extract` writes, and the layouts that others may bring.

Ours is a safetensors file: eight bytes (little-endian) that say how long the JSON header is, the header, and
the arrays end to end. One float16 tensor [rows, columns, D] per photo bears the photo's name; the tensor
CHECKS [N, 2] uint32 holds, per photo, 1 once its map is on disk, and the map's CRC-32. The header's
`__metadata__` entry `raymarch_features` is JSON: format version, recipe, and the photos' sha256. The layout
is fixed before the first map is made, so maps are written in place and mapped into memory when read.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymarch.data.archive import open_npz
from raymarch.data.error import SceneError, some
from raymarch.data.maps import FeatureMaps

FORMAT = 1
KEY = "raymarch_features"
CHECKS = "raymarch.checks"
PREFIX = "features_"  # of the file's name, which `raymarch train` looks for beside a scene
SUFFIX = ".safetensors"
DTYPES = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16}
LARGEST_HEADER = 1 << 28


@dataclass(frozen=True)
class Photo:
    """What a feature file knows of a photo."""

    name: str
    sha256: str  # of the image file
    rows: int  # of its map
    columns: int


@dataclass(frozen=True)
class FeatureFile:
    """Maps by photo name, mapped into memory where the format allows it."""

    path: Path
    maps: Mapping[str, Tensor] | Sequence[Tensor]  # a sequence: in the order of the scene's photos
    kind: str
    info: dict[str, Any] = field(default_factory=dict)  # the recipe
    sha256: dict[str, str] = field(default_factory=dict)  # of the photos, where it is known
    missing: tuple[str, ...] = ()  # photos whose maps were never written
    crc: dict[str, int] = field(default_factory=dict)  # CRC-32 of the maps' bytes, where it is known

    def whole(self, name: str) -> bool:
        """Whether the map of a photo is what was once written."""
        assert isinstance(self.maps, Mapping)
        data = self.maps[name].view(torch.uint8).numpy()
        return name not in self.crc or zlib.crc32(data.tobytes()) == self.crc[name]


def same_recipe(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two recipes give the same features. Where the weights were found does not matter."""
    return {k: v for k, v in a.items() if k != "weights"} == {k: v for k, v in b.items() if k != "weights"}


def image_sha256(path: Path) -> str:
    """Of an image file. SceneError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error.strerror}") from None


def find_feature_files(scene: Path) -> list[Path]:
    """The files that `raymarch extract` left beside a scene."""
    folder = scene if scene.is_dir() else scene.parent
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))


def read_feature_maps(
    path: str | Path, names: Sequence[str], images: Sequence[Path | None] | None = None
) -> FeatureMaps:
    """The maps of the photos `names`, in that order, from a .safetensors, .npz or .npy file.

    Maps are matched by photo name; a .npy holds them in the scene's order. Files of `raymarch extract` also
    know their photos' contents: with `images` (the image files), a photo that has changed since is refused.
    Nothing in a file is executed (no pickle). SceneError says what is wrong.
    """
    found = open_feature_file(path)
    if isinstance(found.maps, Mapping):
        if missing := [name for name in names if name in found.missing]:
            raise SceneError(
                f"feature file {path} has no map for {some(missing)} yet: run `raymarch extract` again, "
                "which goes on where it stopped"
            )
        if missing := [name for name in names if name not in found.maps]:
            held = f"those of {some(list(found.maps))}" if found.maps else "none"
            raise SceneError(
                f"feature file {path} has no map for {some(missing)}; the maps it has are {held}: name "
                "each as transforms.json (or COLMAP) names the photo, folder included"
            )
        maps = tuple(found.maps[name] for name in names)
    else:
        if len(found.maps) != len(names):
            raise SceneError(f"feature file {path} holds {len(found.maps)} maps for {len(names)} photos")
        maps = tuple(found.maps)
    for name, image in zip(names, images or (), strict=False):
        if image is not None and name in found.sha256 and image_sha256(image) != found.sha256[name]:
            raise SceneError(
                f"{image} has changed since {path} was made from it: run `raymarch extract` again, which "
                "makes the maps of changed photos anew"
            )
    return FeatureMaps(maps, found.kind, info=found.info)


def open_feature_file(path: str | Path) -> FeatureFile:
    """See `read_feature_maps`; the ending says which layout it is."""
    path = Path(path)
    if not path.is_file():
        raise SceneError(f"feature file {path} does not exist")
    readers = {
        ".safetensors": _read_safetensors,
        ".partial": _read_safetensors,
        ".before": _read_safetensors,  # of the writer
        ".npz": _read_npz,
        ".npy": _read_npy,
    }
    if path.suffix not in readers:
        raise SceneError(f"feature file {path} should end in .safetensors, .npz or .npy")
    try:
        return readers[path.suffix](path)
    except SceneError:
        raise
    except Exception as error:  # damaged archives raise whatever their damage hits first
        raise SceneError(f"feature file {path} cannot be read: {error}") from None


def _kind(path: Path) -> str:
    return path.stem.removeprefix(PREFIX)


def _read_npy(path: Path) -> FeatureFile:
    values = np.load(path, mmap_mode="c", allow_pickle=False)
    if values.ndim != 4:
        raise SceneError(
            f"feature file {path} has shape {list(values.shape)}, expected [N, rows, columns, D]"
        )
    return FeatureFile(path, [torch.from_numpy(x) for x in values], _kind(path))


def _read_npz(path: Path) -> FeatureFile:
    """An array per name; or `features` [N, h, w, D] (or `features_int8` and `scale` [D]) and `file_names`."""
    with open_npz(path) as stored:
        if "file_names" not in stored:
            if not stored.files or "features" in stored:
                raise SceneError(f"feature file {path} has no file_names beside its features")
            return FeatureFile(path, {x: torch.from_numpy(stored[x]) for x in stored.files}, _kind(path))
        rows = {str(x): i for i, x in enumerate(stored["file_names"])}
        packed = "features_int8" in stored
        values = stored["features_int8"] * stored["scale"] if packed else stored["features"]
    if len(rows) != len(values):
        raise SceneError(f"feature file {path} has {len(values)} maps and {len(rows)} different file names")
    return FeatureFile(path, {name: torch.from_numpy(values[i]) for name, i in rows.items()}, _kind(path))


def _read_safetensors(path: Path) -> FeatureFile:
    header, begin = _header(path)
    whole = np.memmap(path, np.uint8, mode="c")
    meta = header.pop("__metadata__", {})
    if not isinstance(meta, dict):
        raise SceneError(f"feature file {path} has metadata that are no table")
    tensors = {name: _tensor(path, name, entry, whole, begin) for name, entry in header.items()}
    if KEY not in meta:
        return FeatureFile(path, tensors, str(meta.get("kind", _kind(path))))
    ours = json.loads(meta[KEY])
    if ours["format"] > FORMAT:
        raise SceneError(
            f"feature file {path} has format {ours['format']}, this raymarch reads up to {FORMAT}: upgrade it"
        )
    photos, recipe = [Photo(**x) for x in ours["photos"]], ours["recipe"]
    checks = tensors.pop(CHECKS).view(-1, 2).tolist()
    missing = tuple(p.name for p, (flag, _) in zip(photos, checks, strict=True) if flag != 1)
    sha256 = {p.name: p.sha256 for p in photos}
    crc = {p.name: crc for p, (_, crc) in zip(photos, checks, strict=True)}
    return FeatureFile(path, tensors, str(recipe["encoder"]), recipe, sha256, missing, crc)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file, and where its arrays begin."""
    total = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or not 2 <= length <= LARGEST_HEADER or length + 8 > total:
            raise SceneError(
                f"feature file {path} is cut short or no safetensors file: extract or copy it anew"
            )
        header = json.loads(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise SceneError(f"feature file {path} has a header that is no table of arrays")
    return header, 8 + length


def _tensor(path: Path, name: str, entry: Any, whole: np.ndarray, begin: int) -> Tensor:
    """One array of a safetensors file, as a view of the mapped file."""
    kinds = {**DTYPES, "U32": torch.uint32}
    try:
        kind, shape, (first, last) = entry["dtype"], [int(n) for n in entry["shape"]], entry["data_offsets"]
        fits = type(first) is int and type(last) is int and 0 <= first <= last and min(shape, default=1) >= 0
    except (KeyError, TypeError, ValueError):
        raise SceneError(f"feature file {path}: the entry {name!r} of its header makes no sense") from None
    if kind not in kinds:
        raise SceneError(f"feature file {path}: {name!r} is of type {kind!r}, expected {', '.join(DTYPES)}")
    bytes_ = math.prod(shape) * kinds[kind].itemsize
    if not fits or last - first != bytes_:
        raise SceneError(f"feature file {path}: the entry {name!r} of its header makes no sense")
    if begin + last > len(whole):
        raise SceneError(
            f"feature file {path} is cut short: {name!r} ends at byte {begin + last}, the file "
            f"at {len(whole)}; extract or copy it anew"
        )
    part = torch.from_numpy(whole[begin + first : begin + last])
    return part.view(kinds[kind]).view(shape) if bytes_ else torch.empty(shape, dtype=kinds[kind])
