"""Pose refinement: noise put on known poses, and how much of it training takes out.

    python -m bench.poses synthetic --noise 2 --out bench/results/poses
    python -m bench.poses SCENES/fox_full --preset nerfacto --steps 10000 --noise 2 --device cuda --record
    python -m bench.poses synthetic --noise 0 --modes off --focal 3 --set model.intrinsics.refine=focal

SCENE is `synthetic` (the scene of `raymarch demo`) or a folder that `raymarch train` reads; preset f3rm is
given the made up features of bench.quality where the scene has none. Every training pose is turned by NOISE
degrees and moved by NOISE per cent of the scene's size (the distance of the outermost training camera from
the cameras' mean), or as --noise 2,5 says; the scene's own poses count as truth. Errors
are medians after a similarity alignment over the training cameras. Held-out PSNR is measured with held-out
poses as given (`none`) and moved by the similarity from true training poses to refined ones (`align`);
with --refine also with held-out poses refined, as `raymarch eval --poses refine` does and says.
--focal and --k1 make all lenses wrong: focal lengths by so many per cent, and k1 by so much.
--set changes any setting. The curve of every row is written as JSON into OUT, and with --record into the
record of the GPU as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import record
from bench.quality import with_features
from raymarch.apps.demo import demo_scene, into_learnt_frame
from raymarch.config import Config, override, preset
from raymarch.data.alignment import align
from raymarch.data.perturb import PoseNoise, disturbed, scene_size, with_wrong_lenses
from raymarch.data.scene import Scene, load
from raymarch.data.synthetic import make_scene
from raymarch.train.evaluate import evaluate
from raymarch.train.held_out import evaluate_refined
from raymarch.train.runs import OpenRun, start, subset
from raymarch.train.trainer import Progress, Trainer

SYNTHETIC = (  # settings of its rows, after the preset and before --set
    "model.losses.distortion=0.0",  # as the demo: a far ground under no distortion loss
    "model.losses.gradient_scaling=false",  # it would weigh what moves poses by nearness
    "train.trainer.rays=2048",
    "train.optim.poses.lr=4e-3",
    "model.fields.radiance.grid.log2_size=17",
    "model.fields.radiance.grid.max_resolution=512",
    "model.poses.blur_map=true",
    "model.poses.coarse_resolution=16",
    "model.poses.coarse_hold=200",
    "model.poses.coarse_until=600",
    "model.poses.finest_resolution=512",
    "model.poses.translation_penalty=0.0",
    "model.poses.rotation_penalty=0.0",
)


CAMERAS = ("poses", "intrinsics")  # groups of parameters that move cameras


def scene_of(name: str, size: int, views: int) -> Scene:
    """The synthetic scene without its features, or a scene from disk with every 8th photo held out."""
    if name != "synthetic":
        path = Path(name)
        return load(path, split=None if path.name == "chair" else "every8")
    return replace(demo_scene(make_scene(views, 6, size)), features=None)


def configured(args: argparse.Namespace, scene: Scene, mode: str, compose: str, seed: int) -> Config:
    """The preset with a row's pose settings; on the synthetic scene learning rates span the run."""
    config = preset(args.preset)
    if scene.features is None and config.model.fields.feature.width:
        config = override(config, "model.fields.feature.width=0")
    words = [
        f"train.trainer.seed={seed}",
        f"model.poses.mode={mode}",
        f"train.trainer.log_every={args.every}",
    ]
    if args.steps:
        words.append(f"train.trainer.steps={args.steps}")
    if compose:
        words.append(f"model.poses.compose={compose}")
        if compose == "camera" and config.model.poses.gauge == "mean":  # which is of the world's axes
            words.append("model.poses.gauge=free")
    if args.scene == "synthetic":
        words += SYNTHETIC
        steps = args.steps or config.train.trainer.steps
        words += [f"train.optim.{group}.decay_steps={steps}" for group in ("fields", "proposals", *CAMERAS)]
    for word in [*words, *args.set]:
        config = override(config, word)
    return config


