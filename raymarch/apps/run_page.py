"""A run folder as a page: index.html with held-out figures, camera poses before and after, and the curve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymarch import __version__
from raymarch.apps import palette
from raymarch.apps.charts import Series
from raymarch.apps.evaluation import metrics_file
from raymarch.apps.report import write_report
from raymarch.apps.sections import Curve, Frustums, Metric, Metrics, Picture, Pictures, Section, Table, Text
from raymarch.apps.view_sections import progress_sections, view_sections
from raymarch.data.atomic import write_text
from raymarch.data.error import SceneError
from raymarch.data.images import read_photo
from raymarch.data.plain import json_text
from raymarch.train.evaluate import over_background, render_image
from raymarch.train.held_out import POSES, drift
from raymarch.train.lenses import NUMBERS, RefinedLens, refined_lenses
from raymarch.train.photos import shrunk
from raymarch.train.refined import RefinedPoses, refined_poses, report_rows
from raymarch.train.runs import OpenRun, subset
from raymarch.train.trainer import LOG, log_rows
from raymarch.types import Cameras

VIEW_SIDE = {"cuda": 480, "cpu": 160}  # pixels of the longer side of a rendering on the page
DIFFERENCE = 0.3  # mean colour difference at which the difference picture is brightest


def write_run_page(run: Path, device: str = "auto") -> Path:
    """Write RUN/index.html, metrics.json and poses.json of the newest checkpoint; returns the page's path."""
    opened = OpenRun(run, device)
    sections: list[Section] = []
    measured = [m for poses in POSES for m in _held_out(run, opened.step, poses)]
    if measured:
        sections.append(Metrics("Held-out photos", measured, "Figures of other steps are left out."))
    record: dict[str, Any] = {"step": opened.step, "config": opened.meta["config"]}
    if opened.config.model.poses.mode != "off" and opened.train:
        poses = refined_poses(opened)
        record["poses"] = {"drift": poses.drift, "cameras": report_rows(poses)}
        write_text(run / "poses.json", json_text(record["poses"]) + "\n")
        sections += pose_sections(opened, poses)
    if lenses := refined_lenses(opened):
        record["lenses"] = [lens.row() for lens in lenses]
        sections.append(lens_section(lenses, opened.config.model.intrinsics.refine))
    sections += [*view_sections(opened), *progress_sections(run)]
    sections += [*_curves(run), Text("Run", facts=_facts(opened))]
    return write_report(run, f"raymarch run {run.name}", sections, f"Step {opened.step}.", record)


def _held_out(run: Path, step: int, poses: str) -> list[Metric]:
    """The means that `raymarch eval` left for this step."""
    file = metrics_file(run, poses)
    if not file.is_file():
        return []
    try:
        stored = json.loads(file.read_text("utf-8"))
        if stored["step"] != step:
            return []
        mean, protocol = stored["mean"], stored["protocol"]
        mean["psnr"], mean["ssim"]
    except (ValueError, KeyError, TypeError, RecursionError):  # damaged; `raymarch eval` makes it again
        return []
    found = [
        Metric(f"psnr_{poses}", f"PSNR, poses {poses}", mean["psnr"], protocol, "dB", digits=4),
        Metric(f"ssim_{poses}", f"SSIM, poses {poses}", mean["ssim"], "The same protocol", digits=4),
    ]
    return [metric for metric in found if metric.value is not None]  # which is infinite


def pose_sections(run: OpenRun, poses: RefinedPoses) -> list[Section]:
    """Frustums, corrections per camera, and a training view before and after."""
    far = ", ".join(poses.names[i] for i in poses.outliers)
    note = (
        f"All cameras together drifted by {poses.drift['degrees']:.3g} degrees, a scale of "
        f"{poses.drift['scale']:.6g} and {poses.drift['centre_moved']:.3g} world units; pictures cannot tell."
        + (f" Corrected far more than the others: {far}." if far else "")
    )
    head = ("camera", "degrees", "world units", "degrees without drift", "world units without drift", "")
    rows = [
        (
            row["name"], f"{row['degrees']:.3g}", f"{row['world_units']:.3g}",
            f"{row['degrees_without_drift']:.3g}", f"{row['world_units_without_drift']:.3g}",
            "frozen" if row["frozen"] else "stands out" if row["stands_out"] else "",
        )
        for row in report_rows(poses)
    ]  # fmt: skip
    found: list[Section] = [
        Frustums("Cameras from above", poses.given, poses.refined, poses.names, poses.outliers, note),
        Table("Corrections", head, rows, f"Mode {poses.mode}, adjustments in the {poses.compose} frame."),
    ]
    return [*found, reprojection(run, poses)]


