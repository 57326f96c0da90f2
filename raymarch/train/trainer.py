"""The training loop: draw pixels, render, compare, step. On CUDA one step is one graph launch.

Everything a step depends on lives on the device: the counter (seed, step) that feeds every random number, the
schedules (a table with one row per step), the optimiser's counts, and whether training is still healthy. So a
step needs nothing from the host, a CUDA graph can replay it, and a checkpoint resumes it exactly.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raymarch.data.atomic import write_text
from raymarch.data.pixels import Source
from raymarch.data.plain import json_text
from raymarch.model import Model
from raymarch.model.frames import ran_out
from raymarch.model.fused import FusedPipeline, unsupported
from raymarch.model.poses import detail_at
from raymarch.model.sampler import anneal_at, updates_at
from raymarch.nn import HashGrid
from raymarch.ops import find_non_finite
from raymarch.ops.field_to_pixels import advance, loss_room, sum_losses
from raymarch.train import checkpoint
from raymarch.train.bundle import releases
from raymarch.train.interrupt import Interrupts, kept_back
from raymarch.train.optim import Adam, learning_rate


@dataclass(frozen=True)
class TrainerConfig:
    steps: int = 30_000
    rays: int = 4096  # per step
    seed: int = 0
    log_every: int = 10  # steps between looks at the losses; the GPU runs ahead in between
    save_every: int = 2000
    keep: int = 2  # checkpoints kept
    graph: bool = True  # on CUDA, capture the step
    fused: bool = True  # train in fused stages where they can do all that the config asks for
    photos_gb: float = 0.0  # most device memory for photos and feature maps; 0: most of what is free
    photos_every: int = 4  # steps between replacements, where not all of them fit
    poses_every: int = 1  # poses and lenses move in every so manieth step, and cost nothing in the others
    # Step at which pose refinement must show that held-out pixels gain by it (train/guard.py); 0: never.
    guard_at: int = 0
    guard_steps: int = 500  # trained with poses refined and again with poses as given, then compared


@contextmanager
def one_torch_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, keep torch's own loops to one thread while ours use every core.

    torch's OpenMP threads spin between its many small loops and take the cores from our pool: a tiny step on
    two busy cores took 372 ms with them and 96 ms without (2026-11-23).
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


LOG = "log.jsonl"  # in the run folder: a line per look at the losses


def log_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; lines that a killed process left unfinished are passed over. [] without a file."""
    found = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found.append(row)
    return found


