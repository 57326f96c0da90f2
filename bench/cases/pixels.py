"""Rows of the pixels stage."""

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.pixels import draw_pixels, draw_truth, gather_features, gather_pixels

SIZES = torch.tensor([[40, 30], [16, 64], [33, 7]])  # width, height
STARTS = torch.nn.functional.pad(SIZES.prod(1).cumsum(0), (1, 0))
MAPS = torch.tensor([[4, 3], [2, 8], [5, 2]])
MAP_STARTS = torch.nn.functional.pad(MAPS.prod(1).cumsum(0), (1, 0))[:3]
MASK = (1 << 64) - 1


def _mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def random_bits(seed: int, step: int, stream: int, index: int) -> int:
    """math/random.h once more, in whole numbers."""
    golden = 0x9E3779B97F4A7C15
    key = _mixed(_mixed((_mixed((seed + golden) & MASK) + step * golden) & MASK) + stream * golden & MASK)
    return _mixed(_mixed((key + index * golden) & MASK))


def _draw(counter: Tensor, starts: Tensor, widths: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    seed, step = counter.tolist()
    total = int(starts[-1])
    index = torch.tensor(
        [random_bits(seed, step, 0, i) * total >> 64 for i in range(count)], dtype=torch.int64
    )
    camera = torch.searchsorted(starts, index, right=True) - 1
    place = index - starts[camera]
    xy = torch.stack([place % widths[camera], place // widths[camera]], -1) + 0.5
    return camera, xy.double(), index


def _gather(images: Tensor, index: Tensor, channels: int) -> Tensor:
    return images.view(-1, channels)[index].double() / 255


def _features(maps, map_starts, map_size, image_size, camera, xy) -> Tensor:
    size, image = map_size[camera], image_size[camera]
    cell = (xy.floor() * size / image).floor().long()
    return maps[map_starts[camera] + cell[:, 1] * size[:, 0] + cell[:, 0]].double()


def _bilinear(maps, map_starts, map_size, image_size, camera, xy, mode: str) -> Tensor:
    """One camera at a time through torch's own interpolation."""
    found = maps.new_empty(len(camera), maps.shape[1], dtype=torch.float64)
    for i, ((w, h), size) in enumerate(zip(map_size.tolist(), image_size, strict=True)):
        grid = maps[map_starts[i] : map_starts[i] + w * h].double().view(1, h, w, -1).movedim(-1, 1)
        at = (2 * xy[camera == i].double() / size - 1).view(1, -1, 1, 2)
        values = torch.nn.functional.grid_sample(grid, at, padding_mode="border", align_corners=False)
        found[camera == i] = values[0, :, :, 0].mT
    return found


def _lookups(n: int):
    counter = torch.tensor([3, 5])
    camera, xy, _ = draw_pixels(counter, STARTS, SIZES[:, 0].contiguous(), n)
    maps = torch.randn(int(MAPS.prod(1).sum()), 768)
    return maps, MAP_STARTS, MAPS, SIZES, camera, xy


def _truth(counter, starts, widths, images, channels, count, image_size, valid, maps, map_starts, map_size):
    camera, xy, index = _draw(counter, starts, widths, count)
    found = _features(maps, map_starts, map_size, image_size, camera, xy)
    return camera, xy, _gather(images, index, channels), found


def _truth_inputs(n: int):
    images = torch.randint(0, 256, (int(STARTS[-1]) * 4,), dtype=torch.uint8)
    maps = torch.randn(int(MAPS.prod(1).sum()), 768)
    drawn = (torch.tensor([3, 5]), STARTS, SIZES[:, 0].contiguous(), images, 4, n)
    return *drawn, SIZES, None, maps, MAP_STARTS, MAPS


CASES = {
    "draw_pixels": Case(
        draw_pixels,
        _draw,
        lambda n: (torch.tensor([3, 5]), STARTS, SIZES[:, 0].contiguous(), n),
        bytes_per_ray=24,
    ),
    "gather_pixels": Case(
        gather_pixels,
        _gather,
        lambda n: (torch.randint(0, 256, (3 * 5000,), dtype=torch.uint8), torch.randint(0, 5000, (n,)), 3),
        bytes_per_ray=23,
        gathers=True,
    ),
    "gather_features": Case(
        gather_features, _features, _lookups, bytes_per_ray=16 + 2 * 4 * 768, gathers=True
    ),
    "gather_features_bilinear": Case(
        gather_features,
        _bilinear,
        lambda n: (*_lookups(n), "bilinear"),
        bytes_per_ray=16 + 5 * 4 * 768,
        gathers=True,
    ),
    "draw_truth": Case(
        draw_truth, _truth, _truth_inputs, bytes_per_ray=36 + 2 * 4 * 768, gathers=True, bench_rays=4096
    ),
}
