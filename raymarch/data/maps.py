"""Feature maps: one coarse grid of vectors per image, kept in half precision.

A pixel reads the cell trunc(pixel * cells / pixels) of its image's grid (spec 12.4), or blends four cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymarch.data.error import SceneError

MODES = ("nearest", "bilinear")
FLOATS = ("float16", "float32", "float64", "bfloat16")


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """One map per image, all of one width D; grids may differ in size."""

    maps: tuple[Tensor, ...]  # [h, w, D] float16
    kind: str = "unnamed"  # what made them: clip, dino, ...
    mode: str = "nearest"  # how a pixel reads them
    beside: tuple[FeatureMaps, ...] = ()  # maps of the same images for further heads
    info: dict[str, Any] = field(default_factory=dict)  # what made them: encoder, weights, ...; JSON-ready

    @property
    def heads(self) -> tuple[FeatureMaps, ...]:
        """These maps and those beside them, one per head."""
        return (replace(self, beside=()), *self.beside)

    @property
    def width(self) -> int:
        """D"""
        return self.maps[0].shape[2]


def feature_maps(
    features, sizes: Sequence[tuple[int, int]], names: Sequence[str], kind="unnamed", mode="nearest"
) -> FeatureMaps | None:
    """Check maps against images of sizes (width, height). `features`: FeatureMaps, [N, h, w, D] or a list."""
    if features is None:
        return None
    beside: tuple[FeatureMaps, ...] = ()
    info: dict[str, Any] = {}
    if isinstance(features, FeatureMaps):
        checked = (feature_maps(x, sizes, names) for x in features.beside)
        beside, info = tuple(x for x in checked if x is not None), features.info
        features, kind, mode = features.maps, features.kind, features.mode
    if mode not in MODES:
        raise SceneError(f"feature maps are read by mode {' or '.join(MODES)}, not {mode!r}")
    listed = list(features)
    if len(listed) != len(names):
        raise SceneError(f"there are {len(listed)} feature maps for {len(names)} images")
    maps = tuple(_map(x, size, name) for x, size, name in zip(listed, sizes, names, strict=True))
    width = maps[0].shape[2]
    for name, cells in zip(names, maps, strict=True):
        if cells.shape[2] != width:
            raise SceneError(
                f"feature maps differ in width: {names[0]} has {width} channels, {name} {cells.shape[2]}"
            )
    return FeatureMaps(maps, kind, mode, beside, info)


def _map(value, size: tuple[int, int], name: str) -> Tensor:
    array = value.detach().cpu() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim != 3 or 0 in array.shape or not str(array.dtype).removeprefix("torch.").startswith(FLOATS):
        raise SceneError(f"the feature map of {name} should be floats of shape [h, w, D], "
                         f"not {array.dtype} of shape {list(array.shape)}")  # fmt: skip
    rows, columns = array.shape[:2]
    width, height = size
    if abs(columns * height - rows * width) > width + height:  # more than a cell off the image's shape
        raise SceneError(f"the feature map of {name} has {columns} x {rows} cells, "
                         f"which does not fit an image of {width} x {height} pixels")  # fmt: skip
    half = torch.as_tensor(array).to(torch.float16).contiguous()
    if not half.isfinite().all():
        raise SceneError(f"the feature map of {name} holds numbers that are not finite or exceed 65504")
    return half
