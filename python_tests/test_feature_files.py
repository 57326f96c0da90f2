"""Feature files: written map by map, resumed after a kill, never stale, refused when bad."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from test_data import photo, write_scene

from raymarch.apps import extraction
from raymarch.apps.extraction import extract, features_for
from raymarch.data.error import SceneError
from raymarch.data.feature_files import CHECKS, find_feature_files, open_feature_file, read_feature_maps
from raymarch.data.feature_writer import FeatureWriter, Photo
from raymarch.data.scene import list_photos, load
from raymarch.features.encoder import Patches

WIDTH = 6


def command(words):
    pytest.importorskip("tyro", reason="the command line needs tyro")
    from raymarch.apps.cli import main

    main(words)


class Means:
    """An encoder of the photo's own colours: the mean over each cell, and what the seed adds."""

    width = WIDTH

    def __init__(self, seed=0, size=0, patch=4, broken=None):
        self.patches = Patches(size, patch, patch)
        self.recipe = {
            "encoder": "means",
            "model": f"patch{patch}",
            "weights": "here",
            "seed": seed,
            "size": size,
        }
        self.broken, self.calls = broken, 0
        self.mix = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed))

    def grid(self, width, height):
        return self.patches.grid(width, height)

    def encode(self, pixels):
        if self.calls == self.broken:
            raise KeyboardInterrupt
        self.calls += 1
        x = self.patches.prepare(pixels, (0, 0, 0), (1, 1, 1))
        x = torch.nn.functional.avg_pool2d(x, self.patches.patch)[0].permute(1, 2, 0)
        return (x @ self.mix).half()


@pytest.fixture
def folder(tmp_path):
    return write_scene(tmp_path / "scene", count=5)


def test_a_file_holds_every_photos_map_as_extracted(folder):
    encoder = Means()
    found = extract(folder, encoder)
    assert found.path == folder / "features_means.safetensors" and (found.made, found.kept) == (5, 0)
    assert find_feature_files(folder) == [found.path] == find_feature_files(folder / "transforms.json")
    listed = list_photos(folder)
    maps = read_feature_maps(found.path, [name for name, _ in listed])
    assert maps.kind == "means" and maps.info == encoder.recipe
    for (_, image), one in zip(listed, maps.maps, strict=True):
        assert torch.equal(one, encoder.encode(np.array(Image.open(image))))
    scene = load(folder, features=found.path)
    assert str(found.path) in Path("/proc/self/maps").read_text()  # mapped, not read
    assert scene.features.width == WIDTH and scene.names == tuple(name for name, _ in listed)


def test_features_of_photos_hold_for_smaller_copies_of_them(folder):
    path = extract(folder, Means()).path
    for image in sorted((folder / "images").iterdir()):
        small = folder / "images_2" / image.name
        small.parent.mkdir(exist_ok=True)
        Image.open(image).resize((6, 4)).save(small)
    scene = load(folder, downscale=2, features=path)
    assert any("images_2" in note for note in scene.notes) and scene.features.width == WIDTH
    Image.fromarray(photo(12, 8, 77)).save(folder / "images" / "002.png")
    with pytest.raises(SceneError, match=r"002\.png has changed"):
        load(folder, downscale=2, features=path)


def test_any_reader_of_safetensors_opens_the_file(folder):
    found = extract(folder, Means())
    tensors = load_file(found.path)
    assert tensors.pop(CHECKS)[:, 0].tolist() == [1] * 5
    ours = open_feature_file(found.path)
    assert tensors.keys() == ours.maps.keys()
    assert all(torch.equal(tensors[name], ours.maps[name]) for name in tensors)


