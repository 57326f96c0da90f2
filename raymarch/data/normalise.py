"""Turn, centre and scale a set of camera poses the way nerfstudio's dataparser does (spec 12.5).

Every choice becomes a named step of a Similarity, so nothing about the user's frame is lost.
Letters: N cameras. Poses are [N, 3, 4] float64 NumPy, OpenGL axes.
"""

from __future__ import annotations

import math

import numpy as np

from raymarch.data.error import SceneError
from raymarch.data.similarity import Similarity, similarity

ORIENTATIONS = ("up", "vertical", "pca", "none")
CENTERS = ("poses", "focus", "none")
PARALLEL = 0.17  # camera x axes closer to one line than this (sine) say nothing about the vertical
TINY = 1e-9
FAR = 20.0  # times the median camera's distance from the middle of all


def normalise(
    poses: np.ndarray, orientation: str = "up", center: str = "poses", scale: str | float = "auto"
) -> tuple[Similarity, list[str]]:
    """scene_from_file with the steps center, orientation, scale, and what could not be done, in sentences."""
    _check_word("orientation", orientation, ORIENTATIONS)
    _check_word("center", center, CENTERS)
    problems: list[str] = []
    centre = _centre(poses, center)
    rotation = _rotation(poses, orientation, problems)
    moved = (poses[:, :, 3] - centre) @ rotation.T
    _check_outliers(moved, problems)
    factor = _scale(moved, scale, problems)
    steps = {
        "center": similarity(translation=-centre),
        "orientation": similarity(rotation=rotation),
        "scale": similarity(scale=factor),
    }
    scene_from_file = Similarity()
    for name, step in steps.items():
        scene_from_file = scene_from_file.then(name, step)
    return scene_from_file, problems


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation [3, 3] from the direction of a to that of b; a half turn where opposite."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    cosine = float(a @ b)
    if cosine < -1 + 1e-8:  # any axis across a will do
        axis = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])
        axis /= np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    x, y, z = np.cross(a, b)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)


def _rotation(poses: np.ndarray, orientation: str, problems: list[str]) -> np.ndarray:
    if orientation == "none":
        return np.eye(3)
    if orientation == "pca":
        return _principal_axes(poses)
    up = poses[:, :, 1].mean(axis=0)
    if np.linalg.norm(up) < 1e-6:
        problems.append("the cameras' up directions cancel out: the scene was not turned")
        return np.eye(3)
    if orientation == "vertical":
        up = _vertical(poses[:, :, 0], up / np.linalg.norm(up))
    return rotation_between(up, np.array([0.0, 0.0, 1.0]))


def _vertical(right: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The direction most nearly across every camera's x axis, on the side of `up`."""
    _, sizes, axes = np.linalg.svd(right, full_matrices=True)
    if len(sizes) > 1 and sizes[1] > PARALLEL * math.sqrt(len(right)):
        return axes[2] if axes[2] @ up > 0 else -axes[2]
    across = up - axes[0] * (axes[0] @ up)
    return across if np.linalg.norm(across) > 1e-6 else up


def _principal_axes(poses: np.ndarray) -> np.ndarray:
    """Axes of the camera positions, widest first, the third on the side where the cameras' up points."""
    offsets = poses[:, :, 3] - poses[:, :, 3].mean(axis=0)
    axes = np.linalg.eigh(offsets.T @ offsets)[1][:, ::-1].T.copy()
    if axes[2] @ poses[:, :, 1].mean(axis=0) < 0:
        axes[2] *= -1
    if np.linalg.det(axes) < 0:
        axes[1] *= -1
    return axes


def _centre(poses: np.ndarray, center: str) -> np.ndarray:
    if center == "none":
        return np.zeros(3)
    mean = poses[:, :, 3].mean(axis=0)
    return mean if center == "poses" else _focus(poses, mean)


def _focus(poses: np.ndarray, focus: np.ndarray) -> np.ndarray:
    """The point nearest, in least squares, to the viewing axes of the cameras that have it before them."""
    origins, views = poses[:, :, 3], -poses[:, :, 2]
    ahead = np.einsum("ni,ni->n", views, focus - origins) > 0
    while ahead.sum() > 1:
        origins, views = origins[ahead], views[ahead]
        across = np.eye(3) - views[:, :, None] * views[:, None, :]
        system = across.mean(axis=0)
        if np.linalg.cond(system) > 1e8:  # parallel axes meet nowhere
            break
        focus = np.linalg.solve(system, np.einsum("nij,nj->i", across, origins) / len(origins))
        ahead = np.einsum("ni,ni->n", views, focus - origins) > 0
        if ahead.all():
            break
    return focus


def _check_outliers(places: np.ndarray, problems: list[str]) -> None:
    """Name a camera that stands far outside of where the others are: all of the scene is scaled by it."""
    away = np.linalg.norm(places - np.median(places, axis=0), axis=1)
    usual = float(np.median(away))
    if len(places) >= 5 and usual > TINY and away.max() > FAR * usual:
        problems.append(
            f"camera {int(away.argmax())} stands {away.max() / usual:.0f} times as far out as the median "
            "camera: if its pose is wrong, leave the photo out, because the scene is scaled until it fits in"
        )


def _scale(positions: np.ndarray, scale: str | float, problems: list[str]) -> float:
    if scale == "none":
        return 1.0
    if scale == "auto":
        reach = float(np.abs(positions).max())
        if reach > TINY:
            return 1 / reach
        problems.append("every camera stands at the origin: the scene was not scaled")
        return 1.0
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise SceneError(f"scale must be 'auto', 'none' or a positive number, not {scale!r}")
    return float(scale)


def _check_word(name: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words:
        raise SceneError(f"{name} must be one of {', '.join(words)}, not {value!r}")
