"""Masks and depth maps that lie beside photos by name, for formats whose files do not name them.

For a photo FOLDER/NAME.jpg a mask is looked for as NAME.jpg.png (COLMAP's way), NAME.png and NAME.jpg, in the
folder whose name says `masks` where that of the photos says `images` (images_8 -> masks_8), or in `masks`
beside it. `empty_masks` and `depths` likewise. instant-ngp's dynamic_mask_NAME.png lies among the photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from raymarch.data.error import some
from raymarch.data.listing import Frame, is_file

KINDS = {"mask": "masks", "empty_mask": "empty_masks", "depth": "depths"}
ENDINGS = {
    "mask": (".png", ".jpg", ".jpeg", ".PNG", ".tif", ".bmp", ".webp"),
    "depth": (".png", ".npy", ".exr", ".tif", ".tiff", ".PNG"),
}


def with_neighbours(frames: Sequence[Frame], photos: Path | None, notes: list[str]) -> list[Frame]:
    """The frames with the masks and depth maps beside their photos; what a file names itself wins."""
    found = list(frames)
    for kind, word in KINDS.items():
        if any(getattr(frame, kind) is not None for frame in found):
            continue
        folders = _folders(found, photos, word)
        beside = [_beside(frame, photos, folders, kind) for frame in found]
        missing = [f.name for f, x in zip(found, beside, strict=True) if f.image and x is None]
        if 0 < len(missing) < sum(frame.image is not None for frame in found):
            notes.append(f"{len(missing)} photos have no file in {word}/: {some(missing)}")
        found = [_given(frame, kind, x) for frame, x in zip(found, beside, strict=True)]
    dynamic = [_dynamic(frame) for frame in found]
    return [
        f if f.mask or not x else replace(f, mask=x, mask_inverted=True)
        for f, x in zip(found, dynamic, strict=True)
    ]


def _given(frame: Frame, kind: str, path: Path | None) -> Frame:
    if kind == "mask":
        return replace(frame, mask=path)
    return replace(frame, empty_mask=path) if kind == "empty_mask" else replace(frame, depth=path)


def _folders(frames: Sequence[Frame], photos: Path | None, word: str) -> list[Path]:
    """Folders of that kind that exist, the closest in name first."""
    roots = [photos] if photos else sorted({frame.image.parent for frame in frames if frame.image})
    named = [root.with_name(root.name.replace("images", word, 1)) for root in roots if "images" in root.name]
    named += [root.parent / word for root in roots] + [root / word for root in roots]
    return [folder for folder in dict.fromkeys(named) if folder.is_dir() and folder not in roots]


def _beside(frame: Frame, photos: Path | None, folders: Sequence[Path], kind: str) -> Path | None:
    if frame.image is None:
        return None
    for folder in folders:
        place = folder / (_below(frame.image, photos) or frame.image.name)
        endings = ENDINGS["depth" if kind == "depth" else "mask"]
        names = [place.name + ending for ending in endings] + [place.stem + ending for ending in endings]
        for name in names:
            if is_file(place.with_name(name)):
                return place.with_name(name)
    return None


def _below(image: Path, photos: Path | None) -> Path | None:
    try:
        return image.relative_to(photos) if photos else None
    except ValueError:
        return None


def _dynamic(frame: Frame) -> Path | None:
    if frame.image is None:
        return None
    path = frame.image.with_name(f"dynamic_mask_{frame.image.stem}.png")
    return path if is_file(path) else None
