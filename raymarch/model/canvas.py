"""Where the pixels of a frame go: tiles of 8 x 4, whose rays read the same memory and end together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TILE_WIDTH, TILE_HEIGHT = 8, 4
TILE = TILE_WIDTH * TILE_HEIGHT


def tile_order(width: int, height: int, step: int = 1, device: torch.device | str = "cpu") -> Tensor:
    """Numbers y * width + x of an image's pixels tile by tile, row-major within tiles; -1 beyond the border.

    With `step`, of the image of every step-th pixel, in the order in which these lie in the full one's tiles.
    """
    across, down = -(-width // TILE_WIDTH), -(-height // TILE_HEIGHT)
    number = torch.arange(across * down * TILE, device=device)
    tile, place = number // TILE, number % TILE
    x = tile % across * TILE_WIDTH + place % TILE_WIDTH
    y = tile // across * TILE_HEIGHT + place // TILE_WIDTH
    inside = (x < width) & (y < height)
    if step > 1:
        chosen = (x % step == 0) & (y % step == 0)
        x, y, inside = x[chosen] // step, y[chosen] // step, inside[chosen]
        width = -(-width // step)
    return torch.where(inside, y * width + x, -1)


@dataclass
class Canvas:
    """What one size of frame and one set of heads write: images with one more pixel, for what lies beyond."""

    width: int
    height: int
    step: int  # features at every so many pixels
    order: Tensor  # [N] int64: pixel numbers in tile order, then padding up to whole chunks
    low_order: Tensor | None  # the same of the image of every step-th pixel
    xy: Tensor  # [N, 2] float32
    images: dict[str, Tensor]  # [h w + 1, C]


def blank(width: int, height: int, step: int, padded: int, device: torch.device) -> Canvas:
    """A canvas without images yet; `padded` is how many rays its chunks have together."""

    def laid(step: int) -> Tensor:
        order = tile_order(width, height, step, device)
        size = -(-width // step) * -(-height // step)
        order = torch.where(order < 0, size, order)
        return torch.nn.functional.pad(order, (0, padded // step**2 - len(order)), value=size)

    order = laid(1)
    held = order.clamp_max(width * height - 1)
    xy = torch.stack([held % width, held // width], -1).float() + 0.5
    return Canvas(width, height, step, order, laid(step) if step > 1 else None, xy, {})


def apart_rays(rays: int, step: int, device: torch.device) -> Tensor:
    """Which rays of whole tiles lie at every step-th pixel."""
    number = torch.arange(rays, device=device)
    place = number % TILE
    return number[(place % TILE_WIDTH % step == 0) & (place // TILE_WIDTH % step == 0)]


def pixel_numbers(canvas: Canvas, span: slice) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Of a chunk: pixels, their centres, pixels of the small image, and the rays these belong to."""
    order, low, apart = canvas.order[span], None, None
    if canvas.low_order is not None:
        low = canvas.low_order[span.start // canvas.step**2 : span.stop // canvas.step**2]
        apart = apart_rays(span.stop - span.start, canvas.step, order.device)
    return order, canvas.xy[span], low, apart
