"""kill -9 at random moments of a training run; every restart must go on as if nothing had happened.

    python -m bench.kills RUNS [--kills 50] [--steps 300] [--seed 0] [--no-record]

A tiny model trains on a CPU with checkpoints every third step. A process that goes on with the run is killed
after a random number of steps and a random part of one, a third of them at the moment when a half-written
checkpoint is there. After every kill each checkpoint must open, and none may be lost. The run that was killed
so often must end with the same numbers, bit for bit, and the same log as one that never was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import record
from raymarch.config import Config, override, preset
from raymarch.data.scene import Scene
from raymarch.data.synthetic import make_scene
from raymarch.train import checkpoint
from raymarch.train.runs import resume, start
from raymarch.train.trainer import LOG, log_rows

SAVING = 3  # one kill in so many waits for a half-written checkpoint
PATIENCE = 60.0  # seconds that a process may take for its next step
SAVE_EVERY = 3


class KillError(RuntimeError):
    """A run that did not survive a kill; the message says what was lost."""


def small_scene() -> Scene:
    truth = make_scene(views=6, test_views=0, size=24, seed=0)
    return Scene.from_arrays(
        truth.images, truth.intrinsics, truth.camera_to_worlds, split=(truth.train, ()),
        orientation="none", center="none", scale=1.0,
    )  # fmt: skip


def small_config(steps: int) -> Config:
    found = preset("tiny")
    settings = {"steps": steps, "rays": 64, "log_every": 1, "save_every": SAVE_EVERY, "keep": 2}
    for name, value in settings.items():
        found = override(found, f"train.trainer.{name}={value}")
    return found


def go_on(run: Path, scene: Scene, steps: int) -> None:
    """Train a run to its end, from its newest checkpoint or from nothing."""
    torch.set_num_threads(1)
    resumable = bool(checkpoint.saved(run))
    trainer = resume(run, "cpu", scene) if resumable else start(scene, small_config(steps), run, "cpu")
    trainer.train()


def forked(body: Callable[[], None]) -> int:
    """The process id of a child that runs `body` and ends."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        body()
        status = 0
    except BaseException as error:  # a child must never come back into its parent's code
        print(f"  {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def lines(run: Path) -> int:
    """How many rows the log has."""
    try:
        return (run / LOG).read_bytes().count(b"\n")
    except OSError:
        return 0


def drafts(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob(f"step-*{checkpoint.DRAFT}"))


def ended(child: int) -> int | None:
    """A child's exit status, None while it runs."""
    found, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait_for(child: int, happened: Callable[[], bool], pause: float) -> bool:
    """Whether something happened before the child ended. KillError where it fails or stands still."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        status = ended(child)
        if status is not None:
            if status:
                raise KillError(f"the process that went on ended with status {status}")
            return False
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            raise KillError(f"no step in {PATIENCE:g} seconds")
        time.sleep(pause)
    return True


def opened(run: Path) -> int:
    """The step of the newest checkpoint; KillError where any file does not open. -1 where there is none."""
    for file in checkpoint.saved(run):
        try:
            checkpoint.read(file)
        except checkpoint.CheckpointError as error:
            raise KillError(str(error)) from None
    files = checkpoint.saved(run)
    return checkpoint.read(files[0])[1]["step"] if files else -1


def interrupted(run: Path, scene: Scene, steps: int, kills: int, seed: int) -> dict[str, Any]:
    """Train to the end through so many kills; what happened. KillError where one could not be survived."""
    dice = random.Random(seed)
    done = saving = before_first = lost = 0
    stride = max(steps // (kills + 1), 1)  # on average, so that there are enough steps for all kills
    newest = -1
    while done < kills:
        child = forked(lambda: go_on(run, scene, steps))
        more = dice.randrange(0, 2 * stride)
        if more == 0:
            time.sleep(dice.random() * 0.1)  # while it reads, builds and trims
            running = ended(child) is None
        else:
            # rows of steps that were not saved are trimmed first, so count from what is there then
            begin = max(newest, 0)
            running = wait_for(child, lambda: last_step(run) >= begin + more, 0.002)  # noqa: B023
            if running and done % SAVING == 0:
                running = wait_for(child, lambda: bool(drafts(run)), 0.0)
            elif running:
                time.sleep(dice.random() * 0.02)
        if not running:
            raise KillError(f"the run ended after {done} kills: give more --steps")
        reached = last_step(run)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
        saving += bool(drafts(run))
        before_first += more == 0
        step = opened(run)
        if step < newest:
            raise KillError(f"kill {done}: the newest checkpoint is of step {step}, it was of step {newest}")
        if reached - max(step, 0) > SAVE_EVERY:
            raise KillError(f"kill {done}: step {reached} was reached, but only step {step} was saved")
        lost = max(lost, reached - max(step, 0))
        newest = step
    child = forked(lambda: go_on(run, scene, steps))
    _, status = os.waitpid(child, 0)
    if status:
        raise KillError(f"the last process ended with status {os.waitstatus_to_exitcode(status)}")
    return {
        "kills": done,
        "while_saving": saving,
        "before_the_first_step": before_first,
        "most_steps_lost": lost,
    }


def last_step(run: Path) -> int:
    """The step of the log's last whole row, 0 without one."""
    try:
        rows = (run / LOG).read_bytes().splitlines(keepends=True)
    except OSError:
        return 0
    for row in reversed(rows):
        if row.endswith(b"\n"):
            try:
                return int(json.loads(row)["step"])
            except ValueError:
                continue
    return 0


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two finished runs: tensors, and rows of the log but for their times."""
    first, second = checkpoint.newest(a)[0], checkpoint.newest(b)[0]
    names = sorted(first.keys() ^ second.keys())
    names += [name for name in first.keys() & second.keys() if not torch.equal(first[name], second[name])]

    def rows(run: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in log_rows(run / LOG)]

    return names if rows(a) == rows(b) else [*names, LOG]


def kill_often(runs: Path, kills: int, steps: int, seed: int) -> dict[str, Any]:
    """Two runs in the folder, one killed often. KillError where they differ."""
    if not hasattr(os, "fork"):
        raise KillError("this needs a system with fork and kill")
    began = time.perf_counter()
    killed, whole = runs / "killed", runs / "whole"
    for run in (killed, whole):
        if run.exists():
            shutil.rmtree(run)
    scene = small_scene()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        child = forked(lambda: go_on(whole, scene, steps))
        if os.waitpid(child, 0)[1]:
            raise KillError("the run without kills failed")
        found = interrupted(killed, scene, steps, kills, seed)
    finally:
        torch.set_num_threads(threads)
    wrong = differences(killed, whole)
    if wrong:
        raise KillError(f"the two runs differ in {', '.join(wrong[:5])}")
    return found | {
        "steps": steps,
        "equal_bit_for_bit": True,
        "seconds": round(time.perf_counter() - began, 1),
    }


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="a folder for the runs")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args(words)
    options.runs.mkdir(parents=True, exist_ok=True)
    try:
        found = kill_often(options.runs, options.kills, options.steps, options.seed)
    except KillError as error:
        print(f"bench.kills: {error}", file=sys.stderr)
        return 1
    print(found)
    if not options.no_record:
        how = f"--kills {options.kills} --steps {options.steps} --seed {options.seed}"
        record.merge("checks", {"kills": found}, f"python -m bench.kills RUNS {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
