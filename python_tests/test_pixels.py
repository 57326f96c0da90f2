"""Which pixels are drawn, evenly and repeatably, and what is looked up under them."""

import pytest
import torch
from torch.testing import assert_close

from bench.cases.pixels import random_bits
from bench.running import backend
from raymarch.ops.pixels import draw_pixels, gather_features, gather_pixels

SIZES = torch.tensor([[40, 30], [16, 64], [1, 1], [33, 7]])  # width, height


def layout(device, sizes=SIZES):
    starts = torch.nn.functional.pad(sizes.prod(1).cumsum(0), (1, 0))
    return starts.to(device), sizes[:, 0].contiguous().to(device)


def counter(device, seed=7, step=11):
    return torch.tensor([seed, step], device=device)


def test_pixels_name_their_image_and_place(device):
    camera, xy, index = draw_pixels(counter(device), *layout(device), 5000)
    camera, xy, index = camera.cpu(), xy.cpu(), index.cpu()
    starts, widths = layout("cpu")
    column, row = (xy - 0.5).long().T
    assert ((column >= 0) & (column < widths[camera]) & (row >= 0) & (row < SIZES[camera, 1])).all()
    assert torch.equal(xy % 1, torch.full_like(xy, 0.5))
    assert torch.equal(starts[camera] + row * widths[camera] + column, index)


def test_borders_of_images_belong_to_the_right_one(device):
    starts, _ = layout("cpu")
    ends = torch.stack([starts[:-1], starts[1:] - 1], 1)  # first and last pixel of each image
    for i, pair in enumerate(ends):
        for pixel, corner in zip(pair, ([0, 0], (SIZES[i] - 1).tolist()), strict=True):
            valid = pixel[None].to(device)
            camera, xy, index = draw_pixels(counter(device), *layout(device), 3, valid=valid)
            assert camera.tolist() == [i] * 3 and index.tolist() == [int(pixel)] * 3
            assert xy.tolist() == [[corner[0] + 0.5, corner[1] + 0.5]] * 3


def test_an_image_without_pixels_is_never_drawn(device):
    starts, widths = layout(device, torch.tensor([[4, 4], [3, 0], [0, 0], [2, 5]]))
    camera, _, _ = draw_pixels(counter(device), starts, widths, 500)
    assert set(camera.tolist()) == {0, 3}


def test_pixels_are_drawn_evenly_from_images_of_any_size(device):
    sizes = torch.tensor([[10, 6], [3, 4], [4, 7]])  # 100 pixels
    draws = 100_000
    _, _, index = draw_pixels(counter(device), *layout(device, sizes), draws)
    counts = torch.bincount(index.cpu(), minlength=100).double()
    assert len(counts) == 100
    chi = ((counts - draws / 100).square() / (draws / 100)).sum()
    assert 60 < chi < 149  # 99 degrees of freedom: outside with probability 2e-3
    first, second = index.cpu()[:-1].double(), index.cpu()[1:].double()
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.012


def test_only_valid_pixels_are_drawn_and_all_of_them(device):
    valid = torch.arange(3, int(SIZES.prod(1).sum()), 7)
    _, _, index = draw_pixels(counter(device), *layout(device), 20000, valid=valid.to(device))
    assert torch.equal(index.cpu().unique(), valid)


def test_draws_depend_on_counter_stream_and_ray_alone(device):
    def draw(count=100, seed=7, step=11, stream=5, place=device):
        return draw_pixels(counter(place, seed, step), *layout(place), count, stream)[2].cpu()

    assert torch.equal(draw(7), draw()[:7])
    assert torch.equal(draw(), draw(place="cpu"))
    for other in ({"seed": 8}, {"step": 12}, {"stream": 6}):
        assert (draw() == draw(**other)).float().mean() < 0.1
    total = int(SIZES.prod(1).sum())
    assert draw(20).tolist() == [random_bits(7, 11, 5, i) * total >> 64 for i in range(20)]


