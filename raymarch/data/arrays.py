"""Checks on the arrays a scene is made of. Each returns clean NumPy or says in one sentence what is wrong.

Letters: N images. `names` label them in messages.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from raymarch.data.error import SceneError
from raymarch.data.similarity import rotation_fault
from raymarch.types import LENSES

CONVENTIONS = ("opengl", "opencv")
FULL = 65535  # white in sixteen bits


def numpy(value) -> np.ndarray:
    """A NumPy view or copy of an array, tensor or nested list of numbers."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return np.asarray(value)


def image_list(images, names: Sequence[str] | None) -> list[np.ndarray]:
    """Images as [h, w, 3 or 4] uint8, all with alpha if one has it."""
    listed = _listed(images, "images")
    if not listed:
        raise SceneError("a scene needs at least one image, got none")
    label = names if names is not None and len(names) == len(listed) else range(len(listed))
    clean = [_image(image, f"image {name}") for image, name in zip(listed, label, strict=True)]
    if len({image.shape[2] for image in clean}) > 1:
        clean = [_with_alpha(image) for image in clean]
    return clean


def _image(value, name: str) -> np.ndarray:
    image = numpy(value)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        shape = list(image.shape)
        raise SceneError(f"{name} has shape {shape}: give [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]")
    if image.dtype == np.uint16:
        image = (image.astype(np.uint32) * 255 + FULL // 2) // FULL
    elif image.dtype.kind == "f":
        image = _from_unit(image, name)
    elif image.dtype != np.uint8:
        raise SceneError(f"{name} holds {image.dtype}: give uint8, uint16 or floats in 0..1")
    image = image.astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)


def _from_unit(image: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(image).all():
        raise SceneError(f"{name} has a pixel that is not a finite number")
    low, high = float(image.min()), float(image.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise SceneError(f"{name} has values in {low:g}..{high:g}: floats must lie in 0..1")
    return np.clip(np.rint(image * 255), 0, 255)


def _with_alpha(image: np.ndarray) -> np.ndarray:
    if image.shape[2] == 4:
        return image
    return np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=2)


def pose_array(poses, names: Sequence[str], convention: str = "opengl") -> np.ndarray:
    """Camera-to-world poses [N, 3, 4] float64, OpenGL axes: finite, rigid and not mirrored."""
    if convention not in CONVENTIONS:
        raise SceneError(f"convention must be one of {', '.join(CONVENTIONS)}, not {convention!r}")
    listed = _listed(poses, "poses")
    _same_count(len(listed), len(names), "poses")
    clean = np.stack([_pose(pose, name) for pose, name in zip(listed, names, strict=True)])
    if convention == "opencv":  # y down and z forward: turn both around
        clean[:, :, 1:3] *= -1
    return clean


def _pose(value, name: str) -> np.ndarray:
    pose = _float64(value, f"the pose of {name}", "numbers of shape [3, 4] or [4, 4]")
    if pose.shape not in ((3, 4), (4, 4)):
        raise SceneError(f"the pose of {name} has shape {list(pose.shape)}: give [3, 4] or [4, 4]")
    if not _finite(pose):
        raise SceneError(f"the pose of {name} holds a number that is not finite")
    if pose.shape[0] == 4 and np.abs(pose[3] - (0, 0, 0, 1)).max() > 1e-3:
        raise SceneError(f"the pose of {name} ends in the row {pose[3].tolist()}, not [0, 0, 0, 1]")
    if fault := rotation_fault(pose[:3, :3]):
        raise SceneError(f"the rotation in the pose of {name} {fault}")
    return pose[:3].copy()


def intrinsics_array(intrinsics, names: Sequence[str]) -> np.ndarray:
    """fx, fy, cx, cy [N, 4] float64 from [4], [N, 4], [3, 3] or [N, 3, 3]."""
    count = len(names)
    given = _float64(intrinsics, "intrinsics", "numbers of shape [4], [N, 4], [3, 3] or [N, 3, 3]")
    if given.shape[-2:] == (3, 3) and given.ndim in (2, 3):
        if np.abs(given[..., 0, 1]).max(initial=0) > 1e-6 * np.abs(given[..., 0, 0]).max(initial=1):
            raise SceneError("intrinsics have a skew (row 0, column 1), which no lens model here has")
        last = given.reshape(-1, 3, 3)[:, 2]
        if (wrong := (np.abs(last - (0, 0, 1)) > 1e-6).any(axis=1)).any():
            row = last[wrong][0].tolist()
            raise SceneError(
                f"intrinsics end in the row {row}, not [0, 0, 1]: divide matrices by their corner"
            )
        given = np.stack([given[..., i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))], axis=-1)
    if given.shape not in ((4,), (count, 4)):
        raise SceneError(
            f"intrinsics have shape {list(given.shape)}: give [4], [{count}, 4], [3, 3] or [{count}, 3, 3]"
        )
    given = np.broadcast_to(given, (count, 4)).copy()
    for row, name in zip(given, names, strict=True):
        if not _finite(row) or row[:2].min() <= 0:
            raise SceneError(f"the intrinsics of {name} are fx, fy, cx, cy = {row.tolist()}: "
                             "all must be finite and the focal lengths positive")  # fmt: skip
    return given


