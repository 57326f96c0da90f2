"""transforms.json as nerfstudio and instant-ngp write it (spec 12.5): lenses per file or per frame, optional
masks, depths and splits. What a frame states wins over what the file states.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from raymarch.data import arrays
from raymarch.data.error import SceneError
from raymarch.data.frames import assemble
from raymarch.data.images import SUFFIXES, photo_size
from raymarch.data.lens import intrinsics, twelve
from raymarch.data.listing import DEPTH_KINDS, Frame, Lens, Listing, Options, spellings
from raymarch.data.normalise import ORIENTATIONS
from raymarch.data.scene import Scene
from raymarch.data.similarity import Similarity, similarity
from raymarch.types import Cameras

LOOKS_FOR = "transforms.json (nerfstudio, instant-ngp)"
FILE = "transforms.json"

MODELS = {
    "SIMPLE_PINHOLE": "perspective",
    "PINHOLE": "perspective",
    "SIMPLE_RADIAL": "perspective",
    "RADIAL": "perspective",
    "OPENCV": "perspective",
    "SIMPLE_RADIAL_FISHEYE": "fisheye",
    "RADIAL_FISHEYE": "fisheye",
    "OPENCV_FISHEYE": "fisheye",
    "EQUIRECTANGULAR": "equirectangular",
    "OMNIDIRECTIONALSTEREO_L": "ods_left",
    "OMNIDIRECTIONALSTEREO_R": "ods_right",
    "VR180_L": "vr180_left",
    "VR180_R": "vr180_right",
    "ORTHOPHOTO": "orthophoto",
    "FISHEYE624": "fisheye624",
}
NUMBERS = {
    "fx": "fl_x",
    "fy": "fl_y",
    "cx": "cx",
    "cy": "cy",
    "angle_x": "camera_angle_x",
    "angle_y": "camera_angle_y",
}
TERMS = ("k1", "k2", "k3", "k4", "p1", "p2")
IGNORED = {
    "aabb_scale": "instant-ngp's box",
    "scale": "instant-ngp's scaling into its unit cube",
    "offset": "instant-ngp's shift into its unit cube",
}
LARGEST_SIDE = 1 << 20


def recognises(path: Path) -> bool:
    return (path / FILE).is_file() if path.is_dir() else path.suffix == ".json"


def parse(path: Path, options: Options) -> Scene:
    return assemble(listing(path / FILE if path.is_dir() else path), options)


def read_cameras(path: str | Path, world_from_scene: Similarity) -> tuple[tuple[str, ...], Cameras]:
    """Names and cameras of a transforms.json in the frame of a scene: views to render. Photos need not exist.

    The poses are in world units (those of the scene's own transforms.json, say); sizes come from w and h, or
    from the photo where there is one.
    """
    path = Path(path)
    meta = read_json(path)
    frames = frame_list(meta, path)
    if not frames:
        raise SceneError(f"{path} lists no frames")
    names = tuple(frame.name for frame in frames)
    poses = torch.from_numpy(arrays.pose_array([frame.pose for frame in frames], names))
    world_poses = _applied(meta, path).invert().apply_poses(poses)
    sizes = [_stated_size(frame, path) for frame in frames]
    numbers = [intrinsics(x.lens, *size, x.name) for x, size in zip(frames, sizes, strict=True)]
    terms = np.array([twelve(frame.lens.distortion) for frame in frames])
    return names, Cameras(
        world_from_scene.invert().apply_poses(world_poses).float(),
        torch.from_numpy(arrays.intrinsics_array(numbers, names)).float(),
        torch.from_numpy(arrays.distortion_array(terms, names)).float(),
        torch.from_numpy(arrays.lens_array([frame.lens.model for frame in frames], names)),
        torch.tensor(sizes, dtype=torch.int64),
    )


def _stated_size(frame: Frame, path: Path) -> tuple[int, int]:
    if frame.lens.width and frame.lens.height:
        return frame.lens.width, frame.lens.height
    if frame.image is None:
        raise SceneError(f"{frame.name} in {path} has no size: w and h are absent and there is no image")
    return photo_size(frame.image)


def listing(path: Path) -> Listing:
    """What a transforms.json names, before any image is opened."""
    meta = read_json(path)
    frames = frame_list(meta, path)
    notes = tuple(f"{key} ({why}) in {path.name} is not used" for key, why in IGNORED.items() if key in meta)
    words = sorted({frame.lens.model for frame in frames})
    found = Listing(
        path,
        frames,
        format=f"{path.name} of nerfstudio or instant-ngp ({', '.join(words)})",
        photos=_photo_root(frames, path.parent),
        file_from_world=_applied(meta, path),
        depth_unit=1e-3,
        notes=notes,
    )
    for key in ("depth_unit_scale_factor", "integer_depth_scale"):
        if key in meta:
            unit = number(meta, key, path.name)
            if not unit or unit < 0:
                raise SceneError(f"{key} in {path.name} must be positive")
            found = replace(found, depth_unit=unit)
    if "depth_kind" in meta:
        if meta["depth_kind"] not in DEPTH_KINDS:
            raise SceneError(f"depth_kind in {path.name} must be one of {', '.join(DEPTH_KINDS)}, "
                             f"not {meta['depth_kind']!r:.80}")  # fmt: skip
        found = replace(found, depth_kind=meta["depth_kind"])
    if "orientation_override" in meta:
        word = meta["orientation_override"]
        if not isinstance(word, str) or word not in ORIENTATIONS:
            raise SceneError(f"orientation_override in {path.name} must be one of {', '.join(ORIENTATIONS)}, "
                             f"not {word!r:.80}")  # fmt: skip
        found = replace(found, orientation=word)
    return found


def _photo_root(frames: Sequence[Frame], folder: Path) -> Path | None:
    """The folder beside the file that all photos lie below, images/ say."""
    found = set()
    for frame in frames:
        if frame.image is not None:
            top = folder.resolve()
            if top not in frame.image.parents or frame.image.parent == top:
                return None
            found.add(top / frame.image.relative_to(top).parts[0])
    return found.pop() if len(found) == 1 else None


def read_json(path: Path) -> dict:
    """The object in a JSON file. SceneError gives the place where the file breaks."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SceneError(f"there is no file {path}") from None
    except OSError as error:
        raise SceneError(f"{path} cannot be read as JSON: {(error.strerror or str(error)).lower()}") from None
    return json_object(data, path)


def json_object(data: bytes, path: Path) -> dict:
    """The object in the bytes of a JSON file, which `path` names in messages."""
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise SceneError(f"{path} is not valid JSON: {place}: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise SceneError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise SceneError(f"{path} holds a JSON {type(values).__name__}, not an object with frames")
    return values


def frame_list(meta: dict, path: Path, hint: str | None = None) -> list[Frame]:
    """The frames a file lists. `hint`: the split that the whole file belongs to."""
    frames = meta.get("frames")
    if not isinstance(frames, list):
        raise SceneError(f"{path} has no list 'frames'")
    splits = _split_lists(meta, path)
    found = []
    for i, entry in enumerate(frames):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_path"), str):
            raise SceneError(f"frame {i} in {path} has no file_path")
        if "transform_matrix" not in entry:
            raise SceneError(f"frame {entry['file_path']!r} in {path} has no transform_matrix")
        found.append(_frame(entry, meta, path, splits, hint))
    return found


def _frame(entry: dict, meta: dict, path: Path, splits: dict[str, str], hint: str | None) -> Frame:
    stated = entry["file_path"]
    image = find_image(path.parent, stated)
    name = PurePosixPath(stated).as_posix()
    if image is not None and not name.endswith(image.suffix):
        name += image.suffix
    hint = hint or splits.get(PurePosixPath(stated).as_posix()) or entry.get("split")
    return Frame(
        name=name,
        image=image,
        pose=entry["transform_matrix"],
        lens=read_lens({**meta, **entry}, stated),
        hint=hint if hint in ("train", "val", "test") else None,
        mask=_file(entry, ("mask_path",), path, image),
        empty_mask=_file(entry, ("empty_mask_path",), path, image),
        depth=_file(entry, ("depth_file_path", "depth_path"), path, image),
    )


def find_image(folder: Path, stated: str) -> Path | None:
    """The file that file_path means, with an extension added where it has none; None where there is none."""
    return next((x for name in spellings(stated) if (x := _image(folder, name)) is not None), None)


def _image(folder: Path, stated: str) -> Path | None:
    try:
        path = (folder / stated).resolve()
        if not path.is_file() and "\\" in stated:  # written on Windows
            path = (folder / stated.replace("\\", "/")).resolve()
        if path.is_file():
            return path
        return next((p for p in (path.with_name(path.name + s) for s in SUFFIXES) if p.is_file()), None)
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such encoding, links in a circle
        return None


def _file(entry: dict, keys: Sequence[str], path: Path, image: Path | None) -> Path | None:
    stated = next((entry[key] for key in keys if entry.get(key)), None)
    if stated is None:
        return None
    if not isinstance(stated, str):
        raise SceneError(
            f"{keys[0]} of {entry['file_path']!r} in {path} should be a file name, not {stated!r}"
        )
    try:
        found = (path.parent / stated).resolve()
        exists = found.is_file()
    except (OSError, ValueError, RuntimeError):
        exists = False
    if image is None:  # the frame is skipped anyway
        return None
    if not exists:
        raise SceneError(f"{keys[0]} {stated!r} of {entry['file_path']!r} in {path} does not exist")
    return found


def read_lens(values: dict, name: str) -> Lens:
    """The lens in a frame's values (its own over the file's)."""
    model = _model(values, name)
    numbers = {field: number(values, key, name) for field, key in NUMBERS.items()}
    for field, key in (("angle_x", "x_fov"), ("angle_y", "y_fov")):
        degrees = number(values, key, name)
        if numbers[field] is None and degrees is not None:
            numbers[field] = math.radians(degrees)
    return Lens(
        model=model,
        width=_side(values, "w", name),
        height=_side(values, "h", name),
        distortion=_distortion(values, model, name),
        **numbers,
    )


def _model(values: dict, name: str) -> str:
    if "ftheta_p0" in values:
        raise SceneError(f"{name} has an f-theta lens (ftheta_p0 ...), which is not supported")
    if values.get("is_fisheye") is True:
        return "fisheye"
    if values.get("equirectangular") is True:
        return "equirectangular"
    word = values.get("camera_model", "OPENCV")
    if not isinstance(word, str) or word.upper() not in MODELS:
        known = arrays.nearest(str(word), tuple(MODELS))
        raise SceneError(f"{name} has unknown camera_model {word!r}: {known}")
    return MODELS[word.upper()]


def _distortion(values: dict, model: str, name: str) -> tuple[float, ...]:
    terms = values.get("distortion_params")
    wanted = 12 if model == "fisheye624" else 6
    if terms is None:
        if wanted == 12:
            raise SceneError(f"{name} has a FISHEYE624 lens but no distortion_params (twelve numbers)")
        return tuple(number(values, key, name) or 0.0 for key in TERMS)
    if not isinstance(terms, list) or len(terms) > wanted or (wanted == 12 and len(terms) != 12):
        raise SceneError(
            f"distortion_params of {name} should be a list of {wanted} numbers, not {terms!r:.80}"
        )
    return tuple(number({"distortion_params": x}, "distortion_params", name) or 0.0 for x in terms)


def number(values: dict, key: str, name: str) -> float | None:
    """A finite number, or None where the key is absent or null."""
    value = values.get(key)
    if value is None:
        return None
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise SceneError(f"{key} of {name} should be a finite number, not {value!r:.80}")


def _side(values: dict, key: str, name: str) -> int | None:
    value = number(values, key, name)
    if value is None:
        return None
    if not 1 <= value <= LARGEST_SIDE or value != int(value):
        raise SceneError(f"{key} of {name} should be a whole number of pixels, not {value:g}")
    return int(value)


def _split_lists(meta: dict, path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for hint in ("train", "val", "test"):
        names = meta.get(f"{hint}_filenames", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SceneError(f"{hint}_filenames in {path} should be a list of file names")
        found |= {PurePosixPath(name).as_posix(): hint for name in names}
    return found


def _applied(meta: dict, path: Path) -> Similarity:
    """What was done to the world before the poses were written: applied_transform, then applied_scale."""
    file_from_world = Similarity()
    rows = meta.get("applied_transform")
    if rows is not None:
        pose = arrays.pose_array([rows], [f"applied_transform in {path.name}"])[0]
        step = similarity(rotation=pose[:, :3], translation=pose[:, 3])
        file_from_world = file_from_world.then("applied_transform", step)
    scale = number(meta, "applied_scale", path.name)
    if scale is not None:
        if scale <= 0:
            raise SceneError(f"applied_scale in {path.name} must be positive, not {scale:g}")
        file_from_world = file_from_world.then("applied_scale", similarity(scale=scale))
    return file_from_world
