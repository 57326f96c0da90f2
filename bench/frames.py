"""Milliseconds, memory and PSNR of whole frames, exact and reduced, on a real scene.

    python -m bench.frames SCENES [--steps 3000] [--record]
    python -m bench.frames SCENES --try "stop=4.6 empty=0.003" --try samples=28 --rows rgb_reduced

`--try` changes numbers of the reduced mode, one model for all; what they cost is printed, never recorded.

Trains f3rm on fox_full, lets the trainer go, and renders the held-out photos at full size. Time is a host
clock around one frame, synchronised at both ends, the median of some after the first; peak memory is torch's
over the first frame (which captures its graph) and the others, the model's own included. PSNR is against the
photos; `psnr_loss_db` is what the exact mode's is higher, and `psnr_to_exact_db` compares the two pictures.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.quality import configured, with_features
from bench.record import merge
from bench.timing import FEWEST, spread
from raymarch.data.scene import Scene, load
from raymarch.model import Model
from raymarch.model.frames import IMAGE_HEADS, FrameRenderer, Settings
from raymarch.train.evaluate import over_background
from raymarch.train.metrics import psnr
from raymarch.train.runs import start, subset
from raymarch.types import Cameras

ROWS: dict[str, tuple[frozenset[str], str, bool]] = {  # heads, mode, stages in one
    "rgb_exact": (IMAGE_HEADS, "exact", True),
    "rgb_composed": (IMAGE_HEADS, "exact", False),
    "rgb_reduced": (IMAGE_HEADS, "reduced", True),
    "language_reduced": (frozenset({"rgb", "depth", "normals", "similarity"}), "reduced", True),
    "features_exact": (IMAGE_HEADS | {"feature"}, "exact", True),
    "language_exact": (frozenset({"rgb", "depth", "normals", "similarity"}), "exact", True),
}


def trained(scenes: Path, steps: int, device: torch.device) -> tuple[Model, Scene]:
    """A model of fox_full with features, and nothing else of its training in memory."""
    photos = load(scenes / "fox_full", split="every8")
    trainer = start(with_features(photos), configured("f3rm_off"), device=device)
    for _ in trainer.iterate(steps):
        pass
    model = trainer.model
    for p in model.parameters():
        p.grad = None
    del trainer
    gc.collect()
    torch.cuda.empty_cache()
    return model.eval(), photos


def timed(
    frames: FrameRenderer,
    cameras: Cameras,
    heads: frozenset[str],
    mode: str,
    embeddings: Tensor | None,
    repeats: int,
) -> dict[str, float]:
    """Of one view: the first frame, then the median of some."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    laps = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        frames.render(cameras, 0, heads, mode, embeddings)
        torch.cuda.synchronize()
        laps.append((time.perf_counter() - begin) * 1e3)
    peak = torch.cuda.max_memory_allocated() / 1e9
    return spread("ms", laps[1:]) | {"first_ms": laps[0], "peak_gb": peak}


def pictures(frames: FrameRenderer, cameras: Cameras, heads: frozenset[str], mode: str, embeddings):
    """Every view, on the host: here they must not count as memory of a frame."""
    views = range(len(cameras.size))
    found = (frames.render(cameras, i, heads, mode, embeddings) for i in views)
    return [{name: image.cpu() for name, image in frame.items()} for frame in found]


def compared(found: list[dict], exact: list[dict], truths: list[Tensor]) -> dict[str, float]:
    """Against the photos and against the exact frames, averaged over views."""
    own = [float(psnr(f["rgb"], t)) for f, t in zip(found, truths, strict=True)]
    best = [float(psnr(e["rgb"], t)) for e, t in zip(exact, truths, strict=True)]
    between = [float(psnr(f["rgb"], e["rgb"])) for f, e in zip(found, exact, strict=True)]
    values = {
        "psnr_db": statistics.fmean(own),
        "psnr_loss_db": statistics.fmean(best) - statistics.fmean(own),
        "psnr_to_exact_db": min(statistics.fmean(between), 200.0),  # equal pictures: infinite
    }
    for name in ("similarity", "normals"):
        if name in found[0] and name in exact[0]:
            off = [(f[name] - e[name]).abs().mean().item() for f, e in zip(found, exact, strict=True)]
            values[f"{name}_off"] = statistics.fmean(off)
    off = [((f["depth"] / e["depth"]).log().abs().median()).item() for f, e in zip(found, exact, strict=True)]
    return values | {"depth_off": statistics.fmean(off)}


@torch.no_grad()
def measure(
    model: Model, photos: Scene, device: torch.device, rows: list[str], repeats: int = 10
) -> dict[str, dict[str, float]]:
    cameras = subset(photos.cameras, photos.test, device)
    truths = [over_background(photos.images[i].cpu(), photos.background) for i in photos.test]
    layer = model.fields.feature.layer if model.fields.feature is not None else None
    embeddings = None if layer is None else layer[:, :5].T.contiguous()  # five directions that features have
    exact: dict[frozenset[str], list[dict]] = {}
    values: dict[str, dict[str, float]] = {}
    for name in rows:
        heads, mode, fused = ROWS[name]
        frames = FrameRenderer(model, Settings(fused=fused, half_features=True))
        row = timed(frames, cameras, heads, mode, embeddings, repeats if "exact" not in name else FEWEST)
        print(name, {k: round(v, 4) for k, v in row.items()}, flush=True)  # whatever becomes of the rest
        if "feature" not in heads:
            if heads not in exact:
                once = FrameRenderer(model, Settings())
                exact[heads] = pictures(once, cameras, heads, "exact", embeddings)
                del once  # the next row's memory is its own
            found = pictures(frames, cameras, heads, mode, embeddings)
            row |= compared(found, exact[heads], truths)
        values[name] = row
        print(name, {k: round(v, 4) for k, v in row.items()}, flush=True)
        del frames
        gc.collect()
        torch.cuda.empty_cache()
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--record", action="store_true", help="merge the figures into bench/results")
    parser.add_argument(
        "--try", dest="tries", action="append", default=[], help='like "stop=4.6 empty=0.003"'
    )
    args = parser.parse_args()
    device = torch.device("cuda")
    model, photos = trained(args.scenes, args.steps, device)
    for changes in args.tries:
        given = {name: float(value) for name, value in (word.split("=") for word in changes.split())}
        usual = model.config
        whole: dict[str, Any] = {
            k: int(v) if isinstance(getattr(usual.reduced, k), int) else v for k, v in given.items()
        }
        model.config = replace(usual, reduced=replace(usual.reduced, **whole))
        print(f"with {changes}", flush=True)
        measure(model, photos, device, args.rows.split(","))
        model.config = usual
    if args.tries:
        return
    values = measure(model, photos, device, args.rows.split(","))
    if args.record:
        merge("frames", values, "python -m bench.frames")


if __name__ == "__main__":
    main()
