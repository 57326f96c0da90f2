"""Held-out quality on real photos: train presets on fox_full, measure at 1000, 2000 and 5000 steps.

    python -m bench.quality SCENES [--seeds 3] [--rows nerfacto_off,nerfacto_so3xr3,f3rm,chair]

SCENES is a folder with `fox_full` and `chair`. Protocol: every 8th photo held out, full size, held-out poses
not refined, mean appearance code, PSNR averaged over the held-out photos.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from bench.record import merge
from raymarch.config import Config, override, preset
from raymarch.data.maps import FeatureMaps
from raymarch.data.scene import Scene, load
from raymarch.train.evaluate import PROTOCOL, evaluate, render_image
from raymarch.train.metrics import psnr
from raymarch.train.runs import start, subset

ROWS = "nerfacto_off,nerfacto_so3xr3,f3rm,f3rm_off,nerfacto_off_same,f3rm_off_same,chair"
MARKS = (1000, 2000, 5000)
PEERS_PSNR = 25.38  # nerfstudio with tiny-cuda-nn after 5000 steps, poses off, on the same photos


def colour_statistics(image: Tensor, cell: int, projection: Tensor) -> Tensor:
    """Feature targets [h / cell, w / cell, D] float16: patch means and deviations, projected at random."""
    h, w = (n // cell for n in image.shape[:2])
    patches = image[: h * cell, : w * cell, :3].float().div(255).view(h, cell, w, cell, 3)
    means, spread = patches.mean((1, 3)), patches.var((1, 3)).sqrt()
    return (torch.cat([means, spread], -1) @ projection).half()


def with_features(scene: Scene, width: int = 768, cell: int = 14, seed: int = 7) -> Scene:
    """The scene with synthetic feature maps of every photo."""
    projection = torch.randn(6, width, generator=torch.Generator().manual_seed(seed))
    maps = [colour_statistics(image, cell, projection) for image in scene.images]
    return replace(scene, features=FeatureMaps(tuple(maps)))


def with_two_features(scene: Scene) -> Scene:
    """Maps for two heads, as DINO and CLIP: 384 wide on a fine grid, 768 wide on a coarse one."""
    clip, dino = with_features(scene).features, with_features(scene, 384, 8, 9).features
    assert clip is not None and dino is not None
    return replace(scene, features=replace(dino, kind="dino", beside=(replace(clip, kind="clip"),)))


def configured(row: str) -> Config:
    """The preset of a row. Its name says whether poses are refined, whether the features' gradient reaches
    the density, whether stages run one by one, and whether runs are the same every time."""
    config = preset("f3rm" if row.startswith("f3rm") else "nerfacto")
    mode = "off" if "_off" in row else "SO3xR3"
    if row.endswith("_shaping"):
        config = override(config, "model.fields.feature.detach_weights=false")
    model = replace(config.model, poses=replace(config.model.poses, mode=mode))
    if row.endswith("_composed"):
        config = override(config, "train.trainer.fused=false")
    if row.endswith("_gentle"):  # a third of the preset's pose learning rate
        config = override(override(config, "train.optim.poses.lr=3e-4"), "train.optim.poses.lr_final=3e-5")
        model = replace(config.model, poses=replace(config.model.poses, mode=mode))
    trainer = replace(config.train.trainer, steps=MARKS[-1], log_every=250)
    return replace(config, model=model, train=replace(config.train, trainer=trainer))


def feature_targets(scene: Scene, device: torch.device):
    """Targets [h, w, D] of held-out photo i at the map's own size, and cameras rendered at that size."""
    assert scene.features is not None
    return [scene.features.maps[i].to(device).float() for i in scene.test]


def shrunk(scene: Scene, device: torch.device):
    """Held-out cameras whose pixels are the centres of the feature maps' cells."""
    assert scene.features is not None
    cameras = subset(scene.cameras, scene.test, device)
    sizes = torch.tensor([list(scene.features.maps[i].shape[1::-1]) for i in scene.test], device=device)
    cell = torch.tensor(14.0, device=device)
    return replace(cameras, size=sizes, intrinsics=cameras.intrinsics / cell)


@torch.no_grad()
def held_out_cosine(model, scene: Scene, device: torch.device) -> float:
    """Mean cosine of rendered and target features over the held-out photos' cells."""
    cameras, total = shrunk(scene, device), []
    for i, target in enumerate(feature_targets(scene, device)):
        found = render_image(model, cameras, i, frozenset({"rgb", "feature"}))["feature"]
        total.append(torch.nn.functional.cosine_similarity(found, target, dim=-1).mean().item())
    return statistics.fmean(total)


