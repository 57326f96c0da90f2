"""`raymarch poses`: the corrections of a run's training cameras and lenses as a table, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raymarch.data.atomic import write_text
from raymarch.data.plain import json_text
from raymarch.train.lenses import refined_lenses
from raymarch.train.refined import refined_poses, report_rows
from raymarch.train.runs import OpenRun


def tell_poses(run: Path, out: Path | None, device: str) -> Iterator[str]:
    """One line per training camera; writes RUN/poses.json (or `out`), the same with adjustments and poses."""
    opened = OpenRun(run, device)
    found, lenses = refined_poses(opened), refined_lenses(opened)
    rows = report_rows(found)
    alone = "without drift"
    yield f"{'camera':>6} {'photo':28} {'degrees':>9} {'world':>9}   {alone:>19}"
    for row in rows:
        words = "frozen" if row["frozen"] else "stands out" if row["stands_out"] else ""
        yield (
            f"{row['camera']:6} {row['name'][-28:]:28} {row['degrees']:9.4f} {row['world_units']:9.3g}   "
            f"{row['degrees_without_drift']:9.4f} {row['world_units_without_drift']:9.3g} {words}".rstrip()
        )
    yield (
        f"all together: {found.drift['degrees']:.4f} degrees, scale {found.drift['scale']:.6g}, "
        f"centre moved by {found.drift['centre_moved']:.3g} world units; mode {found.mode}, adjustments in "
        f"the {found.compose} frame"
    )
    yield from (lens.told() for lens in lenses)
    file = out or run / "poses.json"
    stored = {"drift": found.drift, "cameras": rows, "lenses": [lens.row() for lens in lenses]}
    write_text(file, json_text(stored) + "\n")
    yield str(file)
