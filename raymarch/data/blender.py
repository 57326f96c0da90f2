"""Blender scenes as NeRF-synthetic has them (spec 12.6): transforms_{train,test}.json and RGBA photos.

Poses stay as they are: these scenes are built around the origin. Views may come with truth in files beside
them: r_0_dist_mm.png (distance along the ray, thousandths of a unit) and r_0_normal_pos.png (the positive
part of the normal in world axes).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raymarch.data.frames import assemble
from raymarch.data.listing import Frame, Listing, Options
from raymarch.data.nerfstudio import frame_list, read_json
from raymarch.data.scene import Scene

LOOKS_FOR = "transforms_train.json (Blender, NeRF-synthetic)"
FILE = "transforms_{}.json"
DISTANCE, NORMALS = "_dist_mm.png", "_normal_pos.png"


def recognises(path: Path) -> bool:
    train = _folder(path) / FILE.format("train")
    return train.is_file() and (path == train or (path.is_dir() and not (path / "transforms.json").is_file()))


def parse(path: Path, options: Options) -> Scene:
    folder = _folder(path)
    frames = _frames(folder, "train")
    held = next((split for split in ("test", "val") if (folder / FILE.format(split)).is_file()), None)
    frames += _frames(folder, held) if held else []
    notes: tuple[str, ...] = ()
    if held == "test" and (folder / FILE.format("val")).is_file():
        notes = (f"the validation views of {FILE.format('val')} are not used",)
    listing = Listing(
        folder / FILE.format("train"),
        frames,
        format="Blender (NeRF-synthetic)",
        orientation="none",
        center="none",
        scale="none",
        background="white",
        depth_unit=1e-3,
        depth_kind="ray",
        notes=notes,
    )
    return assemble(listing, options)


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _frames(folder: Path, split: str) -> list[Frame]:
    path = folder / FILE.format(split)
    return [_with_truth(frame) for frame in frame_list(read_json(path), path, hint=split)]


def _with_truth(frame: Frame) -> Frame:
    if frame.image is None:
        return frame
    distance = frame.image.with_name(frame.image.stem + DISTANCE)
    normals = frame.image.with_name(frame.image.stem + NORMALS)
    return replace(
        frame,
        depth=distance if distance.is_file() else frame.depth,
        normals=normals if normals.is_file() else None,
    )
