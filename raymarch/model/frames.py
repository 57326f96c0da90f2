"""Whole images, in chunks of tiles of 8 x 4 pixels: neighbouring rays read the same memory and end together.

On CUDA one chunk is captured in a graph, which is replayed with another first pixel until the frame is full:
the host does nothing per ray and waits for nothing within a frame. The number of rays in flight follows from
free memory and `max_gb`. After running out of memory a frame is tried once more with a quarter of the rays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raymarch.model import exact, reduced
from raymarch.model.baked import Baked, bake
from raymarch.model.canvas import TILE, TILE_HEIGHT, TILE_WIDTH, Canvas, apart_rays, blank, pixel_numbers
from raymarch.model.in_flight import chunk_size
from raymarch.model.rays import generate
from raymarch.types import Cameras, Pixels

if TYPE_CHECKING:
    from raymarch.model import Model

MODES = ("exact", "reduced")
IMAGE_HEADS = frozenset({"rgb", "depth", "opacity"})
MOST_RECORDED = 4  # captured chunks that are kept, of other sizes or heads
FEATURE_ROWS = 1 << 15  # pixels whose feature vectors are made at once


class OutOfMemory(RuntimeError):
    """A frame does not fit; the message names what to lower."""


def ran_out(error: BaseException) -> bool:
    """Whether an error is about memory: torch's on a GPU, Python's own, or torch's allocator on a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@dataclass(frozen=True)
class Settings:
    """How frames are rendered, whatever they show."""

    max_gb: float = 1.0  # of GPU memory for one frame, beside the model's own
    graph: bool = True  # on CUDA, capture a chunk
    fused: bool = True  # on CUDA, the ops that do several stages at once where they fit the networks
    half_features: bool = False  # feature images as float16


@dataclass
class Recorded:
    """A captured chunk and what it reads."""

    graph: torch.cuda.CUDAGraph
    canvas: Canvas
    held: tuple[Tensor | None, ...]  # which the graph reads and nobody else would keep