def errors(
    trainer: Trainer, given: Tensor, truth: Tensor, size: float, agreeing: list[int]
) -> dict[str, float]:
    """Medians and maxima after alignment, over the cameras that were not made outliers: one that is a scene's
    size away would bend a least-squares alignment. The drift is what the alignment took out."""
    with torch.no_grad():
        refined = trainer.model.poses.optimized_camera_to_worlds(given.to(trainer.device))
    found = align(refined[agreeing].cpu(), truth[agreeing])
    moved = 100 / size * found.translation_error
    return {
        "step": trainer.step,
        "rotation_deg": float(found.rotation_error_deg.median()),
        "rotation_deg_max": float(found.rotation_error_deg.max()),
        "translation_percent": float(moved.median()),
        "translation_percent_max": float(moved.max()),
        "drift_scale": 1 / found.scale,
        "seconds": trainer.seconds,
    }


@torch.no_grad()
def lens_errors(trainer: Trainer, scene: Scene) -> dict[str, float]:
    """How far the lenses of training cameras are from the scene's: medians of what remains, with its sign."""
    if trainer.model.intrinsics.numbers is None:
        return {}
    refined = trainer.model.intrinsics(trainer.source.cameras)
    true = subset(scene.cameras, scene.train, trainer.device)
    return {
        "focal_percent": float((100 * (refined.intrinsics / true.intrinsics - 1))[:, 0].median()),
        "k1": float((refined.distortion - true.distortion)[:, 0].median()),
    }


def held_out(
    trainer: Trainer, scene: Scene, given: Tensor, truth: Tensor, agreeing: list[int]
) -> dict[str, float]:
    """PSNR of held-out photos, their poses as given and aligned."""
    device = trainer.device
    with torch.no_grad():
        refined = trainer.model.poses.optimized_camera_to_worlds(given.to(device)).cpu()
    found = align(refined[agreeing], truth[agreeing])
    cameras = subset(scene.cameras, scene.test, device)
    cameras = trainer.model.intrinsics.of_others(trainer.source.cameras, cameras)
    moved = into_learnt_frame(cameras, (found.scale, found.rotation, found.translation))
    photos, names = [scene.images[i] for i in scene.test], [scene.names[i] for i in scene.test]
    result = {}
    for word, at in (("none", cameras), ("align", moved)):
        rows = [row for row, _ in evaluate(trainer.model, at, photos, names, scene.background)]
        result[f"psnr_{word}"] = statistics.fmean(row.psnr for row in rows)
    return result


def held_out_refined(run: Path, scene: Scene, device: str) -> float:
    """PSNR of held-out photos by PROTOCOLS["refine"] of train/held_out.py."""
    photos, names = [scene.images[i] for i in scene.test], [scene.names[i] for i in scene.test]
    rows = evaluate_refined(OpenRun(run, device), photos, names, scene.background)
    return statistics.fmean(row.psnr for row, *_ in rows)