def distortion_array(distortion, names: Sequence[str]) -> np.ndarray:
    """Lens terms [N, 12] float64 from None, [k] or [N, k], k at most 12: k1 k2 k3 k4 p1 p2, zeros after."""
    count = len(names)
    if distortion is None:
        return np.zeros((count, 12))
    given = _float64(distortion, "distortion", "numbers of shape [k] or [N, k]")
    if given.ndim not in (1, 2) or given.shape[-1] > 12 or (given.ndim == 2 and len(given) != count):
        raise SceneError(f"distortion has shape {list(given.shape)}: give [k] or [{count}, k], k at most 12")
    if not _finite(given):
        raise SceneError("distortion holds a number that is not finite")
    wide = np.zeros((count, 12))
    wide[:, : given.shape[-1]] = given
    return wide


def lens_array(lens, names: Sequence[str]) -> np.ndarray:
    """Indices [N] into LENSES from one word, one word per image, or such indices."""
    words = [lens] * len(names) if isinstance(lens, (str, int)) else list(lens)
    _same_count(len(words), len(names), "lens words")
    return np.array([_lens(word) for word in words], dtype=np.int64)


def _lens(word) -> int:
    if isinstance(word, str) and word in LENSES:
        return LENSES.index(word)
    if not isinstance(word, str) and 0 <= int(word) < len(LENSES):
        return int(word)
    raise SceneError(f"unknown lens {word!r}: {nearest(str(word), LENSES)}")


def nearest(word: str, known: Sequence[str]) -> str:
    """`did you mean x? known: ...` for the end of a message."""
    close = difflib.get_close_matches(word.lower(), [x.lower() for x in known], n=1, cutoff=0.5)
    hint = next((f"did you mean {x}? " for x in known if close and x.lower() == close[0]), "")
    return f"{hint}known are {', '.join(known)}"


def per_image(values, images: Sequence[np.ndarray], names: Sequence[str], what: str, channels: int = 0):
    """One [h, w] (or [h, w, channels]) array or None per image, each of its image's size; or None."""
    if values is None:
        return None
    listed = _listed(values, what)
    _same_count(len(listed), len(images), what)
    clean = [None if value is None else numpy(value) for value in listed]
    for value, image, name in zip(clean, images, names, strict=True):
        wanted = (*image.shape[:2], channels) if channels else image.shape[:2]
        if value is not None and value.shape != wanted:
            shape = list(value.shape)
            raise SceneError(f"{what} of {name}: expected shape {list(wanted)}, as its image, got {shape}")
        if value is not None and value.dtype.kind not in "buif":
            raise SceneError(f"{what} of {name}: expected numbers, got {value.dtype}")
    return None if all(value is None for value in clean) else clean


def _listed(values, what: str) -> list:
    try:
        return list(values)
    except TypeError:
        raise SceneError(
            f"{what} must be a list of arrays or one stacked array, not {values!r:.80}"
        ) from None


def _same_count(got: int, wanted: int, what: str) -> None:
    if got != wanted:
        raise SceneError(f"there are {got} {what} for {wanted} images")


def _float64(value, what: str, wanted: str) -> np.ndarray:
    try:
        if isinstance(value, (list, tuple)) and any(isinstance(x, Tensor) for x in value):
            value = [numpy(x) for x in value]
        return np.array(numpy(value), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise SceneError(f"{what} must be {wanted}") from None


def _finite(values: np.ndarray) -> bool:
    """Finite in float32 too, which is what the pipeline computes in."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(np.float32)).all())
