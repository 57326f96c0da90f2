"""The command line: raymarch demo | train | resume | eval | render | inspect | doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

Set = Annotated[tuple[str, ...], arg(name="set", metavar="NAME=VALUE"), UseAppendAction]
Device = Literal["auto", "cpu", "cuda"]


def demo(out: Path = Path("raymarch_demo"), steps: int | None = None, device: Device = "auto") -> None:
    """Train on a built-in scene and write a page of results: no data, no GPU, no download.

    Args:
        out: Folder for index.html, pictures and metrics.json.
        steps: Training steps; the default takes about a minute on two cores.
        device: Where to run.
    """
    from raymarch.apps.demo import run

    print(run(out, steps, device))


def train(
    scene: Positional[Path],
    preset: str = "nerfacto",
    steps: int | None = None,
    out: Path | None = None,
    set: Set = (),
    downscale: int | None = None,
    split: str | None = None,
    device: Device = "auto",
) -> None:
    """Train on a folder of posed photos.

    Args:
        scene: Folder with transforms.json (nerfstudio, instant-ngp) or a Blender scene.
        preset: nerfacto, f3rm or tiny.
        steps: Training steps (default: the preset's).
        out: Run folder (default: runs/SCENE-PRESET).
        set: Change a setting, as model.sampler.samples=256,96,48. May be given several times.
        downscale: Shrink photos by this whole factor.
        split: How photos are held out: every8, fraction, none (default: the scene's own split, else every8).
        device: Where to run.
    """
    from raymarch.config import override
    from raymarch.config import preset as named
    from raymarch.data.scene import load
    from raymarch.train.guard import suspicions
    from raymarch.train.runs import start

    config = named(preset)
    for assignment in set:
        config = override(config, assignment)
    if steps is not None:
        config = override(config, f"train.trainer.steps={steps}")
    run = out or Path("runs") / f"{scene.resolve().name}-{preset}"
    loaded = load(scene, downscale=downscale, split=split)
    _say(*(f"note: {problem}" for problem in loaded.problems))
    source = {"path": str(scene.resolve()), "options": {"downscale": downscale, "split": split}}
    trainer = start(loaded, config, run, device, source)
    _train(trainer)
    _say(*trainer.notes, *suspicions(trainer))
    print(run)


def resume(run: Positional[Path], steps: int | None = None, device: Device = "auto") -> None:
    """Continue an interrupted run exactly where it stopped.

    Args:
        run: Run folder.
        steps: Train up to this many steps (default: what the run was started with).
        device: Where to run.
    """
    from raymarch.train import runs

    _train(runs.resume(run, device, steps=steps))
    print(run)


def _train(trainer) -> None:
    """Train with a progress bar; Ctrl-C saves."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[psnr]}"))
    try:
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=trainer.config.steps, completed=trainer.step, psnr="")
            trainer.train(
                on_progress=lambda p: bar.update(task, completed=p.step, psnr=f"{p.psnr:5.2f} dB on its rays")
            )
    except KeyboardInterrupt:
        raise UserStop(
            f"stopped at step {trainer.step}, saved; `raymarch resume {trainer.run}` goes on"
        ) from None


class UserStop(RuntimeError):
    """Ctrl-C."""


def eval(
    run: Positional[Path], data: Path | None = None, images: bool = True, device: Device = "auto"
) -> None:
    """Measure a run on its held-out photos; writes metrics.json and pictures beside it.

    Args:
        run: Run folder.
        data: Scene folder, if it has moved.
        images: Also write the renderings.
        device: Where to run.
    """
    from raymarch.apps.evaluation import evaluate_run

    for line in evaluate_run(run, data, images, device):
        print(line)


def render(
    run: Positional[Path],
    out: Path | None = None,
    heads: str = "rgb,depth",
    cameras: Path | None = None,
    view: tuple[str, ...] = (),
    formats: str = "png",
    device: Device = "auto",
) -> None:
    """Render images of a run: training or held-out views, or the poses of a transforms.json.

    Args:
        run: Run folder.
        out: Output folder (default: RUN/renders).
        heads: Comma-separated: rgb, depth, opacity, normals, predicted_normals, feature.
        cameras: A transforms.json whose frames (poses and intrinsics) to render, in world units.
        view: Views as test:0 or train:3; default every held-out view.
        formats: Comma-separated: png, exr, npz.
        device: Where to run.
    """
    from raymarch.apps.rendering import render_run

    for line in render_run(run, out, heads.split(","), cameras, view, formats.split(","), device):
        print(line)


def inspect(scene: Positional[Path]) -> None:
    """Say what a folder holds: cameras, lenses, sizes, bounds, problems.

    Args:
        scene: Folder of posed photos.
    """
    from raymarch.data.scene import describe, load

    print(describe(load(scene)))


def doctor() -> None:
    """What was built, what is installed, and what this machine can run."""
    from raymarch.apps.doctor import main as examine

    examine()


COMMANDS = {f.__name__: f for f in (demo, train, resume, eval, render, inspect, doctor)}


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """Run one command. What a user can mend is told in one sentence; exit status 1."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="raymarch",
            description="Fused ray marching for radiance and feature fields.",
            args=argv,
        )
    except Exception as error:
        if not _mendable(error):
            raise
        _say(f"raymarch: {error}")
        raise SystemExit(1) from None


def _mendable(error: Exception) -> bool:
    """Errors that are about the user's input or machine, not about our code."""
    import torch

    from raymarch.config import ConfigError
    from raymarch.data.scene import SceneError
    from raymarch.train.checkpoint import CheckpointError
    from raymarch.train.evaluate import OutOfMemory
    from raymarch.train.runs import DeviceError
    from raymarch.train.trainer import TrainingError

    if isinstance(error, torch.cuda.OutOfMemoryError):
        error.args = (
            "out of GPU memory: lower train.trainer.rays, downscale the photos, or use a smaller preset; "
            "checkpoints saved so far are intact",
        )
        return True
    ours = (ConfigError, SceneError, CheckpointError, DeviceError, TrainingError, OutOfMemory, UserStop)
    return isinstance(error, ours) or (isinstance(error, (FileNotFoundError, IndexError)) and _direct(error))


def _direct(error: Exception) -> bool:
    """Whether an error was raised by this package's own code, not deep in a library."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and "raymarch" in trace.tb_frame.f_globals.get("__name__", "")
