"""`raymarch demo`: a built-in scene, trained from perturbed poses, measured against its exact truth."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raymarch.apps.failures import UserStop
from raymarch.apps.terminal import console
from raymarch.config import Config, ConfigError, TrainConfig, preset
from raymarch.data.alignment import align
from raymarch.data.scene import Scene
from raymarch.data.synthetic import SyntheticScene, as_scene, feature_maps, make_scene
from raymarch.features.query import mask, similarity
from raymarch.features.words import STORED, write_embeddings
from raymarch.model import Model
from raymarch.train import colours
from raymarch.train.checkpoint import saved
from raymarch.train.claim import CONFIG, check_vacant, claim
from raymarch.train.evaluate import render_image
from raymarch.train.metrics import psnr, ssim
from raymarch.train.optim import GroupConfig, OptimConfig
from raymarch.train.runs import pick_device, start, subset
from raymarch.train.trainer import LOG, Progress, Trainer
from raymarch.types import Cameras

SIZE = 96  # pixels on a side
VIEWS, TEST_VIEWS = 40, 6
STEPS = 1600
NOISE_DEGREES, NOISE_TRANSLATION = 1.0, 0.01  # put on every training pose; the furthest camera is at 1
QUERIES = ("red ball", "mug")
DRAFT = "run.part"  # where it trains, until the run is whole
ABOUT = {"from": "the demo's own names"}  # in the file of the demo's words, and of nobody else's
THRESHOLD = 0.5  # of the paired similarity: a pixel is the object when it is likelier than every other name


def demo_config(steps: int | None, feature_width: int) -> Config:
    """The tiny preset with every head and pose refinement on."""
    config = preset("tiny")
    model = config.model
    fields = replace(model.fields, feature=replace(model.fields.feature, width=feature_width))
    poses = replace(
        model.poses,
        mode="SO3xR3",
        compose="camera",
        gauge="free",
        translation_penalty=0.0,
        rotation_penalty=0.0,
        precondition=True,
        precondition_damping=0.01,
        precondition_spread=1.5,
        through_proposals=False,
    )
    trainer = config.train.trainer
    trainer = replace(trainer, steps=steps if steps is not None else STEPS)
    trainer = replace(trainer, save_every=max(trainer.steps, 1))
    return replace(
        config,
        # No distortion loss: it would rather see nothing, and leave a far ground to the last sample.
        model=replace(model, fields=fields, poses=poses, losses=replace(model.losses, distortion=0.0)),
        train=TrainConfig(trainer, paced(config.train.optim, trainer.steps)),
    )


def paced(optim: OptimConfig, steps: int) -> OptimConfig:
    """Learning rates that fall over the whole run; poses wait until there is something to align with."""
    groups = {g: replace(getattr(optim, g), decay_steps=steps) for g in ("fields", "proposals", "feature")}
    pace = min(1.0, steps / STEPS)  # in a short run there is less to align with, and less time to come back
    poses = GroupConfig(lr=2e-3 * pace, lr_final=5e-5, decay_steps=steps, warmup=min(200, steps // 4))
    return replace(optim, poses=poses, **groups)


def demo_scene(truth: SyntheticScene) -> Scene:
    """The synthetic scene as the trainer sees it: perturbed poses, no truth but the pictures."""
    return as_scene(truth, features=list(feature_maps(truth)), poses=truth.perturbed_camera_to_worlds)


def into_learnt_frame(cameras: Cameras, similarity_to_truth: tuple[float, Tensor, Tensor]) -> Cameras:
    """True cameras expressed in the frame that training settled in."""
    scale, rotation, translation = similarity_to_truth
    poses = cameras.camera_to_worlds
    rotation, translation = rotation.to(poses), translation.to(poses)
    turned = rotation.T @ poses[:, :, :3]
    moved = ((poses[:, :, 3] - translation) / scale) @ rotation
    return replace(cameras, camera_to_worlds=torch.cat([turned, moved[:, :, None]], -1))


@dataclass(frozen=True)
class DemoResult:
    metrics: dict[str, float]
    frames: list[dict[str, Tensor]]  # one per held-out view
    curve: list[Progress]
    trainer: Trainer
    truth: SyntheticScene
    pose_curves: tuple[list[float], ...]  # per camera: rotation before, after, translation before, after


def train_demo(
    steps: int | None = None, device: str = "auto", run: Path | None = None, on_progress=None
) -> DemoResult:
    """Make the scene, train on it, and measure against the truth."""
    began = time.perf_counter()
    truth = make_scene(VIEWS, TEST_VIEWS, SIZE, 0, NOISE_DEGREES, NOISE_TRANSLATION)
    scene = demo_scene(truth)
    trainer = start(scene, demo_config(steps, truth.feature_vectors.shape[1]), run, device)
    curve: list[Progress] = []

    def note(progress: Progress) -> None:
        curve.append(progress)
        if on_progress:
            on_progress(progress, trainer.config.steps)

    trainer.train(on_progress=note)
    metrics, frames, pose_curves = measure(trainer.model, scene, truth, trainer.device)
    metrics |= {"steps": trainer.step, "train_seconds": trainer.seconds}
    metrics["total_seconds"] = time.perf_counter() - began
    return DemoResult(metrics, frames, curve, trainer, truth, pose_curves)


def measure(
    model: Model, scene: Scene, truth: SyntheticScene, device: torch.device
) -> tuple[dict[str, float], list[dict[str, Tensor]], tuple[list[float], ...]]:
    """Held-out metrics with held-out cameras aligned to the learnt frame, not refined."""
    given = subset(scene.cameras, scene.train).camera_to_worlds
    with torch.no_grad():
        refined = model.poses.optimized_camera_to_worlds(given.to(device)).cpu()
    true_poses = truth.camera_to_worlds[list(truth.train)]
    *_, turned_before, moved_before = align(given, true_poses)
    scale, rotation, translation, _, turned_after, moved_after = align(refined, true_poses)
    to_truth = float(scale), rotation, translation
    cameras = into_learnt_frame(subset(scene.cameras, scene.test, device), to_truth)
    heads = frozenset({"rgb", "depth", "opacity", "normals", "feature"})
    frames, quality = [], []
    errors, angles = [], []
    hits: dict[str, list[Tensor]] = {name: [] for name in QUERIES}
    for i, index in enumerate(truth.test):
        frame = {k: v.cpu() for k, v in render_image(model, cameras, i, heads).items()}
        image = truth.images[index].float() / 255
        quality.append((float(psnr(frame["rgb"], image)), float(ssim(frame["rgb"], image))))
        errors.append((frame["depth"] * to_truth[0] - truth.depth[index]).abs().flatten())
        turned = frame["normals"] @ to_truth[1].to(frame["normals"]).T
        cosine = (turned * truth.normals[index]).sum(-1).clamp(-1, 1)
        solid = truth.ids[index] > 1
        angles.append(torch.rad2deg(cosine.acos())[solid])
        for name in QUERIES:
            frame[f"similarity {name}"] = query(frame["feature"], truth, name)
            found, real = (
                mask(frame[f"similarity {name}"], THRESHOLD),
                truth.ids[index] == truth.names.index(name),
            )
            hits[name].append(torch.stack([(found & real).sum(), (found | real).sum()]))
        frames.append(frame)
    depth_scale = truth.depth[list(truth.test)].median()
    metrics = {
        "psnr": sum(q[0] for q in quality) / len(quality),
        "ssim": sum(q[1] for q in quality) / len(quality),
        "depth_error": float(torch.cat(errors).median() / depth_scale),
        "normal_error_deg": float(torch.cat(angles).median()),
        "rotation_error_before_deg": float(turned_before.median()),
        "rotation_error_after_deg": float(turned_after.median()),
        "rotation_injected_deg": truth.noise_rotation_deg,
        "translation_error_before": float(moved_before.median()),
        "translation_error_after": float(moved_after.median()),
    }
    for name in QUERIES:
        both, either = torch.stack(hits[name]).sum(0).tolist()
        metrics[f"iou {name}"] = both / max(either, 1)
    pose_curves = turned_before, turned_after, moved_before, moved_after
    return metrics, frames, tuple(c.tolist() for c in pose_curves)


def query(feature: Tensor, truth: SyntheticScene, name: str) -> Tensor:
    """Similarity [h, w] of a feature image to a name, against every other name."""
    at = truth.names.index(name)
    others = torch.cat([truth.feature_vectors[:at], truth.feature_vectors[at + 1 :]])
    return similarity(feature, truth.feature_vectors[at : at + 1], others)


def check_own(out: Path) -> None:
    """ConfigError where a folder holds anything but what the demo has left there."""
    run = out / "run"
    for place in (out, run):
        if saved(place) and not made_here(place):
            raise ConfigError(f"{place} holds a run of your own: choose another folder with --out")
    if not saved(run) and out.exists() and not any((x / CONFIG).is_file() for x in (run, out / DRAFT)):
        check_vacant(out)


def made_here(run: Path) -> bool:
    """Whether a run's stored words are those that only the demo writes."""
    try:
        with safe_open(run / STORED, "pt") as file:
            return bool(json.loads((file.metadata() or {})["raymarch"]) == ABOUT)
    except (OSError, SafetensorError, KeyError, ValueError):
        return False


