"""What can be profiled: steps of a trainer and frames of a model, as they really run and op by op."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from raymarch.model import Model
from raymarch.model.frames import FrameRenderer, Settings
from raymarch.model.fused import unsupported
from raymarch.profiling.recorder import addresses
from raymarch.train.trainer import Trainer, one_torch_thread
from raymarch.types import Cameras


def skip_to(trainer: Trainer, step: int) -> None:
    """Put the schedules at a later step: its cost depends on them, hardly on what has been learnt since."""
    trainer.step = step
    trainer.counter[1] = step
    trainer._row.copy_(trainer._schedules[step])


def waits(trainer: Trainer, steps: int = 10) -> bool:
    """Whether the host waits for the device in steps: a stream that slept first must still be busy after."""
    with torch.cuda.stream(trainer._stream):
        torch.cuda._sleep(1_000_000_000)  # about half a second
        for _ in range(steps):
            trainer._advance()
        waited = trainer._stream.query()
    torch.cuda.synchronize()
    return bool(waited)


class Subject(Protocol):
    """Something that happens again and again, the same every time after `go_to`."""

    what: str
    model: Model
    device: torch.device

    def ran(self) -> dict[str, object]:
        """How it really runs, in words and switches."""

    def go_to(self, i: int) -> None:
        """Make repetition i the next one."""

    def real(self, count: int) -> list[float]:
        """Do it `count` times as it is always done: seconds of each, or of their mean where only that is
        known."""

    @contextmanager
    def open(self) -> Iterator[None]:
        """What must be so around `eager`."""

    def eager(self) -> None:
        """Do it once, op by op."""

    def fullest(self) -> int:
        """A repetition in which everything happens that happens in any."""

    def owners(self) -> tuple[dict[int, str], dict[tuple, str]]:
        """Whose an array is, by address and by shape (`recorder.addresses`)."""


class Training:
    """Steps of a trainer from its present step on, the same ones again after `go_to`."""

    what = "train"

    def __init__(self, trainer: Trainer):
        self.trainer, self.model, self.device = trainer, trainer.model, trainer.device
        self.first = trainer.step
        trainer.run = None  # nothing of a run is written
        trainer.model.train()
        if self.device.type == "cuda":
            trainer._stream = torch.cuda.Stream(self.device)

    def ran(self) -> dict[str, object]:
        trainer, fused = self.trainer, self.trainer._fused is not None
        graph = self.device.type == "cuda" and trainer.config.graph and trainer.model.native
        why = unsupported(trainer.model)
        if trainer.source.depth is not None:
            why = why or "the photos have depths, and the depth loss is composed only"
        if not trainer.config.fused:
            why = "train.trainer.fused is false"
        return {
            "pipeline": "fused" if fused else "composed",
            "why_composed": None if fused else why,
            "graph": graph,
            "first_step": self.first,
            "rays": trainer.config.rays,
            "samples": list(trainer.full_config.model.sampler.samples),
            "seconds_are": "of each step" if self.device.type == "cpu" else "the mean of all steps",
        }

    def go_to(self, i: int) -> None:
        skip_to(self.trainer, self.first + i)

    def real(self, count: int) -> list[float]:
        trainer = self.trainer
        if self.device.type != "cuda":
            return [self._lap() for _ in range(count)]
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            trainer._advance()
        torch.cuda.synchronize()
        return [(time.perf_counter() - begin) / count]

    def _lap(self) -> float:
        begin = time.perf_counter()
        self.trainer._advance()
        return time.perf_counter() - begin

    @contextmanager
    def open(self) -> Iterator[None]:
        trainer = self.trainer
        with one_torch_thread(self.device), trainer.optim.keeping_copies():
            if self.device.type != "cuda":
                yield
                return
            trainer._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(trainer._stream):
                yield
                trainer._stream.synchronize()
                trainer.optim.replayed()

    def eager(self) -> None:
        trainer = self.trainer
        trainer.source.prepare(trainer.step)
        trainer._one_step(trainer.kind(trainer.step))
        trainer.step += 1

    def updates(self, count: int) -> int:
        """In how many of the first `count` steps the proposals learn."""
        return sum(self.trainer._updates[self.first : self.first + count])

    def fullest(self) -> int:
        """Of the next steps, one in which as much learns as in any."""
        last = len(self.trainer._updates)
        kinds = [self.trainer.kind(step) for step in range(self.first, min(self.first + 32, last))]
        return kinds.index(max(kinds)) if kinds else 0

    def owners(self) -> tuple[dict[int, str], dict[tuple, str]]:
        fused = self.trainer._fused
        return addresses(self.model, None if fused is None else fused._sums)


class Frames:
    """Frames of one camera."""

    what = "render"

    def __init__(self, model: Model, camera: Cameras, heads: frozenset[str], mode: str = "exact"):
        self.model, self.camera, self.heads, self.mode = model.eval(), camera, heads, mode
        self.device = camera.camera_to_worlds.device
        self._real = FrameRenderer(model)
        self._eager = FrameRenderer(model, Settings(graph=False))

    def ran(self) -> dict[str, object]:
        width, height = self.camera.size[0].tolist()
        on_gpu = self.device.type == "cuda"
        return {
            "pipeline": "stages of evaluation in one where they fit" if on_gpu else "composed",
            "why_composed": None if on_gpu else "on a CPU the stages one after another are faster",
            "graph": on_gpu,
            "rays": width * height,
            "size": [width, height],
            "heads": sorted(self.heads),
            "mode": self.mode,
            "samples": list(self.model.config.sampler.samples),
            "seconds_are": "of each frame",
        }

    def go_to(self, i: int) -> None:
        """Make repetition i the next one."""

    def real(self, count: int) -> list[float]:
        laps = []
        for _ in range(count):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            self._real.render(self.camera, 0, self.heads, self.mode)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            laps.append(time.perf_counter() - begin)
        return laps

    @contextmanager
    def open(self) -> Iterator[None]:
        yield

    def eager(self) -> None:
        self._eager.render(self.camera, 0, self.heads, self.mode)

    def fullest(self) -> int:
        return 0

    def owners(self) -> tuple[dict[int, str], dict[tuple, str]]:
        return addresses(self.model)
