"""From what a format's parser found in its files to a Scene: the steps that every format shares.

A parser (nerfstudio.py, blender.py, ...) lists frames; here images are decoded in parallel, averaged down and
checked against the sizes the file states, and whatever is missing is reported.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymarch.data import depth as depths
from raymarch.data import images, store
from raymarch.data.error import SceneError, some
from raymarch.data.feature_files import read_feature_maps
from raymarch.data.maps import FeatureMaps
from raymarch.data.scene import Scene
from raymarch.data.similarity import Similarity
from raymarch.data.store import Store

MASKS = ("ignore", "empty", "none")
ALPHAS = ("empty", "ignore", "none")
DEPTH_KINDS = ("z", "ray")
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
    masks: str = "ignore"  # what zero in a mask means: ignore the pixel, nothing is there (empty), or nothing
    alpha: str = "empty"  # what transparent means: nothing is there, ignore the pixel, or nothing (none)
    depth_unit: float | None = None
    depth_kind: str | None = None
    memory: str | int = "auto"  # auto, memory, disk, or the bytes that photos may take before disk
    cache: str | Path | None = None  # folder of decoded photos, or "auto"
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
    mask: Path | None = None  # zero: as Options.masks says
    mask_inverted: bool = False  # nonzero instead of zero
    empty_mask: Path | None = None  # zero: nothing is there
    depth: Path | None = None
    normals: Path | None = None  # the positive part of world normals as colours
    near_far: tuple[float, float] | None = None  # in units of the poses


@dataclass(frozen=True)
class Listing:
    """What a parser found, before any image is opened."""

    path: Path
    frames: Sequence[Frame]
    format: str = ""  # in words, for people
    photos: Path | None = None  # the folder that names are relative to, if there is one
    resized: bool = False  # photos smaller than stated are no surprise
    orientation: str = "up"
    center: str = "poses"
    scale: str | float = "auto"
    file_from_world: Similarity = field(default_factory=Similarity)
    background: str = "none"
    depth_unit: float | None = None  # world units in one step of a depth file; None: by its numbers
    depth_kind: str = "z"  # or "ray"
    points: np.ndarray | None = None  # [P, 3] in the frame of the poses
    problems: tuple[str, ...] = ()
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
    from raymarch.data.beside import with_neighbours  # it builds on this file

    _check(options)
    problems, notes = list(listing.problems), list(listing.notes)
    listed = _frames_with_images(listing, problems)
    if options.only_list:
        raise Listed(listed)
    originals = {frame.name: frame.image for frame in listed}  # which features were made of
    kept = with_neighbours(listed, listing.photos, notes)
    for what in ("mask", "depth", "empty_mask"):
        _all_or_none(kept, what, listing)
    _named_twice(kept, problems)
    kept, factor = _ready_made(kept, listing.photos, options.downscale, notes)
    listing = replace(listing, resized=listing.resized or factor != options.downscale)
    where = _store(kept, options, factor, notes)
    options = replace(options, downscale=factor)
    loaded = _decode(kept, listing, options, where, problems)
    problems += [x.problem for x in loaded if x.problem]
    names = [x.frame.name for x in loaded]
    pixels = _one_channel_count(loaded, where)
    empties = options.masks != "none" and any(_empty_mask(x.frame, options) for x in loaded)
    scene = Scene.from_arrays(
        pixels,
        np.stack([x.intrinsics for x in loaded]),
        [x.frame.pose for x in loaded],
        names=names,
        distortion=np.array([twelve(x.frame.lens.distortion) for x in loaded]),
        lens=[x.frame.lens.model for x in loaded],
        features=_features(options.features, names, [originals[name] for name in names]),
        masks=[x.mask for x in loaded],
        depths=None if where.mapped else [x.depth for x in loaded],
        normals=[x.normals for x in loaded],
        normals_positive_only=any(x.normals is not None for x in loaded),
        orientation=options.orientation or listing.orientation,
        center=options.center or listing.center,
        scale=listing.scale if options.scale is None else options.scale,
        split=options.split,
        hints=[x.frame.hint for x in loaded],
        background="random" if empties and listing.background == "none" else listing.background,
        file_from_world=listing.file_from_world,
        problems=tuple(problems),
        notes=tuple(notes),
    )
    return _with_extras(scene, listing, loaded, where)


def _with_extras(scene: Scene, listing: Listing, loaded: list[Loaded], where: Store) -> Scene:
    """What from_arrays does not take: the format, points, bounds, and depths that are mapped from disk."""
    per_file_unit = 1 / (scene.world_from_scene.scale * listing.file_from_world.scale)
    points = None
    if listing.points is not None and len(listing.points):
        world = listing.file_from_world.invert().apply(torch.from_numpy(listing.points))
        points = scene.world_from_scene.invert().apply(world).float()
    bounds: Tensor | None = None
    if all(x.frame.near_far is not None for x in loaded):
        bounds = torch.tensor([x.frame.near_far for x in loaded], dtype=torch.float64) * per_file_unit
        bounds = bounds.float()
    depths = scene.depths
    if where.mapped and any(x.depth is not None for x in loaded):
        depths = tuple(_scaled(x, per_file_unit, where) for x in loaded)
    return replace(scene, format=listing.format, points=points, near_far=bounds, depths=depths)


def _scaled(x: Loaded, factor: float, where: Store) -> Tensor | None:
    if x.depth is None or x.frame.depth is None:
        return None
    depth = x.depth
    made_of = ["scene depth", str(depth.filename), factor]  # type: ignore[attr-defined]
    return torch.from_numpy(where.array(made_of, lambda: depth * np.float32(factor)))


def _check(options: Options) -> None:
    for what, value, known in (("masks", options.masks, MASKS), ("alpha", options.alpha, ALPHAS)):
        if value not in known:
            raise SceneError(f"{what} must be one of {', '.join(known)}, not {value!r}")
    if options.depth_kind not in (None, *DEPTH_KINDS):
        raise SceneError(f"depth_kind must be one of {', '.join(DEPTH_KINDS)}, not {options.depth_kind!r}")
    unit = options.depth_unit
    if unit is not None and (isinstance(unit, bool) or not 0 < unit < math.inf):
        raise SceneError(f"depth_unit must be a positive number, not {unit!r}")
    if isinstance(options.memory, bool) or (
        options.memory not in store.PLACES and not (isinstance(options.memory, int) and options.memory > 0)
    ):
        raise SceneError(
            f"memory must be {', '.join(store.PLACES)} or a number of bytes, not {options.memory!r}"
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


def _all_or_none(frames: list[Frame], what: str, listing: Listing) -> None:
    """A file that names masks for some frames only has most likely lost some."""
    without = [frame.name for frame in frames if getattr(frame, what) is None]
    named = any(getattr(frame, what) is not None for frame in listing.frames)
    if what == "depth":  # truth for held-out views alone is common
        return
    if named and without and len(without) < len(frames):
        raise SceneError(f"either every frame has a {what} or none: {some(without)} has none")


def _named_twice(frames: list[Frame], problems: list[str]) -> None:
    counts = Counter(frame.image for frame in frames)
    if twice := [frame.name for frame in frames if counts[frame.image] > 1]:
        problems.append(f"{len(twice)} frames share their photos with other frames: {some(twice)}")


def _ready_made(
    frames: list[Frame], photos: Path | None, downscale: float, notes: list[str]
) -> tuple[list[Frame], float]:
    """Smaller copies that the user made, images_4 for --downscale 4, if there is one of every photo."""
    if downscale < 2 or downscale != int(downscale):
        return frames, downscale
    found = []
    for frame in frames:
        assert frame.image is not None
        root = photos or frame.image.parent
        if root not in frame.image.parents or "_" in root.name:
            return frames, downscale
        copy = root.with_name(f"{root.name}_{int(downscale)}") / frame.image.relative_to(root)
        names = [copy.name, copy.stem + ".png", copy.stem + ".jpg"]
        there = next((copy.with_name(x) for x in names if is_file(copy.with_name(x))), None)
        if there is None:
            return frames, downscale
        found.append(replace(frame, image=there))
    assert found[0].image is not None
    notes.append(f"photos are read from the smaller copies in {found[0].image.parent}")
    return found, 1


def _store(frames: list[Frame], options: Options, factor: float, notes: list[str]) -> Store:
    """In memory where everything fits into half of what is free, else mapped from files."""
    total, free = _bytes(frames, options, factor), store.free_memory()
    limit = options.memory if isinstance(options.memory, int) else store.SHARE * free
    mapped = options.memory == "disk" or (options.memory != "memory" and total > limit)
    folder = options.cache
    if folder is None and not mapped:
        return Store()
    folder = store.default_folder() if folder in (None, "auto") else Path(folder).expanduser()  # type: ignore[arg-type]
    if not mapped and factor == 1:  # decoding is all there is to save, and it takes less room than its result
        return Store()
    if mapped:
        sizes = f"{total / 1e9:.3g} GB of {free / 1e9:.3g} GB free memory"
        notes.append(f"photos take about {sizes}: they are mapped from files in {folder}")
    else:
        notes.append(f"downscaled photos are kept in {folder}")
    return Store(folder, mapped)


def _bytes(frames: list[Frame], options: Options, factor: float) -> float:
    """About what the decoded photos take."""
    per_pixel = 4 + any(frame.mask for frame in frames) + 4 * any(frame.depth for frame in frames)
    total = 0.0
    for frame in frames:
        width, height = frame.lens.width, frame.lens.height
        if (not width or not height) and frame.image is not None:
            try:
                width, height = images.photo_size(frame.image)
            except SceneError:  # named when it is decoded
                continue
        total += (width or 0) * (height or 0) * per_pixel / factor**2
    return total


def _decode(
    frames: list[Frame], listing: Listing, options: Options, where: Store, problems: list[str]
) -> list[Loaded]:
    loaded: list[Loaded] = []
    pool = ThreadPoolExecutor(options.threads or min(16, os.cpu_count() or 1))
    try:
        waiting = [pool.submit(_load, frame, listing, options, where) for frame in frames]
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


def _load(frame: Frame, listing: Listing, options: Options, where: Store) -> Loaded:
    assert frame.image is not None
    path, downscale = frame.image, options.downscale
    photo_id = [store.identity(path), float(downscale)]
    try:
        width, height, turned = images.photo_facts(path)
        pixels = where.array([*photo_id, "photo"], lambda: images.read_photo(path, downscale).pixels)
    except SceneError as error:
        raise UnreadableImage(str(error)) from None
    numbers, problem = fit(frame.lens, width, height, turned, frame.name)
    numbers = numbers / downscale

    def beside(file: Path, read: Callable[[Path], np.ndarray], what: str) -> np.ndarray:
        values = read(file)
        size = (values.shape[1], values.shape[0])
        if size == (width, height):
            return images.shrink_nearest(values, downscale)
        if listing.resized and size == (frame.lens.width, frame.lens.height):
            return images.nearest(values, pixels.shape[1], pixels.shape[0])
        raise SceneError(f"the {what} {file} has {size[0]} x {size[1]} pixels, its image {width} x {height}")

    mask = None
    if (file := _ignore_mask(frame, options)) is not None:
        made_of = [*photo_id, "mask", store.identity(file), frame.mask_inverted]
        mask = where.array(made_of, lambda: beside(file, images.read_mask, "mask") ^ frame.mask_inverted)
    if pixels.shape[2] == 4 and options.alpha != "empty":
        clear, given = pixels, mask
        pixels = where.array([*photo_id, "photo without alpha"], lambda: clear[:, :, :3].copy())
        if options.alpha == "ignore":
            made_of = [
                *photo_id,
                "opaque",
                frame.mask_inverted,
                *(map(store.identity, [file] if file else [])),
            ]
            mask = where.array(made_of, lambda: opaque(clear, given))
    if (empty := _empty_mask(frame, options)) is not None:
        turn = frame.mask_inverted and empty == frame.mask
        solid, made_of = pixels, [*photo_id, "photo with empty", store.identity(empty), turn, options.alpha]
        pixels = where.array(made_of, lambda: emptied(solid, beside(empty, images.read_mask, "mask") ^ turn))
    depth = None
    if (distances := frame.depth) is not None:
        kind, unit = options.depth_kind or listing.depth_kind, options.depth_unit or listing.depth_unit
        applied = np.float32(listing.file_from_world.scale)  # files are in world units, poses may not be
        made_of = [
            *photo_id,
            "depth",
            store.identity(distances),
            kind,
            unit,
            float(applied),
            numbers.tolist(),
            repr(frame.lens),
        ]
        depth = where.array(
            made_of,
            lambda: _ray_depth(
                applied * beside(distances, lambda x: read_depth(x, unit), "depth map"), frame, numbers, kind
            ),
        )
    normals = None
    if frame.normals is not None:
        normals = beside(frame.normals, images.read_positive_normals, "normal map")
    return Loaded(frame, pixels, numbers, mask, depth, normals, None if listing.resized else problem)


def _ignore_mask(frame: Frame, options: Options) -> Path | None:
    return frame.mask if options.masks == "ignore" else None


def _empty_mask(frame: Frame, options: Options) -> Path | None:
    if options.masks == "none":
        return None
    return frame.empty_mask or (frame.mask if options.masks == "empty" else None)


def emptied(pixels: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """Photos [h, w, 3 or 4] with alpha 0 wherever `solid` [h, w] is false."""
    alpha = pixels[:, :, 3:] if pixels.shape[2] == 4 else np.full((*pixels.shape[:2], 1), 255, np.uint8)
    return np.concatenate([pixels[:, :, :3], np.where(solid[:, :, None], alpha, np.uint8(0))], axis=2)


def opaque(pixels: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Where alpha is full and the mask, if there is one, keeps the pixel."""
    full = pixels[:, :, 3] == 255
    return full if mask is None else full & mask


