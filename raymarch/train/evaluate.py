"""Whole images out of a model, and how good they are against held-out photos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from raymarch.data.scene import Scene
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
    psnr: float  # dB, data range 1, over all channels of the pixels that no mask ignores
    ssim: float
    feature_cosine: float | None = None  # mean over these pixels
    kept: float = 1.0  # their share of the photo


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
    masks: Sequence[Tensor | None] | None = None,
) -> Iterator[tuple[ImageMetrics, dict[str, Tensor]]]:
    """Metrics and rendering of each image; poses as given (not refined), mean appearance code.

    `targets(i)` gives feature targets [h, w, D] of image i. `masks`: for each image [h, w] bool, the pixels
    to judge, or None for all; figures of an image without any are NaN.
    """
    heads = IMAGE_HEADS | ({"feature"} if targets is not None else set())
    device = cameras.camera_to_worlds.device
    frames = FrameRenderer(model)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        frame = frames.render(cameras, i, heads, mode, chunk=chunk)
        truth = over_background(image.to(device), background)
        keep = masks[i].to(device) if masks is not None and masks[i] is not None else None  # type: ignore[union-attr]
        cosine = None
        if targets is not None:
            each = feature_cosine(frame["feature"].flatten(0, -2), targets(i).flatten(0, -2))
            cosine = float((each if keep is None else each[keep.flatten()]).mean())
        yield judged(name, frame["rgb"], truth, keep, cosine), frame


def judged(
    name: str, rgb: Tensor, truth: Tensor, keep: Tensor | None, cosine: float | None = None
) -> ImageMetrics:
    """Figures of a rendering [h, w, 3] against its photo, over the pixels `keep` [h, w] (default: all)."""
    share = 1.0 if keep is None else float(keep.float().mean())
    return ImageMetrics(
        name, float(psnr(rgb, truth, keep=keep)), float(ssim(rgb, truth, keep=keep)), cosine, share
    )


def masks_of(scene: Scene, indices: Sequence[int]) -> list[Tensor | None] | None:
    """The masks of some photos, as `evaluate` takes them."""
    return None if scene.masks is None else [scene.masks[i] for i in indices]


__all__ = [
    "IMAGE_HEADS",
    "MASKED",
    "PROTOCOL",
    "FrameRenderer",
    "ImageMetrics",
    "OutOfMemory",
    "evaluate",
    "judged",
    "masks_of",
    "over_background",
    "render_image",
]

MASKED = "pixels that a mask ignores count in neither, nor in the windows of others"
PROTOCOL = (
    "held-out photos at the size given, poses as in the data set (not refined), mean appearance code, "
    "PSNR with data range 1 averaged over images; " + ssim_protocol() + "; " + MASKED
)