def emptied(draft: Path) -> Path:
    """The folder to train in, without what a demo that was stopped has left in it."""
    if draft.is_dir():
        claim(draft)
        for old in saved(draft):
            old.unlink()
    return draft


def replace_run(run: Path, draft: Path) -> None:
    """Put a finished run in the place of an earlier one, whose renderings and other files stay."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    held = claim(run)
    new = [file.relative_to(draft) for file in saved(draft)]
    for name in (*new, Path(CONFIG), Path(LOG), Path(STORED)):
        os.replace(draft / name, run / name)
    for old in saved(run):
        if old.relative_to(run) not in new:
            old.unlink()
    (run / colours.FILE).unlink(missing_ok=True)  # fitted to the earlier run's features
    shutil.rmtree(draft)
    del held


def run(out: Path, steps: int | None, device: str) -> Path:
    """Train, measure and write the page into `out`; returns the page's path. UserStop after Ctrl-C.

    An earlier demo's run stays until the new one is whole.
    """
    from rich import progress as rich_progress

    from raymarch.apps.demo_page import write_demo_page

    if steps is not None and steps < 1:
        raise ConfigError(f"--steps is {steps}, expected at least 1")
    pick_device(device)
    check_own(out)
    columns = (
        rich_progress.TextColumn("training"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[psnr]}"),
        rich_progress.TimeRemainingColumn(),
    )
    try:
        with rich_progress.Progress(*columns, console=console()) as bar:
            task = bar.add_task("", total=None, psnr="")

            def show(progress: Progress, total: int) -> None:
                words = f"{progress.psnr:5.2f} dB on its rays"
                bar.update(task, total=total, completed=progress.step, psnr=words)

            result = train_demo(steps, device, emptied(out / DRAFT), show)
        names = dict(zip(result.truth.names, result.truth.feature_vectors, strict=True))
        write_embeddings(out / DRAFT / STORED, names, ABOUT)
        replace_run(out / "run", out / DRAFT)
        return write_demo_page(result, out)
    except KeyboardInterrupt:
        before = f"; {out / 'run'} is the run of before" if made_here(out / "run") else ""
        raise UserStop(f"stopped; the demo begins anew each time{before}") from None
