"""Photos that exceed the device: the window shows the right pixels, moves as it should, training goes on."""

from collections import Counter

import numpy as np
import pytest
import torch
from test_data import OWN_FRAME, photo, ring
from test_train import config, parameters, run_to, scene  # noqa: F401 - a fixture

from raymarch.config import override
from raymarch.data.maps import FeatureMaps
from raymarch.data.pixels import PixelSource, bytes_needed
from raymarch.data.scene import Scene, SceneError
from raymarch.data.window import PixelWindow, pixel_source
from raymarch.train.runs import resume, start

SIZES = [(6, 4), (5, 3), (3, 2), (6, 4), (4, 4), (2, 5), (6, 1)]


def mixed(masked=True, maps=True):
    """Photos of several sizes with all that can lie beside them."""
    count = len(SIZES)
    dice = np.random.default_rng(0)
    masks = [dice.random((h, w)) < 0.6 for w, h in SIZES]
    masks[4][:] = False  # nothing of this one may be drawn
    masks[5] = None
    grids = tuple(torch.randn((h + 1) // 2, (w + 1) // 2, 8).half() for w, h in SIZES)
    return Scene.from_arrays(
        [photo(w, h, i, 4) for i, (w, h) in enumerate(SIZES)],
        np.ones(4),
        np.stack(ring(count)),
        split="none",
        masks=masks if masked else None,
        depths=[None if i == 2 else np.full((h, w), i + 1.0) for i, (w, h) in enumerate(SIZES)],
        features=FeatureMaps(grids) if maps else None,
        **OWN_FRAME,
    )


def window(found, slots, device, indices=None, **options):
    chosen = range(len(found.images)) if indices is None else indices
    one = PixelWindow(found, chosen, device, most=1 << 20)
    each = one.bytes // one.slots
    return PixelWindow(found, chosen, device, most=each * slots + each // 2, **options)


@pytest.mark.parametrize("masked", [True, False])
def test_every_drawn_pixel_shows_what_lies_there(device, masked):
    found = mixed(masked)
    indices = [6, 0, 1, 2, 3, 4, 5]
    source = window(found, 3, device, indices, every=2)
    assert source.slots == 3
    seen = Counter()
    for step in range(40):
        source.prepare(step)
        pixels = source.draw(torch.tensor([0, step], device=device), 64)
        for camera, (x, y), rgb, depth, feature in zip(
            pixels.camera.tolist(), pixels.xy.tolist(), pixels.rgb.cpu(), pixels.depth.tolist(),
            pixels.feature.cpu(), strict=True,
        ):  # fmt: skip
            i = indices[camera]
            row, column = int(y), int(x)
            assert (x, y) == (column + 0.5, row + 0.5)
            assert torch.allclose(rgb, found.images[i][row, column] / 255)
            assert depth == (0.0 if i == 2 else i + 1.0)
            if masked and found.masks[i] is not None:
                assert found.masks[i][row, column]
            grid = found.features.maps[i]
            w, h = SIZES[i]
            cell = grid[int(row * grid.shape[0] / h), int(column * grid.shape[1] / w)]
            assert torch.allclose(feature, cell.float())
            seen[i] += 1
    assert set(seen) == set(range(7)) - ({4} if masked else set())


def test_draws_are_even_over_the_pixels_in_the_window(device):
    found = mixed()
    source = window(found, 4, device)
    pixels = source.draw(torch.tensor([1, 1], device=device), 40000)
    counts = Counter(zip(pixels.camera.tolist(), map(tuple, pixels.xy.tolist()), strict=True))
    total = sum(source._choices)
    assert len(counts) == total
    expected = 40000 / total
    assert all(abs(n - expected) < 6 * expected**0.5 for n in counts.values())


def test_each_photo_stays_as_long_as_any_other_and_one_changes_at_a_time():
    source = window(mixed(masked=False), 3, "cpu", every=4, seed=5)
    stays, before = Counter(), None
    for step in range(4 * 7 * 6):
        source.prepare(step)
        now = list(source._photo)
        changed = [a != b for a, b in zip(now, before or now, strict=True)]
        assert sum(changed) <= (step % 4 == 0)
        stays.update(now)
        before = now
    assert max(stays.values()) - min(stays.values()) <= 2 * 3 * 4


def test_the_window_depends_on_seed_and_step_alone():
    def photos(step, seed=1, through=()):
        source = window(mixed(), 3, "cpu", every=2, seed=seed)
        for other in through:
            source.prepare(other)
        source.prepare(step)
        pixels = source.draw(torch.tensor([0, step]), 50)
        return source._photo, pixels.rgb

    wanted = photos(31, through=range(31))
    for through in ((), (5,), (90,), (30, 29, 31)):
        found = photos(31, through=through)
        assert found[0] == wanted[0]
        assert torch.equal(found[1], wanted[1])
    assert photos(31, seed=2)[0] != wanted[0]


def test_what_fits_is_held_whole_and_what_does_not_is_not(device):
    found = mixed()
    needed = bytes_needed(found, range(7))
    assert isinstance(pixel_source(found, None, device), PixelSource)
    assert isinstance(pixel_source(found, None, device, most=needed), PixelSource)
    small = pixel_source(found, None, device, most=needed - 1)
    assert isinstance(small, PixelWindow) and small.bytes < needed
    assert "6 photos" in small.summary() and "all 7 photos" in PixelSource(found).summary()
    with pytest.raises(SceneError, match="one photo takes"):
        pixel_source(found, None, device, most=10)
    with pytest.raises(SceneError, match="keep no pixel"):
        PixelWindow(found, [4], device)


def test_a_masked_source_that_is_resident_draws_every_kept_pixel_alike(device):
    found = mixed()
    source = PixelSource(found, None, device)
    pixels = source.draw(torch.tensor([1, 1], device=device), 40000)
    counts = Counter(zip(pixels.camera.tolist(), map(tuple, pixels.xy.tolist()), strict=True))
    kept = sum(w * h if m is None else int(m.sum()) for m, (w, h) in zip(found.masks, SIZES, strict=True))
    assert len(counts) == len(source.valid) == kept
    for (camera, (x, y)), n in counts.items():
        mask = found.masks[camera]
        assert mask is None or mask[int(y), int(x)]
        assert abs(n - 40000 / kept) < 6 * (40000 / kept) ** 0.5


WINDOWED = {"train.trainer.photos_gb": 1.2e-4, "train.trainer.photos_every": 2}


def test_training_through_a_window_resumes_bit_for_bit(scene, tmp_path):  # noqa: F811
    settings = config(**WINDOWED)
    whole = start(scene, settings, device="cpu")
    assert isinstance(whole.source, PixelWindow) and whole.source.slots < 6
    whole = parameters(run_to(whole, 20))
    run_to(start(scene, settings, tmp_path / "run", device="cpu"), 10).save()
    halves = parameters(run_to(resume(tmp_path / "run", "cpu", scene=scene), 20))
    for name, value in whole.items():
        assert torch.equal(value, halves[name]), name


def test_training_through_a_window_learns_about_as_well(scene, device):  # noqa: F811
    psnr = []
    for changes in ({}, WINDOWED):
        trainer = start(scene, config(steps=150, **changes), device=device)
        psnr.append(np.mean([p.psnr for p in trainer.iterate()][-5:]))
    assert psnr[1] > psnr[0] - 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_replayed_while_the_window_moves_equals_eager_steps(scene):  # noqa: F811
    settings = config(steps=60, **WINDOWED)
    graph = run_to(start(scene, settings, device="cuda"), 60)
    eager = run_to(start(scene, override(settings, "train.trainer.graph=false"), device="cuda"), 60)
    assert graph._graphs and graph.source._swaps == eager.source._swaps > 20
    assert graph.source._photo == eager.source._photo
    for a, b in zip(graph.source._held.parts(), eager.source._held.parts(), strict=True):
        assert torch.equal(a, b)
    for name, value in parameters(graph).items():
        torch.testing.assert_close(value, eager.state()[name], rtol=5e-2, atol=5e-3, msg=name)
