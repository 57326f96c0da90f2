"""Photos that exceed the device's memory: a window of them lies there, and moves on while training goes on.

The device holds W slots. Photos pass through them in a shuffled order, each as long as any other: swap
number j puts photo W + j of the order into slot j modulo W, and is due before step `every` * (j + 1). So what
lies in the window at a step depends on the seed and the step alone, and a resumed run sees the same.

A thread reads photos ahead from the (mapped) scene into pinned buffers; the copy to the device is enqueued
between two steps on the stream that trains, so no step sees half a photo and nothing waits for the device.
Arrays keep their addresses, so a CUDA graph of the step stays valid. Letters: W slots, R pixels drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymarch.data.error import SceneError
from raymarch.data.maps import FeatureMaps
from raymarch.data.pixels import SHARE, PixelSource, Source, bytes_needed, mask_of
from raymarch.data.scene import Scene
from raymarch.data.store import free_memory
from raymarch.types import Pixels

AHEAD = 6  # photos read ahead
FIELDS = 4  # numbers per slot that the device needs: width, camera, width and height; two more per map


def budget(device: torch.device | str) -> int:
    """Bytes that photos and features may take on a device, from what is free there now."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    return int(0.5 * free_memory())


def pixel_source(
    scene: Scene,
    indices: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    most: int | None = None,
    seed: int = 0,
    every: int = 4,
) -> Source:
    """All photos on the device where they fit into `most` bytes (default: by what is free), else a window."""
    chosen = range(len(scene.images)) if indices is None else indices
    most = budget(device) if most is None else most
    if bytes_needed(scene, chosen) <= most:
        return PixelSource(scene, chosen, device)
    return PixelWindow(scene, chosen, device, most, seed, every)


@dataclass(frozen=True)
class Slots:
    """Arrays of W slots on the device, or of one slot on the host. None where the scene has none."""

    images: Tensor  # [W, pixels, channels] uint8
    kept: Tensor | None  # [W, pixels] int32 places that masks keep
    depth: Tensor | None  # [W, pixels] float32
    features: list[Tensor]  # per head [W, cells, D] float16

    def parts(self) -> list[Tensor]:
        return [x for x in (self.images, self.kept, self.depth, *self.features) if x is not None]


@dataclass
class Staged:
    """One photo on its way to the device."""

    slots: Slots
    table: Tensor  # what the device is to know once this photo is there
    choices: int = 0  # pixels that may be drawn
    done: torch.cuda.Event | None = None  # after which the buffers may be filled again


