"""From what a format's parser found in its files to a Scene: the steps that every format shares.

A parser (nerfstudio.py, blender.py, ...) lists frames; here images are decoded in parallel, averaged down and
checked against the sizes the file states, and whatever is missing is reported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from raymarch.data import depth as depths
from raymarch.data import images
from raymarch.data.error import SceneError, some
from raymarch.data.feature_files import read_feature_maps
from raymarch.data.maps import FeatureMaps
from raymarch.data.scene import Scene
from raymarch.data.similarity import Similarity

Z_DEPTH = ("perspective",)  # lenses for which depth along the axis determines distance along the ray


@dataclass(frozen=True)
class Options:
    """What `load` was asked for; None leaves the choice to the format."""

    downscale: float = 1
    split: object = None
    orientation: str | None = None
    center: str | None = None
    scale: str | float | None = None
    features: object = None  # FeatureMaps, arrays, or paths of feature files, one per head
    skip_unreadable: bool = False
    threads: int | None = None
    progress: Callable[[int, int], None] | None = None
    only_list: bool = False  # raise Listed instead of opening any image


class Listed(Exception):
    """Not an error: the frames with an image, for who asked for nothing else."""

    def __init__(self, frames: list[Frame]):
        super().__init__(f"{len(frames)} frames")
        self.frames = frames


@dataclass(frozen=True)
class Lens:
    """A camera as files describe it. What is None follows from the size of the image."""

    model: str = "perspective"  # a word of types.LENSES
    width: int | None = None  # the size that the numbers below are for
    height: int | None = None
    fx: float | None = None
    fy: float | None = None
    cx: float | None = None
    cy: float | None = None
    angle_x: float | None = None  # field of view in radians
    angle_y: float | None = None
    distortion: tuple[float, ...] = ()


@dataclass(frozen=True)
class Frame:
    """One photo and where it was taken from."""

    name: str
    image: Path | None  # None: the file names an image that is not there
    pose: object  # camera to world, [3, 4] or [4, 4], OpenGL axes; checked later
    lens: Lens
    hint: str | None = None  # train, val or test
    mask: Path | None = None
    depth: Path | None = None
    normals: Path | None = None  # the positive part of world normals as colours


@dataclass(frozen=True)
class Listing:
    """What a parser found, before any image is opened."""

    path: Path
    frames: Sequence[Frame]
    orientation: str = "up"
    center: str = "poses"
    scale: str | float = "auto"
    file_from_world: Similarity = field(default_factory=Similarity)
    background: str = "none"
    depth_unit: float = 1e-3  # of one step in a depth file, in units of the poses
    depth_kind: str = "z"  # or "ray"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A frame with its files decoded and averaged down."""

    frame: Frame
    pixels: np.ndarray
    intrinsics: np.ndarray  # fx, fy, cx, cy for `pixels`
    mask: np.ndarray | None
    depth: np.ndarray | None  # distance along the ray, in units of the poses
    normals: np.ndarray | None
    problem: str | None


def assemble(listing: Listing, options: Options) -> Scene:
    """Decode every frame that has an image, and build the checked Scene."""
    problems: list[str] = []
    kept = _frames_with_images(listing, problems)
    if options.only_list:
        raise Listed(kept)
    _all_or_none(kept, "mask")
    loaded = _decode(kept, listing, options, problems)
    problems += [x.problem for x in loaded if x.problem]
    names = [x.frame.name for x in loaded]
    return Scene.from_arrays(
        [x.pixels for x in loaded],
        np.stack([x.intrinsics for x in loaded]),
        [x.frame.pose for x in loaded],
        names=names,
        distortion=np.array([twelve(x.frame.lens.distortion) for x in loaded]),
        lens=[x.frame.lens.model for x in loaded],
        features=_features(options.features, [x.frame for x in loaded]),
        masks=[x.mask for x in loaded],
        depths=[x.depth for x in loaded],
        normals=[x.normals for x in loaded],
        normals_positive_only=any(x.normals is not None for x in loaded),
        orientation=options.orientation or listing.orientation,
        center=options.center or listing.center,
        scale=listing.scale if options.scale is None else options.scale,
        split=options.split,
        hints=[x.frame.hint for x in loaded],
        background=listing.background,
        file_from_world=listing.file_from_world,
        problems=tuple(problems),
        notes=listing.notes,
    )


def _frames_with_images(listing: Listing, problems: list[str]) -> list[Frame]:
    if not listing.frames:
        raise SceneError(f"{listing.path} lists no frames")
    kept = [frame for frame in listing.frames if frame.image is not None]
    missing = [frame.name for frame in listing.frames if frame.image is None]
    total = len(listing.frames)
    if not kept:
        raise SceneError(f"no image is left: none of the {total} files that {listing.path} lists exists "
                         f"({some(missing, 3)})")  # fmt: skip
    if missing:
        problems.append(f"{len(missing)} of {total} frames have no image and were skipped: {some(missing)}")
    return sorted(kept, key=lambda frame: frame.image.parts if frame.image else ())


def _all_or_none(frames: list[Frame], what: str) -> None:
    without = [frame.name for frame in frames if getattr(frame, what) is None]
    if without and len(without) < len(frames):
        raise SceneError(f"either every frame has a {what} or none: {some(without)} has none")


