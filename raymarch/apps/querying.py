"""`raymarch query`: what matches words, in pictures and in space."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymarch.apps import palette
from raymarch.apps.cameras import cameras_for
from raymarch.apps.images import save_rgb
from raymarch.apps.numbers import told_to
from raymarch.config import ConfigError
from raymarch.data.atomic import write_text
from raymarch.data.plain import json_text
from raymarch.export.ply import write_ply
from raymarch.export.surface import Points, joined, matching, places, solid
from raymarch.features.query import MODES, THRESHOLD, locate, mask
from raymarch.features.words import read_embeddings
from raymarch.trained import TrainedScene

VIEWS = 12  # that are looked at where none is named
SIDE = 512  # pixels of their longer side, at most
SLUG = 48  # letters of a folder's name: four bytes each stay below what file systems take


@dataclass(frozen=True)
class Seen:
    """One view: its picture, how well each query matches its pixels, and where these lie."""

    stem: str
    rgb: Tensor  # [h, w, 3]
    similarity: Tensor  # [h, w, Q]
    keep: Tensor  # [h, w] bool: on a surface
    points: Points  # of the pixels kept
    field: Tensor  # [P, Q] how well each query matches the field at these points


def query_run(
    run: Path,
    texts: Sequence[str],
    negatives: Sequence[str],
    embeddings: Path | None,
    weights: str | None,
    out: Path | None,
    views: tuple[str, ...],
    poses: Path | None,
    threshold: float | None,
    score: str,
    temperature: float,
    side: int,
    mode: str,
    device: str,
) -> Iterator[str]:
    """Look for texts; yields lines to show, writes pictures, points and query.json into `out`."""
    if score not in MODES:
        raise ConfigError(f"--score: expected one of {', '.join(MODES)}, got {score!r}")
    if not texts:
        raise ConfigError("there is nothing to look for: give at least one text")
    scene = open_with_words(run, embeddings, weights, device)
    try:
        seen = [
            look(scene, stem, camera, texts, negatives, score, temperature, mode)
            for stem, camera in cameras_for(scene, poses, views or spread(scene), side)
        ]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    out = out or run / "query"
    out.mkdir(parents=True, exist_ok=True)
    paired = bool(negatives) and score != "cosine"
    found = []
    names = slugs(texts)
    for i, text in enumerate(texts):
        bound = (
            threshold if threshold is not None else default_threshold(seen, i, score if paired else "cosine")
        )
        found.append(result(out / names[i], text, seen, i, bound, paired))
        yield told(found[-1], bound)
    about = {
        "run": str(run),
        "step": scene.step,
        "score": score if paired else "cosine",
        "temperature": temperature if paired else None,
        "negatives": list(negatives),
        "units": "world",
        "queries": found,
    }
    write_text(out / "query.json", json_text(about) + "\n")
    yield str(out / "query.json")


def open_with_words(run: Path, embeddings: Path | None, weights: str | None, device: str) -> TrainedScene:
    """A run whose words also come from a file of embeddings, and whose encoder's weights may have moved."""
    scene = TrainedScene(run, device)
    if embeddings is not None:
        scene.words.vectors |= read_embeddings(embeddings)
    scene.words.weights = weights
    return scene