def lens_section(lenses: list[RefinedLens], refine: str) -> Table:
    """What was learnt of every lens: a row each, numbers that changed as `given → refined`."""
    names = [n for n in NUMBERS if any(x.given[n] != x.refined[n] for x in lenses)]
    rows = [
        (
            lens.name if len(lens.cameras) == 1 else f"{lens.name} and {len(lens.cameras) - 1} more",
            f"{lens.focal_percent:+.3g} %",
            *(f"{lens.given[n]:.6g} → {lens.refined[n]:.6g}" for n in names),
        )
        for lens in lenses
    ]
    head = ("camera", "focal length", *names)
    return Table("Focal length and distortion", head, rows, f"Refined: {refine}; as given → as refined.")


def reprojection(run: OpenRun, poses: RefinedPoses) -> Pictures:
    """The training view that was corrected most, rendered from its pose before and after."""
    score = poses.turned_alone / poses.turned_alone.max().clamp_min(1e-12)
    score = score + poses.moved_alone / poses.moved_alone.max().clamp_min(1e-12)
    i = int(score.argmax())
    after = subset(run.train_cameras(), (i,), run.device)
    went = drift(run)
    given = subset(run.train_cameras(refined=False), (i,), run.device)
    given = replace(given, camera_to_worlds=went.take_along(given.camera_to_worlds))
    photo = _photo(run, i, after)
    pictures = [] if photo is None else [Picture("photo", photo)]
    for words, camera in (("before refinement", given), ("after", after)):
        small = _small(run, camera)
        seen = render_image(run.model, small, 0, frozenset({"rgb"}))["rgb"].cpu()
        pictures.append(Picture(words, seen))
        if photo is not None:
            off = (seen - photo).abs().mean(-1)
            pictures.append(Picture(f"{words}: difference", palette.heat(off, None, 0.0, DIFFERENCE)))
    label = f"{poses.names[i]}: {poses.turned_alone[i]:.3g} degrees, {poses.moved_alone[i]:.3g} world units"
    note = "The training view that was corrected most; both poses without the cameras' common drift."
    return Pictures("A training view before and after", [(label, pictures)], note=note, width=180)


def _small(run: OpenRun, camera: Cameras) -> Cameras:
    width, height = (int(v) for v in camera.size[0])
    blank = torch.zeros(height, width, 3, device=run.device)
    return shrunk(blank, camera, VIEW_SIDE[run.device.type])[1]


def _photo(run: OpenRun, i: int, camera: Cameras) -> Tensor | None:
    """The photo of training camera i at the page's size; None where it is no longer there."""
    source = run.meta["scene"]["source"]
    if source is None:
        return None
    folder = Path(source["path"])
    file = (folder.parent if folder.is_file() else folder) / run.names[run.train[i]]
    try:
        image = over_background(torch.from_numpy(read_photo(file).pixels), run.background)
    except SceneError:
        return None
    columns, rows = (int(v) for v in _small(run, camera).size[0])
    small = torch.nn.functional.adaptive_avg_pool2d(image.permute(2, 0, 1)[None], (rows, columns))
    return small[0].permute(1, 2, 0)


def _curves(run: Path) -> list[Section]:
    rows = log_rows(run / LOG)
    if not rows:
        return []
    names = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in ("step", "seconds", "psnr")]
    series = []
    for name in names:
        known = [r for r in rows if isinstance(r.get(name), (int, float)) and r[name] > 0]
        series.append(Series(name, [r["step"] for r in known], [r[name] for r in known]))
    return [Curve("Training", series, note="Weighted terms of the loss on each step's own rays.")]


def _facts(run: OpenRun) -> list[tuple[str, object]]:
    model = run.config.model
    return [
        ("raymarch", __version__),
        ("step", run.step),
        ("training time", f"{run.meta.get('seconds', 0):.1f} s"),
        ("photos", f"{len(run.train)} to train on, {len(run.test)} held out"),
        ("rays per step", run.config.train.trainer.rays),
        ("samples per ray", " + ".join(str(n) for n in model.sampler.samples)),
        ("poses", f"{model.poses.mode}, {model.poses.compose}" if model.poses.mode != "off" else "off"),
        ("lenses refined", model.intrinsics.refine),
    ]
