"""Training steps and frames of any size over the built-in scene, timed on a CPU or a GPU, and their memory.

Nothing has to be fetched: the scene is traced here. What it shows changes no cost of the exact mode; the
reduced mode skips what is empty, so frames are of a model that has trained a little.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from bench.timing import FEWEST, MOST, laps_of, wait, wall_laps
from raymarch.config import Config, preset
from raymarch.data.scene import Scene
from raymarch.data.synthetic import feature_maps, make_scene
from raymarch.model import Model
from raymarch.model.frames import IMAGE_HEADS, FrameRenderer
from raymarch.profiling.subjects import skip_to
from raymarch.train.runs import start, subset
from raymarch.train.trainer import Trainer, one_torch_thread
from raymarch.types import Cameras

VIEWS, SIZE, STRIDE = 20, 96, 8  # of the scene: photos, pixels a side, pixels of a cell of its feature maps
LATE = 6000  # a step past every warm-up, from which one step in six trains the proposals
CYCLE = 6


@dataclass(frozen=True)
class Work:
    """A configuration to time: a preset, and what of it is changed."""

    preset: str = "tiny"
    rays: int = 1024
    final_samples: int | None = None  # per ray, of the last level
    width: int = 0  # of the feature head; 0: none

    def config(self) -> Config:
        config = preset(self.preset)
        model, trainer = config.model, config.train.trainer
        if self.final_samples is not None:
            samples = (*model.sampler.samples[:-1], self.final_samples)
            model = replace(model, sampler=replace(model.sampler, samples=samples))
        feature = replace(model.fields.feature, width=self.width)
        model = replace(model, fields=replace(model.fields, feature=feature))
        trainer = replace(trainer, rays=self.rays, steps=20_000, log_every=1000, save_every=10**9)
        return replace(config, model=model, train=replace(config.train, trainer=trainer))


@cache
def scene(width: int = 0) -> Scene:
    """The built-in scene, with feature maps of that width."""
    truth = make_scene(views=VIEWS, test_views=2, size=SIZE, seed=0, feature_width=max(width, 1))
    return Scene.from_arrays(
        truth.images,
        truth.intrinsics,
        truth.camera_to_worlds,
        features=list(feature_maps(truth, STRIDE)) if width else None,
        split=(truth.train, truth.test),
        orientation="none",
        center="none",
        scale=1.0,
    )


def trainer_of(work: Work, device: torch.device) -> Trainer:
    """Ready to advance, its kernels loaded and, on CUDA, its graphs captured."""
    trainer = start(scene(work.width), work.config(), device=device)
    for _ in trainer.iterate(12 if device.type == "cuda" else 2):
        pass
    return trainer


def step_laps(
    trainer: Trainer, fewest: int = FEWEST, most: int = MOST, seconds: float = 3.0, cycle: int = CYCLE
) -> list[float]:
    """Seconds of a step past the warm-up, a cycle of steps per lap, so that every lap does the same."""
    skip_to(trainer, LATE)
    with one_torch_thread(trainer.device):
        trainer._advance_to(trainer.step + 1)

        def block() -> None:
            trainer._advance_to(trainer.step + cycle)

        return laps_of(block, trainer.device, fewest, most, seconds, cycle)


def camera_of(width: int, height: int, device: torch.device) -> Cameras:
    """The first held-out camera of the scene with another number of pixels, its view as wide."""
    one = subset(scene().cameras, scene().test[:1], device)
    factor = width / one.size[0, 0].item()
    intrinsics = one.intrinsics * factor
    intrinsics[:, 3] = height / 2
    return replace(one, intrinsics=intrinsics, size=torch.tensor([[width, height]], device=device))


def model_of(work: Work, device: torch.device, steps: int) -> Model:
    """Trained for some steps and without anything that only training needs."""
    trainer = start(scene(work.width), work.config(), device=device)
    for _ in trainer.iterate(steps):
        pass
    model = trainer.model
    for p in model.parameters():
        p.grad = None
    return model.eval()


def frame_laps(
    frames: FrameRenderer,
    camera: Cameras,
    mode: str,
    device: torch.device,
    fewest: int = FEWEST,
    seconds: float = 3.0,
    heads: frozenset[str] = IMAGE_HEADS,
    warmups: int = 1,
) -> list[float]:
    """Seconds of a frame after the first, which captures its graph and bakes its grid."""

    def once() -> None:
        frames.render(camera, 0, heads, mode)

    return wall_laps(once, device, fewest, MOST, seconds, warmups)


def resident_kb(key: str) -> int:
    """VmRSS or VmHWM of this process in kB; 0 where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(rf"{key}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) if found else 0


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that the work took beyond what there was before, on the device it runs on.

    On a GPU what torch allocated there, in all; on a CPU the process's resident memory, where Linux lets its
    peak be reset, else None.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        wait(device)
        return torch.cuda.max_memory_allocated()
    if not trimmed():
        return None
    before = resident_kb("VmRSS")
    work()
    return 1024 * max(0, resident_kb("VmHWM") - before)


def trimmed() -> bool:
    """Give free memory back to the system, set the peak to what is left; False where that cannot be done."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except (OSError, AttributeError):
        return False
    return os.path.exists("/proc/self/status")
