"""`raymarch profile`: which step, frame or op of which model to measure, and on what it was measured."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymarch import _C, __version__
from raymarch.apps.extraction import features_for
from raymarch.apps.profile_page import DRAFT, FILES, shown, write
from raymarch.config import Config, ConfigError, override, preset
from raymarch.data.scene import Scene, load
from raymarch.data.synthetic import SyntheticScene, feature_maps, make_scene
from raymarch.profiling.ceilings import ceilings, cores, seconds
from raymarch.profiling.kernels import STEPS_TRACED, KernelRow, traced
from raymarch.profiling.measure import measure
from raymarch.profiling.one_op import OpMissing, measure_op
from raymarch.profiling.subjects import Frames, Subject, Training, skip_to
from raymarch.train import checkpoint
from raymarch.train.runs import config_of, pick_device, resume, smaller, start, subset
from raymarch.train.trainer import Trainer
from raymarch.trained import TrainedScene
from raymarch.types import Cameras

STEPS = {"cpu": 6, "cuda": 30}  # multiples of six: one step in six trains proposals, once they are warm
SIDE = {"cpu": 96, "cuda": 1080}  # pixels of the longer side of a frame
WHAT = ("train", "render", "op")
VIEWS, SIZE = 8, 64  # of the built-in scene


@dataclass(frozen=True)
class Request:
    """What a user asks to be profiled; the options of `raymarch profile`."""

    run: Path | None = None
    preset: str | None = None
    scene: Path | None = None
    what: str = "train"
    op: str | None = None
    out: Path | None = None
    steps: int | None = None
    settings: tuple[str, ...] = ()
    side: int | None = None
    nvtx: bool = False
    device: str = "auto"


def profile_run(asked: Request, told: Callable[[str], object] = lambda words: None) -> Iterator[str]:
    """Profile a run's or a preset's steps, frames or one op; yields what a user should read.

    Everything is measured first and written then. ConfigError for arguments that do not go together.
    """
    check(asked)
    device = pick_device(asked.device)
    count = asked.steps or STEPS[device.type]
    folder = folder_for(asked.out, asked.run)
    told("opening")
    subject = subject_of(asked, count, device)
    told("measuring what the machine can do")
    limits = ceilings(device)
    try:
        measured = (
            measure_op(subject, asked.op or "", max(count, 10), limits, seconds)
            if asked.what == "op"
            else measure(subject, count, limits, asked.nvtx, told)
        )
    except OpMissing as error:
        raise ConfigError(str(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        rows, notes = kernels_of(subject, asked.what, folder)
    except KeyboardInterrupt:
        (folder / DRAFT).unlink(missing_ok=True)
        raise
    measured.notes += notes
    record = described(asked, device, limits) | measured.to_dict()
    record |= {"kernels": [row.to_dict() for row in rows], "notes": measured.notes}
    write(folder, record, measured, rows, limits)
    yield from shown(record, measured, rows)
    yield str(folder / "index.html")


def check(asked: Request) -> None:
    """ConfigError in one sentence where arguments do not go together."""
    if (asked.run is None) == (asked.preset is None):
        raise ConfigError("profile takes either a run folder or --preset, to say which model to profile")
    if asked.what not in WHAT:
        raise ConfigError(f"--what is {asked.what!r}, expected one of {', '.join(WHAT)}")
    if (asked.what == "op") != (asked.op is not None):
        raise ConfigError("--what op and --op NAME go together: --what op --op hashgrid_forward")
    if asked.steps is not None and asked.steps < 1:
        raise ConfigError(f"--steps is {asked.steps}, expected at least 1")
    if asked.side is not None and asked.side < 1:
        raise ConfigError(f"--side is {asked.side}, expected at least 1")
    if asked.run is not None and asked.settings:
        raise ConfigError("--set changes a preset; a run is profiled with the settings it was trained with")
    if asked.nvtx and importlib.util.find_spec("nvtx") is None:
        raise ConfigError("--nvtx needs the package nvtx: pip install nvtx")


def folder_for(out: Path | None, run: Path | None) -> Path:
    """Where the profile goes. ConfigError where something else is there, which would be overwritten."""
    folder = out or (run / "profile" if run is not None else Path("raymarch_profile"))
    foreign = [f for f in FILES if (folder / f).exists()]
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file, expected a folder")
    if foreign and not (folder / "profile.json").exists():
        raise ConfigError(f"{folder} holds {foreign[0]}, which is no profile's; give another --out")
    return folder


# ---- what is profiled ----


def subject_of(asked: Request, count: int, device: torch.device) -> Subject:
    photos = photos_of(asked)
    if asked.what == "render":
        return frames_of(asked, photos, device)
    if asked.run is None:
        return Training(fresh_trainer(asked, photos, count, device))
    step = checkpoint.newest(asked.run)[1]["step"]
    more = step + max(count, 8) + 8
    kept = photos or _kept_scene(asked.run)
    return Training(resume(asked.run, str(device), kept, steps=more, only_look=True))


def photos_of(asked: Request) -> Scene | None:
    """The scene that was asked for, with its feature maps where the model distils some."""
    if asked.scene is None:
        return None
    config = settled(asked) if asked.run is None else config_of(checkpoint.newest(asked.run)[1], asked.run)
    files, _ = features_for(asked.scene, (), config.model.fields.feature.width > 0)
    options: dict[str, Any] = {"features": [str(file) for file in files]} if files else {}
    return load(asked.scene, **options)


def settled(asked: Request) -> Config:
    """The preset with its settings."""
    config = preset(asked.preset or "")
    for setting in asked.settings:
        config = override(config, setting)
    return config


def _kept_scene(run: Path) -> Scene | None:
    """None: the scene that the run names, read again; the built-in one where it was trained from arrays."""
    meta = checkpoint.newest(run)[1]
    if meta["scene"]["source"] is not None:
        return None
    config = config_of(meta, run)
    views = len(meta["scene"]["train"])
    return built_in(config.model.fields.feature.width, views)


def frames_of(asked: Request, photos: Scene | None, device: torch.device) -> Frames:
    heads = frozenset({"rgb", "depth"})
    if asked.run is not None:
        opened = TrainedScene(asked.run, str(device))
        camera = opened.camera("test" if opened.test else "train", 0)
        return Frames(opened.model, _sized(camera, asked.side, device), heads)
    trainer = fresh_trainer(asked, photos, 1, device)
    camera = subset(trainer.source.cameras, (0,), device)
    if photos is None:
        camera = _enlarged(camera, asked.side or SIDE[device.type])
    return Frames(trainer.model, _sized(camera, asked.side, device), heads)


def _sized(camera: Cameras, side: int | None, device: torch.device) -> Cameras:
    return smaller(camera, side or SIDE[device.type])


def _enlarged(camera: Cameras, side: int) -> Cameras:
    """The built-in scene's camera with as many pixels as are asked for."""
    factor = side / int(camera.size.max())
    return replace(camera, intrinsics=camera.intrinsics * factor, size=(camera.size * factor).round().long())


