"""Scene: posed photos with all that is known, and the two doors to it, `load` and `Scene.from_arrays`.

The scene frame is the training frame; `world_from_scene` leads back to the user's units, step by named step.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from raymarch.data import arrays
from raymarch.data.error import SceneError, some
from raymarch.data.images import SUFFIXES
from raymarch.data.listing import Listed, Options
from raymarch.data.maps import FeatureMaps, feature_maps
from raymarch.data.normalise import normalise
from raymarch.data.similarity import Similarity
from raymarch.data.split import split_images
from raymarch.types import LENSES, Cameras

__all__ = ["FORMATS", "Scene", "SceneError", "describe", "list_photos", "load"]

# One line per format: a module with LOOKS_FOR (words), recognises(path) and parse(path, Options) -> Scene.
FORMATS = (
    "raymarch.data.blender",
    "raymarch.data.nerfstudio",
    "raymarch.data.colmap",
    "raymarch.data.llff",
)
BACKGROUNDS = ("none", "white", "black", "random")
MOST_ENTRIES = 1000  # of a folder, looked through for a scene that was meant instead


@dataclass(frozen=True, eq=False)
class Scene:
    """N photos on the CPU. Optional truth is one entry per photo, None where a photo has none."""

    cameras: Cameras  # poses in the scene frame
    images: tuple[Tensor, ...]  # [h, w, 3 or 4] uint8, straight alpha; one channel count, any sizes
    names: tuple[str, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]
    features: FeatureMaps | None = None
    depths: tuple[Tensor | None, ...] | None = (
        None  # [h, w] float32 along the ray, scene units, 0 where unknown
    )
    normals: tuple[Tensor | None, ...] | None = None  # [h, w, 3] float32, scene axes, NaN where unknown
    normals_positive_only: bool = False  # the truth is max(n, 0): compare max(rendered, 0) with it
    masks: tuple[Tensor | None, ...] | None = None  # [h, w] bool, True keeps the pixel
    world_from_scene: Similarity = Similarity()  # noqa: RUF009 - frozen
    problems: tuple[str, ...] = ()  # what was wrong in the input and how it was met
    notes: tuple[str, ...] = ()  # harmless: what was left out on purpose
    background: str = (
        "none"  # behind transparent pixels: white, black, random, or none (black where alpha is)
    )
    points: Tensor | None = None  # [P, 3] float32 of the surface, scene frame, where a format has them
    near_far: Tensor | None = None  # [N, 2] float32 depths that matter, scene units, where a format has them
    format: str = "arrays"  # what the scene was read from, in words

    @classmethod
    def from_arrays(
        cls,
        images,
        intrinsics,
        poses,
        names: Sequence[str] | None = None,
        distortion=None,
        lens: str | Sequence[str] = "perspective",
        features=None,
        masks=None,
        depths=None,
        normals=None,
        *,
        convention: str = "opengl",
        orientation: str = "up",
        center: str = "poses",
        scale: str | float = "auto",
        split: object = None,
        hints: Sequence[str | None] | None = None,
        background: str = "none",
        file_from_world: Similarity | None = None,
        normals_positive_only: bool = False,
        problems: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> Scene:
        """A scene from NumPy arrays or tensors, every one checked (SceneError says what is wrong).

        images: [N, h, w, c] or a list of [h, w, c], c 1, 3 or 4; uint8 (not copied: the scene shows what is
            written there later), or floats in 0..1.
        intrinsics: fx, fy, cx, cy in pixels, [4] or [N, 4], or matrices [3, 3] or [N, 3, 3]. The centre of
            the first pixel is (0.5, 0.5).
        poses: camera to world, [N, 3, 4] or [N, 4, 4], rigid; axes as `convention` says: opengl (x right,
            y up, looking along -z) or opencv (x right, y down, looking along +z).
        distortion: [k] or [N, k]: k1 k2 k3 k4 p1 p2, or the twelve of fisheye624. lens: a word of LENSES.
        features: [N, h, w, D] or a list of [h, w, D], kept in half precision. masks: nonzero keeps a pixel.
        depths: distance along the ray in the units of the poses, 0 where unknown. normals: in the axes of the
            poses, NaN where unknown.
        orientation (up, vertical, pca, none), center (poses, focus, none), scale (auto, none or a factor):
            how the scene frame is made from yours. Defaults are nerfstudio's; three times none keeps yours.
        split: every8 (the default), a fraction, none, or a pair (train, test) of index lists; see split.py.
        """
        clean = arrays.image_list(images, names)
        count = len(clean)
        names = _names(names, count)
        sizes = [(image.shape[1], image.shape[0]) for image in clean]
        if background not in BACKGROUNDS:
            raise SceneError(f"background must be one of {', '.join(BACKGROUNDS)}, not {background!r}")
        in_file = arrays.pose_array(poses, names, convention)
        turned, found = normalise(in_file, orientation, center, scale)
        scene_from_world = file_from_world or Similarity()
        for step in turned.steps:
            scene_from_world = scene_from_world.then(*step)
        train, test = split_images(split, names, hints or [None] * count)
        cameras = Cameras(
            _poses32(turned.apply_poses(torch.from_numpy(in_file))),
            torch.from_numpy(arrays.intrinsics_array(intrinsics, names)).float(),
            torch.from_numpy(arrays.distortion_array(distortion, names)).float(),
            torch.from_numpy(arrays.lens_array(lens, names)),
            torch.tensor(sizes, dtype=torch.int64),
        )
        return cls(
            cameras=cameras,
            images=tuple(torch.from_numpy(image) for image in clean),
            names=names,
            train=train,
            test=test,
            features=feature_maps(features, sizes, names),
            depths=_depths(arrays.per_image(depths, clean, names, "depths"), names, turned.scale),
            normals=_normals(
                arrays.per_image(normals, clean, names, "normals", 3), turned, normals_positive_only
            ),
            normals_positive_only=normals_positive_only,
            masks=_masks(arrays.per_image(masks, clean, names, "masks"), train),
            world_from_scene=scene_from_world.invert(),
            problems=(*problems, *found),
            notes=tuple(notes),
            background=background,
        )


def load(
    path: str | Path,
    *,
    downscale: float | None = None,
    split: object = None,
    orientation: str | None = None,
    center: str | None = None,
    scale: str | float | None = None,
    features=None,
    skip_unreadable: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    masks: str = "ignore",
    alpha: str = "empty",
    depth_unit: float | None = None,
    depth_kind: str | None = None,
    memory: str | int = "auto",
    cache: str | Path | None = None,
) -> Scene:
    """Read a scene from disk; the format is recognised by what the folder (or the json file) holds.

    downscale: average photos over squares of so many pixels; intrinsics follow. split, orientation, center,
    scale: as in Scene.from_arrays; None is the format's own choice (nerfstudio: up, poses, auto; Blender: its
    frame as it is, split by file). features: the path of a feature file (docs/features.md) or several, one
    per head, or what from_arrays takes. skip_unreadable: report images
    that cannot be decoded and go on. progress(done, total) is called as photos arrive.

    masks: what zero in a mask means. ignore: the pixel is never drawn; empty: nothing is there, so opacity
    should be zero; none: masks are not used. alpha: the same for transparent pixels. depth_unit, depth_kind
    (z or ray): how depth maps are to be read. memory: auto (photos are mapped from files where they take more
    than half of the free memory), memory, disk, or the bytes they may take. cache: folder for decoded photos
    that were downscaled or are mapped; auto is the user's cache folder. docs/data.md says more.
    Raises SceneError.
    """
    factor = 1 if downscale is None else downscale
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not (1 <= factor < math.inf):
        raise SceneError(f"downscale must be a number of at least 1, not {downscale!r}")
    options = Options(
        factor, split, orientation, center, scale, features, skip_unreadable, threads, progress,
        masks=masks, alpha=alpha, depth_unit=depth_unit, depth_kind=depth_kind, memory=memory, cache=cache,
    )  # fmt: skip
    found = Path(path).expanduser()
    return _format_of(found).parse(found, options)


def list_photos(path: str | Path) -> list[tuple[str, Path]]:
    """Name and image file of every photo of a scene, in the scene's order, without opening any of them."""
    found = Path(path).expanduser()
    try:
        _format_of(found).parse(found, Options(only_list=True))
    except Listed as listed:
        return [(frame.name, frame.image) for frame in listed.frames if frame.image is not None]
    raise SceneError(f"the photos of {path} cannot be listed without loading them")


