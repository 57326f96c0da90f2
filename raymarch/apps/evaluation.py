"""`raymarch eval`: held-out metrics of a run, with the protocol beside the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from raymarch.apps.images import file_stems, save_depth, save_rgb
from raymarch.config import ConfigError
from raymarch.data.scene import load
from raymarch.train.evaluate import PROTOCOL, evaluate
from raymarch.train.runs import OpenRun, reload_scene


def evaluate_run(run: Path, data: Path | None, images: bool, device: str) -> Iterator[str]:
    """Evaluate the newest checkpoint; yields lines to show, writes RUN/eval/."""
    opened = OpenRun(run, device)
    if not opened.test:
        raise ConfigError(f"{run} holds out no photos; train with --split every8 to have some")
    source = opened.meta["scene"]["source"]
    scene = load(data, **(source["options"] if source else {})) if data else reload_scene(opened.meta, run)
    names = [opened.names[i] for i in opened.test]
    if [scene.names[i] for i in scene.test] != names:
        raise ConfigError(
            f"{data or source['path']} holds other held-out photos than {run} was trained without"
        )
    out = run / "eval"
    out.mkdir(exist_ok=True)
    rows = []
    yield f"{'photo':32} {'PSNR':>7} {'SSIM':>7}"
    photos = [scene.images[i] for i in scene.test]
    stems = file_stems(names)
    for row, frame in evaluate(opened.model, opened.test_cameras(), photos, names, scene.background):
        rows.append(row)
        yield f"{row.name[-32:]:32} {row.psnr:7.2f} {row.ssim:7.4f}"
        if images:
            stem = stems[len(rows) - 1]
            save_rgb(out / f"{stem}_rgb.png", frame["rgb"])
            save_depth(out / f"{stem}_depth.png", frame["depth"])
    mean = {k: sum(getattr(r, k) for r in rows) / len(rows) for k in ("psnr", "ssim")}
    yield f"{'mean':32} {mean['psnr']:7.2f} {mean['ssim']:7.4f}"
    yield f"protocol: {PROTOCOL}"
    result = {"step": opened.step, "protocol": PROTOCOL, "mean": mean, "images": [asdict(r) for r in rows]}
    (out / "metrics.json").write_text(json.dumps(result, indent=1))
