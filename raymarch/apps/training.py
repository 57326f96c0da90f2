"""`raymarch train` and `raymarch resume`: the loop with a progress bar, and what is left when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raymarch.apps.failures import UserStop, sentence
from raymarch.apps.run_page import write_run_page
from raymarch.apps.terminal import console, say, tell
from raymarch.apps.watching import Watcher
from raymarch.config import Config, override
from raymarch.config import preset as named
from raymarch.data.scene import Scene
from raymarch.train import checkpoint
from raymarch.train.guard import suspicions
from raymarch.train.settings import check_settings
from raymarch.train.trainer import Progress, Trainer


def settings_of(preset: str, assignments: Sequence[str], steps: int | None) -> Config:
    """A preset with settings changed (`train.trainer.steps=100`). ConfigError where they cannot be used."""
    config = named(preset)
    for assignment in assignments:
        config = override(config, assignment)
    if steps is not None:
        config = override(config, f"train.trainer.steps={steps}")
    check_settings(config)
    return config


def train_run(
    trainer: Trainer, scene: Scene, run: Path, device: str, look_every: int, tensorboard: bool
) -> None:
    """Train to the end, write the run's page, and tell where it lies. UserStop after Ctrl-C."""
    if trainer.step >= trainer.config.steps:
        say(
            f"{run} is finished: {trainer.step} of {trainer.config.steps} steps are done; "
            "--steps trains it further"
        )
    else:
        loop(trainer, scene, look_every, tensorboard)
    try:
        write_run_page(run, device)
    except Exception as error:
        told = sentence(error)
        if told is None:
            raise
        raise PageError(
            f"step {trainer.step} is saved, but the page of {run} was not written: {told}; "
            f"`raymarch report {run}` tries again"
        ) from error
    tell([run])


class PageError(RuntimeError):
    """A run that is saved, and whose page is not."""


def loop(trainer: Trainer, scene: Scene, look_every: int, tensorboard: bool) -> None:
    """Train with a progress bar; Ctrl-C saves."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    say(*(f"note: {line}" for line in trainer.notes), trainer.source.summary())
    known = len(trainer.notes)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[psnr]}"))
    watcher = Watcher(trainer, look_every, tensorboard, scene)
    try:
        with Bar(*columns, TimeRemainingColumn(), console=console()) as bar:
            task = bar.add_task("", total=trainer.config.steps, completed=trainer.step, psnr="")

            def note(progress: Progress) -> None:
                words = f"{progress.psnr:5.2f} dB on its rays"
                bar.update(task, completed=progress.step, psnr=words)
                watcher(progress)

            trainer.train(on_progress=note)
        watcher.look_last()
    except KeyboardInterrupt:
        say(*trainer.notes[known:])
        raise UserStop(stopped(trainer)) from None
    finally:
        watcher.close()
    say(*trainer.notes[known:], *suspicions(trainer))


def stopped(trainer: Trainer) -> str:
    """What Ctrl-C left."""
    run = trainer.run
    files = checkpoint.saved(run) if run is not None else []
    if not files:
        return "stopped at once; nothing had been saved yet"
    if run is not None and files[0] == checkpoint.path_at(run, trainer.step):
        return f"stopped at step {trainer.step}, saved; `raymarch resume {run}` goes on"
    return f"stopped at once; {files[0]} is the last checkpoint, `raymarch resume {run}` goes on from there"
