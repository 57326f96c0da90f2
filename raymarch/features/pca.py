"""Feature -> colour: three principal directions and a colour range, both stored so that colours stay put.

F3RM keeps the directions but takes the range anew from every image, so its colours flicker, and its
directions come from a randomised algorithm with an arbitrary sign. Here the covariance is decomposed exactly,
the sign is fixed, and the range is stored too; `apply(..., colour_range="image")` leads back to F3RM's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("f3rm", "robust")
OUTLIER = 2.0  # robust: values further than this many median deviations from the median set no range
FLAT = 1e-6  # a range this small against its values is rounding, not colour
CHUNK = 1 << 16  # rows per step of the covariance


@dataclass(frozen=True)
class Pca:
    projection: Tensor  # [D, 3] unit columns, strongest first; the largest entry of each is positive
    low: Tensor  # [3] projected value that becomes 0
    high: Tensor  # [3] projected value that becomes 1
    kind: str  # one of KINDS: how low and high were chosen


def fit_pca(features: Tensor, method: str = "f3rm", projection: Tensor | None = None) -> Pca:
    """Directions and colour range of features [..., D]; `projection` [D, 3] skips the first half.

    "f3rm": the range runs from the 1 % to the 99 % quantile of the features, projected without centring.
    "robust": zero features count for nothing and outliers (see OUTLIER) set no range (nerfstudio's rule).
    Non-finite features are left out. Deterministic. Raises ValueError when nothing is left to fit.
    """
    if method not in KINDS:
        raise ValueError(f"fit_pca: method is one of {', '.join(KINDS)}, got {method!r}")
    rows = features.reshape(-1, features.shape[-1])
    rows = rows[_counts(rows, method)]
    if len(rows) == 0:
        raise ValueError(f"fit_pca: no usable feature among {features.shape[:-1].numel()}")
    if projection is None:
        projection = _directions(rows)
    low, high = _range(_project(rows, projection), method)
    return Pca(projection, low, high, method)


def apply(features: Tensor, pca: Pca, colour_range: str = "stored") -> Tensor:
    """Colours [..., 3] float32 in 0..1 of features [..., D].

    `colour_range="image"` takes the range from these features instead (what F3RM does on every call). A
    channel that does not vary is 0.5; non-finite features, and with "robust" zero ones, are black.
    """
    if colour_range not in ("stored", "image"):
        raise ValueError(f"apply: colour_range is stored or image, got {colour_range!r}")
    width, wanted = features.shape[-1], pca.projection.shape[0]
    if width != wanted:
        raise ValueError(f"apply: the projection was fitted to {wanted} channels, the features have {width}")
    rows = features.reshape(-1, width)
    shown = _counts(rows, pca.kind)
    projected = _project(rows, pca.projection)
    low, high = pca.low.to(projected), pca.high.to(projected)
    if colour_range == "image" and shown.any():
        low, high = _range(projected[shown], pca.kind)
    span = high - low
    varies = span > FLAT * torch.maximum(low.abs(), high.abs())
    colours = torch.where(varies, (projected - low) / torch.where(varies, span, 1), 0.5).clamp(0, 1)
    return torch.where(shown[:, None], colours, 0).reshape(*features.shape[:-1], 3)


def _counts(rows: Tensor, kind: str) -> Tensor:
    """Which rows [P] are features at all."""
    finite = rows.isfinite().all(dim=1)
    return finite & (rows != 0).any(dim=1) if kind == "robust" else finite


def _project(rows: Tensor, projection: Tensor) -> Tensor:
    projection = projection.to(rows.device, torch.float32)
    parts = [part.float() @ projection for part in rows.split(CHUNK)]
    return torch.cat(parts) if parts else rows.new_zeros(0, 3, dtype=torch.float32)


def _directions(rows: Tensor) -> Tensor:
    """The three leading eigenvectors of the covariance [D, 3], zero columns where D < 3."""
    width = rows.shape[1]
    mean = sum(part.double().sum(dim=0) for part in rows.split(CHUNK)) / len(rows)
    covariance = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    for part in rows.split(CHUNK):
        centred = part.float() - mean.float()
        covariance += (centred.T @ centred).double()
    vectors = torch.linalg.eigh(covariance.cpu()).eigenvectors.flip(1)[:, :3]
    strongest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    vectors = vectors * torch.where(strongest < 0, -1.0, 1.0)
    return torch.nn.functional.pad(vectors, (0, 3 - vectors.shape[1])).float().to(rows.device)


def _range(projected: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Low and high [3] of projected features [P, 3]. Sorting, as torch.quantile stops at 16 M elements."""
    ordered = projected.sort(dim=0).values
    if kind == "f3rm":
        return _quantile(ordered, 0.01), _quantile(ordered, 0.99)
    deviation = (projected - ordered[(len(ordered) - 1) // 2]).abs()
    scale = deviation.sort(dim=0).values[(len(ordered) - 1) // 2]
    inlier = (deviation < OUTLIER * scale) | (deviation == 0)
    infinity = torch.full_like(projected, torch.inf)
    low = torch.where(inlier, projected, infinity).amin(dim=0)
    return low, torch.where(inlier, projected, -infinity).amax(dim=0)


def _quantile(ordered: Tensor, q: float) -> Tensor:
    """Linear between the two nearest order statistics of each column."""
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below)
