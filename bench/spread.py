"""How much chance there is in a result: PSNR over seeds, and whether deterministic mode leaves none.

    python -m bench.spread [--device cpu] [--seeds 5] [--steps 400] [--size 48] [--no-record]
    python -m bench.spread --device cuda --scene SCENES/fox_full --preset nerfacto --downscale 8 --steps 2000

Every seed draws its own pixels and jitter; the scene and its held-out views are the same. Then the first seed
is trained three times under torch.use_deterministic_algorithms, and all parameters, moments and counters are
compared bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import record
from raymarch.config import Config, override, preset
from raymarch.data.scene import Scene, load
from raymarch.data.synthetic import make_scene
from raymarch.train.evaluate import evaluate
from raymarch.train.runs import start, subset
from raymarch.train.trainer import Trainer

REPEATS = 3
REPEATED_STEPS = {"cpu": 100, "cuda": 1000}  # of the runs that are compared bit for bit


@dataclass(frozen=True)
class Bed:
    """What is trained again and again."""

    name: str
    scene: Scene
    preset: str
    steps: int
    rays: int
    device: str

    def config(self, seed: int) -> Config:
        found = preset(self.preset)
        settings: dict[str, Any] = {"train.trainer.steps": self.steps, "train.trainer.rays": self.rays}
        settings |= {"train.trainer.seed": seed, "model.poses.mode": "off"}
        if self.preset == "tiny":
            settings |= {f"train.optim.{group}.decay_steps": self.steps for group in ("fields", "proposals")}
        for name, value in settings.items():
            found = override(found, f"{name}={value}")
        return found

    def trained(self, seed: int, steps: int | None = None) -> Trainer:
        trainer = start(self.scene, self.config(seed), device=self.device)
        for _ in trainer.iterate(steps):
            pass
        return trainer


def synthetic(size: int, steps: int, rays: int, device: str) -> Bed:
    """The tiny preset on the synthetic scene, 24 views to train on and 4 held out."""
    truth = make_scene(views=24, test_views=4, size=size, seed=0)
    scene = Scene.from_arrays(
        truth.images, truth.intrinsics, truth.camera_to_worlds, split=(truth.train, truth.test),
        orientation="none", center="none", scale=1.0,
    )  # fmt: skip
    return Bed(f"synthetic_{size}", scene, "tiny", steps, rays, device)


def held_out_psnr(trainer: Trainer, scene: Scene) -> float:
    """Mean over the held-out photos, poses as given."""
    cameras = subset(scene.cameras, scene.test, trainer.device)
    photos, names = [scene.images[i] for i in scene.test], [scene.names[i] for i in scene.test]
    rows = [row.psnr for row, _ in evaluate(trainer.model, cameras, photos, names, scene.background)]
    return sum(rows) / len(rows)


def over_seeds(bed: Bed, seeds: int) -> dict[str, Any]:
    """Held-out PSNR of every seed, its mean and its spread (sample standard deviation, dB)."""
    found = []
    for seed in range(seeds):
        found.append(held_out_psnr(bed.trained(seed), bed.scene))
        print(f"seed {seed}: {found[-1]:.3f} dB", flush=True)
    spread = statistics.stdev(found) if seeds > 1 else 0.0
    return {
        "seeds": seeds,
        "steps": bed.steps,
        "rays": bed.rays,
        "psnr_mean": statistics.fmean(found),
        "psnr_spread": spread,
        "psnr_least": min(found),
        "psnr_most": max(found),
    }


def state(bed: Bed, steps: int) -> dict[str, Tensor]:
    """All that a checkpoint would hold after some steps of the first seed, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in bed.trained(0, steps).state().items()}


def differing(bed: Bed, steps: int, repeats: int = REPEATS) -> list[str]:
    """Tensors that are not the same in every one of several deterministic runs."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first = state(bed, steps)
        others = [state(bed, steps) for _ in range(repeats - 1)]
    finally:
        torch.use_deterministic_algorithms(before)
    return sorted({name for other in others for name in first if not torch.equal(first[name], other[name])})


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.spread", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rays", type=int, default=256)
    parser.add_argument("--size", type=int, default=48, help="pixels of a side of the synthetic views")
    parser.add_argument("--scene", type=Path, help="a folder of posed photos instead")
    parser.add_argument("--preset", default="tiny", choices=("tiny", "nerfacto"))
    parser.add_argument("--downscale", type=int, default=8, help="of the photos of --scene")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.spread: --device cuda: no CUDA GPU was found; use --device cpu", file=sys.stderr)
        return 1
    began = time.perf_counter()
    if options.scene is None:
        bed = synthetic(options.size, options.steps, options.rays, options.device)
    else:
        scene = load(options.scene, downscale=options.downscale)
        name = f"{options.scene.resolve().name}_{options.preset}_1_{options.downscale}"
        bed = Bed(name, scene, options.preset, options.steps, options.rays, options.device)
    found = over_seeds(bed, options.seeds)
    print(f"mean {found['psnr_mean']:.3f} dB, spread {found['psnr_spread']:.3f} dB")
    steps = min(REPEATED_STEPS[options.device], options.steps)
    wrong = differing(bed, steps)
    equal = {"runs": REPEATS, "steps": steps, "equal_bit_for_bit": not wrong, "differing": wrong}
    print(
        f"deterministic: {REPEATS} runs of {steps} steps "
        + (f"differ in {wrong[:5]}" if wrong else "are equal")
    )
    if not options.no_record:
        command = "python -m bench.spread " + " ".join(words)
        found["seconds"] = round(time.perf_counter() - began, 1)
        record.merge("quality", {"spread": {bed.name: found}}, command.strip())
        record.merge("checks", {"deterministic": {bed.name: equal}}, command.strip())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