def _one_channel_count(loaded: list[Loaded], where: Store) -> list[np.ndarray]:
    """Photos as they are, or all with alpha if one has it (mapped ones, which from_arrays would copy)."""
    if not where.mapped or len({x.pixels.shape[2] for x in loaded}) == 1:
        return [x.pixels for x in loaded]
    return [x.pixels if x.pixels.shape[2] == 4 else _with_alpha(x, where) for x in loaded]


def _with_alpha(x: Loaded, where: Store) -> np.ndarray:
    made_of = ["photo with alpha", str(x.pixels.filename)]  # type: ignore[attr-defined]
    return where.array(made_of, lambda: emptied(x.pixels, np.ones(x.pixels.shape[:2], dtype=bool)))


def read_depth(path: Path, unit: float | None) -> np.ndarray:
    """[h, w] float32 in world units. Without a unit: 1/1000 for whole numbers, 1 for others."""
    values, kind = images.numbers_and_kind(path)
    return values * np.float32(unit if unit is not None else 1.0 if kind == "f" else 1e-3)


def _ray_depth(depth: np.ndarray, frame: Frame, numbers: np.ndarray, kind: str) -> np.ndarray:
    if not np.isfinite(depth).all() or depth.min() < 0:
        raise SceneError(f"the depth map {frame.depth} holds a number that is negative or not finite")
    if kind == "ray":
        return depth
    if frame.lens.model not in Z_DEPTH:
        lens = f"a {frame.lens.model} lens"
        raise SceneError(f"the depth map {frame.depth} is along the viewing axis, which {lens} lacks")
    return depths.ray_distance(depth, numbers, twelve(frame.lens.distortion))


