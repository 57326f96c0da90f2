"""Photos on a device, ready to draw training pixels from: colours, features and depth gathered per pixel.

Everything lies in flat buffers on the device and nothing on the way to `Pixels` waits for the host, so a CUDA
graph can hold a whole draw. Letters: C cameras of this source (a subset of the scene's), R pixels drawn, D
feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raymarch.data.error import SceneError
from raymarch.data.maps import FeatureMaps
from raymarch.data.scene import Scene
from raymarch.types import Cameras, Pixels

SHARE = 0.6  # of a GPU's free memory that photos and features may take; the rest is for training


class Source:
    """Photos `indices` of a scene, to draw from on a device. Camera numbers are positions in `indices`."""

    feature_width = 0  # D, of all heads together, or 0 without features
    depth: Tensor | None = None  # distances on the device, where there are any

    def __init__(
        self, scene: Scene, indices: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ):
        chosen = _checked(range(len(scene.images)) if indices is None else indices, len(scene.images))
        self.indices = chosen
        self.device = torch.device(device)
        self.names = tuple(scene.names[i] for i in chosen)
        self.background = scene.background
        self.cameras = _subset(scene.cameras, chosen, self.device)
        photos = [scene.images[i] for i in chosen]
        self.channels = photos[0].shape[2]
        self._sizes = [(x.shape[1], x.shape[0]) for x in photos]
        if scene.features is not None:
            self.feature_width = sum(head.width for head in scene.features.heads)

    @property
    def bytes(self) -> int:
        """Memory held on the device."""
        raise NotImplementedError

    def prepare(self, step: int) -> None:
        """Called before every step of training, on the stream that trains."""

    def draw(self, counter: Tensor, count: int, stream: int = 0) -> Pixels:
        """`count` pixels drawn uniformly, with replacement, over all pixels (or those the masks keep).

        counter: [2] int64 on this device, (seed, step): equal counters give equal pixels on every device.
        """
        raise NotImplementedError

    def summary(self) -> str:
        """Where the photos lie, in a few words."""
        raise NotImplementedError

    def size(self, i: int) -> tuple[int, int]:
        """Width and height of photo i, without waiting for the device."""
        if not 0 <= i < len(self.indices):
            raise IndexError(f"photo {i} of a source of {len(self.indices)}")
        return self._sizes[i]


class PixelSource(Source):
    """All of the photos on the device."""

    def __init__(
        self, scene: Scene, indices: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ):
        super().__init__(scene, indices, device)
        chosen = self.indices
        photos = [scene.images[i] for i in chosen]
        counts = torch.tensor([0] + [x.shape[0] * x.shape[1] for x in photos], dtype=torch.int64)
        self._starts = counts.cumsum(0).tolist()  # on the host, for `image`
        self.starts = torch.tensor(self._starts, device=self.device)  # [C + 1] cumulative pixel counts
        self.widths = self.cameras.size[:, 0].contiguous()
        self.images = _flat(photos, torch.uint8, self.device)  # [sum of h * w * channels]
        self.valid = _valid(scene, chosen, self._starts, self.device)  # [K] pixels the masks keep, or None
        self.depth = _depths(scene, chosen, self.device)  # [sum of h * w], or None
        self.features: Tensor | None = None  # [sum of cells, D] float16, of the first head
        self._beside: list[_MapsOnDevice] = []  # of the others
        if scene.features is not None:
            maps = [scene.features.maps[i] for i in chosen]
            self.features = _flat(maps, torch.float16, self.device).view(-1, maps[0].shape[2])
            self.map_starts, self.map_sizes = _grid(maps, self.device)
            self.feature_mode = scene.features.mode
            self._beside = [_MapsOnDevice(x, chosen, self.device) for x in scene.features.beside]

    @property
    def bytes(self) -> int:
        held = (self.images, self.valid, self.depth, self.features, *(x.cells for x in self._beside))
        return sum(x.numel() * x.element_size() for x in held if x is not None)

    def draw(self, counter: Tensor, count: int, stream: int = 0) -> Pixels:
        """`count` pixels drawn uniformly, with replacement, over all pixels (or those the masks keep).

        counter: [2] int64 on this device, (seed, step): equal counters give equal pixels on every device.
        """
        from raymarch.ops.pixels import draw_pixels, draw_truth, gather_pixels

        if self.depth is None and not self._beside:
            maps: dict[str, Any] = {}
            if self.features is not None:
                maps = {"maps": self.features, "map_starts": self.map_starts, "map_size": self.map_sizes}
                maps["mode"] = self.feature_mode
            where = (counter, self.starts, self.widths, self.images, self.channels, count, self.cameras.size)
            camera, xy, rgb, feature = draw_truth(*where, self.valid, stream=stream, **maps)
            return Pixels(camera, xy, rgb, feature)
        camera, xy, index = draw_pixels(counter, self.starts, self.widths, count, stream, self.valid)
        rgb = gather_pixels(self.images, index, self.channels)
        depth = None if self.depth is None else self.depth.index_select(0, index)
        return Pixels(camera, xy, rgb, self._features_at(camera, xy), depth)

    def image(self, i: int, features: bool = False) -> Pixels:
        """Every pixel of photo i of this source, row by row. `features` adds the feature of each."""
        width, height = self.size(i)
        rows = torch.arange(height, device=self.device, dtype=torch.float32) + 0.5
        columns = torch.arange(width, device=self.device, dtype=torch.float32) + 0.5
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        xy = torch.stack([x.reshape(-1), y.reshape(-1)], dim=1)
        camera = torch.full((width * height,), i, device=self.device, dtype=torch.int64)
        first, last = self._starts[i], self._starts[i + 1]
        rgb = self.images[first * self.channels : last * self.channels].view(-1, self.channels).float() / 255
        depth = None if self.depth is None else self.depth[first:last]
        return Pixels(camera, xy, rgb, self._features_at(camera, xy) if features else None, depth)

    def summary(self) -> str:
        return f"all {len(self.indices)} photos lie on {self.device} ({self.bytes / 1e9:.3g} GB)"

    def _features_at(self, camera: Tensor, xy: Tensor) -> Tensor | None:
        if self.features is None:
            return None
        from raymarch.ops.pixels import gather_features

        grids = (self.map_starts, self.map_sizes, self.cameras.size)
        found = gather_features(self.features, *grids, camera, xy, self.feature_mode)
        if not self._beside:
            return found
        more = [
            gather_features(x.cells, x.starts, x.sizes, self.cameras.size, camera, xy, x.mode)
            for x in self._beside
        ]
        return torch.cat([found, *more], dim=1)


class _MapsOnDevice:
    """The maps of one further head, one after another."""

    def __init__(self, features: FeatureMaps, chosen: tuple[int, ...], device: torch.device):
        maps = [features.maps[i] for i in chosen]
        self.mode, self.width = features.mode, features.width
        self.cells = _flat(maps, torch.float16, device).view(-1, self.width)  # [sum of cells, D]
        self.starts, self.sizes = _grid(maps, device)


def bytes_needed(scene: Scene, indices: Sequence[int]) -> int:
    """What a PixelSource of these photos will hold on its device, for a message before it does not fit."""
    chosen = _checked(indices, len(scene.images))
    total = sum(scene.images[i].numel() for i in chosen)
    if scene.features is not None:
        total += sum(2 * head.maps[i].numel() for head in scene.features.heads for i in chosen)
    if scene.depths is not None and any(scene.depths[i] is not None for i in chosen):
        total += sum(4 * scene.images[i][:, :, 0].numel() for i in chosen)
    if scene.masks is not None and any(scene.masks[i] is not None for i in chosen):
        total += sum(8 * int(mask_of(scene, i).sum()) for i in chosen)
    return total


def _checked(indices: Sequence[int], count: int) -> tuple[int, ...]:
    chosen = tuple(int(i) for i in indices)
    if not chosen:
        raise SceneError("no photo was chosen: a pixel source needs at least one")
    if wrong := [i for i in chosen if not 0 <= i < count]:
        raise SceneError(f"photo {wrong[0]} was asked for, but the scene has {count}")
    return chosen


def _subset(cameras: Cameras, chosen: tuple[int, ...], device: torch.device) -> Cameras:
    rows = torch.tensor(chosen, dtype=torch.int64)
    parts = (cameras.camera_to_worlds, cameras.intrinsics, cameras.distortion, cameras.lens, cameras.size)
    return Cameras(*(part.index_select(0, rows).to(device) for part in parts))


def _flat(parts: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """All parts end to end, copied one at a time so the host never holds a second copy of the whole."""
    whole = torch.empty(sum(part.numel() for part in parts), dtype=dtype, device=device)
    start = 0
    for part in parts:
        whole[start : start + part.numel()].copy_(part.reshape(-1))
        start += part.numel()
    return whole


def mask_of(scene: Scene, i: int) -> Tensor:
    mask = scene.masks[i] if scene.masks is not None else None
    return torch.ones(scene.images[i].shape[:2], dtype=torch.bool) if mask is None else mask


def _valid(scene: Scene, chosen: tuple[int, ...], starts: list[int], device: torch.device) -> Tensor | None:
    if scene.masks is None or all(scene.masks[i] is None for i in chosen):
        return None
    kept = [mask_of(scene, i).reshape(-1).nonzero()[:, 0] for i in chosen]
    valid = torch.cat([pixels + start for pixels, start in zip(kept, starts[:-1], strict=True)])
    if not len(valid):
        raise SceneError(f"the masks keep no pixel of the {len(chosen)} photos chosen")
    return valid.to(device)


def _depths(scene: Scene, chosen: tuple[int, ...], device: torch.device) -> Tensor | None:
    if scene.depths is None or all(scene.depths[i] is None for i in chosen):
        return None
    found = [(scene.depths[i], scene.images[i]) for i in chosen]
    return _flat([torch.zeros(x.shape[:2]) if d is None else d for d, x in found], torch.float32, device)


def _grid(maps: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each map starts among all cells [C], and its width and height in cells [C, 2]."""
    cells = torch.tensor([0] + [x.shape[0] * x.shape[1] for x in maps[:-1]], dtype=torch.int64)
    sizes = torch.tensor([(x.shape[1], x.shape[0]) for x in maps], dtype=torch.int64)
    return cells.cumsum(0).to(device), sizes.to(device)