def test_more_pixels_than_32_bits_count(device):
    """Nothing here is allocated: the layout alone is large."""
    starts = torch.tensor([0, 3 << 32, 6 << 32], device=device)
    widths = torch.tensor([1 << 16, 1 << 16], device=device)
    camera, xy, index = draw_pixels(counter(device), starts, widths, 2000)
    assert index.max() > 5 << 32 and 0.4 < camera.float().mean() < 0.6
    row = (xy[:, 1] - 0.5).long()
    assert torch.equal(camera * (3 << 32) + row * (1 << 16) + (xy[:, 0] - 0.5).long(), index)


def test_no_pixels_asked_for(device):
    camera, xy, index = draw_pixels(counter(device), *layout(device), 0)
    assert camera.shape == index.shape == (0,) and xy.shape == (0, 2)
    assert gather_pixels(torch.zeros(12, dtype=torch.uint8, device=device), index, 3).shape == (0, 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_are_exact(device, channels):
    images = torch.randint(0, 256, (300 * channels,), dtype=torch.uint8)
    index = torch.randint(0, 300, (1000,))
    got = gather_pixels(images.to(device), index.to(device), channels).cpu()
    assert torch.equal(got, images.view(300, channels)[index].float() / 255)


@pytest.fixture
def maps():
    """Two maps of different shape, each cell knowing its place: (map, row, column)."""
    sizes = [(4, 3), (5, 2)]
    cells = [
        torch.tensor([float(m), r, c]) for m, (w, h) in enumerate(sizes) for r in range(h) for c in range(w)
    ]
    size = torch.tensor(sizes)
    return torch.stack(cells), torch.tensor([0, 12]), size, torch.tensor([[40, 30], [33, 7]])


def everything(image_size):
    """Every pixel centre of every image."""
    camera, xy = [], []
    for i, (w, h) in enumerate(image_size.tolist()):
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        xy.append(torch.stack([x.flatten(), y.flatten()], -1) + 0.5)
        camera.append(torch.full((w * h,), i))
    return torch.cat(camera), torch.cat(xy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nearest_features(device, maps, dtype):
    table, starts, size, image = maps
    camera, xy = everything(image)
    got = gather_features(*(x.to(device) for x in (table.to(dtype), starts, size, image, camera, xy))).cpu()
    scale = size.float() / image.float()
    cell = ((xy - 0.5) * scale[camera]).long()
    assert torch.equal(got, torch.cat([camera[:, None], cell.flip(-1)], -1).float())


def test_known_cells(device):  # O67
    h, w = 24, 42
    table = (
        torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).view(-1, 2).float()
    )
    xy = torch.tensor([[0.5, 0.5], [960.5, 540.5], [1919.5, 1079.5]])
    one = torch.zeros(3, dtype=torch.int64)
    sizes = torch.tensor([[w, h]]), torch.tensor([[1920, 1080]])
    got = gather_features(*(x.to(device) for x in (table, one[:1], *sizes, one, xy)))
    assert got.tolist() == [[0, 0], [12, 21], [23, 41]]


@pytest.mark.parametrize("width", [70, 72])  # one, or four channels at a time
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bilinear_features(device, maps, dtype, width):
    _, starts, size, image = maps
    table = torch.randn(22, width).to(dtype)
    camera, xy = everything(image)
    args = [x.to(device) for x in (table, starts, size, image, camera, xy)]
    got = gather_features(*args, mode="bilinear").cpu()
    want = torch.empty(len(xy), width, dtype=torch.float64)
    for i, (w, h) in enumerate(size.tolist()):
        whole = table[starts[i] : starts[i] + w * h].double().view(h, w, width).permute(2, 0, 1)[None]
        mine = camera == i
        grid = (2 * xy[mine].double() / image[i] - 1)[None, None]
        sampled = torch.nn.functional.grid_sample(
            whole, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        want[mine] = sampled[0, :, 0].T
    assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_maps_may_begin_anywhere_in_memory(device, maps, mode, dtype):
    _, starts, size, image = maps
    whole = torch.randn(22 * 72 + 1, device=device).to(dtype)
    camera, xy = everything(image)
    rest = [x.to(device) for x in (starts, size, image, camera, xy)]
    askew = whole[1:].view(22, 72)
    assert torch.equal(gather_features(askew, *rest, mode), gather_features(askew.clone(), *rest, mode))


def test_a_pixel_on_the_border_of_two_cells_is_in_the_second(device):
    """Also where image / map is a whole number that map / image rounds away from."""
    for cell in (3, 7, 11, 14, 49):
        cells = 97
        table = torch.arange(cells, dtype=torch.float32, device=device)[:, None]
        xy = torch.stack([torch.arange(cells) * cell + 0.5, torch.full((cells,), 0.5)], 1).to(device)
        zeros = torch.zeros(cells, dtype=torch.int64, device=device)
        size, image = (torch.tensor([[n, 1]], device=device) for n in (cells, cells * cell))
        assert gather_features(table, zeros[:1], size, image, zeros, xy)[:, 0].tolist() == list(range(cells))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_places_outside_the_image_take_the_border(device, maps, mode):
    table, starts, size, image = maps
    xy = torch.tensor([[-5.0, -5], [1e30, -1e30], [100, 100], [float("inf"), float("-inf")]])
    one = torch.zeros(4, dtype=torch.int64)
    got = gather_features(*(x.to(device) for x in (table, starts, size, image, one, xy)), mode=mode)[:3]
    assert got[0].tolist() == [0, 0, 0] and got[2].tolist() == [0, 2, 3]


@pytest.mark.skipif(backend("cpu") != "cpu", reason="kernels do not look")
def test_wrong_numbers_are_refused_on_the_cpu(maps):
    """Also from worker threads: there are many rays, and only the last is wrong."""
    images, many = torch.zeros(300, dtype=torch.uint8), torch.zeros(100_000, dtype=torch.int64)
    for wrong in (100, -1, 1 << 60):
        many[-1] = wrong
        with pytest.raises(ValueError, match="gather_pixels: index points outside the images"):
            gather_pixels(images, many, 3)
    many[-1] = 2
    xy = torch.ones(100_000, 2)
    with pytest.raises(ValueError, match="gather_features: camera points outside the maps"):
        gather_features(*maps, many, xy)
    table, starts, size, image = maps
    many[-1] = 1
    with pytest.raises(ValueError, match="map_starts and map_size reach outside the maps"):
        gather_features(table[:-1], starts, size, image, many, xy)
    starts, widths = layout("cpu")
    with pytest.raises(ValueError, match="draw_pixels: valid names a pixel outside the images"):
        draw_pixels(counter("cpu"), starts, widths, 100, valid=starts[-1:])
    with pytest.raises(ValueError, match="an image with pixels has no width"):
        draw_pixels(counter("cpu"), starts, 0 * widths, 100)
    with pytest.raises(ValueError, match="there are no pixels to draw from"):
        draw_pixels(counter("cpu"), 0 * starts, widths, 100)
    with pytest.raises(ValueError, match="starts must have one number more than widths"):
        draw_pixels(counter("cpu"), starts[1:], widths, 100)
    with pytest.raises(ValueError, match="mode is 'cubic', expected one of nearest, bilinear"):
        gather_features(*maps, many, xy, mode="cubic")


@pytest.mark.skipif(backend("cpu") != "cpu", reason="kernels do not look")
def test_after_a_refusal_the_next_call_works():
    images, index = torch.arange(255, dtype=torch.uint8), torch.arange(85).repeat(2000)
    for _ in range(20):
        index[77] = -1
        with pytest.raises(ValueError, match="outside"):
            gather_pixels(images, index, 3)
        index[77] = 0
        assert gather_pixels(images, index, 3).isfinite().all()