def fit(lens: Lens, width: int, height: int, turned: bool, name: str) -> tuple[np.ndarray, str | None]:
    """fx, fy, cx, cy for an image of the size in its file, and a sentence where another was stated."""
    wide, high = lens.width or width, lens.height or height
    stated = np.array(intrinsics(lens, wide, high, name))
    if (wide, high) == (width, height):
        return stated, None
    sizes = f"the file says {wide} x {high} pixels, the image has {width} x {height}"
    across, down = width / wide, height / high
    if abs(across * high - height) > 1 and abs(down * wide - width) > 1:
        exif = "; its EXIF data ask for a turn, which is not applied" if turned else ""
        raise SceneError(f"{name}: {sizes}, which is not the same picture scaled{exif}")
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


def _features(features, names: Sequence[str], images: Sequence[Path | None]) -> FeatureMaps | object:
    """Maps from the files that were named, one head each; anything else is for Scene.from_arrays to judge."""
    paths = [features] if isinstance(features, (str, Path)) else features
    if (
        not isinstance(paths, (list, tuple))
        or not paths
        or not all(isinstance(x, (str, Path)) for x in paths)
    ):
        return features
    first, *more = (read_feature_maps(path, names, images) for path in paths)
    return replace(first, beside=tuple(more))


def spellings(name: str) -> list[str]:
    """A name as it is, and with accents composed or apart: a Mac writes them one way, others another."""
    return list(dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]))


def is_file(path: Path) -> bool:
    """Whether there is such a file; names that no file can have are none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
