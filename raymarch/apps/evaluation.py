"""`raymarch eval`: held-out metrics of a run, with the protocol beside the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from raymarch.apps.images import file_stems, save_depth, save_rgb
from raymarch.config import ConfigError
from raymarch.data.atomic import write_text
from raymarch.data.plain import json_text
from raymarch.data.scene import Scene
from raymarch.train.evaluate import ImageMetrics, evaluate, masks_of
from raymarch.train.held_out import POSES, PROTOCOLS, evaluate_refined, held_out_cameras
from raymarch.train.lenses import lenses_protocol
from raymarch.train.runs import OpenRun, reload_scene

INFINITE = (
    "no finite number: the PSNR of a rendering that equals its photo, and of a mean over it, is infinite"
)


def metrics_file(run: Path, poses: str) -> Path:
    """Where the figures of one way to pose held-out cameras lie."""
    return run / "eval" / ("metrics.json" if poses == "none" else f"metrics_{poses}.json")


def evaluate_run(
    run: Path, data: Path | None, images: bool, device: str, poses: str = "none"
) -> Iterator[str]:
    """Evaluate the newest checkpoint; yields lines to show, writes RUN/eval/.

    poses: none, align or refine (held_out.PROTOCOLS says what they mean); named beside every figure.
    """
    if poses not in POSES:
        raise ConfigError(f"--poses: expected one of {', '.join(POSES)}, got {poses!r}")
    opened = OpenRun(run, device)
    if not opened.test:
        raise ConfigError(f"{run} holds out no photos; train with --split every8 to have some")
    source = opened.meta["scene"]["source"]
    scene = reload_scene(opened.meta, run, data)
    names = [opened.names[i] for i in opened.test]
    if [scene.names[i] for i in scene.test] != names:
        raise ConfigError(
            f"{data or source['path']} holds other held-out photos than {run} was trained without"
        )
    out = run / "eval"
    out.mkdir(exist_ok=True)
    rows, stored = [], []
    yield f"{'photo':32} {'PSNR':>7} {'SSIM':>7}  poses"
    stems = dict(zip(names, file_stems(names), strict=True))
    for row, frame, words in _measured(opened, names, scene, poses):
        if not row.kept:
            yield f"{row.name[-32:]:32} is not judged: its mask ignores every pixel"
            continue
        rows.append(row)
        stored.append(asdict(row) | words)
        yield f"{row.name[-32:]:32} {row.psnr:7.2f} {row.ssim:7.4f}  {poses}{_told(words)}{_judged(row.kept)}"
        if images:
            stem = stems[row.name]
            save_rgb(out / f"{stem}_rgb.png", frame["rgb"])
            save_depth(out / f"{stem}_depth.png", frame["depth"])
    if not rows:
        raise ConfigError(
            f"there is nothing to judge {run} on: masks ignore every pixel of its held-out photos"
        )
    mean = {k: sum(getattr(r, k) for r in rows) / len(rows) for k in ("psnr", "ssim")}
    yield f"{'mean':32} {mean['psnr']:7.2f} {mean['ssim']:7.4f}  {poses}"
    protocol = PROTOCOLS[poses] + lenses_protocol(opened)
    yield f"protocol: {protocol}"
    result: dict[str, Any] = {"step": opened.step, "poses": poses, "protocol": protocol, "mean": mean}
    if not all(math.isfinite(value) for value in mean.values()):
        result["null"] = INFINITE
    write_text(metrics_file(run, poses), json_text(result | {"images": stored}))


def _measured(
    opened: OpenRun, names: list[str], scene: Scene, poses: str
) -> Iterator[tuple[ImageMetrics, dict[str, Tensor], dict[str, Any]]]:
    """Metrics, rendering, and what was done to the pose, for each held-out photo."""
    photos, masks = [scene.images[i] for i in scene.test], masks_of(scene, scene.test)
    if poses != "refine":
        cameras = held_out_cameras(opened, poses)
        for row, frame in evaluate(opened.model, cameras, photos, names, scene.background, masks=masks):
            yield row, frame, {}
        return
    for row, frame, refined in evaluate_refined(opened, photos, names, scene.background, masks):
        yield row, frame, asdict(refined)


def _judged(kept: float) -> str:
    """What a mask left of the photo, where there is one."""
    return "" if kept == 1 else f"  over the {kept:.1%} that its mask keeps"


def _told(words: dict[str, Any]) -> str:
    if not words:
        return ""
    kept = "" if words["halves"] == 2 else f", {2 - words['halves']} of 2 halves kept the aligned pose"
    return f" (by {words['degrees']:.3g} degrees, {words['world_units']:.3g} world units{kept})"