def _format_of(path: Path) -> ModuleType:
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise SceneError(f"{path} cannot be opened: {error}") from None
    if not exists:
        raise SceneError(f"scene {path} does not exist: there is no such file or folder")
    modules = [importlib.import_module(name) for name in FORMATS]
    for module in modules:
        if module.recognises(path):
            return module
    wanted = ", or ".join(module.LOOKS_FOR for module in modules)
    raise SceneError(f"{path} is not a scene of a known format: looked for {wanted}{_remedy(path, modules)}")


def _remedy(path: Path, modules: Sequence[ModuleType]) -> str:
    """What to do about a folder that is no scene: name the one around or in it, or have poses found."""
    try:
        entries = sorted(path.iterdir())[:MOST_ENTRIES] if path.is_dir() else []
        near = [path.absolute().parent, *(entry for entry in entries if entry.is_dir())]
        for other in near:
            if any(module.recognises(other) for module in modules):
                return f"; did you mean {other}?"
        photos = [
            entry for folder in (path, path / "images") if folder.is_dir() for entry in folder.iterdir()
        ]
        count = sum(entry.suffix in SUFFIXES for entry in photos)
    except OSError:
        return ""
    if not count:
        return ""
    return (
        f"; it holds {count} photos, but not where they were taken from: find their poses first, with COLMAP "
        "(`colmap automatic_reconstructor`) or nerfstudio (`ns-process-data images`)"
    )


