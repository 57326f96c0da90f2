"""The command line: raymarch demo | extract | train | resume | eval | render | query | view | localize |
export | poses | report | inspect | profile | doctor."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

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
    features: tuple[Path, ...] = (),
    adjustments: Path | None = None,
    convention: Literal["camera", "world"] | None = None,
    masks: Literal["ignore", "empty", "none"] = "ignore",
    alpha: Literal["empty", "ignore", "none"] = "empty",
    memory: Literal["auto", "memory", "disk"] = "auto",
    cache: str = "auto",
    tensorboard: bool = False,
    look_every: int = 2000,
    device: Device = "auto",
) -> None:
    """Train on a folder of posed photos.

    Args:
        scene: Scene of nerfstudio, instant-ngp, COLMAP, LLFF or Blender; found by what the folder holds.
        preset: nerfacto, f3rm or tiny.
        steps: Training steps (default: the preset's).
        out: Run folder (default: runs/SCENE-PRESET).
        set: Change a setting, as model.sampler.samples=256,96,48. May be given several times.
        downscale: Shrink photos by this whole factor.
        split: How photos are held out: every8, fraction, none (default: the scene's own split, else every8).
        features: Feature files to distil, one head each (default, for a preset with a feature field: what
            `raymarch extract` left in the scene's folder).
        adjustments: Pose adjustments to begin with, as nerfstudio has them: .safetensors, .npz or .json.
        convention: Of the adjustments: camera (nerfstudio 0.3, F3RM) or world (nerfstudio 1).
        masks: What zero in a mask means: never draw the pixel, nothing is there, or nothing at all.
        alpha: The same for transparent pixels.
        memory: Where decoded photos lie; auto maps them from files where they take half of the free memory.
        cache: Folder for decoded photos that were downscaled or are mapped; auto (the user's) or none.
        tensorboard: Also write TensorBoard logs into RUN/tensorboard.
        look_every: Steps between renderings of a held-out view, kept in RUN/held_out; 0 for none.
        device: Where to run.
    """
    from raymarch.apps.extraction import features_for
    from raymarch.apps.run_page import write_run_page
    from raymarch.config import override
    from raymarch.config import preset as named
    from raymarch.data.scene import load
    from raymarch.train.refined import named_adjustments, with_adjustments
    from raymarch.train.runs import start

    config = named(preset)
    for assignment in set:
        config = override(config, assignment)
    if steps is not None:
        config = override(config, f"train.trainer.steps={steps}")
    run = out or Path("runs") / f"{scene.resolve().name}-{preset}"
    files, told = features_for(scene, features, config.model.fields.feature.width > 0)
    if files and not config.model.fields.feature.width:
        config = override(config, "model.fields.feature.width=1")  # the files know the width
    options: dict[str, Any] = {
        "downscale": downscale,
        "split": split,
        "masks": masks,
        "alpha": alpha,
        "memory": memory,
    }
    options["cache"] = None if cache == "none" else cache
    if files:
        options["features"] = [str(file) for file in files]
    loaded = load(scene, **options)
    moved = named_adjustments(adjustments, convention)
    loaded = with_adjustments(loaded, moved)
    source = {"path": str(scene.resolve()), "options": options} | ({"adjustments": moved} if moved else {})
    trainer = start(loaded, config, run, device, source)
    _say(loaded.format, *(f"note: {line}" for line in (*told, *loaded.problems, *loaded.notes)))
    _train(trainer, look_every, tensorboard)
    write_run_page(run, device)
    print(run)


def extract(
    scene: Positional[Path],
    encoder: str = "clip",
    model: str | None = None,
    weights: str | None = None,
    out: Path | None = None,
    size: int | None = None,
    fit: Literal["stretch", "drop"] = "stretch",
    facet: Literal["key", "token"] | None = None,
    device: Device = "auto",
) -> None:
    """Extract dense features of every photo, to distil. Run again, it goes on where it stopped.

    Args:
        scene: Folder of posed photos.
        encoder: clip, dino or dinov2, or several with commas, each into a file of its own.
        model: A model of open_clip or timm, as ViT-B-16 (default: ViT-L-14-336-quickgelu,
            vit_small_patch8_224 or vit_large_patch14_dinov2).
        weights: A file, a folder with open_clip_config.json and weights, or a tag to download.
        out: Feature file (default: features_ENCODER.safetensors in the scene's folder).
        size: Pixels of the shorter side that the network sees; 0 for the photo's own (default: the model's).
        fit: stretch photos by less than half a patch, so that patches fill them, or drop what fills none.
        facet: Which part of a DINO network (default: key for dino, token for dinov2).
        device: Where to run.
    """
    from raymarch.apps.extraction import run as extract_all
    from raymarch.train.runs import pick_device

    options: dict[str, Any] = {"facet": facet} if facet else {}
    encoders = [name.strip() for name in encoder.split(",")]
    for line in extract_all(
        scene, encoders, model, weights, out, pick_device(device), size=size, fit=fit, **options
    ):
        print(line)


def resume(
    run: Positional[Path],
    steps: int | None = None,
    tensorboard: bool = False,
    look_every: int = 2000,
    device: Device = "auto",
) -> None:
    """Continue an interrupted run exactly where it stopped.

    Args:
        run: Run folder.
        steps: Train up to this many steps (default: what the run was started with).
        tensorboard: Also write TensorBoard logs into RUN/tensorboard.
        look_every: Steps between renderings of a held-out view, kept in RUN/held_out; 0 for none.
        device: Where to run.
    """
    from raymarch.apps.run_page import write_run_page
    from raymarch.train import runs

    _train(runs.resume(run, device, steps=steps), look_every, tensorboard)
    write_run_page(run, device)
    print(run)


def _train(trainer, look_every: int, tensorboard: bool) -> None:
    """Train with a progress bar; Ctrl-C saves."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from raymarch.apps.watching import Watcher
    from raymarch.train.guard import suspicions
    from raymarch.train.trainer import Progress

    _say(trainer.source.summary())
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[psnr]}"))
    watcher = Watcher(trainer, look_every, tensorboard)
    try:
        with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=trainer.config.steps, completed=trainer.step, psnr="")

            def note(progress: Progress) -> None:
                words = f"{progress.psnr:5.2f} dB on its rays"
                bar.update(task, completed=progress.step, psnr=words)
                watcher(progress)

            trainer.train(on_progress=note)
    except KeyboardInterrupt:
        raise UserStop(
            f"stopped at step {trainer.step}, saved; `raymarch resume {trainer.run}` goes on"
        ) from None
    finally:
        watcher.close()
    _say(*trainer.notes, *suspicions(trainer))


class UserStop(RuntimeError):
    """Ctrl-C."""


def eval(
    run: Positional[Path],
    data: Path | None = None,
    images: bool = True,
    poses: Literal["none", "align", "refine"] = "none",
    device: Device = "auto",
) -> None:
    """Measure a run on its held-out photos; writes metrics.json and pictures beside it.

    Args:
        run: Run folder.
        data: Scene folder, if it has moved.
        images: Also write the renderings.
        poses: Of held-out photos: none (as given), align (moved as the training poses went together), refine
            (each half of a photo's pixels rendered from the pose that fits the other half).
        device: Where to run.
    """
    from raymarch.apps.evaluation import evaluate_run
    from raymarch.apps.run_page import write_run_page

    for line in evaluate_run(run, data, images, device, poses):
        print(line)
    write_run_page(run, device)


def render(
    run: Positional[Path],
    out: Path | None = None,
    heads: str = "rgb,depth",
    cameras: Path | None = None,
    path: Literal["orbit", "spiral", "interpolate"] | None = None,
    view: tuple[str, ...] = (),
    frames: int = 120,
    fps: float | None = None,
    loop: bool = False,
    save_path: Path | None = None,
    text: tuple[str, ...] = (),
    negatives: tuple[str, ...] = (),
    embeddings: Path | None = None,
    weights: str | None = None,
    formats: str = "png",
    side: int | None = None,
    mode: Literal["exact", "reduced"] = "exact",
    device: Device = "auto",
) -> None:
    """Render images or videos of a run: its views, poses of a file, or a path made here.

    Args:
        run: Run folder.
        out: Output folder (default: RUN/renders).
        heads: Comma-separated: rgb, depth, opacity, normals, predicted_normals, pca, similarity, feature.
        cameras: A transforms.json (poses in world units) or a camera_path.json of nerfstudio.
        path: Go around what the cameras look at, in a small spiral, or from training view to training view.
        view: Views as test:0 or train:3; default every held-out view. With --path, those it goes by.
        frames: Frames of a path.
        fps: Frames per second of a video (default: the file's, else 24).
        loop: Come back to the first view of an interpolated path.
        save_path: Also write the path as camera_path.json.
        text: What the similarity head looks for; may be several.
        negatives: What it is not.
        embeddings: A .npz or .safetensors of one vector per name, or a .npy [K, D] of what to look for.
        weights: Where the text encoder's weights lie now.
        formats: Comma-separated: png, exr, npz, mp4.
        side: Pixels of the longer side, at most.
        mode: exact, or reduced: several times faster; says how far its first image is from the exact one.
        device: Where to run.
    """
    from raymarch.apps.rendering import Route, render_run

    route = Route(cameras, path, view, frames, fps, loop, save_path)
    for line in render_run(
        run,
        out,
        heads.split(","),
        route,
        formats.split(","),
        text,
        negatives,
        embeddings,
        weights,
        side,
        mode,
        device,
    ):
        print(line)


def query(
    run: Positional[Path],
    texts: Positional[tuple[str, ...]],
    negatives: tuple[str, ...] = (),
    embeddings: Path | None = None,
    weights: str | None = None,
    out: Path | None = None,
    view: tuple[str, ...] = (),
    poses: Path | None = None,
    threshold: float | None = None,
    score: Literal["paired", "f3rm", "cosine"] = "paired",
    temperature: float = 0.1,
    side: int = 512,
    mode: Literal["exact", "reduced"] = "exact",
    device: Device = "auto",
) -> None:
    """Find things by words: heat maps, masks, and where they are in space (world units).

    Args:
        run: Run folder.
        texts: What to look for, one or more.
        negatives: What it is not; what matches is more like the text than like any of these.
        embeddings: A .npz or .safetensors of one vector per name (default: the run's own text encoder).
        weights: Where the text encoder's weights lie now.
        out: Output folder (default: RUN/query).
        view: Views to look from, as train:0 or test:3 (default: twelve training views).
        poses: Look from the frames of a transforms.json or camera_path.json instead.
        threshold: Of the mask (default: 0.5 with negatives, else halfway from the median cosine to the best).
        score: With negatives: paired (LERF's), f3rm, or cosine.
        temperature: Of the softmax.
        side: Pixels of the longer side of what is rendered, at most.
        mode: exact, or reduced: several times faster and close.
        device: Where to run.
    """
    from raymarch.apps.querying import query_run

    for line in query_run(
        run,
        texts,
        negatives,
        embeddings,
        weights,
        out,
        view,
        poses,
        threshold,
        score,
        temperature,
        side,
        mode,
        device,
    ):
        print(line)


def view(
    run: Positional[Path],
    port: int = 8080,
    side: int | None = None,
    follow: bool = True,
    embeddings: Path | None = None,
    weights: str | None = None,
    device: Device = "auto",
) -> None:
    """Look around a run in a browser, on this machine alone; follows a run that is being trained.

    Args:
        run: Run folder.
        port: Of the page, on 127.0.0.1; another is taken where this one is not free.
        side: Pixels of the longer side of the finest picture (default: 1280 on a GPU, 256 without).
        follow: Show newer checkpoints as they appear.
        embeddings: A .npz or .safetensors of one vector per name, for texts.
        weights: Where the text encoder's weights lie now.
        device: Where to render.
    """
    from raymarch.apps.view import view_run

    view_run(run, port, side, follow, embeddings, weights, device)


def localize(
    run: Positional[Path],
    photos: Positional[tuple[Path, ...]],
    intrinsics: str | None = None,
    init: str | None = None,
    out: Path | None = None,
    device: Device = "auto",
) -> None:
    """Find where photos were taken from, against a trained run.

    Args:
        run: Run folder.
        photos: Photos, one or more.
        intrinsics: fx,fy,cx,cy in pixels of the photos (default: the lens that all training photos share).
        init: all (every training view, the default), train:K or test:K, or a JSON file with a camera-to-world
            matrix in world units.
        out: Output folder (default: RUN/localized).
        device: Where to run.
    """
    from raymarch.apps.localizing import localize_photos

    for line in localize_photos(run, list(photos), intrinsics, init, out, device):
        print(line)


def export(
    run: Positional[Path],
    what: Literal["poses", "points", "mesh"] = "poses",
    poses: Literal["transforms", "colmap", "tum"] | None = None,
    held_out: bool = False,
    out: Path | None = None,
    points: int = 1_000_000,
    resolution: int = 256,
    views: int = 64,
    side: int | None = None,
    box: str | None = None,
    mode: Literal["exact", "reduced"] = "exact",
    device: Device = "auto",
) -> None:
    """Write what a run holds for other programs, in world units.

    Args:
        run: Run folder.
        what: Camera poses, a point cloud (PLY: colour, normal, feature colour), or a mesh (PLY, OBJ, GLB).
        poses: How poses are written: transforms (transforms.json), colmap (text files) or tum.
        held_out: Also the poses of held-out cameras, moved as the training cameras went together.
        out: Output folder of poses (default: RUN/export/FORMAT), or file (default: RUN/export/WHAT.ply).
        points: At most so many points.
        resolution: Voxels along the longest side of a mesh's box.
        views: Training views that are rendered for points and meshes, at most.
        side: Pixels of their longer side (default: 512 on a GPU, 192 without).
        box: Of a mesh: x,y,z,x,y,z, low corner and high one, world units (default: where most is seen).
        mode: exact, or reduced: several times faster and close.
        device: Where to run.
    """
    if what == "poses":
        from raymarch.apps.exporting import export_run

        lines = export_run(run, out, poses, held_out, device)
    else:
        from raymarch.apps.exporting_geometry import Geometry, box_of, export_geometry

        options = Geometry(points, resolution, views, side, box_of(box))
        lines = export_geometry(run, what, out, options, mode, device)
    for line in lines:
        print(line)


def poses(run: Positional[Path], out: Path | None = None, device: Device = "auto") -> None:
    """Say how far refinement moved each training camera; writes poses.json.

    Args:
        run: Run folder.
        out: The JSON file (default: RUN/poses.json).
        device: Where to run.
    """
    from raymarch.apps.posing import tell_poses

    for line in tell_poses(run, out, device):
        print(line)


def report(run: Positional[Path], device: Device = "auto") -> None:
    """Write a run's page: figures, camera poses before and after, the training curve.

    Args:
        run: Run folder.
        device: Where to run.
    """
    from raymarch.apps.run_page import write_run_page

    print(write_run_page(run, device))


def inspect(
    scene: Positional[Path],
    downscale: int | None = None,
    split: str | None = None,
    masks: Literal["ignore", "empty", "none"] = "ignore",
    alpha: Literal["empty", "ignore", "none"] = "empty",
) -> None:
    """Say what a folder holds: format, cameras, lenses, sizes, masks, depths, bounds, split, problems.

    Args:
        scene: Folder of posed photos.
        downscale: Shrink photos by this whole factor.
        split: How photos are held out.
        masks: What zero in a mask means.
        alpha: The same for transparent pixels.
    """
    from raymarch.apps.inspecting import lines

    for line in lines(scene, downscale=downscale, split=split, masks=masks, alpha=alpha):
        print(line)


def profile(
    run: Positional[Path | None] = None,
    preset: str | None = None,
    scene: Path | None = None,
    what: Literal["train", "render", "op"] = "train",
    op: str | None = None,
    out: Path | None = None,
    steps: int | None = None,
    set: Set = (),
    side: int | None = None,
    nvtx: bool = False,
    device: Device = "auto",
) -> None:
    """Say where a training step or a frame spends its time, by stage and by op (docs/profiling.md).

    Args:
        run: Run folder; nothing in it is changed but its folder `profile`.
        preset: Instead of a run: nerfacto, f3rm or tiny, untrained, at a step past its warm-up.
        scene: Photos to take (default: the run's own, or the built-in scene).
        what: A training step, a frame, or one native op with what a step gives it.
        op: The op of --what op, as hashgrid_backward; without _forward or _backward, both.
        out: Output folder (default: RUN/profile or raymarch_profile).
        steps: How many steps (or frames) to look at (default: 30 on a GPU, 6 without).
        set: Change a setting of the preset, as train.trainer.fused=false. May be given several times.
        side: Pixels of the longer side of a frame (default: 1080 on a GPU, 96 without).
        nvtx: Also mark stages and ops for Nsight, in the domain raymarch (needs the package nvtx).
        device: Where to run.
    """
    from raymarch.apps.profiling import Request, profile_run

    try:
        asked = Request(run, preset, scene, what, op, out, steps, set, side, nvtx, device)
        for line in profile_run(asked, lambda words: _say(f"profile: {words}")):
            print(line)
    except KeyboardInterrupt:
        raise UserStop("stopped; no profile was written") from None


def doctor() -> None:
    """What was built, what is installed, and what this machine can run."""
    from raymarch.apps.doctor import main as examine

    examine()


COMMANDS = {
    f.__name__: f
    for f in (
        *(demo, inspect, extract, train, resume, eval, render, query, view, report),
        *(localize, poses, export, profile, doctor),
    )
}


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """Run one command. What a user can mend is told in one sentence; exit status 1.

    With RAYMARCH_NVTX in the environment, stages and ops are NVTX ranges (docs/profiling.md).
    """
    try:
        with _marked():
            _run(argv)
    except Exception as error:
        if not _mendable(error):
            raise
        _say(f"raymarch: {error}")
        raise SystemExit(1) from None


def _run(argv: list[str] | None) -> None:
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="raymarch",
        description="Fused ray marching for radiance and feature fields.",
        args=argv,
    )


def _marked() -> AbstractContextManager[None]:
    """NVTX ranges around stages and ops where the environment asks for them."""
    if os.environ.get("RAYMARCH_NVTX", "0") in ("", "0"):
        return nullcontext()
    if importlib.util.find_spec("nvtx") is None:
        _say("raymarch: RAYMARCH_NVTX is set, but ranges need the package nvtx: pip install nvtx")
        return nullcontext()
    from raymarch.profiling.ranges import nvtx_ranges

    return nvtx_ranges()


def _mendable(error: Exception) -> bool:
    """Errors that are about the user's input or machine, not about our code."""
    import torch

    from raymarch.config import ConfigError
    from raymarch.data.scene import SceneError
    from raymarch.features.encoder import EncoderError
    from raymarch.features.words import WordsError
    from raymarch.nn import TcnnError
    from raymarch.train.checkpoint import CheckpointError
    from raymarch.train.evaluate import OutOfMemory
    from raymarch.train.photos import LocalizeError
    from raymarch.train.runs import DeviceError
    from raymarch.train.trainer import TrainingError

    if isinstance(error, torch.cuda.OutOfMemoryError):
        error.args = (
            "out of GPU memory: lower train.trainer.rays, downscale the photos, or use a smaller preset; "
            "checkpoints saved so far are intact",
        )
        return True
    ours = (
        ConfigError,
        SceneError,
        CheckpointError,
        DeviceError,
        EncoderError,
        TrainingError,
        OutOfMemory,
        UserStop,
        LocalizeError,
        WordsError,
        TcnnError,
    )
    return isinstance(error, ours) or (isinstance(error, (FileNotFoundError, IndexError)) and _direct(error))


def _direct(error: Exception) -> bool:
    """Whether an error was raised by this package's own code, not deep in a library."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and "raymarch" in trace.tb_frame.f_globals.get("__name__", "")
