"""From a lens as files describe it to numbers for an image of a certain size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from raymarch.data.error import SceneError
from raymarch.data.listing import Lens


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