def describe(scene: Scene) -> str:
    """A few lines for people: format, photos, cameras, bounds, split, what is attached and what was wrong."""
    cameras = scene.cameras
    counts = Counter(tuple(size) for size in cameras.size.tolist())
    sizes = [f"{n} of {w} x {h}" for (w, h), n in counts.most_common(4)]
    more = f" and {len(counts) - 4} more sizes" if len(counts) > 4 else ""
    lenses = Counter(LENSES[i] for i in cameras.lens.tolist())
    focal = cameras.intrinsics[:, 0]
    positions = cameras.camera_to_worlds[:, :, 3]
    world = scene.world_from_scene.apply(positions.double())
    lines = [
        f"format    {scene.format}",
        f"photos    {len(scene.images)} ({', '.join(sizes)}{more}), {scene.images[0].shape[2]} channels",
        f"split     {len(scene.train)} to train on, {len(scene.test)} held out"
        + (f": {some([scene.names[i] for i in scene.test], 4)}" if scene.test else ""),
        f"lens      {', '.join(f'{n} {word}' for word, n in lenses.items())}"
        f"{', with distortion' if cameras.distortion.any() else ''}, focal length {_range(focal)} pixels",
        f"cameras   scene frame {_box(positions)}; world {_box(world)}",
        f"units     1 scene unit is {scene.world_from_scene.scale:.6g} in the world",
    ]
    lines += [f"{word:<9} {text}" for word, text in _attached(scene).items()]
    lines += [f"problem   {text}" for text in scene.problems]
    lines += [f"note      {text}" for text in scene.notes]
    return "\n".join(lines)


