"""Runs: a folder with a config, a log and checkpoints. Start one, resume one, open one to look at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymarch.config import Config, ConfigError, from_dict, to_dict
from raymarch.data.pixels import PixelSource
from raymarch.data.scene import Scene, load
from raymarch.data.similarity import Similarity
from raymarch.model import Model
from raymarch.train import checkpoint
from raymarch.train.guard import guard
from raymarch.train.refinable import check_refinable
from raymarch.train.trainer import Trainer, load_model
from raymarch.types import Cameras


class DeviceError(RuntimeError):
    """A device that is not there."""


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one that this build can use, else the CPU."""
    from raymarch import _C

    usable = torch.cuda.is_available() and _C.has_cuda
    if name == "auto":
        return torch.device("cuda" if usable else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not usable:
        why = "no CUDA GPU was found" if _C.has_cuda else "raymarch was built without CUDA"
        raise DeviceError(f"--device {name}: {why}; use --device cpu, or see `raymarch doctor`")
    return device


def subset(cameras: Cameras, indices: tuple[int, ...], device: torch.device | None = None) -> Cameras:
    """Some of the cameras, in that order."""
    at = torch.tensor(indices, dtype=torch.int64)
    return Cameras(*(getattr(cameras, f)[at].to(device or "cpu") for f in CAMERA_FIELDS))


CAMERA_FIELDS = ("camera_to_worlds", "intrinsics", "distortion", "lens", "size")


def record(scene: Scene, source: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint keeps of a scene: cameras, names, split and units, but no images."""
    meta = {
        "source": source,
        "names": list(scene.names),
        "train": list(scene.train),
        "test": list(scene.test),
        "background": scene.background,
        "world_from_scene": scene.world_from_scene.to_dict(),
    }
    return meta, {f: getattr(scene.cameras, f).clone() for f in CAMERA_FIELDS}


def fitted(config: Config, scene: Scene) -> Config:
    """The config with what only the scene knows: the features' width, the background."""
    model = config.model
    wanted = model.fields.feature.width
    if scene.features is not None and wanted and scene.features.width != wanted:
        feature = replace(model.fields.feature, width=scene.features.width)
        model = replace(model, fields=replace(model.fields, feature=feature))
    if scene.features is None and wanted:
        raise ConfigError(
            "this preset distils features, but the scene has none: give feature maps, or train with "
            "--preset nerfacto (model.fields.feature.width=0)"
        )
    if scene.background != "none" and model.renderer.background == "last_sample":
        model = replace(model, renderer=replace(model.renderer, background=scene.background))
    return replace(config, model=model)


def start(
    scene: Scene,
    config: Config,
    run: Path | None = None,
    device: str | torch.device = "auto",
    source: dict[str, Any] | None = None,
) -> Trainer:
    """A trainer for a scene from step 0. `source` says how to load the scene again, for `resume`."""
    where = device if isinstance(device, torch.device) else pick_device(device)
    config = fitted(config, scene)
    if run is not None:
        if checkpoint.saved(run):
            raise ConfigError(f"{run} already holds a run; `raymarch resume {run}` continues it")
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(to_dict(config), indent=1))
    pixels = PixelSource(scene, scene.train, where)
    torch.manual_seed(config.train.trainer.seed)
    model = Model(config.model, len(scene.train)).to(where)
    check_refinable(model, pixels.cameras, scene)
    model.poses.precondition(pixels.cameras)
    meta, tensors = record(scene, source)
    return guarded(Trainer(model, pixels, config, run, meta, tensors), scene)


def guarded(trainer: Trainer, scene: Scene) -> Trainer:
    """The trainer, which will compare refined poses with poses as given where its config asks for it."""
    config = trainer.config
    if not config.guard_at or trainer.model.poses.adjustment is None:
        return trainer
    if not scene.test:
        raise ConfigError(
            "train.trainer.guard_at compares poses on held-out photos, but the scene has none: hold some out "
            "(--split every8), or set it to 0"
        )
    held_out = PixelSource(scene, scene.test, trainer.device)
    trainer.judge = lambda: guard(trainer, held_out, min(config.guard_steps, config.steps - trainer.step))
    return trainer


def resume(run: Path, device: str = "auto", scene: Scene | None = None, steps: int | None = None) -> Trainer:
    """The trainer of an interrupted run, exactly where its newest checkpoint left it."""
    tensors, meta = checkpoint.newest(run)
    config = from_dict(meta["config"])
    if steps is not None:
        until = replace(config.train.trainer, steps=steps)
        config = replace(config, train=replace(config.train, trainer=until))
    if scene is None:
        scene = reload_scene(meta, run)
    where = pick_device(device)
    model = Model(config.model, meta["cameras"]).to(where)
    scene_tensors = {k.removeprefix("scene."): v for k, v in tensors.items() if k.startswith("scene.")}
    trainer = Trainer(
        model, PixelSource(scene, scene.train, where), config, run, meta["scene"], scene_tensors
    )
    trainer.restore(tensors, meta)
    return guarded(trainer, scene)


def reload_scene(meta: dict[str, Any], run: Path) -> Scene:
    """The scene a run was trained on, loaded the same way."""
    source = meta["scene"]["source"]
    if source is None:
        raise ConfigError(f"{run} was trained from arrays, not from a folder; pass the scene to resume it")
    return load(Path(source["path"]), **source["options"])


class OpenRun:
    """A run's newest checkpoint, ready to render: model, cameras and units."""

    def __init__(self, run: Path, device: str = "auto"):
        tensors, meta = checkpoint.newest(run)
        where = pick_device(device)
        self.path, self.meta, self.device = run, meta, where
        self.config = from_dict(meta["config"])
        self.step: int = meta["step"]
        self.model = Model(self.config.model, meta["cameras"]).to(where)
        load_model(self.model, tensors)
        self.model.eval()
        scene = meta["scene"]
        self.cameras = Cameras(*(tensors[f"scene.{f}"] for f in CAMERA_FIELDS))
        self.names: list[str] = scene["names"]
        self.train, self.test = tuple(scene["train"]), tuple(scene["test"])
        self.background: str = scene["background"]
        self.world_from_scene = Similarity.from_dict(scene["world_from_scene"])

    def train_cameras(self, refined: bool = True) -> Cameras:
        """The training cameras, with their pose adjustments applied where `refined`."""
        found = subset(self.cameras, self.train, self.device)
        if not refined:
            return found
        with torch.no_grad():
            poses = self.model.poses.optimized_camera_to_worlds(found.camera_to_worlds)
        return replace(found, camera_to_worlds=poses)

    def test_cameras(self) -> Cameras:
        """The held-out cameras, as the data set has them."""
        return subset(self.cameras, self.test, self.device)
