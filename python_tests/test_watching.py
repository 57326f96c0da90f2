"""What training leaves behind: held-out views, TensorBoard logs, the run's page."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from raymarch.apps.run_page import write_run_page
from raymarch.apps.watching import Watcher
from raymarch.config import ConfigError, override, preset
from raymarch.data.scene import load
from raymarch.data.synthetic import make_scene
from raymarch.train.runs import start

SHORT = ("train.trainer.rays=64", "train.trainer.steps=24", "train.trainer.log_every=4")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    truth = make_scene(views=9, test_views=0, size=24)
    frames = []
    for i in range(9):
        Image.fromarray(truth.images[i].numpy()).save(folder / f"{i:02d}.png")
        pose = torch.cat([truth.camera_to_worlds[i], torch.tensor([[0.0, 0, 0, 1]])])
        frames.append({"file_path": f"{i:02d}.png", "transform_matrix": pose.tolist()})
    fx, fy, cx, cy = truth.intrinsics.tolist()
    meta = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": 24, "h": 24, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def trainer_for(photos, run):
    config = preset("tiny")
    for assignment in SHORT:
        config = override(config, assignment)
    return start(load(photos), config, run, "cpu", {"path": str(photos), "options": {}})


def test_looking_changes_nothing(photos, tmp_path):
    """The same parameters, bit for bit, with and without somebody who looks."""
    plain, watched = (trainer_for(photos, tmp_path / x) for x in ("plain", "watched"))
    plain.train()
    watcher = Watcher(watched, every=8)
    watched.train(on_progress=watcher)
    watcher.close()
    assert len(list((tmp_path / "watched" / "held_out").iterdir())) == 3
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_held_out_views_and_their_page(photos, tmp_path):
    run = tmp_path / "run"
    trainer = trainer_for(photos, run)
    watcher = Watcher(trainer, every=8)
    trainer.train(on_progress=watcher)
    watcher.close()
    rows = [json.loads(line) for line in (run / "held_out.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [8, 16, 24]
    assert all(row["photo"] == "00.png" and row["psnr"] > 3 for row in rows)
    picture = np.array(Image.open(run / rows[-1]["file"])) / 255
    truth = np.array(Image.open(photos / "00.png")) / 255
    assert -10 * np.log10(((picture - truth) ** 2).mean()) == pytest.approx(rows[-1]["psnr"], abs=0.1)
    page = write_run_page(run, "cpu").read_text()
    assert "While training" in page and "One held-out photo" in page and "Held-out views" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_a_run_without_held_out_photos_or_looks(photos, tmp_path):
    trainer = trainer_for(photos, tmp_path / "run")
    watcher = Watcher(trainer, every=0)
    trainer.train(on_progress=watcher)
    watcher.close()
    assert not (tmp_path / "run" / "held_out").exists()
    assert (tmp_path / "run" / "log.jsonl").exists()
    with pytest.raises(ConfigError, match="--look-every"):
        Watcher(trainer, every=-1)


def test_tensorboard_has_the_losses_and_the_pictures(photos, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_for(photos, tmp_path / "run")
    watcher = Watcher(trainer, every=12, tensorboard=True)
    trainer.train(on_progress=watcher)
    watcher.close()
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    losses = found.Scalars("loss/rgb")
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [x.step for x in losses] == [row["step"] for row in logged]
    assert [x.value for x in losses] == pytest.approx([row["rgb"] for row in logged])
    assert [x.step for x in found.Scalars("psnr/held_out")] == [12, 24]
    assert len(found.Images("held_out")) == 2


def test_tensorboard_that_is_missing_is_told(photos, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"raymarch\[tensorboard\]"):
        Watcher(trainer_for(photos, tmp_path / "run"), tensorboard=True)