def _attached(scene: Scene) -> dict[str, str]:
    found = {}
    if scene.background != "none":
        found["behind"] = scene.background
    if scene.features is not None:
        heads = []
        for head in scene.features.heads:
            rows, columns, width = head.maps[0].shape
            heads.append(f"{head.kind}, {width} wide, {columns} x {rows} cells, {head.mode}")
        found["features"] = "; ".join(heads)
    if scene.masks is not None:
        given = [x for x in scene.masks if x is not None]
        total = sum(x.numel() for x in given)
        drop = total - sum(int(x.sum()) for x in given)
        found["ignored"] = f"{_share(drop, total)} of {len(given)} photos, by masks: never drawn"
    if scene.images[0].shape[2] == 4:
        total = sum(x[:, :, 3].numel() for x in scene.images)
        clear = sum(int((x[:, :, 3] == 0).sum()) for x in scene.images)
        found["empty"] = f"{_share(clear, total)}: alpha is zero, nothing is there"
    if scene.depths is not None:
        known = [x[x > 0] for x in scene.depths if x is not None]
        total = sum(x.numel() for x in scene.depths if x is not None)
        count, scale = sum(len(x) for x in known), scene.world_from_scene.scale
        reach = torch.tensor([(float(x.min()), float(x.max())) for x in known if len(x)]) * scale
        span = f", {reach.min():.4g} to {reach.max():.4g} world units" if len(reach) else ""
        found["depths"] = f"for {len(known)} photos, {_share(count, total)} known{span}, along the ray"
    if scene.normals is not None:
        found["normals"] = f"for {sum(x is not None for x in scene.normals)} photos"
    if scene.near_far is not None:
        near, far = (scene.near_far * scene.world_from_scene.scale).T
        found["bounds"] = f"near {_range(near)}, far {_range(far)} in the world"
    if scene.points is not None:
        world = scene.world_from_scene.apply(scene.points.double())
        found["points"] = f"{len(world)} of the surface; nine of ten in world {_middle(world)}"
    return found


def _share(part: int, total: int) -> str:
    return f"{part} pixels ({part / max(total, 1):.1%})"


def _middle(points: Tensor) -> str:
    ends = torch.from_numpy(np.quantile(points.numpy(), [0.05, 0.95], axis=0))
    return _box(ends)


def _range(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.6g}" if high - low < 1e-4 * high else f"{low:.6g} to {high:.6g}"


def _box(points: Tensor) -> str:
    low, high = points.amin(dim=0).tolist(), points.amax(dim=0).tolist()
    return " ".join(f"{axis} {a:.3g}..{b:.3g}" for axis, a, b in zip("xyz", low, high, strict=True))


def _names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"image {i}" for i in range(count))
    if len(names) != count:
        raise SceneError(f"there are {len(names)} names for {count} images")
    return tuple(str(name) for name in names)


def _poses32(poses: Tensor) -> Tensor:
    narrow = poses.float()
    if not narrow.isfinite().all():
        raise SceneError("camera positions exceed what float32 holds: choose scale='auto' or other units")
    return narrow


def _depths(depths: list | None, names: Sequence[str], scale: float) -> tuple[Tensor | None, ...] | None:
    if depths is None:
        return None
    for depth, name in zip(depths, names, strict=True):
        if depth is not None and (not np.isfinite(depth).all() or depth.min() < 0):
            raise SceneError(f"depths of {name}: a number is negative or not finite (0 means unknown)")
    scaled = [None if x is None else x.astype(np.float32) * np.float32(scale) for x in depths]
    return tuple(None if x is None else torch.from_numpy(x) for x in scaled)


def _normals(normals: list | None, turned: Similarity, positive: bool) -> tuple[Tensor | None, ...] | None:
    if normals is None:
        return None
    if positive and not torch.equal(turned.rotation, torch.eye(3, dtype=torch.float64)):
        raise SceneError("normals known by their positive part cannot be turned: choose orientation='none'")
    tensors = [None if x is None else torch.from_numpy(x.astype(np.float32)) for x in normals]
    return tuple(None if x is None else turned.rotate(x) for x in tensors)


def _masks(masks: list | None, train: Sequence[int]) -> tuple[Tensor | None, ...] | None:
    if masks is None:
        return None
    if not any(masks[i] is None or np.any(masks[i]) for i in train):
        raise SceneError("the masks keep no pixel of any image to train on")
    return tuple(None if x is None else torch.from_numpy(x if x.dtype == bool else x != 0) for x in masks)
