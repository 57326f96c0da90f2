"""Which pixels to look at, and what the images and feature maps hold there."""

import torch
from torch import Tensor

from raymarch.ops._op import launch, op

LOOKUPS = ("nearest", "bilinear")


@op
def draw_pixels_forward(
    counter: Tensor, starts: Tensor, widths: Tensor, valid: Tensor | None, count: int, stream: int
) -> tuple[Tensor, Tensor, Tensor]:
    camera = counter.new_empty(count)
    index = counter.new_empty(count)
    xy = counter.new_empty(count, 2, dtype=torch.float32)
    launch("draw_pixels", counter, starts, widths, valid, camera, xy, index, stream)
    return camera, xy, index


@op
def gather_pixels_forward(images: Tensor, index: Tensor, channels: int) -> Tensor:
    colour = images.new_empty(index.shape[0], channels, dtype=torch.float32)
    launch("gather_pixels", images, index, colour)
    return colour


@op
def gather_features_forward(
    maps: Tensor,
    map_starts: Tensor,
    map_size: Tensor,
    image_size: Tensor,
    camera: Tensor,
    xy: Tensor,
    mode: int,
) -> Tensor:
    feature = xy.new_empty(camera.shape[0], maps.shape[1])
    launch("gather_features", maps, map_starts, map_size, image_size, camera, xy, feature, mode)
    return feature


def draw_pixels(
    counter: Tensor, starts: Tensor, widths: Tensor, count: int, stream: int = 0, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw `count` pixels evenly from all images: camera [R] int64, centre xy [R, 2], number [R] int64.

    counter [2] int64 = (seed, step); starts [C + 1] int64 counts the pixels of all images before each;
    widths [C] int64. `valid` [K] int64 lists the pixel numbers that may be drawn (a mask). Draws are with
    replacement and depend on nothing but the counter, the stream and the ray's number. ValueError where
    there is no pixel to draw or arrays disagree.
    """
    if count < 0:
        raise ValueError(f"draw_pixels: count is {count}, expected at least 0")
    return draw_pixels_forward(counter, starts, widths, valid, count, stream)


def gather_pixels(images: Tensor, index: Tensor, channels: int) -> Tensor:
    """Colours [R, channels] in 0..1 of pixels by number [R], from uint8 images, flat one after another.

    A number outside the images is a ValueError on the CPU and a row of NaN on CUDA, where looking would wait.
    """
    if channels < 1:
        raise ValueError(f"gather_pixels: channels is {channels}, expected at least 1")
    return gather_pixels_forward(images, index, channels)


def gather_features(
    maps: Tensor,
    map_starts: Tensor,
    map_size: Tensor,
    image_size: Tensor,
    camera: Tensor,
    xy: Tensor,
    mode: str = "nearest",
) -> Tensor:
    """Feature vectors [R, D] float32 under pixel centres xy [R, 2] of images `camera` [R].

    maps [cells, D] holds all maps one after another (float32, float16 or bfloat16), map_starts [C] their
    first cells, map_size and image_size [C, 2] int64 widths and heights. `nearest` is F3RM's lookup,
    trunc(pixel size ratio) with pixels counted from 0; `bilinear` interpolates between cell centres, and is
    constant beyond the outermost ones. Places outside an image count as its border. A camera without a map,
    or whose image has no pixels, is a ValueError on the CPU and a row of NaN on CUDA.
    """
    if mode not in LOOKUPS:
        raise ValueError(f"gather_features: mode is {mode!r}, expected one of {', '.join(LOOKUPS)}")
    return gather_features_forward(maps, map_starts, map_size, image_size, camera, xy, LOOKUPS.index(mode))


@op
def draw_truth_forward(
    counter: Tensor,
    starts: Tensor,
    widths: Tensor,
    valid: Tensor | None,
    images: Tensor,
    maps: Tensor | None,
    map_starts: Tensor | None,
    map_size: Tensor | None,
    image_size: Tensor,
    count: int,
    channels: int,
    stream: int,
    mode: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    camera = counter.new_empty(count)
    xy = counter.new_empty(count, 2, dtype=torch.float32)
    colour = xy.new_empty(count, channels)
    feature = xy.new_empty(0) if maps is None else xy.new_empty(count, maps.shape[1])
    where = (counter, starts, widths, valid, images, maps, map_starts, map_size, image_size)
    launch("draw_truth", *where, camera, xy, colour, None if maps is None else feature, stream, mode)
    return camera, xy, colour, feature


def draw_truth(
    counter: Tensor,
    starts: Tensor,
    widths: Tensor,
    images: Tensor,
    channels: int,
    count: int,
    image_size: Tensor,
    valid: Tensor | None = None,
    maps: Tensor | None = None,
    map_starts: Tensor | None = None,
    map_size: Tensor | None = None,
    mode: str = "nearest",
    stream: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`draw_pixels`, `gather_pixels` and, given maps, `gather_features`: camera, xy, colour, feature or None.

    Arguments and errors are those of the three ops.
    """
    if count < 0 or channels < 1:
        raise ValueError(
            f"draw_truth: count is {count} and channels {channels}, expected at least 0 and at least 1"
        )
    if mode not in LOOKUPS:
        raise ValueError(f"draw_truth: mode is {mode!r}, expected one of {', '.join(LOOKUPS)}")
    where = (counter, starts, widths, valid, images, maps, map_starts, map_size, image_size)
    *found, feature = draw_truth_forward(*where, count, channels, stream, LOOKUPS.index(mode))
    return found[0], found[1], found[2], None if maps is None else feature
