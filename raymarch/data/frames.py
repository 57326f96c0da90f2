"""From what a format's parser found in its files to a Scene: the steps that every format shares.

A parser (nerfstudio.py, blender.py, ...) lists frames; here images are decoded in parallel, averaged down and
checked against the sizes the file states, and whatever is missing is reported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymarch.data import images, store
from raymarch.data.beside import with_neighbours
from raymarch.data.decoding import Loaded, decode, emptied, empty_mask
from raymarch.data.error import SceneError, some
from raymarch.data.feature_files import read_feature_maps
from raymarch.data.lens import twelve
from raymarch.data.listing import ALPHAS, DEPTH_KINDS, MASKS, Frame, Listed, Listing, Options, is_file
from raymarch.data.maps import FeatureMaps
from raymarch.data.scene import Scene
from raymarch.data.store import Store


def assemble(listing: Listing, options: Options) -> Scene:
    """Decode every frame that has an image, and build the checked Scene."""
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
    loaded = decode(kept, listing, options, where, problems)
    problems += [x.problem for x in loaded if x.problem]
    names = [x.frame.name for x in loaded]
    pixels = _one_channel_count(loaded, where)
    empties = options.masks != "none" and any(empty_mask(x.frame, options) for x in loaded)
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


def _one_channel_count(loaded: list[Loaded], where: Store) -> list[np.ndarray]:
    """Photos as they are, or all with alpha if one has it (mapped ones, which from_arrays would copy)."""
    if not where.mapped or len({x.pixels.shape[2] for x in loaded}) == 1:
        return [x.pixels for x in loaded]
    return [x.pixels if x.pixels.shape[2] == 4 else _with_alpha(x, where) for x in loaded]


def _with_alpha(x: Loaded, where: Store) -> np.ndarray:
    made_of = ["photo with alpha", str(x.pixels.filename)]  # type: ignore[attr-defined]
    return where.array(made_of, lambda: emptied(x.pixels, np.ones(x.pixels.shape[:2], dtype=bool)))


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
