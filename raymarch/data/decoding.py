"""Frames with their files decoded and averaged down: photos, masks, depth and normals, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymarch.data import depth as depths
from raymarch.data import images, store
from raymarch.data.error import SceneError
from raymarch.data.lens import fit, twelve
from raymarch.data.listing import Frame, Listing, Options
from raymarch.data.store import Store

Z_DEPTH = ("perspective",)  # lenses for which depth along the axis determines distance along the ray


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


class UnreadableImage(SceneError):
    """The photo of a frame cannot be decoded; `skip_unreadable` goes on without it."""


def decode(
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
    if (empty := empty_mask(frame, options)) is not None:
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


def empty_mask(frame: Frame, options: Options) -> Path | None:
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