def test_an_interrupted_run_goes_on_at_the_next_photo(folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract(folder, Means(broken=3))
    partial = folder / "features_means.safetensors.partial"
    assert partial.is_file() and not find_feature_files(folder)
    with pytest.raises(SceneError, match=r"no map for.*again"):
        read_feature_maps(partial, [name for name, _ in list_photos(folder)])
    again = Means()
    assert extract(folder, again).kept == 3 and again.calls == 2
    whole = extract(folder, Means(), tmp_path / "whole.safetensors")
    assert whole.path.read_bytes() == (folder / "features_means.safetensors").read_bytes()
    assert not partial.exists()


SLOW = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from test_feature_files import Means, extract
    class Slow(Means):
        def encode(self, pixels):
            print("at", self.calls, flush=True)
            time.sleep(0.05)
            return super().encode(pixels)
    extract(Path({folder!r}), Slow())
"""


def test_a_run_killed_with_no_warning_goes_on_too(tmp_path):
    folder = write_scene(tmp_path / "scene", count=12)
    code = textwrap.dedent(SLOW).format(tests=str(Path(__file__).parent), folder=str(folder))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in child.stdout:
        if line.split() == ["at", "6"]:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    again = Means()
    found = extract(folder, again)
    assert 6 <= found.kept < 12 and again.calls == 12 - found.kept
    whole = extract(folder, Means(), tmp_path / "whole.safetensors")
    assert whole.path.read_bytes() == found.path.read_bytes()


def test_a_map_torn_by_a_power_cut_is_made_again(folder):
    with pytest.raises(KeyboardInterrupt):
        extract(folder, Means(broken=4))
    partial = folder / "features_means.safetensors.partial"
    data = bytearray(partial.read_bytes())
    at = len(data) - 5 * 2 * 3 * WIDTH * 2  # the first map: five maps of 2 x 3 cells end the file
    data[at] ^= 1
    partial.write_bytes(data)
    again = Means()
    assert extract(folder, again).kept == 3 and again.calls == 2


def test_nothing_stale_is_served(folder):
    first = extract(folder, Means())
    same = Means()
    assert extract(folder, same).made == 0 and same.calls == 0
    moved = Means()
    moved.recipe["weights"] = "elsewhere"  # where weights lie changes nothing; what they are would
    assert extract(folder, moved).made == 0
    changed = folder / "images" / "002.png"
    Image.fromarray(photo(12, 8, 99)).save(changed)
    with pytest.raises(SceneError, match=r"002\.png has changed since"):
        load(folder, features=first.path)
    some = Means()
    found = extract(folder, some)
    assert (found.made, found.kept) == (1, 4) and some.calls == 1
    maps = read_feature_maps(found.path, ["images/002.png"], [changed])
    assert torch.equal(maps.maps[0], Means().encode(np.array(Image.open(changed))))
    for other in (Means(seed=1), Means(seed=1, size=16), Means(seed=1, size=16, patch=8)):
        assert extract(folder, other).made == 5


def test_a_photo_more_or_less_leaves_the_others_alone(folder):
    extract(folder, Means())
    meta = json.loads((folder / "transforms.json").read_text())
    gone = meta["frames"].pop(1)
    (folder / "transforms.json").write_text(json.dumps(meta))
    fewer = extract(folder, Means())
    assert (fewer.made, fewer.kept) == (0, 4)
    meta["frames"].append(gone)
    (folder / "transforms.json").write_text(json.dumps(meta))
    more = extract(folder, Means())
    assert (more.made, more.kept) == (1, 4)


def test_an_interrupted_run_keeps_its_maps_when_photos_change(folder):
    with pytest.raises(KeyboardInterrupt):
        extract(folder, Means(broken=4))
    Image.fromarray(photo(12, 8, 99)).save(folder / "images" / "001.png")
    with pytest.raises(KeyboardInterrupt):
        extract(folder, Means(broken=0))
    Image.fromarray(photo(12, 8, 98)).save(folder / "images" / "004.png")
    again = Means()
    found = extract(folder, again)
    assert again.calls == 2 and (found.made, found.kept) == (2, 3)
    assert sorted(x.name for x in folder.glob("features_*")) == ["features_means.safetensors"]
    listed = list_photos(folder)
    maps = read_feature_maps(found.path, [name for name, _ in listed], [image for _, image in listed])
    for (_, image), one in zip(listed, maps.maps, strict=True):
        assert torch.equal(one, Means().encode(np.array(Image.open(image))))


def test_a_torn_map_of_an_interrupted_run_is_no_map_of_the_next(folder):
    with pytest.raises(KeyboardInterrupt):
        extract(folder, Means(broken=4))
    partial = folder / "features_means.safetensors.partial"
    data = bytearray(partial.read_bytes())
    data[-4 * 2 * 3 * WIDTH * 2] ^= 1  # in the second of five maps of 2 x 3 cells, which end the file
    partial.write_bytes(data)
    Image.fromarray(photo(12, 8, 98)).save(folder / "images" / "004.png")
    again = Means()
    assert extract(folder, again).kept == 3 and again.calls == 2


def test_photos_of_one_name_in_two_folders_and_odd_names_keep_their_own_maps(tmp_path):
    folder = write_scene(tmp_path, count=3)
    meta = json.loads((folder / "transforms.json").read_text())
    for i, name in enumerate(("a/x.png", "b/x.png", 'ß 目/"x".png')):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo(12, 8, i)).save(folder / name)
        meta["frames"][i]["file_path"] = name
    (folder / "transforms.json").write_text(json.dumps(meta))
    extract(folder, Means())
    scene = load(folder, features=folder / "features_means.safetensors")
    for name, one in zip(scene.names, scene.features.maps, strict=True):
        assert torch.equal(one, Means().encode(np.array(Image.open(folder / name))))


def test_memory_does_not_grow_with_the_number_of_photos(tmp_path, monkeypatch):
    folder = write_scene(tmp_path, count=16)
    alive, most, lock = [0], [0], threading.Lock()
    plain = extraction.read_photo

    def counted(path):
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return plain(path)

    class Counting(Means):
        def encode(self, pixels):
            with lock:
                alive[0] -= 1
            return super().encode(pixels)

    monkeypatch.setattr(extraction, "read_photo", counted)
    extract(folder, Counting())
    assert alive[0] == 0 and most[0] <= extraction.AHEAD + 2


def test_files_that_are_not_ours_are_never_replaced(folder, tmp_path):
    other = tmp_path / "mine.safetensors"
    save_file({"x": torch.zeros(2, 2, 3)}, other)
    before = other.read_bytes()
    with pytest.raises(SceneError, match=r"mine\.safetensors exists and is not"):
        extract(folder, Means(), other)
    assert other.read_bytes() == before
    with pytest.raises(SceneError, match=r"ends in \.safetensors"):
        extract(folder, Means(), tmp_path / "x.npz")
    with pytest.raises(SceneError, match="cannot be written"):
        extract(folder, Means(), Path("/proc/nowhere/x.safetensors"))


def test_two_runs_do_not_write_one_file(folder, tmp_path):
    photos = [Photo("a", "0", 2, 3)]
    first = FeatureWriter(tmp_path / "x.safetensors", {"encoder": "x"}, photos, WIDTH)
    with pytest.raises(SceneError, match="another `raymarch extract`"):
        FeatureWriter(tmp_path / "x.safetensors", {"encoder": "x"}, photos, WIDTH)
    first.close()


def test_features_that_are_not_numbers_are_refused(folder):
    class Broken(Means):
        def encode(self, pixels):
            return super().encode(pixels) / 0

    with pytest.raises(SceneError, match=r"images/000\.png are not finite"):
        extract(folder, Broken())


# --- maps that others made ---


def own_maps(names, sizes=((4, 6), (2, 3), (8, 12)), width=5):
    random = np.random.default_rng(0)
    return {
        n: random.normal(size=(*sizes[i % len(sizes)], width)).astype(np.float32) for i, n in enumerate(names)
    }


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_own_maps_of_any_size_by_photo_name(folder, tmp_path, ending):
    names = [name for name, _ in list_photos(folder)]
    maps = own_maps(names)
    path = tmp_path / f"thermal.{ending}"
    if ending == "npz":
        np.savez(path, **maps)
    else:
        save_file({name: torch.from_numpy(x).to(torch.bfloat16) for name, x in maps.items()}, path)
    scene = load(folder, features=path)
    assert scene.features.kind == "thermal" and scene.features.width == 5
    for name, found in zip(scene.names, scene.features.maps, strict=True):
        assert np.allclose(found.float().numpy(), maps[name], atol=0.02)


def test_own_maps_in_the_scenes_order(folder, tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 4, 6, 7)).astype(np.float16)
    np.save(tmp_path / "x.npy", values)
    scene = load(folder, features=tmp_path / "x.npy")
    assert all(np.array_equal(m.numpy(), v) for m, v in zip(scene.features.maps, values, strict=True))
    np.save(tmp_path / "few.npy", values[:4])
    with pytest.raises(SceneError, match="4 maps for 5 photos"):
        load(folder, features=tmp_path / "few.npy")


def test_several_files_make_several_heads(folder, tmp_path):
    extract(folder, Means())
    names = [name for name, _ in list_photos(folder)]
    np.savez(tmp_path / "mine.npz", **own_maps(names))
    scene = load(folder, features=[folder / "features_means.safetensors", str(tmp_path / "mine.npz")])
    assert [(h.kind, h.width) for h in scene.features.heads] == [("means", WIDTH), ("mine", 5)]


def test_bad_files_are_told_in_one_sentence(folder, tmp_path):
    names = [name for name, _ in list_photos(folder)]
    good = extract(folder, Means()).path.read_bytes()
    length = int.from_bytes(good[:8], "little")

    def with_header(change):
        header = json.loads(good[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + good[8 + length :]

    def entry(**values):
        return with_header(lambda h: h["images/001.png"].update(values))

    newer = with_header(
        lambda h: h["__metadata__"].update(
            raymarch_features=h["__metadata__"]["raymarch_features"].replace('"format": 1', '"format": 2')
        )
    )
    np.save(tmp_path / "flat.npy", np.zeros((5, 7)))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    cases = {
        "empty.safetensors": (b"", "cut short"),
        "short.safetensors": (good[:6], "cut short"),
        "head.safetensors": (good[: length // 2], "cut short"),
        "cut.safetensors": (good[:-1], "cut short"),
        "text.safetensors": (b"hello, this is no feature file at all", "cut short or no safetensors"),
        "list.safetensors": ((2).to_bytes(8, "little") + b"[]", "no table"),
        "newer.safetensors": (newer, "upgrade"),
        "dtype.safetensors": (entry(dtype="I8"), "of type 'I8'"),
        "lines.safetensors": (entry(dtype="F16\u2028"), "of type 'F16\\u2028'"),
        "shape.safetensors": (entry(shape=[1, 1, 1]), "makes no sense"),
        "minus.safetensors": (entry(shape=[-1, -1, 1]), "makes no sense"),
        "offsets.safetensors": (entry(data_offsets=[0, 1 << 60]), "makes no sense"),
        "far.safetensors": (entry(data_offsets=[1 << 40, (1 << 40) + 72]), "cut short"),
        "fewer.safetensors": (with_header(lambda h: h.pop("images/001.png")), "no map for images/001.png"),
        "flat.npy": (None, "expected [N, rows, columns, D]"),
        "objects.npy": (None, "cannot be read"),
        "other.txt": (b"x", "should end in"),
        "absent.npz": (None, "does not exist"),
    }
    for name, (data, words) in cases.items():
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(SceneError) as told:
            read_feature_maps(path, names)
        assert words in str(told.value) and name in str(told.value) and "\n" not in str(told.value), name


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    folder = write_scene(tmp_path_factory.mktemp("fuzz"), count=2)
    return extract(folder, Means()).path


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_files_never_crash(good_file, data):
    raw = bytearray(good_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    path = good_file.with_name("damaged.safetensors")
    path.write_bytes(raw[: cut if data.draw(st.booleans()) else len(raw)])
    try:
        read_feature_maps(path, ["images/000.png", "images/001.png"])
    except SceneError as told:
        assert "damaged.safetensors" in str(told)


# --- the command line ---


def test_train_finds_what_extract_left(folder, tmp_path):
    assert features_for(folder, (), wanted=True) == ([], [])
    extract(folder, Means())
    path = (folder / "features_means.safetensors").resolve()
    assert features_for(folder, (), wanted=True)[0] == [path]
    assert features_for(folder, (), wanted=False) == ([], [])
    clip = Means()
    clip.recipe["encoder"] = "clip"
    extract(folder, clip)
    found, told = features_for(folder, (), wanted=True)
    assert [p.name for p in found] == ["features_clip.safetensors"] and "features_means" in told[0]


def test_train_resume_and_eval_with_a_feature_file(tmp_path, monkeypatch, capsys):
    folder = write_scene(tmp_path / "scene", count=9, width=16, height=12)
    monkeypatch.setattr(extraction, "open_encoder", lambda *_, **__: Means(patch=4))
    command(["extract", str(folder), "--encoder", "means"])
    assert "6 wide, 9 maps made, 0 kept" in capsys.readouterr().out
    run = tmp_path / "run"
    file = str(folder / "features_means.safetensors")
    small = ["--preset", "tiny", "--steps", "4", "--set", "train.trainer.rays=64", "--device", "cpu"]
    command(["train", str(folder), *small, "--features", file, "--out", str(run)])
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["fields"]["feature"]["width"] == WIDTH
    command(["resume", str(run), "--device", "cpu"])
    command(["eval", str(run), "--device", "cpu"])
    wider = Means(patch=4)
    wider.width, wider.mix = 9, torch.randn(3, 9)
    Path(file).unlink()
    extract(folder, wider)
    with pytest.raises(SystemExit):
        command(["resume", str(run), "--device", "cpu"])
    told = capsys.readouterr().err
    assert "trained on features 6 wide" in told and "9 wide" in told and "Traceback" not in told


def test_patches_cover_the_photo_or_drop_the_rest():
    f3rm = Patches(336, 14, 14, "drop")
    assert (f3rm.resized(1920, 1080), f3rm.grid(1920, 1080)) == ((597, 336), (24, 42))  # spec 12.1
    assert (f3rm.resized(640, 480), f3rm.grid(640, 480)) == ((448, 336), (24, 32))
    whole = Patches(336, 14, 14)
    assert whole.resized(1920, 1080) == (602, 336) and whole.grid(1920, 1080) == (24, 43)
    dino = Patches(224, 8, 4, "drop")
    assert dino.grid(224, 224) == (55, 55) and dino.grid(398, 224) == (55, 98)  # spec 12.2
    assert Patches(0, 14, 14).resized(1080, 1920) == (1078, 1918)
