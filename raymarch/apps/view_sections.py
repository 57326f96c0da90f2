"""The parts of a run's page that show pictures: views as they are now, and one as it came to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from raymarch.apps import palette
from raymarch.apps.charts import Series
from raymarch.apps.sections import Curve, Picture, Pictures, Section, depth_legend
from raymarch.apps.watching import LOG, photo_of
from raymarch.features.pca import apply
from raymarch.model.frames import FrameRenderer, Settings
from raymarch.train.colours import stored_pca
from raymarch.train.runs import OpenRun, smaller, subset
from raymarch.train.trainer import log_rows

VIEWS = {"cuda": 4, "cpu": 2}
SIDES = {"cuda": 320, "cpu": 112}  # pixels of the longer side
STAGES = 8  # pictures of one view over training


def view_sections(run: OpenRun) -> list[Section]:
    """Held-out views (training views where none are held out): photo, rendering, depth, normals, features."""
    held = bool(run.test)
    cameras, indices = (run.test_cameras(), run.test) if held else (run.train_cameras(), run.train)
    most, features = VIEWS[run.device.type], run.model.fields.feature is not None
    heads = {"rgb", "depth", "normals"} | ({"feature"} if features else set())
    frames = FrameRenderer(run.model, Settings(graph=False))
    chosen = sorted({k * len(indices) // most for k in range(most)})
    seen = []
    for i in chosen:
        camera = smaller(subset(cameras, (i,), run.device), SIDES[run.device.type])
        seen.append((i, camera, {k: v.cpu() for k, v in frames.render(camera, 0, frozenset(heads)).items()}))
    if not seen:
        return []
    scale = run.world_from_scene.scale
    near, far = palette.depth_range(np.concatenate([f["depth"].flatten().numpy() for *_, f in seen]) * scale)
    rows = []
    for i, camera, frame in seen:
        width, height = (int(v) for v in camera.size[0])
        photo = photo_of(run.meta["scene"], indices[i], width, height)
        row = [] if photo is None else [Picture("photo", photo)]
        row += [
            Picture("rendering", frame["rgb"]),
            Picture("depth", palette.depth(frame["depth"] * scale, near, far)),
            Picture("normals", palette.normals(run.world_from_scene.rotate(frame["normals"]))),
        ]
        if features:
            row.append(Picture("features (PCA)", apply(frame["feature"], stored_pca(run))))
        rows.append((run.names[indices[i]], row))
    title = "Held-out views" if held else "Training views"
    return [Pictures(title, rows, (depth_legend(near, far),), width=150)]


def progress_sections(run: Path) -> list[Section]:
    """One held-out view over training, and its PSNR."""
    rows = {row["step"]: row for row in log_rows(run / LOG)}  # a resumed run may have looked twice
    listed = [rows[step] for step in sorted(rows) if (run / str(rows[step].get("file"))).is_file()]
    chosen = (
        listed
        if len(listed) <= STAGES
        else [listed[i * (len(listed) - 1) // (STAGES - 1)] for i in range(STAGES)]
    )
    pictures = [Picture(f"step {row['step']}", _read(run / row["file"])) for row in chosen]
    found: list[Section] = (
        [Pictures("While training", [(listed[0]["photo"], pictures)], width=150)] if pictures else []
    )
    known = [row for row in listed if row.get("psnr") is not None]
    if len(known) > 1:
        series = Series("held-out PSNR", [r["step"] for r in known], [r["psnr"] for r in known])
        size = " x ".join(str(v) for v in known[-1]["size"])
        found.append(
            Curve("One held-out photo", [series], y_label="dB", log=False, note=f"At {size} pixels.")
        )
    return found


def _read(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))
