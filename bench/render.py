"""Milliseconds per training step and per frame, kernels and memory, on a real scene.

    python -m bench.render SCENES [--what steps,frames]

Wall time is a host clock over a synchronised loop, of steps after the proposals' warm-up, when one step in
six trains them (`early_wall_ms`: of steps before, when every other does).
GPU time and kernels come from the profiler over a few replays; peak memory is torch's, images included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from bench import frames
from bench.quality import configured, with_features, with_two_features
from bench.record import merge
from bench.timing import spread
from raymarch.data.scene import load
from raymarch.profiling.subjects import skip_to, waits
from raymarch.train.runs import start

LATE = 6000  # a step past every warm-up
CYCLE, LAPS = 6, 5  # steps of which one trains the proposals; laps of whole cycles whose spread is kept
STEPS = {
    "nerfacto_4096": ("nerfacto_so3xr3", 4096, False),
    "nerfacto_off_4096": ("nerfacto_off", 4096, False),  # what refining poses costs: the difference
    "f3rm_4096": ("f3rm", 4096, False),
    "f3rm_normals_4096": ("f3rm", 4096, True),
    "f3rm_two_heads_4096": ("f3rm_two_heads", 4096, False),
    "f3rm_65536": ("f3rm", 65536, False),
}


def trainer_for(row: str, rays: int, normals: bool, scene, device: torch.device):
    config = configured(row)
    fields = config.model.fields
    if normals:
        fields = replace(fields, radiance=replace(fields.radiance, predicted_normals=True))
    trainer = replace(config.train.trainer, rays=rays, steps=20_000, log_every=1000)
    model = replace(config.model, fields=fields)
    return start(
        scene, replace(config, model=model, train=replace(config.train, trainer=trainer)), device=device
    )


def wall_ms(trainer, count: int) -> float:
    """Of one step, over `count` of them."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    trainer._advance_to(trainer.step + count)  # as `iterate` does: graphs captured here leave copies to Adam
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count * 1e3


def time_steps(trainer, warmup: int, timed: int) -> dict[str, float]:
    """Wall and GPU milliseconds, kernels and host synchronisations of a step, after `warmup` steps."""
    torch.cuda.reset_peak_memory_stats()
    for _ in trainer.iterate(trainer.step + warmup):
        pass
    early = wall_ms(trainer, timed // 2)
    skip_to(trainer, LATE)
    laps = [wall_ms(trainer, max(CYCLE, timed // LAPS // CYCLE * CYCLE)) for _ in range(LAPS)]
    wall = statistics.median(laps)
    from torch.profiler import ProfilerActivity, profile

    count = 30  # a multiple of 6
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        trainer._advance_to(trainer.step + count)  # as `iterate` does: copies of tables are Adam's to keep
        torch.cuda.synchronize()
    device_events = [e for e in trace.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(e.device_time_total for e in device_events) / count / 1e3
    by_name: dict[str, list[float]] = {}
    for e in device_events:
        row = by_name.setdefault(e.name, [0.0, 0.0])
        row[0] += e.device_time_total / count
        row[1] += 1 / count
    kernels = len(device_events) / count
    print(f"  wall {wall:.3f} ms (early {early:.3f}), gpu {busy:.3f} ms, {kernels:.0f} kernels", flush=True)
    for name, (us, calls) in sorted(by_name.items(), key=lambda kv: -kv[1][0])[:32]:
        print(f"    {us:8.1f} us {calls:6.1f} x {name[:110]}")
    return {
        **spread("wall_ms", laps),
        "early_wall_ms": early,
        "gpu_ms": busy,
        "kernels": kernels,
        "syncs": int(waits(trainer)),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "steps_timed": timed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--what", default="steps,frames")
    parser.add_argument("--rows", default=",".join(STEPS))
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    device, command = torch.device("cuda"), "python -m bench.render"
    photos = load(args.scenes / "fox_full", split="every8")
    featured = {"f3rm": with_features, "f3rm_two_heads": with_two_features}
    for name in args.rows.split(","):
        row, rays, normals = STEPS[name]
        print(name, flush=True)
        trainer = trainer_for(row, rays, normals, featured.get(row, lambda x: x)(photos), device)
        if "steps" in args.what:
            timed = args.steps if rays <= 4096 else max(30, args.steps // 6)
            found = time_steps(trainer, 2 * timed, timed)
            merge("steps", {name: found}, command)
            merge("memory", {f"step_{name}": {"peak_gb": found["peak_gb"]}}, command)
        del trainer
        torch.cuda.empty_cache()
    if "frames" in args.what:
        model, photos = frames.trained(args.scenes, 3000, device)
        measured = frames.measure(model, photos, device, list(frames.ROWS))
        merge("frames", measured, command)
        merge("memory", {f"frame_{k}": {"peak_gb": v["peak_gb"]} for k, v in measured.items()}, command)


if __name__ == "__main__":
    main()