def train_row(args: argparse.Namespace, scene: Scene, noise: PoseNoise, config: Config) -> dict[str, Any]:
    """Train from disturbed poses; the curve, the last errors and held-out quality."""
    noisy, wild = disturbed(with_wrong_lenses(scene, args.focal, args.k1), noise)
    folder = tempfile.TemporaryDirectory() if args.refine and scene.test else None
    trainer = start(noisy, config, folder.name if folder else None, device=args.device)
    truth = scene.cameras.camera_to_worlds[list(scene.train)]
    given = noisy.cameras.camera_to_worlds[list(scene.train)]
    agreeing = [i for i, photo in enumerate(scene.train) if photo not in wild]
    size, began = scene_size(truth), time.perf_counter()
    curve = [errors(trainer, given, truth, size, agreeing) | lens_errors(trainer, scene)]

    def note(progress: Progress) -> None:
        now = errors(trainer, given, truth, size, agreeing) | lens_errors(trainer, scene)
        curve.append(now | {"psnr_rays": progress.psnr})
        last = curve[-1]
        lens = f"focal {last['focal_percent']:+.3f} %, k1 {last['k1']:+.4f}, " if "k1" in last else ""
        print(
            f"  step {last['step']}: {last['rotation_deg']:.3f} deg, {last['translation_percent']:.3f} %, "
            f"{lens}{progress.psnr:.2f} dB on its rays, {last['seconds']:.0f} s",
            flush=True,
        )

    trainer.train(on_progress=note)
    last = {k: v for k, v in curve[-1].items() if k not in ("psnr_rays", "step")}
    found: dict[str, Any] = last | held_out(trainer, noisy, given, truth, agreeing) | {"steps": trainer.step}
    found["wall_seconds"] = time.perf_counter() - began
    if folder is not None:
        found["psnr_refine"] = held_out_refined(Path(folder.name), scene, args.device)
        trainer.claim = None
        folder.cleanup()
    if trainer.notes:
        found["notes"] = trainer.notes
    if trainer.model.trust is not None:
        found["suspects"] = [i for i, _ in trainer.model.trust.suspects()]
    if wild:
        found["outliers"] = [scene.train.index(i) for i in wild]
    return {"result": found, "curve": curve}


def numbers(text: str) -> tuple[float, float]:
    """Degrees and per cent from `2` or `2,5`."""
    parts = [float(x) for x in text.split(",")]
    return parts[0], parts[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scene")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--noise", default="2", help="degrees, or degrees,per cent of the scene's size")
    parser.add_argument("--focal", type=float, default=0.0, help="per cent by which focal lengths are wrong")
    parser.add_argument("--k1", type=float, default=0.0, help="by which k1 is wrong")
    parser.add_argument("--outliers", type=int, default=0)
    parser.add_argument("--modes", default="SO3xR3", help="of SO3xR3, SE3, off")
    parser.add_argument("--composes", default="", help="of camera, world; empty: the preset's")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--size", type=int, default=96, help="of the synthetic scene's photos")
    parser.add_argument("--views", type=int, default=40, help="of the synthetic scene")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/poses"))
    parser.add_argument("--refine", action="store_true", help="also judge held-out photos with poses refined")
    parser.add_argument("--name", default="", help="prefix of the rows' names")
    parser.add_argument("--record", action="store_true", help="also merge the results into the GPU's record")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    scene = scene_of(args.scene, args.size, args.views)
    if preset(args.preset).model.fields.feature.width and scene.features is None:
        scene = with_features(scene)
    degrees, percent = numbers(args.noise)
    args.out.mkdir(parents=True, exist_ok=True)
    for mode in args.modes.split(","):
        for compose in args.composes.split(","):
            for seed in (int(x) for x in args.seeds.split(",")):
                noise = PoseNoise(degrees, percent / 100, seed, args.outliers)
                words = [
                    args.name,
                    Path(args.scene).name,
                    args.preset,
                    mode,
                    compose,
                    f"{degrees:g}deg",
                    f"seed{seed}",
                ]
                row = "_".join(w for w in words if w)
                print(row, flush=True)
                config = configured(args, scene, mode, compose, seed)
                found = train_row(args, scene, noise, config)
                found |= {"settings": args.set, "commit": record.commit(), "noise": [degrees, percent]}
                found |= {"focal": args.focal, "k1": args.k1}
                (args.out / f"{row}.json").write_text(json.dumps(found, indent=1) + "\n")
                print(
                    row,
                    {k: round(v, 4) if isinstance(v, float) else v for k, v in found["result"].items()},
                    flush=True,
                )
                if args.record:
                    record.merge("poses", {row: found["result"]}, "python -m bench.poses")


if __name__ == "__main__":
    main()