def _decode(frames: list[Frame], listing: Listing, options: Options, problems: list[str]) -> list[Loaded]:
    loaded: list[Loaded] = []
    pool = ThreadPoolExecutor(options.threads or min(16, os.cpu_count() or 1))
    try:
        waiting = [pool.submit(_load, frame, listing, options.downscale) for frame in frames]
        for done, (frame, future) in enumerate(zip(frames, waiting, strict=True), start=1):
            try:
                loaded.append(future.result())
            except UnreadableImage as error:
                if not options.skip_unreadable:
                    raise SceneError(str(error)) from None
                problems.append(f"{frame.name} was skipped: {error}")
            if options.progress:
                options.progress(done, len(frames))
    finally:
        pool.shutdown(cancel_futures=True)
    if not loaded:
        raise SceneError(f"no image is left: none of {listing.path}'s {len(frames)} images can be read")
    return loaded


class UnreadableImage(SceneError):
    """The photo of a frame cannot be decoded; `skip_unreadable` goes on without it."""


def _load(frame: Frame, listing: Listing, downscale: float) -> Loaded:
    assert frame.image is not None
    try:
        photo = images.read_photo(frame.image, downscale)
    except SceneError as error:
        raise UnreadableImage(str(error)) from None
    numbers, problem = fit(frame.lens, photo, frame.name)
    numbers = numbers / downscale

    def beside(path: Path | None, read: Callable[[Path], np.ndarray], what: str) -> np.ndarray | None:
        if path is None:
            return None
        values = read(path)
        if values.shape[:2] != (photo.height, photo.width):
            raise SceneError(f"the {what} {path} has {values.shape[1]} x {values.shape[0]} pixels, "
                             f"its image {photo.width} x {photo.height}")  # fmt: skip
        return images.shrink_nearest(values, downscale)

    mask = beside(frame.mask, images.read_mask, "mask")
    depth = beside(frame.depth, images.read_numbers, "depth map")
    if depth is not None:
        depth = _ray_depth(depth * np.float32(listing.depth_unit), frame, numbers, listing.depth_kind)
    normals = beside(frame.normals, images.read_positive_normals, "normal map")
    return Loaded(frame, photo.pixels, numbers, mask, depth, normals, problem)


def _ray_depth(depth: np.ndarray, frame: Frame, numbers: np.ndarray, kind: str) -> np.ndarray:
    if not np.isfinite(depth).all() or depth.min() < 0:
        raise SceneError(f"the depth map {frame.depth} holds a number that is negative or not finite")
    if kind == "ray":
        return depth
    if frame.lens.model not in Z_DEPTH:
        lens = f"a {frame.lens.model} lens"
        raise SceneError(f"the depth map {frame.depth} is along the viewing axis, which {lens} lacks")
    return depths.ray_distance(depth, numbers, twelve(frame.lens.distortion))


def fit(lens: Lens, photo: images.Photo, name: str) -> tuple[np.ndarray, str | None]:
    """fx, fy, cx, cy for an image as it is in its file, and a sentence where that is not the size stated."""
    width, height = lens.width or photo.width, lens.height or photo.height
    stated = np.array(intrinsics(lens, width, height, name))
    if (width, height) == (photo.width, photo.height):
        return stated, None
    sizes = f"the file says {width} x {height} pixels, the image has {photo.width} x {photo.height}"
    across, down = photo.width / width, photo.height / height
    if abs(across * height - photo.height) > 1 and abs(down * width - photo.width) > 1:
        turned = "; its EXIF data ask for a turn, which is not applied" if photo.turned else ""
        raise SceneError(f"{name}: {sizes}, which is not the same picture scaled{turned}")
    return stated * (across, down, across, down), f"{name}: {sizes}; its intrinsics were scaled to fit"


def intrinsics(lens: Lens, width: int, height: int, name: str) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy for an image of this size."""
    cx = width / 2 if lens.cx is None else lens.cx
    cy = height / 2 if lens.cy is None else lens.cy
    fx = _focal(lens.fx, lens.angle_x, width, name)
    fy = _focal(lens.fy, lens.angle_y, height, name) if lens.fx is None or lens.fy is not None else fx
    if fx is None and fy is None:
        if lens.model != "equirectangular":
            raise SceneError(
                f"{name} has no focal length: fl_x, fl_y, camera_angle_x, camera_angle_y are absent"
            )
        fx, fy = width / 2, float(height)
    return (fy if fx is None else fx) or 0.0, (fx if fy is None else fy) or 0.0, cx, cy


def _focal(focal: float | None, angle: float | None, size: int, name: str) -> float | None:
    if focal is not None or angle is None:
        return focal
    if not 0 < angle < math.pi:
        raise SceneError(f"{name} has a field of view of {angle:g} radians: it must lie between 0 and pi")
    return 0.5 * size / math.tan(0.5 * angle)


def twelve(terms: Sequence[float]) -> np.ndarray:
    return np.array([*terms, *[0.0] * (12 - len(terms))])


def _features(features, frames: Sequence[Frame]) -> FeatureMaps | object:
    """Maps from the files that were named, one head each; anything else is for Scene.from_arrays to judge."""
    paths = [features] if isinstance(features, (str, Path)) else features
    if (
        not isinstance(paths, (list, tuple))
        or not paths
        or not all(isinstance(x, (str, Path)) for x in paths)
    ):
        return features
    names, images = [x.name for x in frames], [x.image for x in frames]
    first, *more = (read_feature_maps(path, names, images) for path in paths)
    return replace(first, beside=tuple(more))
