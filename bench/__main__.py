"""Everything that can be measured about raymarch, on a CPU or a GPU.

    python -m bench [--device cpu|cuda] [--only ops,steps,frames,memory,overhead,build] [--out FILE]
    python -m bench compare A B          what became slower between two records
    python -m bench scaling              curves over rays, samples, feature width and image size
    python -m bench peers                the same rows through torch, torch.compile and other libraries

Figures are medians over repeats with their 10th and 90th percentiles, merged one by one into
bench/results/<machine>.json beside the machine, the versions, the commit and the date. On a CPU with
RAYMARCH_THREADS=1 and OMP_NUM_THREADS=1 times are the processor's, which neighbours on a busy machine do not
lengthen.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import record
from bench.cases import CASES
from bench.timing import clock_of, spread, threads_said
from bench.workloads import Work, camera_of, frame_laps, model_of, peak_bytes, step_laps, trainer_of
from raymarch.model.frames import IMAGE_HEADS, FrameRenderer


@dataclass(frozen=True)
class Frame:
    """A frame to time: of which model, how large, which heads."""

    work: Work
    width: int
    height: int
    mode: str
    heads: frozenset[str] = IMAGE_HEADS


FEATURES = IMAGE_HEADS | {"feature"}
STEPS: dict[str, dict[str, Work]] = {
    "cpu": {
        "synthetic_tiny_1024": Work("tiny", 1024),
        "synthetic_tiny_features_1024": Work("tiny", 1024, width=32),
        "synthetic_nerfacto_256": Work("nerfacto", 256),
        "synthetic_f3rm_256": Work("f3rm", 256, width=768),
    },
    "cuda": {
        "synthetic_tiny_1024": Work("tiny", 1024),
        "synthetic_nerfacto_4096": Work("nerfacto", 4096),
        "synthetic_f3rm_4096": Work("f3rm", 4096, width=768),
        "synthetic_f3rm_65536": Work("f3rm", 65536, width=768),
    },
}
FRAMES: dict[str, dict[str, Frame]] = {
    "cpu": {
        "synthetic_tiny_128x96": Frame(Work("tiny"), 128, 96, "exact"),
        "synthetic_tiny_128x96_reduced": Frame(Work("tiny"), 128, 96, "reduced"),
        "synthetic_tiny_features_128x96": Frame(Work("tiny", width=32), 128, 96, "exact", FEATURES),
        "synthetic_nerfacto_64x48": Frame(Work("nerfacto", 256), 64, 48, "exact"),
    },
    "cuda": {
        "synthetic_nerfacto_1920x1080": Frame(Work("nerfacto", 4096), 1920, 1080, "exact"),
        "synthetic_nerfacto_1920x1080_reduced": Frame(Work("nerfacto", 4096), 1920, 1080, "reduced"),
        "synthetic_f3rm_1920x1080": Frame(Work("f3rm", 4096, width=768), 1920, 1080, "exact", FEATURES),
    },
}
RESIDENT_REPEATS = 5  # of a peak on a CPU: what the allocator keeps varies
TRAINED = {"tiny": 60, "nerfacto": 12, "f3rm": 12}  # steps on a CPU before a frame is timed; on a GPU 500


class Session:
    """What every section needs: the device, which rows, and where figures go."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        self.command = f"{threads_said()}python -m bench --device {self.device.type}"
        self.failed: list[str] = []

    def chosen(self, rows: dict[str, Any]) -> dict[str, Any]:
        names = self.args.rows.split(",") if self.args.rows else list(rows)
        return {name: rows[name] for name in names if name in rows}

    def keep(self, section: str, name: str, row: dict[str, Any]) -> None:
        print(f"{section:9} {name:38} {shown(row)}", flush=True)
        if not self.args.dry:
            record.merge(section, {name: row} if name else row, f"{self.command} --only {section}")

    def each(self, section: str, rows: dict[str, Any], measure: Callable[[Any], dict[str, Any]]) -> None:
        """A row that cannot be measured must not cost the others."""
        for name, row in self.chosen(rows).items():
            try:
                found = measure(row)
            except Exception as error:
                self.failed.append(f"{section}.{name}")
                first = (str(error).splitlines() or [""])[0]
                print(f"{section:9} {name:38} failed: {type(error).__name__}: {first[:150]}", flush=True)
                continue
            self.keep(section, name, found)


def shown(row: dict[str, Any]) -> str:
    keys = [k for k in row if not k.endswith(record.ENDS)]
    return ", ".join(f"{k} {record.cell(row, k)}" for k in keys)