def spread(scene: TrainedScene) -> tuple[str, ...]:
    """Views to look at: training views spread over the run."""
    count = len(scene.train)
    train = sorted({k * count // VIEWS for k in range(VIEWS)})
    return tuple(f"train:{i}" for i in train)


def look(scene, stem, camera, texts, negatives, score, temperature, mode) -> Seen:
    """One view's picture, similarities and surface."""
    heads = ("rgb", "depth", "opacity")
    frame = scene.look(camera, texts, negatives or None, heads, score, temperature, mode)
    keep = solid(frame, camera)
    xyz = places(scene, camera, frame["depth"])[keep].cpu()
    field = scene.query(xyz, texts, negatives or None, score, temperature)["similarity"].cpu()
    frame["similarity"] = frame["similarity"] * frame["opacity"][..., None]  # nothing there, nothing meant
    frame = {k: v.cpu() for k, v in frame.items()}
    keep = keep.cpu()
    return Seen(stem, frame["rgb"], frame["similarity"], keep, Points(xyz, frame["rgb"][keep]), field)


def default_threshold(seen: Sequence[Seen], i: int, score: str) -> float:
    """paired: where the text is as like as the likest negative; cosine: halfway from the median to the best.

    F3RM's softmax peaks at one over the number of negatives: half of that peak, its value at a tie.
    """
    if score == "paired":
        return THRESHOLD
    values = torch.cat([s.similarity[..., i][s.keep] for s in seen])
    if not len(values):
        return 1.0
    if score == "f3rm":
        return float(values.max() / 2)
    return float((values.median() + values.max()) / 2)


def slugs(texts: Sequence[str]) -> list[str]:
    """A folder name for each text, all different."""
    found: list[str] = []
    for text in texts:
        base = re.sub(r"[^\w]+", "_", text.casefold()).strip("_")[:SLUG] or "query"
        name, count = base, 1
        while name in found:
            count += 1
            name = f"{base}_{count}"
        found.append(name)
    return found


def result(
    folder: Path, text: str, seen: Sequence[Seen], i: int, threshold: float, paired: bool
) -> dict[str, Any]:
    """Write one query's pictures and points; returns what query.json says of it."""
    folder.mkdir(parents=True, exist_ok=True)
    low, high = (0.0, 1.0) if paired else cosine_range(seen, i)
    rows, parts = [], []
    for view in seen:
        values = view.similarity[..., i]
        hit = mask(values, threshold)
        heat, where = folder / f"{view.stem}_heat.png", folder / f"{view.stem}_mask.png"
        save_rgb(heat, palette.heat(values, view.rgb, low, high))
        save_rgb(where, palette.grey(hit.float()))
        both = torch.minimum(values[view.keep], view.field[:, i])  # a pixel on an edge blends two things
        parts.append(matching(view.points, both, threshold))
        rows.append(
            {
                "view": view.stem,
                "best": float(values.max()),
                "share": float(hit.float().mean()),
                "heat": f"{folder.name}/{heat.name}",
                "mask": f"{folder.name}/{where.name}",
            }
        )
    points = joined(parts)
    found: dict[str, Any] = {
        "text": text,
        "threshold": threshold,
        "points": len(points),
        "found": len(points) > 0,
    }
    if len(points):
        at = locate(points.xyz, torch.ones(len(points)))
        found["centroid"] = at.centroid.tolist()
        found["box"] = {"low": at.box[0].tolist(), "high": at.box[1].tolist()}
        write_ply(folder / "points.ply", points.columns(), comment="raymarch query, world units")
        found["cloud"] = f"{folder.name}/points.ply"
    else:  # what an earlier query found is no answer to this one
        (folder / "points.ply").unlink(missing_ok=True)
    return found | {"heat_range": [low, high], "views": rows}


def cosine_range(seen: Sequence[Seen], i: int) -> tuple[float, float]:
    """What cosines the heat map runs over: from the median to the best."""
    values = torch.cat([s.similarity[..., i].flatten() for s in seen])
    low, high = float(values.median()), float(values.max())
    return low, max(high, low + 1e-6)


def told(found: dict[str, Any], threshold: float) -> str:
    """One line for people."""
    if not found["found"]:
        return f"{found['text']!r}: nothing reaches {threshold:.3g}"
    low, high = found["box"]["low"], found["box"]["high"]
    finest = max(b - a for a, b in zip(low, high, strict=True)) / 100
    centre = ", ".join(told_to(v, finest) for v in found["centroid"])
    size = " x ".join(f"{b - a:.3g}" for a, b in zip(low, high, strict=True))
    place = f"{found['text']!r}: at {centre}, {size} (world units)"
    return f"{place}, {found['points']} points above {threshold:.3g}"
