"""The demo's results as a page: index.html, pictures and metrics.json."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from raymarch import __version__
from raymarch.apps import palette
from raymarch.apps.charts import Series
from raymarch.apps.demo import NOISE_DEGREES, QUERIES, THRESHOLD, DemoResult
from raymarch.apps.report import write_report
from raymarch.apps.sections import (
    Curve,
    Metric,
    Metrics,
    Picture,
    Pictures,
    PoseErrors,
    Section,
    Text,
    depth_legend,
    heat_legend,
)
from raymarch.config import to_dict
from raymarch.features.pca import apply, fit_pca

PROTOCOL = (
    "Held-out cameras are true cameras moved into the frame that training settled in (similarity alignment "
    "of the training cameras); their poses are not refined. Training poses start perturbed and are refined."
)


def write_demo_page(result: DemoResult, out: Path) -> Path:
    """Write the page; returns its path."""
    before, after, moved_before, moved_after = result.pose_curves
    aligned = "After similarity alignment to the true cameras."
    sections: list[Section] = [
        Metrics("Results", metrics(result), PROTOCOL),
        pictures(result),
        PoseErrors(before, after, moved_before, moved_after, note=aligned),
        Curve("Training", curves(result), note="Weighted terms of the loss on each step's own rays."),
        Text("Run", facts=facts(result)),
    ]
    record = {"config": to_dict(result.trainer.full_config), "protocol": PROTOCOL, "raw": result.metrics}
    summary = (
        "A built-in scene, learnt from 40 pictures whose cameras were perturbed, seen from held-out cameras."
    )
    return write_report(out, "raymarch demo", sections, summary, record)


def metrics(result: DemoResult) -> list[Metric]:
    m = result.metrics
    took = Metric("train_seconds", "Training time", m["train_seconds"], f"{m['steps']} steps", "s")
    return [*of_pictures(m), *of_queries(m), *of_poses(m), took]


def of_pictures(m: dict[str, Any]) -> list[Metric]:
    return [
        Metric(
            "psnr",
            "Held-out PSNR",
            m["psnr"],
            "Peak signal-to-noise ratio of rgb, data range 1, mean over views",
            "dB",
            (">=", 24.0),
        ),
        Metric(
            "ssim", "Held-out SSIM", m["ssim"], "Structural similarity, Gaussian window of 11, data range 1"
        ),
        Metric(
            "depth_error",
            "Median depth error",
            100 * m["depth_error"],
            "Median of |depth - truth| over all held-out pixels, in per cent of the median true depth",
            "%",
            ("<=", 3.0),
        ),
        Metric(
            "normal_error_deg",
            "Median normal error",
            m["normal_error_deg"],
            "Angle between the density's normal and the true one on the objects",
            "°",
        ),
    ]


def of_queries(m: dict[str, Any]) -> list[Metric]:
    goal, found = (">=", 0.75), []
    for name in QUERIES:
        words = (
            f"Pixels whose similarity to '{name}' exceeds {THRESHOLD:g} against the true object, "
            "over all held-out views"
        )
        key = f"iou_{name.replace(' ', '_')}"
        found.append(Metric(key, f"Query IoU: {name}", m[f"iou {name}"], words, "", goal))
    return found


def of_poses(m: dict[str, Any]) -> list[Metric]:
    return [
        Metric(
            "rotation_error_before_deg",
            "Rotation error before",
            m["rotation_error_before_deg"],
            "Median over training cameras after similarity alignment",
            "°",
        ),
        Metric(
            "rotation_error_after_deg",
            "Rotation error after",
            m["rotation_error_after_deg"],
            "The same after training; the goal is a fifth of what was injected",
            "°",
            ("<=", NOISE_DEGREES / 5),
        ),
        Metric(
            "translation_error_before",
            "Translation error before",
            m["translation_error_before"],
            "Median, in scene units; the furthest camera is at distance 1",
        ),
        Metric(
            "translation_error_after",
            "Translation error after",
            m["translation_error_after"],
            "The same after training",
        ),
    ]


def pictures(result: DemoResult) -> Pictures:
    truth, frames = result.truth, result.frames
    pca = fit_pca(torch.cat([f["feature"].flatten(0, 1) for f in frames]))
    near, far = palette.depth_range(truth.depth[list(truth.test)])
    rows = []
    for index, frame in zip(truth.test, frames, strict=True):
        row = [
            Picture("truth", truth.images[index]),
            Picture("rendering", frame["rgb"]),
            Picture("true depth", palette.depth(truth.depth[index], near, far)),
            Picture("depth", palette.depth(frame["depth"], near, far)),
            Picture("true normals", palette.normals(truth.normals[index])),
            Picture("normals", palette.normals(frame["normals"])),
            Picture("features (PCA)", apply(frame["feature"], pca)),
        ]
        row += [Picture(f"'{n}'", palette.heat(frame[f"similarity {n}"], frame["rgb"])) for n in QUERIES]
        rows.append((f"view {index - truth.test[0] + 1}", row))
    return Pictures("Held-out views", rows, (depth_legend(near, far), heat_legend()))


def curves(result: DemoResult) -> list[Series]:
    found = []
    for name in result.curve[0].losses:
        known = [p for p in result.curve if p.losses[name] > 0]
        found.append(Series(name, [p.step for p in known], [p.losses[name] for p in known]))
    return found


def facts(result: DemoResult) -> list[tuple[str, object]]:
    config = result.trainer.full_config
    return [
        ("raymarch", __version__),
        ("torch", torch.__version__),
        ("machine", f"{platform.machine()}, {torch.get_num_threads()} threads, {result.trainer.device}"),
        ("rays per step", config.train.trainer.rays),
        ("samples per ray", " + ".join(str(n) for n in config.model.sampler.samples)),
        ("poses", asdict(config.model.poses)["mode"]),
        ("total time", f"{result.metrics['total_seconds']:.1f} s"),
    ]