def ops(session: Session) -> None:
    from bench.ops import CPU_RAYS, ceilings, measure

    limits = ceilings(session.device)
    session.keep("ceilings", "", limits)
    on_gpu = session.device.type == "cuda"

    def row(case: Any) -> dict[str, Any]:
        rays = case.bench_rays if on_gpu else min(CPU_RAYS, case.bench_rays)
        return measure(case, session.device, rays, limits)

    session.each("ops", CASES, row)


def steps(session: Session) -> None:
    def row(work: Work) -> dict[str, Any]:
        trainer = trainer_of(work, session.device)
        laps = step_laps(trainer)
        return spread("wall_ms", laps, 1e3) | {
            "rays_per_second": work.rays / statistics.median(laps),
            "repeats": len(laps),
            "clock": clock_of(session.device)[0],
        }

    session.each("steps", STEPS[session.device.type], row)


def trained(session: Session, work: Work) -> FrameRenderer:
    count = 500 if session.device.type == "cuda" else TRAINED[work.preset]
    return FrameRenderer(model_of(work, session.device, count))


def frames(session: Session) -> None:
    def row(frame: Frame) -> dict[str, Any]:
        renderer = trained(session, frame.work)
        camera = camera_of(frame.width, frame.height, session.device)
        laps = frame_laps(renderer, camera, frame.mode, session.device, heads=frame.heads)
        return spread("ms", laps, 1e3) | {
            "fps": 1 / statistics.median(laps),
            "repeats": len(laps),
            "clock": clock_of(session.device)[0],
        }

    session.each("frames", FRAMES[session.device.type], row)


def memory(session: Session) -> None:
    """Peaks of steps and frames, each measured by itself."""

    def of_step(work: Work) -> dict[str, Any]:
        def train() -> None:
            trainer = trainer_of(work, session.device)
            for _ in trainer.iterate(trainer.step + 6):
                pass

        return peaks(train, session.device)

    def of_frame(frame: Frame) -> dict[str, Any]:
        renderer = trained(session, frame.work)
        camera = camera_of(frame.width, frame.height, session.device)
        return peaks(lambda: renderer.render(camera, 0, frame.heads, frame.mode), session.device)

    kind = session.device.type
    session.each("memory", {f"step_{k}": v for k, v in STEPS[kind].items()}, of_step)
    session.each("memory", {f"frame_{k}": v for k, v in FRAMES[kind].items()}, of_frame)


def peaks(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """The peak in GB: torch's on a GPU, where it repeats; of some repeats on a CPU, the process's."""
    if device.type == "cuda":
        return {"peak_gb": (peak_bytes(work, device) or 0) / 1e9}
    found = [peak_bytes(work, device) for _ in range(RESIDENT_REPEATS)]
    known = [taken for taken in found if taken is not None]
    if not known:
        raise RuntimeError("this system does not tell a process's peak memory (it needs Linux's /proc)")
    return spread("peak_gb", known, 1e-9)


def overhead(session: Session) -> None:
    from bench.overhead import ROUNDS, calls, lap_us

    rows = calls(session.device)
    session.each(
        "overhead",
        rows,
        lambda call: spread("call_us", [lap_us(call, session.device) for _ in range(ROUNDS)]),
    )


def build(session: Session) -> None:
    from bench.build import measure

    cuda = "ON" if session.device.type == "cuda" else "OFF"
    session.each("build", {f"cuda_{cuda.lower()}": cuda}, lambda cuda: measure(session.args.builds, cuda))


SECTIONS = {f.__name__: f for f in (ops, steps, frames, memory, overhead, build)}


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--only", help=f"sections, separated by commas, of {', '.join(SECTIONS)}")
    parser.add_argument("--rows", help="rows of those sections, separated by commas")
    parser.add_argument("--out", type=Path, help="JSON file to merge into, instead of bench/results")
    parser.add_argument("--dry", action="store_true", help="print only, write nothing")
    parser.add_argument("--builds", type=int, default=1, help="times to build from nothing")
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("bench: --device cuda needs a GPU and none was found; use --device cpu", file=sys.stderr)
        return 2
    if args.out:
        os.environ["RAYMARCH_RECORD"] = str(args.out)
    session = Session(args)
    for name in names:
        SECTIONS[name](session)
    if session.failed:
        print(f"failed: {', '.join(session.failed)}", file=sys.stderr)
    return 1 if session.failed else 0


COMMANDS = ("compare", "scaling", "peers")  # each a module of that name


def main() -> int:
    argv = sys.argv[1:]
    if argv[:1] and argv[0] in COMMANDS:
        return importlib.import_module(f"bench.{argv[0]}").main(argv[1:])
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
