"""Held-out figures of photos with masks: what is ignored in training is ignored in judging."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import photo, write_scene

from raymarch.apps.evaluation import evaluate_run, metrics_file
from raymarch.apps.watching import Watcher
from raymarch.config import ConfigError, override, preset
from raymarch.data.scene import load
from raymarch.train import held_out
from raymarch.train.evaluate import PROTOCOL, ImageMetrics, evaluate, masks_of
from raymarch.train.held_out import PROTOCOLS, evaluate_refined
from raymarch.train.localize import Level, LocalizeConfig
from raymarch.train.runs import OpenRun, start, subset

HELD_OUT = (0, 8)  # of nine photos, by every8


def masked(folder, spoil=False):
    """A scene of nine photos whose left half is ignored; `spoil`: with another left half."""
    write_scene(folder, count=9, width=24, height=16)
    names = [frame["file_path"] for frame in json.loads((folder / "transforms.json").read_text())["frames"]]
    for i, name in enumerate(names):
        image = photo(24, 16, i)[..., :3].copy()
        if spoil:
            image[:, :12] = 255 - image[:, :12]
        Image.fromarray(image).save(folder / name)
        mask = np.full((16, 24), 255, np.uint8)
        mask[:, :12] = 0
        file = folder / "masks" / f"{name.rsplit('/')[-1]}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(file)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = masked(tmp_path_factory.mktemp("masked") / "scene")
    config = preset("tiny")
    for word in ("train.trainer.rays=64", "train.trainer.steps=6", "train.trainer.log_every=2"):
        config = override(config, word)
    source = {"path": str(folder), "options": {"split": "every8"}}
    trainer = start(load(folder, split="every8"), config, folder.parent / "run", "cpu", source)
    watcher = Watcher(trainer, every=3, scene=load(folder, split="every8"))
    trainer.train(on_progress=watcher)
    watcher.close()
    return folder.parent / "run"


def rows_of(run, folder):
    opened, scene = OpenRun(run, "cpu"), load(folder, split="every8")
    assert scene.test == HELD_OUT
    photos, names = [scene.images[i] for i in scene.test], [scene.names[i] for i in scene.test]
    cameras = subset(opened.cameras, scene.test)
    found = evaluate(opened.model, cameras, photos, names, masks=masks_of(scene, scene.test))
    return [row for row, _ in found], opened, scene, photos, names


def test_what_a_mask_ignores_changes_no_figure(run, tmp_path):
    rows, *_ = rows_of(run, run.parent / "scene")
    spoilt, opened, scene, photos, names = rows_of(run, masked(tmp_path / "spoilt", spoil=True))
    assert rows == spoilt and all(row.kept == 0.5 for row in rows)
    cameras = subset(opened.cameras, scene.test)
    plain = [row for row, _ in evaluate(opened.model, cameras, photos, names)]
    assert all(abs(a.psnr - b.psnr) > 0.05 for a, b in zip(plain, spoilt, strict=True))


def test_refined_poses_are_judged_where_the_mask_keeps_pixels(run, monkeypatch):
    monkeypatch.setattr(held_out, "REFINE", LocalizeConfig(rounds=0, levels=(Level(24, 24, 1.0, 1, 1),)))
    _, opened, scene, photos, names = rows_of(run, run.parent / "scene")
    opened.test = opened.test[:1]
    found = [
        next(evaluate_refined(opened, images, names[:1], masks=masks_of(scene, scene.test)[:1]))[0]
        for images in (photos[:1], [torch.where(scene.masks[0][..., None], photos[0], 7)])
    ]
    assert found[0] == found[1] and found[0].kept == 0.5


def test_the_command_says_what_is_judged(run):
    lines = list(evaluate_run(run, None, False, "cpu"))
    assert sum("over the 50.0% that its mask keeps" in line for line in lines) == len(HELD_OUT)
    assert any("pixels that a mask ignores count in neither" in line for line in lines)
    kept = json.loads(metrics_file(run, "none").read_text())
    assert kept["protocol"] == PROTOCOL and [image["kept"] for image in kept["images"]] == [0.5, 0.5]
    assert all("a mask ignores" in words for words in PROTOCOLS.values())


def test_an_infinite_figure_is_null(run, monkeypatch):
    """JSON has no word for it, and readers other than Python's stop at Infinity."""
    from raymarch.apps import evaluation
    from raymarch.apps.run_page import _held_out

    def measured(*_):
        yield ImageMetrics("a.png", math.inf, 1.0), {}, {}
        yield ImageMetrics("b.png", 20.0, 0.5), {}, {}

    def other(word):
        raise ValueError(word)

    monkeypatch.setattr(evaluation, "_measured", measured)
    lines = list(evaluate_run(run, None, False, "cpu"))
    assert any("inf" in line for line in lines)
    stored = json.loads(metrics_file(run, "none").read_text(), parse_constant=other)
    assert [image["psnr"] for image in stored["images"]] == [None, 20.0]
    assert stored["mean"] == {"psnr": None, "ssim": 0.75} and "infinite" in stored["null"]
    assert [metric.key for metric in _held_out(run, stored["step"], "none")] == ["ssim_none"]


def test_photos_without_a_pixel_left_are_not_judged(run, tmp_path):
    folder = masked(tmp_path / "scene")
    Image.fromarray(np.zeros((16, 24), np.uint8)).save(folder / "masks" / "000.png.png")
    lines = list(evaluate_run(run, folder, False, "cpu"))
    assert any("is not judged: its mask ignores every pixel" in line for line in lines)
    kept = json.loads(metrics_file(run, "none").read_text())
    assert len(kept["images"]) == 1 and kept["mean"]["psnr"] == kept["images"][0]["psnr"]
    Image.fromarray(np.zeros((16, 24), np.uint8)).save(folder / "masks" / "008.png.png")
    with pytest.raises(ConfigError, match="there is nothing to judge"):
        list(evaluate_run(run, folder, False, "cpu"))


def test_views_rendered_while_training_are_judged_the_same(run):
    rows = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    assert rows and all(row["kept"] == 0.5 for row in rows)
    found, *_ = rows_of(run, run.parent / "scene")
    assert rows[-1]["psnr"] == pytest.approx(found[0].psnr, abs=0.05)  # of a copy of the same size