def trim_log(path: Path, step: int) -> None:
    """Forget the rows of steps that a run which was killed had done and not saved: it does them again."""
    if not path.is_file():
        return
    text = "".join(json.dumps(row) + "\n" for row in log_rows(path) if row["step"] <= step)
    if text != path.read_text("utf-8", "replace"):
        write_text(path, text)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what was saved."""


CAMERAS = ("poses", "intrinsics")  # groups of parameters that move cameras


class Kind(NamedTuple):
    """What learns in a step, beside the fields."""

    update_proposals: bool = True
    move: bool = True  # poses and lenses, where they are refined

    def steps(self, group: str) -> bool:
        """Whether a group of parameters does."""
        return not (
            (group == "proposals" and not self.update_proposals) or (group in CAMERAS and not self.move)
        )


@dataclass(frozen=True)
class Progress:
    """What the trainer reports every `log_every` steps."""

    step: int  # steps done
    losses: dict[str, float]  # weighted terms of the last step
    psnr: float  # of that step's rays
    seconds: float  # since training began


class Trainer:
    """Trains a model on the training images of a scene."""

    def __init__(
        self,
        model: Model,
        source: Source,
        config: Any,
        run: Path | None = None,
        scene_meta: dict[str, Any] | None = None,
        scene_tensors: dict[str, Tensor] | None = None,
    ):
        self.model, self.source, self.run = model, source, run
        self.full_config, self.config = config, config.train.trainer
        self.scene_meta, self.scene_tensors = scene_meta or {}, scene_tensors or {}
        self.device = source.device
        grids = [m for m in model.modules() if isinstance(m, HashGrid)]
        self.optim = Adam(model.groups(), config.train.optim, grids)
        self.counter = torch.tensor([self.config.seed, 0], dtype=torch.int64, device=self.device)
        self.healthy = torch.ones(1, dtype=torch.bool, device=self.device)
        # On the learning rates of cameras; train/guard.py, train/bundle.py.
        self.brake = torch.ones(1, device=self.device)
        self.adjust: Callable[[], object] | None = None  # called at the steps of `train.bundle.at`
        self.adjusted = torch.zeros(1, dtype=torch.int64)  # the last of them
        self.judge: Callable[[], object] | None = None  # called at `guard_at`; what it returns becomes a note
        self.notes: list[str] = []  # what a user should know after training
        self.names: list[str] = []
        self.seconds = 0.0
        self.step = 0
        self._graphs: dict[Kind, torch.cuda.CUDAGraph] = {}
        self._eager_steps = 0
        self.interrupts = Interrupts()
        self.claim: object = None  # keeps the run folder this process's; train/claim.py
        self._make_schedules()
        self._fused: FusedPipeline | None = None
        if self.config.fused and source.depth is None and unsupported(model) is None:
            self._fused = FusedPipeline(model, source.cameras)

    def _make_schedules(self) -> None:
        """One row per step: annealing exponent, detail that leads poses, each group's learning rate."""
        steps = torch.arange(self.config.steps + 1)
        sampler = self.full_config.model.sampler
        poses = self.full_config.model.poses
        columns = [
            torch.as_tensor([anneal_at(int(s), sampler) for s in steps]).double(),
            torch.as_tensor([detail_at(int(s), poses) for s in steps]).double(),
        ]
        columns += [learning_rate(getattr(self.full_config.train.optim, g), steps) for g in self.optim.groups]
        self._schedules = torch.stack(columns, 1).float().to(self.device)
        self._row = self._schedules[0].clone()  # that of the next step
        self._leads_coarsely = poses.coarse_resolution > 0 or poses.smooth_slope
        self._updates = updates_at(self.config.steps, sampler)
        groups = list(self.optim.groups)
        self._stepping = {
            kind: torch.tensor([kind.steps(name) for name in groups], dtype=torch.int64, device=self.device)
            for kind in (Kind(update, move) for update in (True, False) for move in (True, False))
        }

    def kind(self, step: int) -> Kind:
        """What learns in a step."""
        return Kind(bool(self._updates[step]), step % self.config.poses_every == 0)

    def _one_step(self, kind: Kind) -> None:
        """Everything between two steps. No host synchronisation; captured into a CUDA graph."""
        if self._fused is not None:
            self._fused_step(self._fused, kind)
        else:
            self._composed_step(kind)

    def _rates(self, row: Tensor) -> dict[str, Tensor]:
        """Each group's learning rate [1]; those of cameras are braked where something may brake them."""
        rates = {name: row[i + 2 : i + 3] for i, name in enumerate(self.optim.groups)}
        for name in CAMERAS:
            if name in rates and (self.config.guard_at or self.full_config.train.bundle.at):
                rates[name] = rates[name] * self.brake
        return rates

    @torch.no_grad()
    def _fused_step(self, pipeline: FusedPipeline, kind: Kind) -> None:
        row = self._row
        rates = self._rates(row)
        pixels = self.source.draw(self.counter, self.config.rays)
        seen, weighing, penalty, found = pipeline.rays_to_pixels(
            pixels, self.counter, row[:1], kind.update_proposals, move=kind.move
        )
        if not self.names:
            self.names = list(weighing.names)
            self._last = torch.zeros(len(self.names), device=self.device)
            self._room = loss_room(weighing.scales)
        weights = (weighing.scales, weighing.owner, penalty, self._room)
        stepping = self._stepping[kind]
        sum_losses(seen.losses, *weights, self._last, self.healthy, self.optim.counts, stepping)
        self.optim.apply(rates, self.healthy, found.of, found.summed)
        advance(self.counter, self.healthy, self._schedules, row)

    def _composed_step(self, kind: Kind) -> None:
        row = self._schedules.index_select(0, self.counter[1:].clamp_max(self.config.steps))[0]
        anneal, detail = row[:1], row[1:2]
        rates = self._rates(row)
        pixels = self.source.draw(self.counter, self.config.rays)
        rendering = self.model(
            pixels,
            self.source.cameras,
            train=True,
            counter=self.counter,
            anneal=anneal,
            detail=detail if self._leads_coarsely else None,
            update_proposals=kind.update_proposals,
            move=kind.move,
        )
        terms = self.model.losses(rendering, pixels, self.counter)
        total = torch.stack(list(terms.values())).sum()
        self.optim.zero_grad()
        total.backward()
        if not kind.move:  # the penalty on their size has moved nothing either
            self.optim.zero_grad(CAMERAS)
        self.healthy.logical_and_(total.detach().isfinite())
        self.optim.step(rates, self.healthy)
        self.counter[1:].add_(self.healthy)
        if not self.names:
            self.names = list(terms)
            self._last = torch.zeros(len(terms), device=self.device)
        self._last.copy_(torch.stack([t.detach() for t in terms.values()]))

    def _advance(self) -> None:
        """One step, through a graph where there is one."""
        self.source.prepare(self.step)
        kind = self.kind(self.step)
        if self.device.type != "cuda" or not (self.config.graph and self.model.native):
            self._one_step(kind)
        elif kind in self._graphs:
            self._graphs[kind].replay()
        elif self._eager_steps < 3:  # loads kernels and warms allocator and autograd up
            self._eager_steps += 1
            self._one_step(kind)
        else:
            self._capture(kind)
            self._graphs[kind].replay()
        self.step += 1

    def _advance_to(self, stop: int) -> None:
        """A batch of steps, during which nothing but them changes the parameters."""
        if self.device.type != "cuda":
            with self.optim.keeping_copies():
                while self.step < stop and not self.interrupts.asked:
                    self._advance()
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream), self.optim.keeping_copies():
            while self.step < stop and not self.interrupts.asked:
                self._advance()
            self._stream.synchronize()
            self.optim.replayed()

    def _capture(self, kind: Kind) -> None:
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        torch.cuda.synchronize()
        self.optim.zero_grad()
        with torch.cuda.graph(graph, pool=pool, stream=self._stream):
            self._one_step(kind)
        self._graphs[kind] = graph

    def train(self, steps: int | None = None, on_progress: Callable[[Progress], None] | None = None) -> None:
        """Train up to `steps` (default: the config's). Saves at the end and every `save_every` steps.

        Ctrl-C or SIGTERM ends the step at hand, saves, and raises KeyboardInterrupt; a second one saves
        nothing. TrainingError is raised where the loss stops being finite, after the last good state was
        saved, and where memory runs out, with the checkpoints as they were.
        """
        with kept_back(self.interrupts):
            try:
                self._train(steps, on_progress)
            except KeyboardInterrupt:
                if not self.interrupts.forced:
                    self.save()
                raise
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                raise TrainingError(self._out_of_memory()) from None
            self.save()
        if self.interrupts.asked:
            raise KeyboardInterrupt

    def _train(self, steps: int | None, on_progress: Callable[[Progress], None] | None) -> None:
        for stop, act in [*self._pauses(steps), (steps, None)]:
            for progress in self.iterate(stop):
                if on_progress:
                    on_progress(progress)
            if act is not None and self.step == stop and (note := act()) is not None:
                self.notes.append(str(note))

    def _pauses(self, steps: int | None) -> list[tuple[int, Callable[[], object]]]:
        """Steps up to `steps` at which something looks at the cameras before training goes on, in order."""
        found: list[tuple[int, Callable[[], object]]] = []
        if self.adjust is not None:
            found += [(at, self._release) for at in releases(self.full_config.train.bundle)]
            found += [
                (at, self._adjust) for at in self.full_config.train.bundle.at if at > int(self.adjusted)
            ]
        found = [(at, act) for at, act in found if at < self.config.steps]  # for the steps that follow
        if self.judge is not None and 0 < self.config.guard_at < self.config.steps:
            found.append((self.config.guard_at, self.judge))
        end = self.config.steps if steps is None else min(steps, self.config.steps)
        return sorted(((at, act) for at, act in found if self.step <= at <= end), key=lambda pause: pause[0])

    def _release(self) -> None:
        if float(self.brake) == 0:  # it is not where the adjustment moved nothing
            self.brake.fill_(self.full_config.train.bundle.brake)

    def _adjust(self) -> object:
        assert self.adjust is not None
        found = self.adjust()
        self.adjusted.fill_(self.step)
        return found

    def _out_of_memory(self) -> str:
        where = "GPU memory" if self.device.type == "cuda" else "memory"
        words = (
            f"out of {where} after step {self.step}: lower train.trainer.rays (now {self.config.rays}) or "
            "downscale the photos"
        )
        files = checkpoint.saved(self.run) if self.run is not None else []
        if not files:
            return f"{words}; nothing had been saved yet"
        fewer = f"`raymarch resume {self.run} --set train.trainer.rays={max(self.config.rays // 2, 1)}`"
        return f"{words}; {files[0]} is intact, {fewer} goes on from there"

    def iterate(self, steps: int | None = None) -> Iterator[Progress]:
        """Train, yielding every `log_every` steps."""
        end = min(steps if steps is not None else self.config.steps, self.config.steps)
        if self.device.type == "cuda":
            self._stream = getattr(self, "_stream", None) or torch.cuda.Stream(self.device)
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        self.model.train()
        with one_torch_thread(self.device):
            yield from self._iterate(end)

    def _iterate(self, end: int) -> Iterator[Progress]:
        began = time.perf_counter()
        while self.step < end:
            often = self.config.log_every, self.config.save_every
            stop = min(end, *(self.step + every - self.step % every for every in often))
            self._advance_to(stop)
            now = time.perf_counter()
            self.seconds, began = self.seconds + now - began, now
            if self.interrupts.asked:
                raise KeyboardInterrupt
            yield self._look()
            began = time.perf_counter()
            if self.step % self.config.save_every == 0 and self.step < end:
                self.save()

    def _look(self) -> Progress:
        """Read the losses; the only place where the host waits for the device."""
        terms = dict(zip(self.names, self._last.tolist(), strict=True))
        if not bool(self.healthy):
            self._stop_unhealthy(terms)
        rgb = terms.get("rgb", float("nan")) / max(self.full_config.model.losses.rgb, 1e-30)
        psnr = -10 * torch.tensor(rgb).log10().item()
        progress = Progress(self.step, terms, psnr, self.seconds)
        if self.run is not None:
            self.run.mkdir(parents=True, exist_ok=True)
            with open(self.run / LOG, "a", encoding="utf-8") as file:
                row = {"step": self.step, "seconds": round(self.seconds, 3), "psnr": psnr, **terms}
                file.write(json_text(row, None) + "\n")
        return progress

    def _stop_unhealthy(self, terms: dict[str, float]) -> None:
        """The state was frozen at the first bad step: save it, find the op, and stop."""
        bad = int(self.counter[1])
        self.step = bad
        self.source.prepare(bad)
        # The step once more, to look at: nothing is updated while `healthy` is false.
        culprit = find_non_finite(lambda: self._one_step(self.kind(bad)))
        self.healthy.fill_(True)
        self.counter[1] = bad
        file = self.save(self.config.keep + 1)  # one more: the state may be beyond help
        broken = ", ".join(name for name, value in terms.items() if not math.isfinite(value))
        what = f"the loss ({broken})" if broken else "a gradient"
        saved = (
            "The state before that step is saved"
            if broken
            else ("What it had made of the parameters with finite gradients is saved")
        )
        raise TrainingError(
            f"{what} became non-finite at step {bad}; the first op with a non-finite result was "
            f"{culprit}. {saved}; lower the learning rate and resume: "
            f"`raymarch resume {self.run or 'RUN'} --set train.optim.fields.lr=...`"
            + (f"; if that stops again, remove {file} to go back to the checkpoint before" if file else "")
        )

    def state(self) -> dict[str, Tensor]:
        found = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        found |= {f"optim.{k}": v for k, v in self.optim.state().items()}
        found |= {f"scene.{k}": v for k, v in self.scene_tensors.items()}
        return found | {"counter": self.counter, "brake": self.brake, "adjusted": self.adjusted}

    def save(self, keep: int | None = None) -> Path | None:
        """Write a checkpoint of this step into the run folder, and keep so many (default: the config's)."""
        if self.run is None:
            return None
        from raymarch.config import to_dict  # config nests this module's config

        path = checkpoint.path_at(self.run, self.step)
        meta = {
            "step": self.step,
            "seconds": self.seconds,
            "cameras": self.model.poses.cameras,
            "config": to_dict(self.full_config),
            "scene": self.scene_meta,
        }
        checkpoint.write(path, self.state(), meta)
        checkpoint.prune(self.run, keep or self.config.keep, self.step)
        return path

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Continue from a checkpoint as if training had not stopped."""
        load_model(self.model, tensors)
        optim = {k.removeprefix("optim."): v for k, v in tensors.items() if k.startswith("optim.")}
        lacking = [name for name in self.optim.state() if name not in optim]
        if lacking or "counter" not in tensors:
            raise checkpoint.CheckpointError(
                f"the checkpoint lacks {lacking[0] if lacking else 'counter'}, so training cannot go on from "
                "it; it can still be rendered"
            )
        self.optim.load(optim)
        self.counter.copy_(tensors["counter"])
        for name, own in (("brake", self.brake), ("adjusted", self.adjusted)):
            if name in tensors:
                own.copy_(tensors[name])
        self.continue_at(meta["step"])
        self.seconds = meta["seconds"]
        if self.run is not None:
            trim_log(self.run / LOG, self.step)

    def continue_at(self, step: int) -> None:
        """Look up what the next step needs, after the state was set to that of `step`."""
        self.step = step
        self._row.copy_(self._schedules[min(int(self.counter[1]), self.config.steps)])


def load_model(model: Model, tensors: dict[str, Tensor]) -> None:
    """Copy a checkpoint's parameters into a model of the same config."""
    state = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = str(error).split("\n\t")[1] if "\n\t" in str(error) else str(error)
        raise checkpoint.CheckpointError(f"the checkpoint does not fit its own config: {detail}") from None
