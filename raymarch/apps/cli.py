"""The command line: raymarch demo | extract | train | resume | eval | render | query | view | localize |
export | poses | report | inspect | profile | doctor."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect as inspection
import io
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import DisallowNone, Positional, UseAppendAction, arg

from raymarch.apps.options import check_above, check_least, check_port
from raymarch.apps.terminal import prepare, say, tell

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

    tell([run(out, steps, device)])


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
    adjustments_mode: Literal["SO3xR3", "SE3"] | None = None,
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
        preset: nerfacto, f3rm, nerfacto_rough or f3rm_rough (poses that are off by degrees), or tiny.
        steps: Training steps (default: the preset's).
        out: Run folder (default: runs/FOLDER-PRESET, FOLDER being the scene's).
        set: Change a setting, as model.sampler.samples=256,96,48. May be given several times.
        downscale: Shrink photos by this whole factor.
        split: How photos are held out: every8, fraction, none (default: the scene's own split, else every8).
        features: Feature files to distil, one head each (default, for a preset with a feature field: what
            `raymarch extract` left in the scene's folder).
        adjustments: Pose adjustments to begin with, as nerfstudio has them: .safetensors, .npz or .json.
        convention: Of the adjustments: camera (nerfstudio 0.3, F3RM) or world (nerfstudio 1).
        adjustments_mode: How six numbers are a motion (default: SO3xR3, as nerfstudio's default).
        masks: What zero in a mask means: never draw the pixel, nothing is there, or nothing at all.
        alpha: The same for transparent pixels.
        memory: Where decoded photos lie; auto maps them from files where they take half of the free memory.
        cache: Folder for decoded photos that were downscaled or are mapped; auto (the user's) or none.
        tensorboard: Also write TensorBoard logs into RUN/tensorboard.
        look_every: Steps between renderings of a held-out view, kept in RUN/held_out; 0 for none.
        device: Where to run.
    """
    from raymarch.apps.extraction import features_for
    from raymarch.apps.training import settings_of, train_run
    from raymarch.config import override
    from raymarch.data.scene import load
    from raymarch.train.claim import check_vacant
    from raymarch.train.refined import named_adjustments, with_adjustments
    from raymarch.train.runs import start

    check_least(0, look_every=look_every)
    config = settings_of(preset, set, steps)
    run = out or Path("runs") / f"{named_after(scene)}-{preset}"
    check_vacant(run)
    files, told = features_for(scene, features, config.model.fields.feature.width > 0)
    if files and not config.model.fields.feature.width:
        config = override(config, "model.fields.feature.width=1")  # the files know the width
    options: dict[str, Any] = {
        "downscale": downscale,
        "split": split,
        "masks": masks,
        "alpha": alpha,
        "memory": memory,
        "cache": None if cache == "none" else cache,
    }
    if files:
        options["features"] = [str(file) for file in files]
    loaded = load(scene, **options)
    moved = named_adjustments(adjustments, convention, adjustments_mode)
    loaded = with_adjustments(loaded, moved)
    source = {"path": str(scene.resolve()), "options": options} | ({"adjustments": moved} if moved else {})
    trainer = start(loaded, config, run, device, source)
    say(loaded.format, *(f"note: {line}" for line in (*told, *loaded.problems, *loaded.notes)))
    train_run(trainer, loaded, run, device, look_every, tensorboard)


def named_after(scene: Path) -> str:
    """The folder that a scene is known by: for a file, the one that it lies in."""
    place = scene.resolve()
    return (place.parent if place.is_file() else place).name


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
    tell(
        extract_all(scene, encoders, model, weights, out, pick_device(device), size=size, fit=fit, **options)
    )


def resume(
    run: Positional[Path],
    steps: int | None = None,
    set: Set = (),
    data: Path | None = None,
    tensorboard: bool = False,
    look_every: int = 2000,
    device: Device = "auto",
) -> None:
    """Continue an interrupted run exactly where it stopped.

    Args:
        run: Run folder.
        steps: Train up to this many steps (default: what the run was started with).
        set: Change a setting of the training, as train.trainer.rays=2048. May be given several times.
        data: Scene folder, if it has moved.
        tensorboard: Also write TensorBoard logs into RUN/tensorboard.
        look_every: Steps between renderings of a held-out view, kept in RUN/held_out; 0 for none.
        device: Where to run.
    """
    from raymarch.apps.training import train_run
    from raymarch.train import runs

    check_least(0, look_every=look_every)
    trainer, scene = runs.resumed(run, device, steps=steps, settings=set, data=data)
    train_run(trainer, scene, run, device, look_every, tensorboard)


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

    tell(evaluate_run(run, data, images, device, poses))
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
    from raymarch.config import ConfigError

    if (text or negatives) and "similarity" not in heads.split(","):
        option = "--text" if text else "--negatives"
        raise ConfigError(f"{option} is for the head similarity, which --heads {heads} leaves out")
    check_least(1, side=side, frames=frames)
    check_above(0, fps=fps)
    route = Route(cameras, path, view, frames, fps, loop, save_path)
    tell(
        render_run(
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
        )
    )


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

    check_least(1, side=side)
    check_above(0, temperature=temperature)
    check_least(-1, threshold=threshold)
    tell(
        query_run(
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
        )
    )


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

    check_least(1, side=side)
    check_port(port)
    view_run(run, port, side, follow, embeddings, weights, device)


