"""Numbers -> colours: depth, normals, similarity, opacity. Arrays in, uint8 pictures [h, w, 3] out."""

from __future__ import annotations

import numpy as np
from torch import Tensor

DEPTH = (
    "#0b0924 #2a1a5e #5b2a86 #8f3a8c #c04d7c #e56b5d #f7974b #fcc95c #fbf3b4"  # far to near, dark to light
)
HEAT = "#3b3a1c #6e5a14 #b0801a #e8a92b #ffd84d"  # little to much
SCALES = ("inverse", "linear", "log")
BLANK = (128, 128, 128)  # where there is no number


def array(values) -> np.ndarray:
    """A NumPy array of a tensor on any device, or of anything array-like."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def table(anchors: str, size: int = 256) -> np.ndarray:
    """Colours [size, 3] uint8 that pass evenly through anchors "#rrggbb ..."."""
    stops = np.array([[int(a[i : i + 2], 16) for i in (1, 3, 5)] for a in anchors.split()], float)
    place = np.linspace(0, len(stops) - 1, size)
    channels = [np.interp(place, np.arange(len(stops)), stops[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def rgb(image) -> np.ndarray:
    """A picture [h, w, 3 or 4] in 0..1, or uint8 as it is. Not-a-number becomes black."""
    image = array(image)
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(f"rgb: a picture is [h, w, 3 or 4], got {list(image.shape)}")
    if image.dtype == np.uint8:
        return image
    return np.rint(np.nan_to_num(image.astype(np.float32)).clip(0, 1) * 255).astype(np.uint8)


def grey(values) -> np.ndarray:
    """Numbers [h, w] in 0..1 from black to white."""
    return rgb(np.repeat(array(values)[..., None], 3, axis=2).astype(np.float32))


def normals(vectors) -> np.ndarray:
    """Unit vectors [h, w, 3]: (n + 1) / 2, so that x is red, y green and z blue; zero vectors are grey."""
    return rgb((array(vectors).astype(np.float32) + 1) / 2)


def depth_range(distances) -> tuple[float, float]:
    """Near and far: the 0.5 % and 99.5 % quantiles of the distances that are finite and positive."""
    distances = array(distances)
    known = distances[np.isfinite(distances) & (distances > 0)]
    if known.size == 0:
        return 0.0, 1.0
    near, far = np.quantile(known, (0.005, 0.995))
    return float(near), float(max(far, near * (1 + 1e-6)))


def depth(
    distances, near: float | None = None, far: float | None = None, scale: str = "inverse"
) -> np.ndarray:
    """Distances [h, w], light where near and dark where far; grey where not finite or not positive.

    `scale` spreads the colours evenly over 1/t ("inverse", good for unbounded scenes), t or log t.
    """
    distances = array(distances).astype(np.float32)
    if near is None or far is None:
        low, high = depth_range(distances)
        near, far = low if near is None else near, high if far is None else far
    known = np.isfinite(distances) & (distances > 0)
    place = _place(np.where(known, distances, far).clip(near, far), near, far, scale)
    return np.where(known[..., None], table(DEPTH)[np.rint(place * 255).astype(int)], BLANK).astype(np.uint8)


def _place(distances, near, far, scale):
    """1 at near, 0 at far."""
    if scale not in SCALES:
        raise ValueError(f"depth: scale is one of {', '.join(SCALES)}, got {scale!r}")
    if scale == "inverse":
        near, far, distances = (-1 / np.maximum(t, 1e-9) for t in (near, far, distances))
    elif scale == "log":
        near, far, distances = (np.log(np.maximum(t, 1e-9)) for t in (near, far, distances))
    return ((far - distances) / max(far - near, 1e-12)).clip(0, 1)


def depth_at(place: float, near: float, far: float, scale: str = "inverse") -> float:
    """The distance whose colour lies at `place` of the legend, 0 near and 1 far."""
    if scale == "inverse":
        return 1 / ((1 - place) / max(near, 1e-9) + place / far)
    return near + place * (far - near) if scale == "linear" else near ** (1 - place) * far**place


def heat(similarity, picture=None, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Similarity [h, w] as warm light, over the dimmed picture [h, w, 3] where one is given."""
    amount = ((np.nan_to_num(array(similarity).astype(np.float32), nan=low) - low) / (high - low)).clip(0, 1)
    glow = table(HEAT)[np.rint(amount * 255).astype(int)].astype(np.float32)
    if picture is None:
        return glow.astype(np.uint8)
    under = rgb(picture)[..., :3].astype(np.float32).mean(axis=2, keepdims=True) * 0.55
    cover = 0.85 * amount[..., None]
    return np.rint(under * (1 - cover) + glow * cover).astype(np.uint8)
