"""Real photos, from folder to held-out quality. The photos are not in the repository."""

import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest

from raymarch.config import preset
from raymarch.data.scene import load
from raymarch.train.evaluate import evaluate
from raymarch.train.runs import start, subset

SCENES = Path(__file__).resolve().parents[2] / "shared" / "scenes"


@pytest.mark.timeout(400)
def test_fox_at_an_eighth_of_its_size_reaches_18_db_on_a_laptop():
    if not (SCENES / "fox_full").exists():
        pytest.skip("../shared/scenes is absent")
    began = time.perf_counter()
    scene = load(SCENES / "fox_full", downscale=8, split="every8")
    assert len(scene.test) == 7
    config = preset("tiny")
    trainer = replace(config.train.trainer, steps=1200)
    trained = start(scene, replace(config, train=replace(config.train, trainer=trainer)), device="cpu")
    for _ in trained.iterate():
        pass
    photos, names = [scene.images[i] for i in scene.test], [scene.names[i] for i in scene.test]
    cameras = subset(scene.cameras, scene.test)
    rows = [row for row, _ in evaluate(trained.model, cameras, photos, names)]
    psnr = statistics.fmean(r.psnr for r in rows)
    print(f"{psnr:.2f} dB in {time.perf_counter() - began:.0f} s")
    assert psnr >= 18


@pytest.mark.parametrize(
    ("name", "downscale"),
    [("fox", 8), ("chair", 4), ("head", 4), ("head/poses_bounds.npy", 4), ("miku", 8)],
)
def test_every_shared_scene_loads_and_trains(name, downscale):
    if not (SCENES / name).exists():
        pytest.skip("../shared/scenes is absent")
    scene = load(SCENES / name, downscale=downscale, memory="memory")
    config = preset("tiny")
    trainer = replace(config.train.trainer, steps=60, rays=512, log_every=10)
    seen = list(
        start(scene, replace(config, train=replace(config.train, trainer=trainer)), device="cpu").iterate()
    )
    assert seen[-1].psnr > seen[0].psnr + 1
    assert scene.test