class PixelWindow(Source):
    """Some of the photos on the device, others on their way. Draws are uniform over the pixels in the window.

    most: bytes that the window may take on the device. every: steps between two swaps. SceneError where not
    even one photo fits, or the masks keep no pixel.
    """

    def __init__(
        self,
        scene: Scene,
        indices: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        most: int = 1 << 30,
        seed: int = 0,
        every: int = 4,
    ):
        super().__init__(scene, indices, device)
        if every < 1:
            raise SceneError(f"a window moves every 1 or more steps, not {every}")
        self.scene, self.seed, self.every = scene, seed, every
        chosen = self.indices
        self._masked = scene.masks is not None and any(scene.masks[i] is not None for i in chosen)
        self._deep = scene.depths is not None and any(scene.depths[i] is not None for i in chosen)
        self._usable = [c for c, i in enumerate(chosen) if not self._masked or bool(mask_of(scene, i).any())]
        if not self._usable:
            raise SceneError(f"the masks keep no pixel of the {len(chosen)} photos chosen")
        self._pixels = max(w * h for w, h in self._sizes)
        self._heads: tuple[FeatureMaps, ...] = () if scene.features is None else scene.features.heads
        self._cells = [max(head.maps[i][:, :, 0].numel() for i in chosen) for head in self._heads]
        each = sum(x.numel() * x.element_size() for x in self._arrays(1, "meta").parts())
        self.slots = min(most // each, len(self._usable))
        if self.slots < 1:
            sizes = f"{each / 1e9:.3g} GB of the {most / 1e9:.3g} GB that photos may take"
            raise SceneError(f"one photo takes {sizes} on {self.device}: downscale the photos, or raise "
                             "train.trainer.photos_gb")  # fmt: skip
        self._needed = bytes_needed(scene, chosen)
        self._make_device_arrays()
        self._photo = [-1] * self.slots  # camera number in each slot
        self._choices = [0] * self.slots
        self._orders: dict[int, list[int]] = {}
        pinned = self.device.type == "cuda"
        self._free = [self._staging(pinned) for _ in range(AHEAD)]
        self._flying: deque[Staged] = deque()
        self._reading: deque[tuple[int, Staged, Future]] = deque()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="photos")
        self._swaps = -1
        self.prepare(0)

    def _arrays(self, count: int, device: torch.device | str, pinned: bool = False) -> Slots:
        def new(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(count, *shape, dtype=dtype, device=device, pin_memory=pinned)

        return Slots(
            new(self._pixels, self.channels, dtype=torch.uint8),
            new(self._pixels, dtype=torch.int32) if self._masked else None,
            new(self._pixels, dtype=torch.float32) if self._deep else None,
            [
                new(cells, head.width, dtype=torch.float16)
                for head, cells in zip(self._heads, self._cells, strict=True)
            ],
        )

    def _make_device_arrays(self) -> None:
        """The slots, and one table of numbers [W + 1 + W FIELDS] whose parts have names of their own."""
        w = self.slots
        self._held = self._arrays(w, self.device)
        self.depth = self._held.depth
        numbers = w + 1 + w * (FIELDS + 2 * len(self._heads))
        self._table = torch.zeros(numbers, dtype=torch.int64, device=self.device)
        self.starts = self._table[: w + 1]  # [W + 1] pixels that may be drawn before each slot
        rest = self._table[w + 1 :]
        self.widths, self._camera = rest[:w], rest[w : 2 * w]
        self._image_sizes = rest[2 * w : 4 * w].view(w, 2)
        self._map_sizes = rest[4 * w :].view(len(self._heads), w, 2)
        self._map_starts = [torch.arange(w, device=self.device) * cells for cells in self._cells]

    def _staging(self, pinned: bool) -> Staged:
        return Staged(
            self._arrays(1, "cpu", pinned),
            torch.zeros(self._table.shape, dtype=torch.int64, pin_memory=pinned),
        )

    @property
    def bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self._held.parts())

    def summary(self) -> str:
        return (
            f"{self.slots} of {len(self._usable)} photos lie on {self.device} at a time "
            f"({self.bytes / 1e9:.3g} of {self._needed / 1e9:.3g} GB), one changes every {self.every} steps"
        )

    def photo_in_order(self, place: int) -> int:
        """The camera number at a place of the endless shuffled order."""
        count = len(self._usable)
        turn, at = divmod(place, count)
        if turn not in self._orders:
            order = np.random.default_rng([self.seed, turn]).permutation(count)
            self._orders = {k: v for k, v in self._orders.items() if k >= turn - 1}
            self._orders[turn] = [self._usable[k] for k in order.tolist()]
        return self._orders[turn][at]

    def prepare(self, step: int) -> None:
        """Make the window what it is at this step: usually nothing, else one copy that is not waited for."""
        due = step // self.every if self.slots < len(self._usable) else 0
        if not 0 <= due - self._swaps <= self.slots or self._swaps < 0:
            self._start_over(due)
        while self._swaps < due:
            self._swap()

    def _start_over(self, swaps: int) -> None:
        """Fill every slot with what it holds after so many swaps."""
        while self._reading:
            _, staged, future = self._reading.popleft()
            future.result()
            self._free.append(staged)
        for slot in range(self.slots):
            rounds = max(0, swaps - slot + self.slots - 1) // self.slots  # swaps of this slot so far
            staged = self._buffer()
            self._read(staged, self.photo_in_order(slot + rounds * self.slots))
            self._send(staged, slot, self.photo_in_order(slot + rounds * self.slots))
        self._swaps = swaps
        self._read_ahead()

    def _swap(self) -> None:
        j, staged, future = self._reading.popleft()
        future.result()
        self._send(staged, j % self.slots, self.photo_in_order(self.slots + j))
        self._swaps = j + 1
        self._read_ahead()

    def _read_ahead(self) -> None:
        if self.slots == len(self._usable):
            return
        while self._flying and _is_over(self._flying[0].done):
            self._free.append(self._flying.popleft())
        while self._free or not self._reading:
            j = self._swaps + len(self._reading)
            staged = self._buffer()
            photo = self.photo_in_order(self.slots + j)
            self._reading.append((j, staged, self._reader.submit(self._read, staged, photo)))

    def _buffer(self) -> Staged:
        """A buffer that may be filled; waits for the oldest copy only where none is free."""
        if self._free:
            return self._free.pop()
        oldest = self._flying.popleft()
        if oldest.done is not None:
            oldest.done.synchronize()
        return oldest

    def _read(self, staged: Staged, camera: int) -> None:
        """From the scene to the buffer. Runs in the reading thread, and never calls CUDA there."""
        i, slots = self.indices[camera], staged.slots
        photo = self.scene.images[i]
        count = photo.shape[0] * photo.shape[1]
        np.copyto(slots.images[0, :count].numpy(), photo.numpy().reshape(count, self.channels))
        staged.choices = count
        if slots.kept is not None:
            kept = np.flatnonzero(mask_of(self.scene, i).numpy().reshape(-1))
            staged.choices = len(kept)
            slots.kept[0, : len(kept)].numpy()[:] = kept
        if slots.depth is not None:
            depth = self.scene.depths[i] if self.scene.depths is not None else None
            slots.depth[0, :count].numpy()[:] = 0 if depth is None else depth.numpy().reshape(-1)
        for head, room in zip(self._heads, slots.features, strict=True):
            cells = head.maps[i].numpy().reshape(-1, head.width)
            np.copyto(room[0, : len(cells)].numpy(), cells)

    def _send(self, staged: Staged, slot: int, camera: int) -> None:
        """Enqueue the copy to the device, and what it means for the table."""
        self._photo[slot], self._choices[slot] = camera, staged.choices
        w, table = self.slots, staged.table.numpy()
        table[0] = 0
        np.cumsum(self._choices, out=table[1 : w + 1])
        rest = table[w + 1 :]
        for k, c in enumerate(self._photo):
            width, height = self._sizes[c]
            rest[k], rest[w + k], rest[2 * w + 2 * k], rest[2 * w + 2 * k + 1] = width, c, width, height
            for h, head in enumerate(self._heads):
                rows, columns = head.maps[self.indices[c]].shape[:2]
                at = (4 + 2 * h) * w + 2 * k
                rest[at], rest[at + 1] = columns, rows
        for to, source in zip(self._held.parts(), staged.slots.parts(), strict=True):
            to[slot].copy_(source[0], non_blocking=True)
        self._table.copy_(staged.table, non_blocking=True)
        staged.done = None
        if self.device.type == "cuda":
            staged.done = torch.cuda.Event()
            staged.done.record(torch.cuda.current_stream(self.device))
        self._flying.append(staged)

    def draw(self, counter: Tensor, count: int, stream: int = 0) -> Pixels:
        from raymarch.ops.pixels import draw_pixels, gather_features, gather_pixels

        slot, xy, number = draw_pixels(counter, self.starts, self.widths, count, stream)
        place = number - self.starts.index_select(0, slot)
        at = slot * self._pixels + place
        if self._held.kept is not None:
            place = self._held.kept.view(-1).index_select(0, at).long()
            xy = centres(place, self.widths.index_select(0, slot))
            at = slot * self._pixels + place
        rgb = gather_pixels(self._held.images.view(-1), at, self.channels)
        depth = None if self._held.depth is None else self._held.depth.view(-1).index_select(0, at)
        found = []
        for h, (head, held) in enumerate(zip(self._heads, self._held.features, strict=True)):
            grids = (self._map_starts[h], self._map_sizes[h], self._image_sizes)
            found.append(gather_features(held.view(-1, head.width), *grids, slot, xy, head.mode))
        feature = found[0] if len(found) == 1 else torch.cat(found, dim=1) if found else None
        return Pixels(self._camera.index_select(0, slot), xy, rgb, feature, depth)


def centres(place: Tensor, width: Tensor) -> Tensor:
    """Pixel centres xy [R, 2] float32 of places [R] counted row by row in photos of these widths [R]."""
    row = torch.div(place, width, rounding_mode="floor")
    return torch.stack([place - row * width, row], dim=1).float() + 0.5


def _is_over(event: torch.cuda.Event | None) -> bool:
    return event is None or event.query()
