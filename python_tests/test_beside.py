"""Masks, alpha, depth maps and OpenEXR; decoded photos in files, and smaller ones kept for next time."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from test_data import edit, photo, ring, write_scene

from bench import seeds
from raymarch.apps.images import file_stems
from raymarch.data import exr, images, store
from raymarch.data.pixels import PixelSource
from raymarch.data.scene import SceneError, describe, load
from raymarch.train.runs import fitted, start

WIDTH, HEIGHT = 12, 8


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMARCH_CACHE", str(tmp_path / "cache"))


def half_mask(left=0, right=255):
    mask = np.full((HEIGHT, WIDTH), left, np.uint8)
    mask[:, WIDTH // 2 :] = right
    return mask


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(values).save(path, **options)


def refused(folder, *parts, **options):
    with pytest.raises(SceneError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def drawn_columns(scene):
    source = PixelSource(scene, scene.train)
    pixels = source.draw(torch.tensor([0, 0]), 2000)
    return set(pixels.xy[:, 0].tolist())


RIGHT = {x + 0.5 for x in range(WIDTH // 2, WIDTH)}


# --- masks ---


@pytest.mark.parametrize(
    "place",
    ["masks/{}.png.png", "masks/{}.png", "images/masks/{}.png", "masks/{}.jpg"],
)
def test_masks_beside_photos_are_found_by_name(tmp_path, place):
    folder = write_scene(tmp_path / "s", count=3)
    for i in range(3):
        options = {"quality": 60} if place.endswith("jpg") else {}
        save(folder / place.format(f"{i:03d}"), half_mask(), **options)
    scene = load(folder)
    assert drawn_columns(scene) == RIGHT
    assert "144 pixels (50.0%) of 3 photos, by masks: never drawn" in describe(scene)
    assert scene.images[0].shape[2] == 3


def test_only_black_is_zero_in_a_coloured_mask(tmp_path):
    """Labels are colours and palette entries, some of them too dark for a brightness of one."""
    folder = write_scene(tmp_path / "s", count=3)
    (folder / "masks").mkdir()
    grey = half_mask(0, 1)
    for i, kind in enumerate(("RGB", "P", "RGBA")):
        blue = np.stack([0 * grey, 0 * grey, grey], axis=2)  # (0, 0, 1): brightness 0.1
        image = Picture.fromarray(blue)
        if kind == "P":
            image = Picture.fromarray(grey).convert("P")
            image.putpalette([0, 0, 0, 0, 0, 1])
        image.convert(kind).save(folder / "masks" / f"{i:03d}.png")
    assert drawn_columns(load(folder)) == RIGHT


def test_ignore_and_empty_are_different_words(tmp_path):
    folder = write_scene(tmp_path / "s", count=3)
    for i in range(3):
        save(folder / "masks" / f"{i:03d}.png", half_mask())
    ignored, empty, unused = (load(folder, masks=word) for word in ("ignore", "empty", "none"))
    assert ignored.masks is not None and ignored.background == "none"
    assert empty.masks is None and empty.images[0].shape[2] == 4
    assert (empty.images[1][:, : WIDTH // 2, 3] == 0).all() and (
        empty.images[1][:, WIDTH // 2 :, 3] == 255
    ).all()
    assert torch.equal(empty.images[1][:, :, :3], unused.images[1])
    assert unused.masks is None and unused.images[0].shape[2] == 3
    assert len(drawn_columns(empty)) == WIDTH
    assert "144 pixels (50.0%): alpha is zero, nothing is there" in describe(empty)
    assert "never drawn" not in describe(empty) and "alpha" not in describe(ignored)


def test_empty_pixels_drive_opacity_down_and_ignored_ones_do_not(tmp_path):
    from test_train import config, run_to

    folder = write_scene(tmp_path / "s", count=4, width=24, height=24, cx=12, cy=12, fl_x=20, fl_y=20)
    nothing, some_left = np.zeros((24, 24), np.uint8), np.zeros((24, 24), np.uint8)
    some_left[12, 12] = 255
    opacity = {}
    for word, mask in (("empty", nothing), ("ignore", some_left)):
        for i in range(4):
            save(folder / "masks" / f"{i:03d}.png", mask)
        scene = load(folder, masks=word, split="none")
        settings = fitted(config(steps=120, **{"model.fields.feature.width": 0}), scene)
        assert settings.model.renderer.background == ("random" if word == "empty" else "last_sample")
        trainer = run_to(start(scene, settings, device="cpu"), 120)
        trainer.model.eval()
        with torch.no_grad():
            every = PixelSource(scene, [0])
            opacity[word] = trainer.model(
                every.image(0), every.cameras, heads=frozenset({"rgb", "opacity"})
            ).opacity.mean()
    assert opacity["empty"] < 0.1 < opacity["ignore"]


def test_a_file_may_name_both_kinds_of_mask(tmp_path):
    folder = write_scene(tmp_path / "s", count=2)
    save(folder / "keep.png", half_mask())
    upper = np.full((HEIGHT, WIDTH), 255, np.uint8)
    upper[:2] = 0
    save(folder / "solid.png", upper)
    both = {"mask_path": "keep.png", "empty_mask_path": "solid.png"}
    edit(folder, lambda meta: [frame.update(both) for frame in meta["frames"]])
    scene = load(folder)
    assert drawn_columns(scene) == RIGHT
    assert (scene.images[0][:2, :, 3] == 0).all() and (scene.images[0][2:, :, 3] == 255).all()


def test_instant_ngps_dynamic_masks_are_turned_around(tmp_path):
    folder = write_scene(tmp_path / "s", count=3)
    for i in range(3):
        save(folder / "images" / f"dynamic_mask_{i:03d}.png", half_mask(255, 0))
    assert drawn_columns(load(folder)) == RIGHT


def test_photos_without_a_mask_in_the_folder_are_reported(tmp_path):
    folder = write_scene(tmp_path / "s", count=3)
    save(folder / "masks" / "001.png", half_mask())
    scene = load(folder)
    assert scene.masks[0] is None and not scene.masks[1].all()
    assert "2 photos have no file in masks/: images/000.png, images/002.png" in scene.notes


@pytest.mark.parametrize("word", ["ignore", "empty"])
def test_masks_of_the_wrong_size_name_both(tmp_path, word):
    folder = write_scene(tmp_path / "s", count=2)
    for i in range(2):
        save(folder / "masks" / f"{i:03d}.png", half_mask()[:5])
    refused(folder, "masks/000.png has 12 x 5 pixels", "its image 12 x 8", masks=word)
    load(folder, masks="none")


@pytest.mark.parametrize(
    "options",
    [{"masks": "drop"}, {"alpha": "white"}, {"memory": "tape"}, {"memory": 0}, {"memory": True},
     {"depth_kind": "y"}, {"depth_unit": -1.0}],
)  # fmt: skip
def test_words_that_mean_nothing(tmp_path, options):
    refused(write_scene(tmp_path / "s", count=2), next(iter(options)), **options)


# --- alpha ---


def with_alpha(folder, count=3):
    write_scene(folder, count=count)
    for i in range(count):
        pixels = photo(WIDTH, HEIGHT, i, 4)
        pixels[:, :, 3] = half_mask()
        pixels[0, -1, 3] = 100
        save(folder / "images" / f"{i:03d}.png", pixels)
    return folder


def test_transparent_pixels_are_empty_ignored_or_plain(tmp_path):
    folder = with_alpha(tmp_path / "s")
    empty, ignored, plain = (load(folder, alpha=word) for word in ("empty", "ignore", "none"))
    assert empty.images[0].shape[2] == 4 and empty.masks is None
    assert plain.images[0].shape[2] == 3 and plain.masks is None
    assert torch.equal(plain.images[0], empty.images[0][:, :, :3])
    assert ignored.images[0].shape[2] == 3
    assert torch.equal(ignored.masks[0], empty.images[0][:, :, 3] == 255)  # what is half there is ignored too
    for i in range(3):
        save(folder / "masks" / f"{i:03d}.png", np.tri(HEIGHT, WIDTH, dtype=np.uint8))
    both = load(folder, alpha="ignore")
    assert torch.equal(both.masks[2], ignored.masks[2] & torch.from_numpy(np.tri(HEIGHT, WIDTH) > 0))


def test_alpha_that_is_ignored_leaves_room_for_an_empty_mask(tmp_path):
    folder = with_alpha(tmp_path / "s")
    upper = np.full((HEIGHT, WIDTH), 255, np.uint8)
    upper[:2] = 0
    for i in range(3):
        save(folder / "empty_masks" / f"{i:03d}.png", upper)
    for memory in ("memory", "disk"):
        for alpha in ("ignore", "none"):
            scene = load(folder, alpha=alpha, memory=memory)
            assert (scene.images[0][:2, :, 3] == 0).all() and (scene.images[0][2:, :, 3] == 255).all()
            assert (scene.masks is None) == (alpha == "none")
        assert torch.equal(load(folder, alpha="ignore", memory=memory).masks[0][1:] > 0,
                           torch.from_numpy(half_mask()[1:] > 0))  # fmt: skip


# --- depth ---


def test_depth_kinds_and_units_are_what_they_are_said_to_be(tmp_path):
    folder = write_scene(tmp_path / "s", count=2, k1=0.0, p2=0.0)
    steps = np.full((HEIGHT, WIDTH), 2500, np.uint16)
    steps[0, 0] = 0
    for i in range(2):
        save(folder / "depths" / f"{i:03d}.png", steps)
    own = {"orientation": "none", "center": "none", "scale": "none"}
    ray = load(folder, depth_kind="ray", **own)
    assert ray.depths[0][3, 3] == 2.5 and ray.depths[0][0, 0] == 0
    u, v = (3.5 - 6.5) / 10, (3.5 - 4.25) / 11
    z = load(folder, **own)
    assert z.depths[0][3, 3] == pytest.approx(2.5 * (1 + u * u + v * v) ** 0.5)
    assert load(folder, depth_kind="ray", depth_unit=0.01, **own).depths[1][3, 3] == 25
    scaled = load(folder, depth_kind="ray")
    assert scaled.depths[0][3, 3] * scaled.world_from_scene.scale == pytest.approx(2.5)
    text = describe(scaled)
    assert "for 2 photos, 190 pixels (99.0%) known, 2.5 to 2.5 world units, along the ray" in text
    edit(folder, lambda meta: meta.update(depth_kind="ray", integer_depth_scale=0.1))
    assert load(folder, **own).depths[0][3, 3] == 250
    refused(edit(folder, lambda meta: meta.update(depth_kind="plane")), "depth_kind", "'plane'")


def test_depths_are_in_world_units_whatever_was_applied_to_the_poses(tmp_path):
    folder = write_scene(tmp_path / "s", count=2, applied_scale=4.0)
    for i in range(2):
        save(folder / "depths" / f"{i:03d}.png", np.full((HEIGHT, WIDTH), 2000, np.uint16))
    scene = load(folder, depth_kind="ray")
    assert scene.depths[0][0, 0] * scene.world_from_scene.scale == pytest.approx(2)
    mapped = load(folder, depth_kind="ray", memory="disk")
    assert torch.allclose(mapped.depths[1], scene.depths[1])


def test_float_depths_beside_colmap_photos_are_in_the_poses_units(tmp_path):
    from test_colmap import write

    folder = write(tmp_path / "s", seeds.colmap_binary, **seeds.small_model(2))
    (folder / "depths").mkdir()
    values = np.full((8, 12), 1.5, np.float32)
    values[0] = (np.nan, np.inf, 1e10, *[1.5] * 9)
    (folder / "depths" / "photo 0.exr").write_bytes(seeds.exr({"Z": values}))
    np.save(folder / "depths" / "photo 1.npy", np.full((8, 12), 1.5))
    scene = load(folder, depth_kind="ray", scale=0.5)
    assert scene.depths[0][0, :4].tolist() == [0, 0, 0, 0.75]
    assert scene.depths[1][4, 4] == 0.75


# --- OpenEXR and sixteen bits ---


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("compression", ["NONE", "RLE", "ZIPS", "ZIP"])
def test_exr_files_are_read_back(compression, half):
    dice = np.random.default_rng(0)
    planes = {name: dice.normal(size=(37, 21)).astype(np.float16).astype(np.float32) for name in "RGBAZ"}
    planes["Z"][:, :] = 3  # something that compresses
    found = exr.channels(seeds.exr(planes, compression, half), "x.exr")
    assert sorted(found) == sorted(planes)
    assert all(np.array_equal(found[name], planes[name]) for name in planes)


def test_our_own_exr_files_are_read_back(tmp_path):
    from raymarch.apps.images import save_exr

    values = np.random.default_rng(0).random((5, 7, 3), dtype=np.float32)
    save_exr(tmp_path / "x.exr", values)
    found = exr.channels((tmp_path / "x.exr").read_bytes(), "x.exr")
    assert np.array_equal(np.stack([found[c] for c in "RGB"], 2), values)


@pytest.mark.parametrize("compression", ["NONE", "RLE", "ZIP"])
def test_an_exr_file_cut_anywhere_is_one_sentence(compression):
    data = seeds.exr({"Y": np.arange(80, dtype=np.float32).reshape(20, 4)}, compression)
    for size in range(len(data)):
        with pytest.raises(SceneError) as caught:
            exr.channels(data[:size], "x.exr")
        assert "x.exr" in str(caught.value) and "\n" not in str(caught.value)


def test_exr_files_of_other_kinds_are_refused_by_name():
    data = bytearray(seeds.exr({"Y": np.zeros((2, 2), np.float32)}))
    tiles = data.copy()
    tiles[5] |= 0x02
    with pytest.raises(SceneError, match="with tiles"):
        exr.channels(bytes(tiles), "x.exr")
    at = data.index(b"compression\0compression\0") + 28
    data[at] = 4
    with pytest.raises(SceneError, match="by PIZ"):
        exr.channels(bytes(data), "x.exr")


def test_exr_photos_are_linear_light_averaged_and_then_encoded(tmp_path):
    folder = write_scene(tmp_path / "s", count=2)
    alpha = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    light = np.zeros((HEIGHT, WIDTH), np.float32)
    light[::2] = 0.5  # premultiplied: full where it is, none on every other line
    for i in range(2):
        planes = {"R": light, "G": light * 0 + 0.1, "B": light * 0 + 9, "A": alpha}
        (folder / "images" / f"{i:03d}.exr").write_bytes(seeds.exr(planes))
        edit(folder, lambda meta, i=i: meta["frames"][i].update(file_path=f"images/{i:03d}.exr"))
    scene = load(folder)
    assert scene.images[0][0, 0].tolist() == [255, 124, 255, 128]  # sRGB of 0.2 is 0.4845
    assert scene.images[0][1, 0].tolist() == [0, 124, 255, 128]
    small = load(folder, downscale=2)
    assert small.images[0][0, 0].tolist() == [188, 124, 255, 128]  # of half the light: 0.7354
    assert images.photo_size(folder / "images" / "000.exr") == (12, 8)


def test_srgb_is_the_standard():
    wanted = [0, 0.0031308 * 12.92, 0.18, 0.5, 1, 1]
    light = np.array([-1, 0.0031308, 0.0272109, 0.2140411, 1, 7])
    assert np.allclose(images.srgb(light), wanted, atol=1e-5)


def test_sixteen_bit_photos_keep_their_upper_half(tmp_path):
    folder = write_scene(tmp_path / "s", count=2)
    steps = (np.arange(96, dtype=np.uint32).reshape(8, 12) * 65535 // 95).astype(np.uint16)
    save(folder / "images" / "000.png", steps)
    found = load(folder).images[0][:, :, 0].numpy().astype(int)
    assert np.abs(found - np.rint(steps / 257.0)).max() <= 1


# --- decoded photos in files ---


def everything(folder, count=4):
    """A scene with photos of two channel counts, masks of both kinds and depth."""
    write_scene(folder, count=count)
    for i in range(count):
        save(folder / "images" / f"{i:03d}.png", photo(WIDTH, HEIGHT, i, 4 if i == 1 else 3))
        save(folder / "masks" / f"{i:03d}.png", half_mask())
        save(folder / "depths" / f"{i:03d}.png", np.full((HEIGHT, WIDTH), 900 + i, np.uint16))
    return folder


def same(a, b):
    for x, y in ((a.images, b.images), (a.masks, b.masks), (a.depths, b.depths)):
        assert (x is None) == (y is None)
        assert x is None or all(torch.equal(p, q) for p, q in zip(x, y, strict=True))
    assert torch.equal(a.cameras.intrinsics, b.cameras.intrinsics)
    assert (a.names, a.train, a.test, a.background) == (b.names, b.train, b.test, b.background)


@pytest.mark.parametrize("options", [{}, {"downscale": 2}, {"masks": "empty"}, {"alpha": "ignore"},
                                     {"alpha": "none", "downscale": 3}])  # fmt: skip
def test_mapped_photos_are_the_photos(tmp_path, options):
    folder = everything(tmp_path / "s")
    wanted = load(folder, memory="memory", **options)
    for _ in range(2):  # made, then found
        found = load(folder, memory="disk", **options)
        same(found, wanted)
        assert any("mapped from files in" in note for note in found.notes)
    kept = found.images[0].numpy()
    kept[0, 0] = 7  # of this process alone
    same(load(folder, memory="disk", **options), wanted)
    assert not list(folder.rglob("raymarch-*"))


def test_memory_decides_by_itself(tmp_path):
    folder = everything(tmp_path / "s")
    assert not (tmp_path / "cache").exists()
    load(folder, memory=100000)
    assert not (tmp_path / "cache").exists()
    assert any("mapped" in note for note in load(folder, memory=1000).notes)
    assert (tmp_path / "cache").is_dir()


def test_training_from_mapped_photos_equals_training_from_memory(tmp_path):
    from test_train import config, parameters, run_to

    folder = everything(tmp_path / "s")
    results = []
    for memory in ("memory", "disk"):
        settings = config(steps=5, **{"model.fields.feature.width": 0})
        results.append(parameters(run_to(start(load(folder, memory=memory), settings, device="cpu"), 5)))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_downscaled_photos_are_kept_until_the_photo_changes(tmp_path, monkeypatch):
    folder = write_scene(tmp_path / "s", count=3)
    decoded = []
    real = images.read_photo
    monkeypatch.setattr(
        images, "read_photo", lambda path, factor: decoded.append(path.name) or real(path, factor)
    )
    first = load(folder, downscale=2, cache=tmp_path / "kept")
    assert sorted(decoded) == ["000.png", "001.png", "002.png"]
    decoded.clear()
    same(load(folder, downscale=2, cache=tmp_path / "kept"), first)
    assert decoded == []
    facts = (folder / "images" / "001.png").stat()
    save(folder / "images" / "001.png", photo(WIDTH, HEIGHT, 99))
    os.utime(
        folder / "images" / "001.png", ns=(facts.st_atime_ns, facts.st_mtime_ns)
    )  # even with its old date
    changed = load(folder, downscale=2, cache=tmp_path / "kept")
    assert decoded == ["001.png"]
    assert not torch.equal(changed.images[1], first.images[1]) and torch.equal(
        changed.images[0], first.images[0]
    )
    load(folder, downscale=4, cache=tmp_path / "kept")
    assert len(decoded) == 4
    assert any("kept in" in note for note in changed.notes)


@pytest.mark.parametrize("size", [0, 100, 150])
def test_a_damaged_file_of_decoded_pixels_is_made_again(tmp_path, size):
    folder = write_scene(tmp_path / "s", count=2)
    wanted = load(folder, memory="memory")
    load(folder, memory="disk")
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:size])
    same(load(folder, memory="disk"), wanted)


def test_only_our_own_old_files_are_removed(tmp_path):
    cache = tmp_path / "mine"
    folder = write_scene(tmp_path / "s", count=2)
    load(folder, downscale=2, cache=cache)
    ours = sorted(cache.iterdir())
    (cache / "important.npy").write_bytes(b"x")
    (cache / "raymarch-notes.txt").write_bytes(b"x")
    for path in cache.iterdir():
        os.utime(path, (0, 0))
    store.Store(cache)
    assert sorted(x.name for x in cache.iterdir()) == ["important.npy", "raymarch-notes.txt"]
    assert len(ours) == 2


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    folder = write_scene(tmp_path / "s", count=2)
    (tmp_path / "file").write_text("not a folder")
    refused(folder, "cannot be kept in", "RAYMARCH_CACHE", downscale=2, cache=tmp_path / "file")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    refused(folder, "No space left on device", "free space there", downscale=2, cache=tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_smaller_copies_of_photos_take_masks_of_either_size(tmp_path):
    folder = write_scene(tmp_path / "s", count=2)
    for i in range(2):
        save(folder / "images_2" / f"{i:03d}.png", photo(6, 4, i))
        save(folder / "masks" / f"{i:03d}.png", half_mask())
    scene = load(folder, downscale=2)
    assert torch.equal(scene.images[1], torch.from_numpy(photo(6, 4, 1)))
    assert torch.equal(scene.masks[1], torch.from_numpy(half_mask()[1::2, 1::2] > 0))
    assert torch.allclose(scene.cameras.intrinsics[0], torch.tensor([10.0, 11, 6.5, 4.25]) / 2)
    assert scene.problems == ()
    shutil.rmtree(folder / "images_2")
    assert load(folder, downscale=2).images[0].shape == (4, 6, 3)


# --- names ---


def test_photos_of_one_name_in_two_folders_are_written_to_different_files():
    assert file_stems(["a/1.png", "a/2.png"]) == ["1", "2"]
    assert file_stems(["left/1.png", "right/1.png"]) == ["left_1", "right_1"]
    names = ["a/b/1.png", "a_b/1.png", "a/b/1.jpg", "A/B/1.png", "/", ".."]
    stems = file_stems(names)
    assert len({x.casefold() for x in stems}) == len(names)
    assert not any("/" in x for x in stems)


def test_a_photo_that_two_frames_share_is_reported(tmp_path):
    folder = write_scene(tmp_path / "s", count=3)
    meta = json.loads((folder / "transforms.json").read_text())
    meta["frames"].append({**meta["frames"][0], "transform_matrix": ring(9)[7].tolist()})
    (folder / "transforms.json").write_text(json.dumps(meta))
    assert "share their photos" in load(folder).problems[0]