def localize(
    run: Positional[Path],
    photos: Positional[tuple[Path, ...]],
    intrinsics: str | None = None,
    init: str | None = None,
    out: Path | None = None,
    device: Device = "auto",
) -> None:
    """Find where photos were taken from, against a trained run. Exit status 3 where one was not found.

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

    tell(localize_photos(run, list(photos), intrinsics, init, out, device))


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
        poses: How poses are written: transforms (transforms.json, the default), colmap (text files) or tum.
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
    from raymarch.config import ConfigError

    if box is not None and what != "mesh":
        raise ConfigError(f"--box is for meshes and says nothing of --what {what}: leave it out")
    check_least(1, points=points, views=views, side=side)
    check_least(2, resolution=resolution)
    if what == "poses":
        from raymarch.apps.exporting import export_run

        lines = export_run(run, out, poses, held_out, device)
    else:
        from raymarch.apps.exporting_geometry import Geometry, box_of, export_geometry, only_of_poses

        only_of_poses(what, poses, held_out)
        options = Geometry(points, resolution, views, side, box_of(box))
        lines = export_geometry(run, what, out, options, mode, device)
    tell(lines)


def poses(run: Positional[Path], out: Path | None = None, device: Device = "auto") -> None:
    """Say how far refinement moved each training camera; writes poses.json.

    Args:
        run: Run folder.
        out: The JSON file (default: RUN/poses.json).
        device: Where to run.
    """
    from raymarch.apps.posing import tell_poses

    tell(tell_poses(run, out, device))


def report(run: Positional[Path], device: Device = "auto") -> None:
    """Write a run's page: figures, camera poses before and after, the training curve.

    Args:
        run: Run folder.
        device: Where to run.
    """
    from raymarch.apps.run_page import write_run_page

    tell([write_run_page(run, device)])


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

    tell(lines(scene, downscale=downscale, split=split, masks=masks, alpha=alpha))


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
        preset: Instead of a run: a preset, as nerfacto or f3rm, untrained, at a step past its warm-up.
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
        tell(profile_run(asked, lambda words: say(f"profile: {words}")))
    except KeyboardInterrupt:
        from raymarch.apps.failures import UserStop

        raise UserStop("stopped; no profile was written") from None


def doctor() -> None:
    """What was built, what is installed, and what this machine can run."""
    from raymarch.apps.doctor import main as examine

    if status := examine():
        raise SystemExit(status)


COMMANDS = {
    f.__name__: f
    for f in (
        *(demo, inspect, extract, train, resume, eval, render, query, view, report),
        *(localize, poses, export, profile, doctor),
    )
}


def tell_version() -> None:
    """What is installed."""
    from raymarch import __version__

    tell([f"raymarch {__version__}"])


def deferred(command: Callable[..., None]) -> Callable[..., Any]:
    """The command with its arguments, to be run once they are all understood."""

    @functools.wraps(command)
    def later(*args: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **options)

    later.__signature__ = inspection.signature(command)  # type: ignore[attr-defined]
    later.__annotations__ = without_empty_defaults(command)
    del later.__wrapped__  # type: ignore[attr-defined] # whose annotations would be read instead
    return later


def without_empty_defaults(command: Callable[..., None]) -> dict[str, Any]:
    """A command's annotations, in which `(default: None)` is not printed: its help says what that means."""
    hints = typing.get_type_hints(command, include_extras=True)
    for name, parameter in inspection.signature(command).parameters.items():
        if parameter.default in (None, ()) and hints[name] is not Set:
            hints[name] = Annotated[hints[name], arg(help_behavior_hint="")]
    return hints


def parse(argv: list[str]) -> Callable[[], None]:
    """The command that the words ask for. SystemExit: 0 after --help, 2 with a sentence on what is wrong."""
    from raymarch.apps.usage import one_line, unknown_command

    wrong = io.StringIO()
    if argv == ["--version"]:
        return tell_version
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        say(f"raymarch: {unknown_command(argv[0], COMMANDS)}")
        raise SystemExit(2)
    try:
        with contextlib.redirect_stderr(wrong):
            return tyro.extras.subcommand_cli_from_dict(
                {name: deferred(command) for name, command in COMMANDS.items()},
                prog="raymarch",
                description="Fused ray marching for radiance and feature fields.",
                args=argv,
                config=(DisallowNone,),
            )
    except SystemExit as ended:
        if ended.code:
            named = argv[0] if argv and argv[0] in COMMANDS else ""
            say(f"raymarch: {one_line(wrong.getvalue(), named)}")
        raise


def main(argv: list[str] | None = None) -> None:
    """Run one command. What a user can mend is told in one sentence; exit status 1 (3: a photo was not
    found), or 130 after Ctrl-C.

    With RAYMARCH_NVTX in the environment, stages and ops are NVTX ranges (docs/profiling.md).
    """
    prepare()
    try:
        command = parse(sys.argv[1:] if argv is None else argv)
        with marked():
            command()
    except KeyboardInterrupt:
        say("raymarch: stopped")
        raise SystemExit(130) from None
    except Exception as error:
        from raymarch.apps.failures import sentence

        told = sentence(error)
        if told is None:
            raise
        say(f"raymarch: {told}")
        raise SystemExit(getattr(error, "status", 1)) from None


def marked() -> contextlib.AbstractContextManager[None]:
    """NVTX ranges around stages and ops where the environment asks for them."""
    if os.environ.get("RAYMARCH_NVTX", "0") in ("", "0"):
        return contextlib.nullcontext()
    if importlib.util.find_spec("nvtx") is None:
        say("raymarch: RAYMARCH_NVTX is set, but ranges need the package nvtx: pip install nvtx")
        return contextlib.nullcontext()
    from raymarch.profiling.ranges import nvtx_ranges

    return nvtx_ranges()
