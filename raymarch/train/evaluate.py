"""Whole images out of a model, and how good they are against held-out photos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from raymarch.model import Model
from raymarch.train.metrics import feature_cosine, psnr, ssim, ssim_protocol
from raymarch.types import Cameras, Pixels, Rendering

IMAGE_HEADS = frozenset({"rgb", "depth", "opacity"})


class OutOfMemory(RuntimeError):
    """A frame does not fit; the message names what to lower."""


def grid_pixels(cameras: Cameras, camera: int, rows: slice, device: torch.device) -> Pixels:
    """The pixels of some rows of one camera, row-major."""
    width, height = (int(v) for v in cameras.size[camera])
    y, x = torch.meshgrid(
        torch.arange(*rows.indices(height), device=device), torch.arange(width, device=device), indexing="ij"
    )
    xy = torch.stack([x, y], -1).view(-1, 2).float() + 0.5
    return Pixels(torch.full((len(xy),), camera, dtype=torch.int64, device=device), xy)


@torch.no_grad()
def render_image(
    model: Model,
    cameras: Cameras,
    camera: int,
    heads: frozenset[str] = IMAGE_HEADS,
    chunk: int | None = None,
    keep: Callable[[Rendering], dict[str, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """One frame, head by head: `rgb` [h, w, 3], `depth` [h, w] in scene units, ...

    `chunk` is the number of rays in flight (default: from free memory); after running out of GPU memory once
    it is halved and the frame goes on. `keep` picks what of each chunk survives.
    """
    device = cameras.camera_to_worlds.device
    width, height = (int(v) for v in cameras.size[camera])
    was_training = model.training
    model.eval()
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)  # our pool has the cores; see trainer.one_torch_thread
    try:
        parts: list[dict[str, Tensor]] = []
        row = 0
        step = max(1, (chunk or chunk_size(model, heads, device)) // width)
        while row < height:
            try:
                pixels = grid_pixels(cameras, camera, slice(row, min(row + step, height)), device)
                rendering = model(pixels, cameras, train=False, heads=heads)
                parts.append(keep(rendering) if keep else heads_of(rendering))
                row += step
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                if step == 1:
                    raise OutOfMemory(
                        f"one row of {width} rays does not fit into GPU memory: lower the samples per ray "
                        "(model.sampler.samples) or render fewer heads"
                    ) from None
                step = max(1, step // 2)
        return {
            k: torch.cat([p[k] for p in parts]).view(height, width, *parts[0][k].shape[1:]) for k in parts[0]
        }
    finally:
        torch.set_num_threads(threads)
        model.train(was_training)


def chunk_size(model: Model, heads: frozenset[str], device: torch.device) -> int:
    """Rays in flight that fit comfortably: 2^14 on a CPU, on a GPU what a third of free memory holds."""
    if device.type != "cuda":
        return 1 << 14
    samples = model.config.sampler.samples
    floats = max(*(n * 24 for n in samples), samples[-1] * (512 if "feature" in heads else 352))
    free, _ = torch.cuda.mem_get_info(device)
    return int(min(1 << 17, max(1 << 10, free // 3 // (4 * floats))))


def heads_of(rendering: Rendering) -> dict[str, Tensor]:
    """The per-ray tensors of a rendering by name."""
    names = [f.name for f in fields(Rendering)]
    skip = {"weights", "feature_hidden", "samples", "field", "rays", "proposals"}
    found = {n: getattr(rendering, n) for n in names if n not in skip}
    return {n: v for n, v in found.items() if isinstance(v, Tensor)}


@dataclass(frozen=True)
class ImageMetrics:
    name: str
    psnr: float  # dB, data range 1, over all pixels and channels
    ssim: float
    feature_cosine: float | None = None  # mean over pixels that have a target feature


def over_background(image: Tensor, background: str) -> Tensor:
    """A photo [h, w, 3 or 4] uint8 as float rgb, its alpha blended over the scene's background."""
    image = image.float() / 255
    if image.shape[-1] == 3:
        return image
    return image[..., :3] * image[..., 3:] + (1 - image[..., 3:]) * (1.0 if background == "white" else 0.0)


def evaluate(
    model: Model,
    cameras: Cameras,
    images: list[Tensor],
    names: list[str],
    background: str = "black",
    targets: Callable[[int], Tensor] | None = None,
    chunk: int | None = None,
) -> Iterator[tuple[ImageMetrics, dict[str, Tensor]]]:
    """Metrics and rendering of each image; poses as given (not refined), mean appearance code.

    `targets(i)` gives feature targets [h, w, D] of image i.
    """
    heads = IMAGE_HEADS | ({"feature"} if targets is not None else set())
    device = cameras.camera_to_worlds.device
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        frame = render_image(model, cameras, i, heads, chunk)
        truth = over_background(image.to(device), background)
        cosine = None
        if targets is not None:
            cosine = float(feature_cosine(frame["feature"].flatten(0, -2), targets(i).flatten(0, -2)).mean())
        rgb = frame["rgb"]
        yield ImageMetrics(name, float(psnr(rgb, truth)), float(ssim(rgb, truth)), cosine), frame


PROTOCOL = (
    "held-out photos at the size given, poses as in the data set (not refined), mean appearance code, "
    "PSNR with data range 1 averaged over images; " + ssim_protocol()
)