@contextmanager
def repeatable(row: str) -> Iterator[None]:
    """Sums in one order, for rows whose name asks for it."""
    torch.use_deterministic_algorithms(row.endswith("_same"))
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def train_row(row: str, scene: Scene, seed: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Train one seed; PSNR (and feature cosine) at every mark, with seconds of training so far."""
    config = configured(row)
    config = replace(config, train=replace(config.train, trainer=replace(config.train.trainer, seed=seed)))
    trainer = start(scene, config, device=device)
    cameras = subset(scene.cameras, scene.test, device)
    photos, names = [scene.images[i] for i in scene.test], [scene.names[i] for i in scene.test]
    found = {}
    for mark in MARKS:
        with repeatable(row):
            for _ in trainer.iterate(mark):
                pass
        rows = [r for r, _ in evaluate(trainer.model, cameras, photos, names, scene.background)]
        values = {
            "psnr": statistics.fmean(r.psnr for r in rows),
            "ssim": statistics.fmean(r.ssim for r in rows),
        }
        if scene.features is not None:
            values["feature_cosine"] = held_out_cosine(trainer.model, scene, device)
        values["train_seconds"] = trainer.seconds
        found[str(mark)] = values
        print(row, "seed", seed, mark, {k: round(v, 4) for k, v in values.items()}, flush=True)
    return found


def mean_over_seeds(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Per mark the mean of every value, and the spread of PSNR over seeds."""
    found: dict[str, dict[str, float]] = {}
    for mark in runs[0]:
        found[mark] = {k: statistics.fmean(r[mark][k] for r in runs) for k in runs[0][mark]}
        psnrs = [r[mark]["psnr"] for r in runs]
        found[mark]["psnr_min"], found[mark]["psnr_max"], found[mark]["seeds"] = (
            min(psnrs),
            max(psnrs),
            len(runs),
        )
    return found


def seconds_to(target: float, marks: dict[str, dict[str, float]]) -> float | None:
    """Seconds of training to the first mark whose mean PSNR is at least `target`; None if there is none."""
    return next((m["train_seconds"] for m in marks.values() if m["psnr"] >= target), None)


@torch.no_grad()
def chair(path: Path, device: torch.device, steps: int = 3000) -> dict[str, float]:
    """White-background chair: PSNR, depth and normal accuracy against the scene's truth."""
    scene = load(path)
    config = configured("nerfacto_off")
    rays = replace(config.model.rays, near=2.0, far=6.0)
    if scene.world_from_scene.scale != 1:
        rays = replace(rays, near=2.0 / scene.world_from_scene.scale, far=6.0 / scene.world_from_scene.scale)
    trainer_config = replace(config.train.trainer, steps=steps)
    config = replace(
        config, model=replace(config.model, rays=rays), train=replace(config.train, trainer=trainer_config)
    )
    with torch.enable_grad():
        trainer = start(scene, config, device=device)
        for _ in trainer.iterate():
            pass
    cameras = subset(scene.cameras, scene.test, device)
    heads = frozenset({"rgb", "depth", "opacity", "normals"})
    scores: dict[str, list[float]] = {"psnr": [], "depth_median_error": [], "normal_median_degrees": []}
    for i, index in enumerate(scene.test):
        frame = render_image(trainer.model, cameras, i, heads)
        image = scene.images[index].to(device).float() / 255
        truth = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
        scores["psnr"].append(float(psnr(frame["rgb"], truth)))
        solid = image[..., 3] > 0.99
        if scene.depths is not None and (known := scene.depths[index]) is not None:
            depth = known.to(device)
            valid = solid & (depth > 0)
            error = (frame["depth"] - depth).abs()[valid] * scene.world_from_scene.scale
            scores["depth_median_error"].append(float(error.median()))
        if scene.normals is not None and (known := scene.normals[index]) is not None:
            positive = known.to(device)  # only max(n, 0) is known
            valid = solid & (positive.norm(dim=-1) > 0.9)
            unit = torch.nn.functional.normalize(frame["normals"], dim=-1)
            cosine = torch.nn.functional.cosine_similarity(unit.clamp_min(0), positive, dim=-1)[valid]
            scores["normal_median_degrees"].append(float(torch.rad2deg(cosine.acos()).median()))
    return {k: statistics.fmean(v) for k, v in scores.items() if v} | {"steps": steps}


@cache
def photos(path: Path) -> Scene:
    """The photo scene, every 8th photo held out; loaded once, and timed."""
    began = time.perf_counter()
    scene = load(path, split="every8")
    print(f"loaded in {time.perf_counter() - began:.1f} s", flush=True)
    return scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device, command = torch.device(args.device), "python -m bench.quality"
    for row in args.rows.split(","):
        if row == "chair":
            merge("quality", {"chair": {"nerfacto_off": chair(args.scenes / "chair", device)}}, command)
            continue
        scene = photos(args.scenes / "fox_full")
        data = with_features(scene) if row.startswith("f3rm") else scene
        seeds = 1 if row.endswith("_same") else args.seeds
        runs = [train_row(row, data, seed, device) for seed in range(seeds)]
        marks = mean_over_seeds(runs)
        told: dict[str, object] = {"protocol": PROTOCOL}
        if (seconds := seconds_to(PEERS_PSNR, marks)) is not None:
            told["seconds_to_25_38"] = seconds
        merge("quality", {"fox_full": {row: marks | told}}, command)


if __name__ == "__main__":
    main()