def fresh_trainer(asked: Request, photos: Scene | None, count: int, device: torch.device) -> Trainer:
    """A trainer of a preset at a step past its warm-up, when steps cost what most of them cost."""
    config = settled(asked)
    scene = photos or built_in(config.model.fields.feature.width, VIEWS)
    late = config.model.sampler.update_warmup + config.model.sampler.update_every + 1
    needed = late + max(count, 8) + 8
    config = override(config, f"train.trainer.steps={max(needed, config.train.trainer.steps)}")
    trainer = start(scene, config, None, device)
    skip_to(trainer, late)
    return trainer


def built_in(width: int, views: int) -> Scene:
    """The demo's scene, with feature maps `width` wide: a step's cost depends on sizes, not on pictures."""
    truth = make_scene(views=views, test_views=1, size=SIZE, seed=0)
    return Scene.from_arrays(
        truth.images,
        truth.intrinsics,
        truth.camera_to_worlds,
        features=list(_maps(truth, width)) if width else None,
        split=(truth.train, truth.test),
        orientation="none",
        center="none",
        scale=1.0,
    )


def _maps(truth: SyntheticScene, width: int) -> Tensor:
    maps = feature_maps(truth, stride=4)
    random = torch.Generator().manual_seed(0)
    return (maps.float() @ torch.randn(maps.shape[-1], width, generator=random)).half()


def kernels_of(subject: Subject, what: str, folder: Path) -> tuple[list[KernelRow], list[str]]:
    """CUDA kernels of the real step, and a draft of its timeline."""
    if subject.device.type != "cuda":
        return [], ["Registers and occupancy belong to CUDA kernels; this was measured on a CPU."]
    if what == "op":
        return [], ["Kernels are listed for --what train and --what render."]
    with subject.open():
        subject.go_to(0)
        return traced(lambda: subject.real(STEPS_TRACED), STEPS_TRACED, folder / DRAFT)


def described(asked: Request, device: torch.device, limits: dict[str, float]) -> dict[str, Any]:
    """What was profiled, when, on what and with which versions."""
    name = asked.run.resolve().name if asked.run is not None else f"preset {asked.preset}"
    on_gpu = device.type == "cuda"
    machine: dict[str, Any] = {"device": device.type, "name": processor(device), "cores": os.cpu_count()}
    machine |= {"threads": cores(), "torch_threads": torch.get_num_threads()}
    if on_gpu:
        facts = torch.cuda.get_device_properties(device)
        machine |= {"arch": f"sm_{facts.major}{facts.minor}", "multiprocessors": facts.multi_processor_count}
    return {
        "title": f"raymarch profile of {name}",
        "command": command(asked),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "machine": machine,
        "versions": {
            "raymarch": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": _C.cuda_version or "none",
        },
        "ceilings": limits,
    }


def command(asked: Request) -> str:
    words = ["raymarch", "profile", *([str(asked.run)] if asked.run else [])]
    for f in fields(Request):
        value = getattr(asked, f.name)
        if f.name in ("run", "settings") or value == f.default:
            continue
        words += [f"--{f.name}", *([] if value is True else [str(value)])]
    return shlex.join([*words, *(w for setting in asked.settings for w in ("--set", setting))])


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
