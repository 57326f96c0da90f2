"""Held-out photos found from 10 degrees and 10 % of the scene's size off: how often, how closely, how fast.

    python -m bench.localise SCENE [--run RUN] [--seeds 3] [--degrees 10] [--part 0.1]

SCENE is a folder of posed photos, fox_full say. Without a run at RUN, nerfacto is trained there first (poses
off, so that the photos' own poses are the truth; every 8th photo held out). A run whose poses were refined is
compared with held-out poses moved along (evaluation mode `align`). Each held-out pose is turned about a
random axis and moved in a random direction by exactly the amounts given. Sizes are in parts of the largest
distance of a training camera from the mean of all. Seconds are of a host clock around the call, without
decoding and overlay; the first photo, which also captures CUDA graphs, is told apart.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from bench.quality import configured
from bench.record import merge
from raymarch.data.alignment import perturb, rotation_angle
from raymarch.data.scene import Scene, load
from raymarch.train import checkpoint
from raymarch.train.held_out import aligned_cameras
from raymarch.train.localize import LocalizeConfig, scene_size
from raymarch.train.runs import start
from raymarch.trained import TrainedScene

WITHIN_DEGREES, WITHIN_PART = 0.5, 0.005


class Row(NamedTuple):
    """One photo from one start."""

    degrees: float
    part: float  # of the scene's size
    seconds: float
    good: bool
    converged: bool  # what the localiser itself says


def train(scene: Scene, run: Path, steps: int, device: str) -> None:
    """nerfacto with poses as given, kept at `run`."""
    config = configured("nerfacto_off")
    trainer_config = replace(config.train.trainer, steps=steps, save_every=steps)
    config = replace(config, train=replace(config.train, trainer=trainer_config))
    trainer = start(scene, config, run, device)
    trainer.train()
    print(f"trained {steps} steps in {trainer.seconds:.1f} s", flush=True)


def error(found: Tensor, truth: Tensor, size: float) -> tuple[float, float]:
    """Degrees, and parts of the scene's size."""
    degrees = math.degrees(float(rotation_angle(found[:, :3].T @ truth[:, :3])))
    return degrees, float((found[:, 3] - truth[:, 3]).norm()) / size


def localise(
    opened: TrainedScene, scene: Scene, seeds: int, degrees: float, part: float, config: LocalizeConfig
) -> dict[str, float]:
    """Every held-out photo from `seeds` starts; prints a line each."""
    size = scene_size(opened.train_cameras().camera_to_worlds)
    cameras = aligned_cameras(opened)
    to_world = opened.world_from_scene
    truth = to_world.apply_poses(cameras.camera_to_worlds.cpu().double())
    rows: list[Row] = []
    for seed in range(seeds):
        off = perturb(cameras.camera_to_worlds, degrees, part * size, seed).cpu().double()
        starts = to_world.apply_poses(off)
        for i, index in enumerate(opened.test):
            began = time.perf_counter()
            found = opened.localize(
                scene.images[index], opened.camera("test", i), starts[i], config, overlay=False
            )
            seconds = time.perf_counter() - began
            turned, moved = error(found.camera_to_world, truth[i], size * to_world.scale)
            good = turned <= WITHIN_DEGREES and moved <= WITHIN_PART
            sigma = found.position_std / (size * to_world.scale)
            rows.append(Row(turned, moved, seconds, good, found.converged))
            print(
                f"seed {seed} {opened.names[index][-24:]:24} {turned:8.4f} deg {100 * moved:8.4f} %  "
                f"(+- {found.rotation_std_deg:.4f} deg, {100 * sigma:.4f} %)  "
                f"explained {found.explained:.3f}  {seconds:.3f} s  {'ok' if good else 'MISSED'}"
                f"{'' if found.converged else ', says so'}",
                flush=True,
            )
    seconds_each = [row.seconds for row in rows]
    return {
        "photos": len(opened.test),
        "seeds": seeds,
        "start_degrees": degrees,
        "start_percent": 100 * part,
        "success": sum(row.good for row in rows) / len(rows),
        "median_degrees": statistics.median(row.degrees for row in rows),
        "median_percent": 100 * statistics.median(row.part for row in rows),
        "worst_degrees": max(row.degrees for row in rows),
        "worst_percent": 100 * max(row.part for row in rows),
        "first_seconds": seconds_each[0],
        "median_seconds": statistics.median(seconds_each[1:] or seconds_each),
        "worst_seconds": max(seconds_each[1:] or seconds_each),
        "wrong_but_converged": sum(row.converged and not row.good for row in rows),
        "right_but_doubted": sum(row.good and not row.converged for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--run", type=Path, help="run folder; trained there if it holds none")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--degrees", type=float, default=10.0)
    parser.add_argument("--part", type=float, default=0.1)
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    scene = load(args.scene, split="every8")
    with tempfile.TemporaryDirectory() as folder:
        run = args.run or Path(folder) / "run"
        if not checkpoint.saved(run):
            train(scene, run, args.steps, args.device)
        opened = TrainedScene(run, args.device)
        if [scene.names[i] for i in scene.test] != [opened.names[i] for i in opened.test]:
            raise SystemExit(f"{run} holds out other photos than every 8th of {args.scene}")
        config = LocalizeConfig(graph=not args.eager)
        result = localise(opened, scene, args.seeds, args.degrees, args.part, config)
    result["train_step"] = opened.step
    print({k: round(v, 4) for k, v in result.items()})
    if not args.no_record:
        row = "eager" if args.eager else "graph"
        merge("localisation", {args.scene.name: {row: result}}, "python -m bench.localise")


if __name__ == "__main__":
    main()
