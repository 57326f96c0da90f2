"""The feature colours of a run: one projection, kept in its folder, the same for every frame."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from raymarch.data.atomic import write_bytes
from raymarch.features.pca import Pca, fit_pca
from raymarch.model.frames import FrameRenderer
from raymarch.train.runs import OpenRun, smaller, subset

FILE = "pca.safetensors"
VIEWS = 8  # training views that the projection is fitted to
SIDE = 64  # pixels of their longer side


def stored_pca(run: OpenRun) -> Pca:
    """The run's projection. Fitted where there is none, or where it is of less than half as many steps.

    A projection that was fitted early in training does not suit features that have changed since; one of a
    trained field stays, so colours do not move when training goes on.
    """
    found = read_pca(run.path / FILE, run.config.model.fields.feature.width)
    if found is not None and 2 * found[1] >= run.step:
        return found[0]
    pca = fitted_pca(run)
    write_pca(run.path / FILE, pca, run.step)
    return pca


def fitted_pca(run: OpenRun, views: int = VIEWS, side: int = SIDE) -> Pca:
    """A projection of what the feature field shows from training views spread over the run.

    ValueError for a run without a feature field.
    """
    if run.model.fields.feature is None:
        raise ValueError(f"{run.path} has no feature field, so its features have no colours")
    cameras, frames, rows = run.train_cameras(), FrameRenderer(run.model), []
    count = len(run.train)
    for i in sorted({k * count // views for k in range(views)}):
        frame = frames.render(
            smaller(subset(cameras, (i,), run.device), side), 0, frozenset({"rgb", "feature"})
        )
        rows.append(frame["feature"].flatten(0, 1).float().cpu())
    return fit_pca(torch.cat(rows))


def write_pca(path: Path, pca: Pca, step: int) -> None:
    """Keep a projection; `step` is that of the checkpoint it was fitted to."""
    about = {"kind": pca.kind, "step": step}
    tensors = {"projection": pca.projection, "low": pca.low, "high": pca.high}
    kept = {k: v.cpu().contiguous() for k, v in tensors.items()}
    write_bytes(path, save(kept, {"pca": json.dumps(about)}))


def read_pca(path: Path, width: int) -> tuple[Pca, int] | None:
    """A projection of features of this width and its step; None where there is none or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["pca"])
            projection, low, high = (file.get_tensor(k) for k in ("projection", "low", "high"))
            pca = Pca(projection, low, high, about["kind"])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError):
        return None
    return (pca, int(about["step"])) if pca.projection.shape[0] == width else None
