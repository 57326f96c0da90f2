"""Long runs: nothing that is not finite gets out of training, and memory stays where it is.

    python -m bench.long [--device cpu] [--what spikes,memory] [--no-record]
    python -m bench.long --device cuda --steps 30000 --memory-steps 10000 --frames 1000

spikes: trains with half tables and a learning rate that jumps at random, by up to a thousand, in one step of
a hundred. Whenever training stops because a loss is not finite, what was saved must be finite; the rate is
then calmed for the next steps and training goes on, as a user would with `raymarch resume --set`. Every so
many steps all parameters, moments and half copies are looked at, and a frame is rendered. A model that a
spike has made useless is set back to its beginning, so that the next one has something to upset.
memory: how much the process holds (on a CPU) or torch has allocated (on a GPU) after a tenth of the steps and
frames, and how much more after all of them.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from typing import Any

import torch
from torch import Tensor

from bench import record
from raymarch.config import Config, override, preset
from raymarch.data.scene import Scene
from raymarch.data.synthetic import make_scene
from raymarch.model.frames import FrameRenderer
from raymarch.nn import HashGrid
from raymarch.train.runs import start, subset
from raymarch.train.trainer import Trainer, TrainingError

SHARE = 0.01  # of the steps that have a spike
HIGHEST = 3.0  # decades
CALM = 100  # steps without spikes after a stop
LOOK_EVERY = 100
DEAD = 10.0  # dB on its rays: less than one colour for all
FLAT_MB = {
    "cpu": 24.0,
    "cuda": 1.0,
}  # most growth that is noise: allocators keep pages, torch's numbers are exact
SIZES = {"cpu": 24, "cuda": 256}


def long_config(name: str, steps: int, rays: int) -> Config:
    found = preset(name)
    settings: dict[str, Any] = {
        "train.trainer.steps": steps,
        "train.trainer.rays": rays,
        "model.fields.radiance.grid.storage": "float16",
        "model.fields.proposals.0.grid.storage": "float16",
    }
    if name == "nerfacto":
        settings["model.fields.proposals.1.grid.storage"] = "float16"
    for key, value in settings.items():
        found = override(found, f"{key}={value}")
    return found


def trainer_of(device: str, steps: int) -> Trainer:
    """A tiny model on a CPU, nerfacto on a GPU, on the synthetic scene."""
    truth = make_scene(views=12, test_views=1, size=SIZES[device], seed=0)
    scene = Scene.from_arrays(
        truth.images, truth.intrinsics, truth.camera_to_worlds, split=(truth.train, truth.test),
        orientation="none", center="none", scale=1.0,
    )  # fmt: skip
    config = long_config("tiny", steps, 128) if device == "cpu" else long_config("nerfacto", steps, 4096)
    return start(scene, config, device=device)


def spike(trainer: Trainer, seed: int) -> Tensor:
    """Multiply learning rates at random steps by up to 10^HIGHEST; returns the calm schedule."""
    calm = trainer._schedules.clone()
    dice = torch.Generator().manual_seed(seed)
    count = len(calm)
    hit = torch.rand(count, generator=dice) < SHARE
    factor = torch.where(hit, 10 ** (HIGHEST * torch.rand(count, generator=dice)), torch.ones(count))
    trainer._schedules[:, 2:] *= factor[:, None].to(calm)
    trainer.continue_at(trainer.step)
    return calm


def not_finite(trainer: Trainer) -> list[str]:
    """Names of tensors that hold something else than finite numbers: parameters, moments, half copies."""
    held = {name: tensor for name, tensor in trainer.state().items() if tensor.is_floating_point()}
    grids = [m for m in trainer.model.modules() if isinstance(m, HashGrid)]
    held |= {f"half copy {i}": grid.stored for i, grid in enumerate(grids) if grid.stored is not None}
    return [name for name, tensor in held.items() if not bool(tensor.isfinite().all())]


def frame_of(trainer: Trainer, frames: FrameRenderer) -> dict[str, Tensor]:
    """One training view."""
    return frames.render(subset(trainer.source.cameras, (0,), trainer.device), 0)


def through_spikes(trainer: Trainer, seed: int) -> dict[str, Any]:
    """Train to the end through spikes; counts of stops, and what was not finite anywhere."""
    calm, stops, escaped, collapses = spike(trainer, seed), [], set(), 0
    fresh = {name: tensor.detach().clone() for name, tensor in trainer.state().items() if name != "counter"}
    frames = FrameRenderer(trainer.model)
    end = trainer.config.steps
    looked = 0
    while trainer.step < end:
        stop = min(end, trainer.step + LOOK_EVERY - trainer.step % LOOK_EVERY)
        try:
            for _ in trainer.iterate(stop):
                pass
        except TrainingError as error:
            stops.append(trainer.step)
            print(f"  {str(error)[:160]}", flush=True)
            if len(stops) > 1 and stops[-1] == stops[-2]:
                broken = not_finite(trainer) or "all state is finite"
                raise SystemExit(
                    f"bench.long: training cannot leave step {stops[-1]} with calm rates ({broken})"
                ) from None
            rest = slice(trainer.step, trainer.step + CALM)
            trainer._schedules[rest] = calm[rest]
            trainer.continue_at(trainer.step)
        escaped |= set(not_finite(trainer))
        frame = frame_of(trainer, frames)
        escaped |= {f"frame {name}" for name, image in frame.items() if not bool(image.isfinite().all())}
        looked += 1
        if _psnr(trainer) < DEAD:
            collapses += 1
            with torch.no_grad():
                for name, tensor in trainer.state().items():
                    tensor.copy_(fresh.get(name, tensor))
            trainer.continue_at(trainer.step)
    return {
        "steps": end,
        "spikes": int((trainer._schedules[:end, 2] != calm[:end, 2]).sum()),
        "highest_factor": 10**HIGHEST,
        "stops": len(stops),
        "collapses": collapses,
        "looks": looked,
        "escaped": sorted(escaped),
        "psnr_of_last_rays": _psnr(trainer),
    }


def _psnr(trainer: Trainer) -> float:
    rgb = dict(zip(trainer.names, trainer._last.tolist(), strict=True))["rgb"]
    return float(-10 * torch.tensor(rgb).log10())


def held_mb(device: str) -> float:
    """Memory: resident in this process, or allocated by torch on the GPU, in MB."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() / 1e6
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def flat(device: str, body: Any, count: int) -> dict[str, float]:
    """Run `body(i)` so often; what is held after a tenth, and what came on top until the end."""
    begin = max(count // 10, 1)
    for i in range(begin):
        body(i)
    first = held_mb(device)
    for i in range(begin, count):
        body(i)
    return {"count": count, "held_mb": first, "growth_mb": held_mb(device) - first}


def memory(device: str, steps: int, frames: int) -> dict[str, dict[str, float]]:
    """What training and rendering hold over many steps and frames."""
    trainer = trainer_of(device, steps)
    batch = trainer.config.log_every

    def train(i: int) -> None:
        for _ in trainer.iterate(min((i + 1) * batch, steps)):
            pass

    found = {"steps": flat(device, train, steps // batch) | {"count": steps}}
    renderer = FrameRenderer(trainer.model)
    found["frames"] = flat(device, lambda i: frame_of(trainer, renderer), frames)
    return found


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.long", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--what", default="spikes,memory")
    parser.add_argument("--steps", type=int, default=None, help="through spikes (1000, on a GPU 30000)")
    parser.add_argument("--memory-steps", type=int, default=None, help="(1000, on a GPU 10000)")
    parser.add_argument("--frames", type=int, default=None, help="(50, on a GPU 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.long: --device cuda: no CUDA GPU was found; use --device cpu", file=sys.stderr)
        return 1
    cuda = options.device == "cuda"
    command = " ".join(["python -m bench.long", *words])
    bad = []
    if "spikes" in options.what.split(","):
        began = time.perf_counter()
        trainer = trainer_of(options.device, options.steps or (30_000 if cuda else 1000))
        found = through_spikes(trainer, options.seed)
        found["seconds"] = round(time.perf_counter() - began, 1)
        print(found)
        bad += found["escaped"]
        if not options.no_record:
            record.merge("checks", {"spikes": found}, command)
        del trainer
    if "memory" in options.what.split(","):
        steps = options.memory_steps or (10_000 if cuda else 1000)
        held = memory(options.device, steps, options.frames or (1000 if cuda else 50))
        print(held)
        bad += [f"memory of {k}" for k, v in held.items() if v["growth_mb"] > FLAT_MB[options.device]]
        if not options.no_record:
            record.merge("memory", {"long": held}, command)
    print("not as promised: " + ", ".join(bad) if bad else "every promise is kept")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
