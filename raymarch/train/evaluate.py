"""Whole images out of a model, and how good they are against held-out photos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from raymarch.model import Model
from raymarch.model.frames import IMAGE_HEADS, FrameRenderer, OutOfMemory, Settings
from raymarch.train.metrics import feature_cosine, psnr, ssim, ssim_protocol
from raymarch.types import Cameras


def render_image(
    model: Model,
    cameras: Cameras,
    camera: int,
    heads: frozenset[str] = IMAGE_HEADS,
    chunk: int | None = None,
    mode: str = "exact",
    embeddings: Tensor | None = None,
) -> dict[str, Tensor]:
    """One frame, as `FrameRenderer.render` says. Whoever renders several keeps a renderer instead."""
    once = FrameRenderer(model, Settings(graph=False))
    return once.render(cameras, camera, heads, mode, embeddings, chunk)


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
    mode: str = "exact",
) -> Iterator[tuple[ImageMetrics, dict[str, Tensor]]]:
    """Metrics and rendering of each image; poses as given (not refined), mean appearance code.

    `targets(i)` gives feature targets [h, w, D] of image i.
    """
    heads = IMAGE_HEADS | ({"feature"} if targets is not None else set())
    device = cameras.camera_to_worlds.device
    frames = FrameRenderer(model)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        frame = frames.render(cameras, i, heads, mode, chunk=chunk)
        truth = over_background(image.to(device), background)
        cosine = None
        if targets is not None:
            cosine = float(feature_cosine(frame["feature"].flatten(0, -2), targets(i).flatten(0, -2)).mean())
        rgb = frame["rgb"]
        yield ImageMetrics(name, float(psnr(rgb, truth)), float(ssim(rgb, truth)), cosine), frame


__all__ = [
    "IMAGE_HEADS",
    "PROTOCOL",
    "FrameRenderer",
    "ImageMetrics",
    "OutOfMemory",
    "evaluate",
    "over_background",
    "render_image",
]

PROTOCOL = (
    "held-out photos at the size given, poses as in the data set (not refined), mean appearance code, "
    "PSNR with data range 1 averaged over images; " + ssim_protocol()
)
