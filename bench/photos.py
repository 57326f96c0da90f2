"""What it costs to train through a window of photos (data/window.py) instead of with all of them on the GPU.

    python -m bench.photos SCENES [--rows f3rm_4096,nerfacto_4096] [--share 0.3] [--steps 3000]

Each row trains once with everything resident and once with a window of `share` of the bytes that would take:
milliseconds per step, kernels, whether a step waits, peak memory, and held-out PSNR after as many steps.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from bench.quality import configured, with_features
from bench.record import merge
from bench.render import STEPS, time_steps
from raymarch.data.pixels import bytes_needed
from raymarch.data.scene import Scene, load
from raymarch.train.evaluate import evaluate
from raymarch.train.runs import start, subset


def row(name: str, scene: Scene, share: float, steps: int, device: torch.device) -> dict[str, object]:
    """One training: `share` 1 is the resident path, with no limit."""
    preset, rays, _ = STEPS[name]
    config = configured(preset)
    needed = bytes_needed(scene, scene.train)
    trainer = replace(config.train.trainer, rays=rays, steps=20_000, log_every=100)
    if share < 1:
        trainer = replace(trainer, photos_gb=share * needed / 1e9)
    trained = start(scene, replace(config, train=replace(config.train, trainer=trainer)), device=device)
    print(f"  {trained.source.summary()}", flush=True)
    found: dict[str, object] = dict(time_steps(trained, 500, 300))
    for _ in trained.iterate(steps):
        pass
    cameras = subset(scene.cameras, scene.test, device)
    photos, names = [scene.images[i] for i in scene.test], [scene.names[i] for i in scene.test]
    rows = [r for r, _ in evaluate(trained.model, cameras, photos, names, scene.background)]
    found |= {"psnr": statistics.fmean(r.psnr for r in rows), "psnr_steps": steps}
    return found | {"photos_gb": trained.source.bytes / 1e9, "needed_gb": needed / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--rows", default="f3rm_4096,nerfacto_4096")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    photos = load(args.scenes / "fox_full", split="every8")
    featured = with_features(photos)
    for name in args.rows.split(","):
        scene = featured if name.startswith("f3rm") else photos
        for word, share in (("resident", 1.0), ("window", args.share)):
            print(name, word, flush=True)
            found = row(name, scene, share, args.steps, torch.device("cuda"))
            print(f"  {found}", flush=True)
            merge("steps", {f"{name}_{word}": found}, f"python -m bench.photos --share {args.share}")
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
