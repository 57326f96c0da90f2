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
    identity = (*store.identity(path), float(downscale))
    try:
        width, height, turned = images.photo_facts(path)
        photo = where.array([*identity, "photo"], lambda: images.read_photo(path, downscale).pixels)
    except SceneError as error:
        raise UnreadableImage(str(error)) from None
    numbers, problem = fit(frame.lens, width, height, turned, frame.name)
    found = _Photo(frame, listing, options, where, identity, (width, height), photo, numbers / downscale)
    pixels, mask = found.pixels_and_mask()
    normals = None
    if frame.normals is not None:
        normals = found.beside(frame.normals, images.read_positive_normals, "normal map")
    problem = None if listing.resized else problem
    return Loaded(frame, pixels, found.numbers, mask, found.depth(), normals, problem)


@dataclass(frozen=True)
class _Photo:
    """A decoded photo, and how to find what lies beside it. Arrays come from the store where it has them."""

    frame: Frame
    listing: Listing
    options: Options
    where: Store
    identity: tuple  # what tells this photo, at this size, from any other
    size: tuple[int, int]  # width and height in the file
    photo: np.ndarray
    numbers: np.ndarray  # fx, fy, cx, cy after averaging down

    def kept(self, made_of: list, make: Callable[[], np.ndarray]) -> np.ndarray:
        return self.where.array([*self.identity, *made_of], make)

    def beside(self, file: Path, read: Callable[[Path], np.ndarray], what: str) -> np.ndarray:
        """The numbers of a file at the size of the photo as it was averaged down."""
        values = read(file)
        size = (values.shape[1], values.shape[0])
        if size == self.size:
            return images.shrink_nearest(values, self.options.downscale)
        if self.listing.resized and size == (self.frame.lens.width, self.frame.lens.height):
            return images.nearest(values, self.photo.shape[1], self.photo.shape[0])
        width, height = self.size
        raise SceneError(f"the {what} {file} has {size[0]} x {size[1]} pixels, its image {width} x {height}")

    def pixels_and_mask(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Photo and mask, after what transparency and mask files were said to mean."""
        frame, options, inverted = self.frame, self.options, self.frame.mask_inverted
        pixels, mask = self.photo, None
        file = frame.mask if options.masks == "ignore" else None
        if file is not None:
            made_of = ["mask", store.identity(file), inverted]
            mask = self.kept(made_of, lambda: self.beside(file, images.read_mask, "mask") ^ inverted)
        if pixels.shape[2] == 4 and options.alpha != "empty":
            clear, given = pixels, mask
            pixels = self.kept(["photo without alpha"], lambda: clear[:, :, :3].copy())
            if options.alpha == "ignore":
                made_of = ["opaque", inverted, *(map(store.identity, [file] if file else []))]
                mask = self.kept(made_of, lambda: opaque(clear, given))
        if (empty := empty_mask(frame, options)) is not None:
            turn = inverted and empty == frame.mask
            solid, made_of = pixels, ["photo with empty", store.identity(empty), turn, options.alpha]
            pixels = self.kept(
                made_of, lambda: emptied(solid, self.beside(empty, images.read_mask, "mask") ^ turn)
            )
        return pixels, mask

    def depth(self) -> np.ndarray | None:
        """Distances along the rays in units of the poses."""
        file, options, listing = self.frame.depth, self.options, self.listing
        if file is None:
            return None
        kind, unit = options.depth_kind or listing.depth_kind, options.depth_unit or listing.depth_unit
        applied = np.float32(listing.file_from_world.scale)  # files are in world units, poses may not be

        def made() -> np.ndarray:
            world = self.beside(file, lambda path: read_depth(path, unit), "depth map")
            return _ray_depth(applied * world, self.frame, self.numbers, kind)

        lens = self.numbers.tolist(), repr(self.frame.lens)
        return self.kept(["depth", store.identity(file), kind, unit, float(applied), *lens], made)


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
