"""How steps and frames grow with rays, samples, feature width and image size, in time and in memory.

    python -m bench scaling [--device cpu|cuda] [--only rays,samples,width,pixels] [--out docs/scaling]

Every point is the median of repeats with their 10th and 90th percentiles. A curve stops before a point that
the last ones say would take longer than --patience seconds for one lap, or more memory than --most-gb; where
it stopped is stated in the record and the caption. To each curve two laws are fitted: cost ~ n^slope with the
slope's 95 % confidence, and cost = fixed + each * n. Pictures as SVG and PNG; figures into the record. With
RAYMARCH_THREADS=1 and OMP_NUM_THREADS=1 a CPU's times are the processor's, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.curves import Curve, drawn, png, svg
from bench.growth import fitted, stated
from bench.timing import clock_of, spread, threads_said
from bench.workloads import CYCLE, Work, camera_of, frame_laps, model_of, peak_bytes, step_laps, trainer_of
from raymarch.model.frames import FrameRenderer

PATIENCE, MOST_GB = 20.0, 6.0
WIDE = 16 / 9
HEIGHTS = (45, 90, 180, 360, 720, 1080, 1440, 2160)


@dataclass(frozen=True)
class Axis:
    """What grows, over which values, and which lines are drawn over it."""

    label: str
    unit: str
    values: tuple[int, ...]
    lines: Callable[[str], dict[str, Work]]  # of a kind of device


def _presets(kind: str) -> dict[str, Work]:
    if kind == "cuda":
        return {"nerfacto": Work("nerfacto", 4096), "f3rm": Work("f3rm", 4096, width=768)}
    return {"tiny": Work("tiny", 1024), "nerfacto": Work("nerfacto", 256)}


def _with_features(kind: str) -> dict[str, Work]:
    return (
        {"f3rm": Work("f3rm", 4096, width=768)} if kind == "cuda" else {"tiny": Work("tiny", 1024, width=32)}
    )


AXES = {
    "rays": Axis("rays per step", "ray", tuple(1 << k for k in range(10, 21)), _presets),
    "samples": Axis("samples per ray of the last level", "sample", (16, 32, 64, 128, 256, 512), _presets),
    "width": Axis("feature width", "column", tuple(1 << k for k in range(4, 12)), _with_features),
    "pixels": Axis("pixels of a frame", "pixel", tuple(round(h * WIDE) * h for h in HEIGHTS), _presets),
}


@dataclass(frozen=True)
class Point:
    size: int
    laps: list[float]
    peak: int | None  # bytes

    @property
    def seconds(self) -> float:
        return statistics.median(self.laps)


def step_point(axis: str, work: Work, size: int, *, device: torch.device, patience: float) -> Point:
    grown = {
        "rays": replace(work, rays=size),
        "samples": replace(work, final_samples=size),
        "width": replace(work, width=size),
    }[axis]
    laps: list[float] = []

    def train() -> None:
        trainer = trainer_of(grown, device)
        laps.extend(step_laps(trainer, seconds=min(3.0, patience)))

    peak = peak_bytes(train, device)
    return Point(size, laps, peak)


def frame_point(renderer: FrameRenderer, pixels: int, *, device: torch.device, patience: float) -> Point:
    height = next(h for h in HEIGHTS if round(h * WIDE) * h == pixels)
    camera, laps = camera_of(round(height * WIDE), height, device), []

    def render() -> None:
        laps.extend(frame_laps(renderer, camera, "exact", device, seconds=min(3.0, patience)))

    peak = peak_bytes(render, device)
    return Point(pixels, laps, peak)


def curve(
    measure: Callable[[int], Point], sizes: tuple[int, ...], patience: float, most_gb: float, calls: int
) -> tuple[list[Point], str]:
    """Points in order of size, and why they end where they do; `calls` in a lap."""
    points: list[Point] = []
    for size in sizes:
        if points and (why := too_much(points, size, patience, most_gb, calls)):
            return points, why
        try:
            points.append(measure(size))
        except (torch.OutOfMemoryError, MemoryError) as error:
            return points, f"stopped before {size}: {type(error).__name__}"
        print(f"    {size:9d} {points[-1].seconds * 1e3:10.2f} ms", flush=True)
    return points, "all sizes"


def too_much(points: list[Point], size: int, patience: float, most_gb: float, calls: int) -> str:
    """A sentence where the next size would take too long or too much, growing in proportion; else nothing."""
    last = points[-1]
    factor = size / last.size
    if (expected := last.seconds * factor * calls) > patience:
        return f"stopped before {size}: a lap would take about {expected:.0f} s, more than {patience:g}"
    if last.peak is not None and (gb := last.peak * factor / 1e9) > most_gb:
        return f"stopped before {size}: about {gb:.1f} GB, more than {most_gb:g}"
    return ""


def row_of(points: list[Point], why: str, clock: str) -> dict[str, Any]:
    """Of one curve: a row per size, and the laws."""
    found: dict[str, Any] = {}
    for p in points:
        row = spread("wall_ms", p.laps, 1e3) | {"repeats": len(p.laps)}
        found[str(p.size)] = row | ({} if p.peak is None else {"peak_gb": p.peak / 1e9})
    found["law"] = laws(points) | {"clock": clock, "ended": why}
    return found


def laws(points: list[Point]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sizes = [p.size for p in points]
    costs = {"wall": [p.seconds * 1e3 for p in points], "memory": [(p.peak or 0) / 1e6 for p in points]}
    for name, values in costs.items():
        if len(points) < 2 or min(values) <= 0:
            continue
        fit = fitted(sizes, values)
        found |= {
            f"{name}_power": fit.slope,
            f"{name}_power_confidence": fit.confidence,
            f"{name}_fixed": fit.fixed,
            f"{name}_each": fit.each,
            f"{name}_off_by_at_most": fit.worst,
        }
    return found


def curves_of(axis: Axis, found: dict[str, tuple[list[Point], str]], memory: bool) -> list[Curve]:
    curves = []
    for name, (points, why) in found.items():
        known = [p for p in points if not memory or p.peak]
        pairs = [(float(p.size), p.peak / 1e6 if memory and p.peak else p.seconds * 1e3) for p in known]
        if not pairs:
            continue
        ends = (
            [] if memory else [tuple(spread("t", p.laps, 1e3)[k] for k in ("t_low", "t_high")) for p in known]
        )
        law: list[tuple[float, float]] = []
        caption = "one point" if len(pairs) < 2 else ""
        if len(pairs) > 1:
            fit = fitted([x for x, _ in pairs], [y for _, y in pairs])
            law = [(x, fit.fixed + fit.each * x) for x, _ in pairs]
            caption = stated(fit, axis.unit, "MB" if memory else "ms")
        caption += "" if why == "all sizes" else f"; {why.partition(':')[0]}"
        curves.append(Curve(name, pairs, ends, law, caption))  # type: ignore[arg-type]
    return curves


def pictures(name: str, axis: Axis, found: dict[str, tuple[list[Point], str]], out: Path, where: str) -> None:
    """<out>/<axis>_<time or memory>.svg and .png"""
    out.mkdir(parents=True, exist_ok=True)
    what = "a frame" if name == "pixels" else "a training step"
    for kind, label in (("time", "milliseconds"), ("memory", "peak megabytes")):
        curves = curves_of(axis, found, kind == "memory")
        if not curves:
            continue
        picture = drawn(f"{what} on {where}", axis.label, label, curves)
        (out / f"{name}_{kind}.svg").write_text(svg(picture, f"{label} of {what} over {axis.label}"))
        (out / f"{name}_{kind}.png").write_bytes(png(picture))


def run_axis(name: str, axis: Axis, args: argparse.Namespace, device: torch.device) -> None:
    command = f"{threads_said()}python -m bench scaling --device {device.type} --only {name}"
    found: dict[str, tuple[list[Point], str]] = {}
    sizes = tuple(v for v in axis.values if args.largest is None or v <= args.largest)
    for line, work in axis.lines(device.type).items():
        print(f"{name}, {line}", flush=True)
        measure: Callable[[int], Point]
        if name == "pixels":
            renderer = FrameRenderer(model_of(work, device, 12))
            measure = partial(frame_point, renderer, device=device, patience=args.patience)
        else:
            measure = partial(step_point, name, work, device=device, patience=args.patience)
        calls = 1 if name == "pixels" else CYCLE
        found[line] = curve(measure, sizes, args.patience, args.most_gb, calls)
        points, why = found[line]
        if not points:
            print(f"    nothing measured: {why}", flush=True)
            continue
        row = row_of(points, why, clock_of(device)[0])
        if len(points) > 1:
            fit = fitted([p.size for p in points], [p.seconds * 1e3 for p in points])
            print(f"    {stated(fit, axis.unit, 'ms')}; {why}", flush=True)
        if not args.dry:
            record.merge("scaling", {name: {line: row}}, command)
    if args.out:
        where = record.machine()["cpu"] if device.type == "cpu" else record.gpu_name()
        where += ", one thread" if clock_of(device)[0] == "processor" else ""
        pictures(name, axis, found, args.out, where)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--only", default=",".join(AXES))
    parser.add_argument("--largest", type=int, help="leave out sizes above this")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds that one lap may take")
    parser.add_argument("--most-gb", type=float, help=f"default {MOST_GB:g} on a CPU, 100 on a GPU")
    parser.add_argument("--out", type=Path, help="folder for the pictures")
    parser.add_argument("--record", type=Path, help="JSON file to merge into, instead of bench/results")
    parser.add_argument("--dry", action="store_true", help="write no record")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("scaling: --device cuda needs a GPU and none was found; use --device cpu", file=sys.stderr)
        return 2
    if unknown := [name for name in args.only.split(",") if name not in AXES]:
        parser.error(f"no axis {', '.join(unknown)}; there are {', '.join(AXES)}")
    if args.record:
        os.environ["RAYMARCH_RECORD"] = str(args.record)
    args.most_gb = args.most_gb or (100.0 if args.device == "cuda" else MOST_GB)
    for name in args.only.split(","):
        run_axis(name, AXES[name], args, torch.device(args.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