class FrameRenderer:
    """Renders frames of one model. Keep it: the second frame of a size costs less than the first."""

    def __init__(self, model: Model, settings: Settings = Settings()):
        self.model, self.settings = model, settings
        self._baked: Baked | None = None
        self._baked_from: tuple[int, ...] = ()
        self._recorded: dict[tuple, Recorded] = {}
        self._chunks: dict[tuple, int] = {}  # rays in flight by heads, mode and device
        self._pool: Any = None  # of memory that captured chunks share
        self._camera: Cameras | None = None
        self._first: Tensor | None = None
        self._factors: tuple[Tensor, int, tuple[Tensor, Tensor]] | None = None  # of which layer and version

    @torch.no_grad()
    def render(
        self,
        cameras: Cameras,
        camera: int = 0,
        heads: frozenset[str] = IMAGE_HEADS,
        mode: str = "exact",
        embeddings: Tensor | None = None,
        chunk: int | None = None,
    ) -> dict[str, Tensor]:
        """One frame, head by head: `rgb` [h, w, 3], `depth` [h, w] in scene units, ...

        heads: those of `raymarch.model.HEADS`, and `similarity` [h, w, K], the cosines of `embeddings` [K, D]
        with the features of the head that text is compared with. `mode` "reduced" is faster and close
        (`raymarch.model.reduced`). `chunk` is the number of rays in flight, by default from free memory.
        Feature images that would not fit into `max_gb` are returned on the host.
        ValueError for unknown modes and missing embeddings; OutOfMemory.
        """
        if mode not in MODES:
            raise ValueError(f"render: mode is {mode!r}, expected one of {', '.join(MODES)}")
        if "similarity" in heads and embeddings is None:
            raise ValueError("render: the head similarity needs embeddings [K, D], as from a text encoder")
        device = cameras.camera_to_worlds.device
        rays = chunk or self._in_flight(heads, mode, device)
        was_training = self.model.training
        self.model.train(False) if was_training else None
        threads = torch.get_num_threads()
        if device.type == "cpu":
            torch.set_num_threads(1)  # our pool has the cores; see trainer.one_torch_thread
        try:
            if mode == "reduced":
                self._bake(was_training)
            self._refresh_tables()
            fewer = max(TILE, rays // 4)
            found = self._tried(cameras, camera, heads, mode, embeddings, rays)
            if found is None:  # outside the handler, so that the failed frame's memory is free
                self.forget()
                found = self._tried(cameras, camera, heads, mode, embeddings, fewer)
            if found is None:
                self.forget()
                where = "GPU memory" if device.type == "cuda" else "memory"
                raise OutOfMemory(
                    f"neither {rays} nor {fewer} rays in flight fit into {where}: render fewer heads or a "
                    f"smaller image, lower model.sampler.samples, or free some {where}"
                )
            return found
        finally:
            torch.set_num_threads(threads)
            self.model.train(was_training) if was_training else None

    def _in_flight(self, heads: frozenset[str], mode: str, device: torch.device) -> int:
        """Rays of a chunk, from the memory that was free when such a frame was first rendered."""
        key = (heads, mode, device)
        if key not in self._chunks:
            self._chunks[key] = chunk_size(
                self.model, heads, mode, device, self.settings.max_gb, self.settings.fused
            )
        return self._chunks[key]

    def _tried(self, *what: Any) -> dict[str, Tensor] | None:
        """The frame, or None where memory ran out."""
        try:
            return self._frame(*what)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            return None

    def forget(self) -> None:
        """Give captured chunks and the baked grid's memory back."""
        self._recorded.clear()
        self._chunks.clear()
        self._pool = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def bake(self) -> Baked:
        """The baked grid of the reduced mode, made again where the model has changed since."""
        self._bake(self.model.training)
        assert self._baked is not None
        return self._baked

    def _bake(self, changed: bool) -> None:
        stamp = tuple(p._version for p in self.model.fields.parameters())
        if self._baked is not None and stamp == self._baked_from and not changed:
            return
        config = self.model.config.reduced
        empty = config.empty if reduced.in_one(self.model) else 0.0  # nobody else reads the bits
        made = bake(self.model.fields, config.resolution, empty)
        if self._baked is None:
            self._baked = made
        else:  # into the same memory, which captured chunks read
            self._baked.density.copy_(made.density)
            if self._baked.occupied is not None and made.occupied is not None:
                self._baked.occupied.copy_(made.occupied)
        self._baked_from = stamp

    def _refresh_tables(self) -> None:
        """Half copies brought up to date here, so that no chunk has to."""
        grids = [f.grid for f in (*self.model.fields.proposals, self.model.fields.radiance)]
        if self.model.fields.feature is not None and self.model.fields.feature.grid is not None:
            grids.append(self.model.fields.feature.grid)
        for grid in grids:
            grid.refresh()

    def _frame(
        self,
        cameras: Cameras,
        camera: int,
        heads: frozenset[str],
        mode: str,
        embeddings: Tensor | None,
        rays: int,
    ) -> dict[str, Tensor]:
        device = cameras.camera_to_worlds.device
        width, height = (int(v) for v in cameras.size[camera].tolist())
        wanted = set(heads) - {"feature", "similarity"}
        if heads & {"feature", "similarity"}:
            wanted.add("feature_hidden")
        step = (
            self.model.config.reduced.feature_step if mode == "reduced" and "feature_hidden" in wanted else 1
        )
        if step not in (1, 2, 4):
            raise ValueError(f"model.reduced.feature_step is {step}, expected 1, 2 or 4")
        tiles = -(-width // TILE_WIDTH) * -(-height // TILE_HEIGHT)
        chunks = -(-tiles * TILE // max(TILE, rays // TILE * TILE))
        rays = -(-tiles // chunks) * TILE  # as even as tiles allow
        one = Cameras(*(getattr(cameras, f.name)[camera : camera + 1] for f in fields(Cameras)))
        if device.type == "cuda" and self.settings.graph and self.model.native:
            canvas = self._replayed(one, (width, height, step, frozenset(wanted), mode, rays), chunks)
        else:
            canvas = blank(width, height, step, chunks * rays, device)
            for i in range(chunks):
                span = slice(i * rays, min((i + 1) * rays, tiles * TILE))
                self._chunk(one, canvas, pixel_numbers(canvas, span), mode, frozenset(wanted))
        return self._finish(canvas, heads, embeddings)

    # ---- chunks ----

    def _chunk(
        self,
        camera: Cameras,
        canvas: Canvas,
        numbers: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
        mode: str,
        heads: frozenset[str],
    ) -> None:
        """Render some pixels into the canvas. Captured on CUDA: reads and writes the device alone."""
        where, xy, low, apart = numbers
        model = self.model
        pixels = Pixels(torch.zeros_like(where), xy)
        if mode == "exact":
            found = exact.render_pixels(model, pixels, camera, heads, self.settings.fused)
        else:
            assert self._baked is not None
            rays = generate(pixels, camera, None, model.config.rays, False)
            found = reduced.render_rays(model, rays, self._baked, heads, apart)
        for name, values in found.items():
            apart_from = name == "feature_hidden" and low is not None
            at = low if apart_from else where
            assert at is not None
            image = canvas.images.get(name)
            if image is None:
                s = canvas.step if apart_from else 1
                count = -(-canvas.width // s) * -(-canvas.height // s) + 1
                image = canvas.images[name] = values.new_zeros(count, *values.shape[1:])
            image.index_copy_(0, at, values)

    # ---- CUDA graphs ----

    def _replayed(self, one: Cameras, key: tuple, chunks: int) -> Canvas:
        """The frame through a captured chunk, which is recorded if there is none."""
        width, height, step, heads, mode, rays = key
        device = one.camera_to_worlds.device
        if self._camera is None or self._first is None:
            self._camera = replace(one, **{f.name: getattr(one, f.name).clone() for f in fields(Cameras)})
            self._first = torch.zeros(1, dtype=torch.int64, device=device)
        for f in fields(Cameras):
            getattr(self._camera, f.name).copy_(getattr(one, f.name))
        key = (*key, self._addresses())
        found = self._recorded.get(key)
        if found is None:
            while len(self._recorded) >= MOST_RECORDED:  # the oldest goes, with its images
                del self._recorded[next(iter(self._recorded))]
            found = self._recorded[key] = self._record(width, height, step, heads, mode, rays, chunks, device)
        for i in range(chunks):
            self._first.fill_(i * rays)
            found.graph.replay()
        return found.canvas

    def _addresses(self) -> tuple[int, ...]:
        """Where what a graph reads lies: a model that moved needs another graph."""
        model = self.model.fields
        held: list[Tensor | None] = [*model.parameters(), *model.buffers()]
        if self._baked is not None:
            held += [self._baked.density, self._baked.occupied]
        return tuple(t.data_ptr() for t in held if t is not None)

    def _record(
        self,
        width: int,
        height: int,
        step: int,
        heads: frozenset[str],
        mode: str,
        rays: int,
        chunks: int,
        device,
    ) -> Recorded:
        assert self._camera is not None and self._first is not None
        camera, first = self._camera, self._first
        canvas = blank(width, height, step, chunks * rays, device)
        within = torch.arange(rays, device=device)
        apart = apart_rays(rays, step, device) if step > 1 else None
        low_within = None if apart is None else torch.arange(len(apart), device=device)

        def body() -> None:
            at = first + within
            low = None
            if canvas.low_order is not None and low_within is not None:
                low = canvas.low_order.index_select(0, first // step**2 + low_within)
            numbers = canvas.order.index_select(0, at), canvas.xy.index_select(0, at), low, apart
            self._chunk(camera, canvas, numbers, mode, heads)

        return Recorded(self._captured(body), canvas, (within, apart, low_within))

    def _captured(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        assert self._first is not None
        self._first.zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            body()  # loads kernels and libraries, makes the images
        torch.cuda.current_stream().wait_stream(stream)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            body()
        return graph

    # ---- what a frame becomes ----

    def _finish(self, canvas: Canvas, heads: frozenset[str], embeddings: Tensor | None) -> dict[str, Tensor]:
        """Images as callers get them: their own memory, [h, w, ...]."""
        shape = (canvas.height, canvas.width)
        found = {
            name: image[:-1].clone().view(*shape, *image.shape[1:])
            for name, image in canvas.images.items()
            if name != "feature_hidden"
        }
        if "feature_hidden" not in canvas.images:
            return found
        step, flat = canvas.step, canvas.images["feature_hidden"][:-1]
        low = flat.view(-(-canvas.height // step), -(-canvas.width // step), -1)
        depth = found["depth"]
        feature = self.model.fields.feature
        assert feature is not None
        if "similarity" in heads:
            assert embeddings is not None
            values = reduced.cosines(low, self._folded(feature.layer, feature.text_layer, embeddings))
            small = depth[::step, ::step]
            found["similarity"] = reduced.filled_in(values, small, depth, step) if step > 1 else values
        if "feature" in heads:
            found["feature"] = self._features(low, depth, step)
        if "feature_hidden" in heads:
            found["feature_hidden"] = low.clone()
        return found

    def _folded(self, layer: Tensor, rows: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings folded through the rows of the layer that texts are compared with.

        The rows' factors are kept. What was asked is not: other embeddings may come to lie where the last
        ones did.
        """
        if self._factors is None or self._factors[0] is not layer or self._factors[1] != layer._version:
            self._factors = layer, layer._version, reduced.factors(rows)
        return reduced.folded(self._factors[2], embeddings)

    def _features(self, low: Tensor, depth: Tensor, step: int) -> Tensor:
        """The feature image, a few rows at a time: on the device if it fits, else in the host's memory."""
        (height, width), layer = depth.shape, self.model.fields.feature.layer  # type: ignore[union-attr]
        dtype = torch.float16 if self.settings.half_features else layer.dtype
        bytes_needed = height * width * len(layer) * dtype.itemsize
        fits = not low.is_cuda or bytes_needed < 0.4e9 * self.settings.max_gb
        where = low.device if fits else torch.device("cpu")
        image = torch.empty(height, width, len(layer), dtype=dtype, device=where, pin_memory=not fits)
        rows = max(step, FEATURE_ROWS // width // step * step)
        for first in range(0, height, rows):
            part = slice(first, min(first + rows, height))
            values = low[part]
            if step > 1:  # with the row below, which the last ones lean on
                near = slice(first // step, -(-part.stop // step) + 1)
                values = reduced.filled_in(low[near], depth[::step, ::step][near], depth[part], step)
            image[part].copy_((values @ layer.T).to(dtype), non_blocking=True)
        if not fits:
            torch.cuda.current_stream().synchronize()
        return image
