"""COLMAP sparse models, binary or text, with or without rigs (spec 12.6).

Poses become camera to world with OpenGL axes, and the world is turned z up as nerfstudio does, (x, z, -y);
the named step `z_up` of `world_from_scene` leads back to COLMAP's own frame and units. Principal points count
from the corner of the first pixel in both, so they stay. Lenses that none of ours equals are refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from raymarch.data import colmap_files as files
from raymarch.data.error import SceneError, printable, some
from raymarch.data.frames import assemble
from raymarch.data.listing import Frame, Lens, Listing, Options, is_file, spellings
from raymarch.data.scene import Scene
from raymarch.data.similarity import Similarity, similarity

LOOKS_FOR = "cameras.bin and images.bin, or .txt, here or in sparse/0 (COLMAP)"
MODEL_PLACES = (
    "",
    "sparse/0",
    "sparse",
    "colmap/sparse/0",
    "colmap/sparse",
    "dense/sparse",
    "dense/0/sparse",
)
PHOTO_PLACES = ("images", "input", "dense/images", "dense/0/images", "")
Z_UP = ((1, 0, 0), (0, 0, 1), (0, -1, 0))
OPENGL = np.array((1, -1, -1))  # COLMAP's camera axes are OpenCV's
AGREE = 1e-4  # rotation entries of images.bin and of frames.bin further apart than this disagree
Record = TypeVar("Record")


def recognises(path: Path) -> bool:
    return model_folder(path) is not None


def model_folder(path: Path) -> Path | None:
    """The folder of the sparse model that a path means, or None."""
    if path.is_file():
        named = path.stem in ("cameras", "images", "points3D", "rigs", "frames")
        return path.parent if named and path.suffix in (".bin", ".txt") else None
    return next((path / place for place in MODEL_PLACES if _kind(path / place)), None)


def _kind(folder: Path) -> str | None:
    """bin or txt; COLMAP too prefers the binary files where both are complete."""
    for kind in ("bin", "txt"):
        if all((folder / f"{name}.{kind}").is_file() for name in ("cameras", "images")):
            return kind
    return None


def parse(path: Path, options: Options) -> Scene:
    return assemble(listing(path), options)


def listing(path: Path) -> Listing:
    """What a sparse model names, before any photo is opened."""
    folder = model_folder(path)
    kind = _kind(folder) if folder else None
    if folder is None or kind is None:
        raise SceneError(f"{path} needs both cameras and images of a COLMAP model, as .bin or as .txt")
    cameras = _read(folder, "cameras", kind, files.cameras)
    images = _read(folder, "images", kind, files.images)
    points = _read(folder, "points3D", kind, files.points)
    rigs = _read(folder, "rigs", kind, files.rigs)
    frames = _read(folder, "frames", kind, files.frames)
    problems: list[str] = []
    poses = image_poses(images, rigs, frames, problems)
    photos = _photo_folder(path, folder, [image.name for image in images.values()])
    models = sorted({camera.model for camera in cameras.values()})
    found = [
        _frame(image, cameras, poses[number], photos, folder) for number, image in sorted(images.items())
    ]
    z_up = Similarity().then("z_up", similarity(rotation=Z_UP))
    return Listing(
        folder,
        found,
        format=f"COLMAP sparse model in {folder.name}/ ({'binary' if kind == 'bin' else 'text'}; "
        f"{', '.join(models)}{f'; {len(rigs)} rigs' if rigs else ''})",
        photos=photos,
        file_from_world=z_up,
        points=points @ np.array(Z_UP, dtype=np.float64).T,
        problems=tuple(problems),
        notes=_other_models(folder),
    )


def _read(folder: Path, name: str, kind: str, reader: Callable[[bytes, str, bool], Record]) -> Record:
    """What one file holds; of a file that is not there, what an empty one would."""
    path = folder / f"{name}.{kind}"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return reader(b"", str(path), False)
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error.strerror or error}") from None
    return reader(data, str(path), kind == "bin")


def image_poses(
    images: dict[int, files.Image], rigs: files.Rigs, frames: dict[int, files.Frame], problems: list[str]
) -> dict[int, np.ndarray]:
    """World to camera [3, 4] of every image. Where there are rigs their frames win, as in COLMAP itself."""
    found = {number: matrix(image.camera_from_world) for number, image in images.items()}
    off = []
    for frame in frames.values():
        world = matrix(frame.rig_from_world)
        for camera, number in frame.images:
            sensor = rigs.get(frame.rig, {}).get(camera)
            if sensor is None or number not in images:
                continue
            outer = matrix(sensor)
            pose = np.concatenate(
                [outer[:, :3] @ world[:, :3], outer[:, :3] @ world[:, 3:] + outer[:, 3:]], 1
            )
            if np.abs(pose[:, :3] - found[number][:, :3]).max() > AGREE:
                off.append(printable(images[number].name))
            found[number] = pose
    if off:
        problems.append(f"the poses of {len(off)} images differ between images and frames; those of the "
                        f"frames and rigs are used, as COLMAP does: {some(off)}")  # fmt: skip
    return found


def matrix(rigid: files.Rigid) -> np.ndarray:
    """[3, 4] of a transform; the quaternion is made a unit."""
    w, x, y, z = np.array(rigid.quaternion) / np.linalg.norm(rigid.quaternion)
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.concatenate([np.array(rotation), np.array(rigid.translation)[:, None]], axis=1)


def _frame(
    image: files.Image, cameras: dict[int, files.Camera], pose: np.ndarray, photos: Path, folder: Path
) -> Frame:
    name = printable(PurePosixPath(image.name.replace("\\", "/")).as_posix())
    camera = cameras.get(image.camera)
    if camera is None:
        raise SceneError(f"{name} in {folder} was taken by camera {image.camera}, which the model lacks")
    turned = pose[:, :3].T
    to_world = np.concatenate([turned * OPENGL, -turned @ pose[:, 3:]], axis=1)
    paths = [photos / x for x in spellings(image.name.replace("\\", "/"))]
    path = next((x for x in paths if is_file(x)), None)
    return Frame(name, path, np.array(Z_UP) @ to_world, lens(camera, name))


def lens(camera: files.Camera, name: str) -> Lens:
    """A COLMAP camera as a lens of ours. SceneError names a model that none of ours equals."""
    model, p = camera.model, camera.params
    found = Lens(width=camera.width, height=camera.height)
    if model == "EQUIRECTANGULAR":
        return replace(found, model="equirectangular")
    single = model.startswith("SIMPLE_") or model in ("RADIAL", "RADIAL_FISHEYE")
    fx, fy, cx, cy, *k = (p[0], *p) if single else p
    found = replace(
        found, fx=fx, fy=fy, cx=cx, cy=cy, model="fisheye" if "FISHEYE" in model else "perspective"
    )
    terms: Sequence[float] | None = None  # k1 k2 k3 k4 p1 p2
    if model in ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_FISHEYE", "FISHEYE"):
        terms = ()
    elif model in ("SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "OPENCV_FISHEYE"):
        terms = k
    elif model == "OPENCV" or (model == "FULL_OPENCV" and not any(k[5:])):
        terms = (k[0], k[1], k[4] if len(k) > 4 else 0.0, 0.0, k[2], k[3])
    elif model == "THIN_PRISM_FISHEYE" and not any(k[6:]):
        terms = (k[0], k[1], k[4], k[5], k[2], k[3])
    elif model == "RAD_TAN_THIN_PRISM_FISHEYE":
        found, terms = replace(found, model="fisheye624"), k
    if terms is None:
        parts = {"FULL_OPENCV": " with k4, k5 or k6", "THIN_PRISM_FISHEYE": " with sx1 or sy1"}.get(model, "")
        raise SceneError(f"{name} has a {model} lens{parts}, which is not supported: undistort the photos "
                         "with `colmap image_undistorter`, or fit another camera model")  # fmt: skip
    return replace(found, distortion=tuple(terms))


def _photo_folder(path: Path, model: Path, names: Sequence[str]) -> Path:
    """Where most of the photos are: beside the model or up to three folders above it."""
    roots = [path] if path.is_dir() else []
    roots += [model, *list(model.parents)[:3]]
    places = [root / place for root in dict.fromkeys(roots) for place in PHOTO_PLACES]
    places += sorted((x for root in roots for x in root.glob("images_[1-9]*") if x.is_dir()), key=_size_word)
    places = [place for place in dict.fromkeys(places) if place.is_dir()]
    some_names = names[:: max(1, len(names) // 64)]
    if not places:
        return model
    return max(places, key=lambda place: sum(is_file(place / name) for name in some_names))


def _size_word(folder: Path) -> tuple[int, str]:
    text = folder.name.removeprefix("images_")
    return (int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 1 << 30, text)


def _other_models(folder: Path) -> tuple[str, ...]:
    """COLMAP writes sparse/0, sparse/1, ... where it could not join all photos."""
    if not folder.name.isdigit():
        return ()
    try:
        others = sorted(x for x in os.listdir(folder.parent) if x.isdigit() and x != folder.name)
    except OSError:
        return ()
    used = [x for x in others if _kind(folder.parent / x)]
    return (f"other models beside {folder.name}/ are not used: {some(used)}",) if used else ()
