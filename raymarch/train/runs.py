"""Runs: a folder with a config, a log and checkpoints. Start one, resume one, open one to look at."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymarch.config import Config, ConfigError, from_dict, override, to_dict
from raymarch.data.atomic import write_text
from raymarch.data.maps import FeatureMaps
from raymarch.data.pixels import Source
from raymarch.data.scene import Scene, load
from raymarch.data.similarity import Similarity
from raymarch.data.store import ours
from raymarch.data.window import pixel_source
from raymarch.model import Model
from raymarch.train import checkpoint
from raymarch.train.bundle import bundle
from raymarch.train.claim import CONFIG, check_vacant, claim
from raymarch.train.guard import guard
from raymarch.train.matches import check_lenses
from raymarch.train.refinable import check_refinable
from raymarch.train.settings import as_config_error, check_settings
from raymarch.train.trainer import LOG, Trainer, load_model
from raymarch.types import Cameras

# What `raymarch.data.scene.load` may be asked for by a file; callbacks are not among it.
LOAD_OPTIONS = inspect.signature(load).parameters.keys() - {"path", "progress", "threads"}


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


def smaller(cameras: Cameras, side: int) -> Cameras:
    """The same cameras with at most `side` pixels on the longer side of each; at least one on the other."""
    size = cameras.size.double()
    factor = (side / size.amax(1, keepdim=True)).clamp_max(1.0)
    shrunk = (size * factor).round().clamp_min(1)
    intrinsics = cameras.intrinsics * (shrunk / size).repeat(1, 2).to(cameras.intrinsics)
    return replace(cameras, intrinsics=intrinsics, size=shrunk.long())


CAMERA_FIELDS = ("camera_to_worlds", "intrinsics", "distortion", "lens", "size")


def describe_head(features: FeatureMaps) -> dict[str, Any]:
    """What a checkpoint keeps of a head's maps: enough to find the text encoder that fits them."""
    return {"name": features.kind, "width": features.width, "mode": features.mode, "info": features.info}


def record(scene: Scene, source: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint keeps of a scene: cameras, names, split and units, but no images."""
    meta = {
        "source": source,
        "names": list(scene.names),
        "train": list(scene.train),
        "test": list(scene.test),
        "background": scene.background,
        "world_from_scene": scene.world_from_scene.to_dict(),
        "features": [] if scene.features is None else [describe_head(x) for x in scene.features.heads],
    }
    return meta, {f: getattr(scene.cameras, f).clone() for f in CAMERA_FIELDS}


def heads_of(features: FeatureMaps) -> tuple[tuple[str, int], ...]:
    """Name and width of each head that maps are distilled into."""
    kinds = [head.kind for head in features.heads]
    if repeated := [kind for kind in kinds if kinds.count(kind) > 1]:
        raise ConfigError(
            f"two feature files are of one kind, {repeated[0]!r}: a head needs a name of its own"
        )
    return tuple((head.kind, head.width) for head in features.heads)


def fitted(config: Config, scene: Scene) -> Config:
    """The config with what only the scene knows: the features' width, the background."""
    model = config.model
    wanted = model.fields.feature.width
    if scene.features is not None and wanted:
        heads = heads_of(scene.features)
        width = sum(width for _, width in heads)
        feature = replace(model.fields.feature, width=width, heads=heads if len(heads) > 1 else ())
        model = replace(model, fields=replace(model.fields, feature=feature))
    if scene.features is None and wanted:
        raise ConfigError(
            "this preset distils features, but the scene has none: make some with `raymarch extract`, give "
            "feature maps, or train with "
            "--preset nerfacto (model.fields.feature.width=0)"
        )
    if scene.background != "none" and model.renderer.background == "last_sample":
        model = replace(model, renderer=replace(model.renderer, background=scene.background))
    return replace(config, model=model)


def start(
    scene: Scene,
    config: Config,
    run: str | Path | None = None,
    device: str | torch.device = "auto",
    source: dict[str, Any] | None = None,
) -> Trainer:
    """A trainer for a scene from step 0, which keeps its log and checkpoints in the folder `run`, if given.

    `source` says how to load the scene again, for `resume`. The model's first numbers come from the config's
    seed; torch's own generators are left as they are. ConfigError where a setting makes no sense, where
    the folder holds something else or is being trained, or the scene lacks what the config needs.
    """
    run = None if run is None else Path(run)
    where = device if isinstance(device, torch.device) else pick_device(device)
    config = fitted(config, scene)
    check_settings(config)
    if run is not None:
        check_vacant(run)
    with as_config_error("model"), torch.random.fork_rng(devices=[]):  # the caller's numbers stay theirs
        torch.manual_seed(config.train.trainer.seed)
        model = Model(config.model, len(scene.train)).to(where)
        pixels = photos_of(scene, config, where)
        check_refinable(model, pixels.cameras, scene)
        model.poses.precondition(pixels.cameras)
        model.intrinsics.measure(pixels.cameras, [scene.names[i] for i in scene.train])
    meta, tensors = record(scene, source)
    trainer = guarded(Trainer(model, pixels, config, run, meta, tensors), scene)
    if run is not None:
        begin(trainer, run)
    return trainer


def begin(trainer: Trainer, run: Path) -> None:
    """Make the run folder this trainer's: nobody else's meanwhile, with its settings and an empty log."""
    run.mkdir(parents=True, exist_ok=True)
    trainer.claim = claim(run)
    check_vacant(run)  # another process may have trained here since
    (run / LOG).unlink(missing_ok=True)
    write_text(run / CONFIG, json.dumps(to_dict(trainer.full_config), indent=1))


def guarded(trainer: Trainer, scene: Scene) -> Trainer:
    """The trainer, which will adjust poses to one another, and compare refined poses with poses as given,
    where its config asks for it."""
    config = trainer.config
    named = {
        "train.trainer.guard_at": (config.guard_at,),
        "train.bundle.at": trainer.full_config.train.bundle.at,
    }
    for name, steps in named.items():
        if late := [at for at in steps if at >= config.steps]:
            trainer.notes.append(
                f"{name} names step {late[0]}, which training of {config.steps} steps does not go beyond: "
                "nothing is done there"
            )
    if trainer.full_config.train.bundle.at:
        if trainer.model.poses.adjustment is None:
            raise ConfigError("train.bundle.at adjusts poses, but model.poses.mode is off: set it to SO3xR3")
        with as_config_error("matches"):
            check_lenses(trainer.source.cameras)
        trainer.adjust = lambda: bundle(trainer, scene)
    if not config.guard_at or trainer.model.poses.adjustment is None:
        return trainer
    if not scene.test:
        raise ConfigError(
            "train.trainer.guard_at compares poses on held-out photos, but the scene has none: hold some out "
            "(--split every8), or set it to 0"
        )
    held_out = photos_of(
        replace(scene, features=None, depths=None), trainer.full_config, trainer.device, scene.test
    )
    trainer.judge = lambda: guard(trainer, held_out, min(config.guard_steps, config.steps - trainer.step))
    return trainer


def photos_of(
    scene: Scene, config: Config, device: torch.device, indices: tuple[int, ...] | None = None
) -> Source:
    """Photos (default: for training) on the device, or a moving window of them where they do not fit."""
    trainer = config.train.trainer
    most = int(trainer.photos_gb * 1e9) or None
    chosen = scene.train if indices is None else indices
    return pixel_source(scene, chosen, device, most, trainer.seed, trainer.photos_every)


def under(backend: str, config: Config) -> Config:
    """The config with its fields run by that backend: parameters are the same."""
    return replace(config, model=replace(config.model, fields=replace(config.model.fields, backend=backend)))


def resume(
    run: Path,
    device: str = "auto",
    scene: Scene | None = None,
    steps: int | None = None,
    settings: Sequence[str] = (),
    data: Path | None = None,
    backend: str | None = None,
    only_look: bool = False,
) -> Trainer:
    """The trainer of an interrupted run, exactly where its newest checkpoint left it.

    steps: train up to this many. settings: what to change from here on, as train.trainer.rays=2048; only
    those below `train`, since the model is what it is. data: where the scene's folder is now. backend: native
    or tcnn; None is the one it was trained with. only_look: the trainer writes nothing, the folder may be
    another process's, and the scene may be another.
    CheckpointError, SceneError, and ConfigError for settings and scenes that do not fit the run.
    """
    return resumed(run, device, scene, steps, settings, data, backend, only_look)[0]


def resumed(
    run: Path,
    device: str = "auto",
    scene: Scene | None = None,
    steps: int | None = None,
    settings: Sequence[str] = (),
    data: Path | None = None,
    backend: str | None = None,
    only_look: bool = False,
) -> tuple[Trainer, Scene]:
    """What `resume` returns, and the scene that it trains on."""
    tensors, meta = checkpoint.newest(run)
    checkpoint.check_whole(run, tensors, meta)
    config = _changed(config_of(meta, run), steps, settings)
    if backend is not None:
        config = under(backend, config)
    if config.train.trainer.steps < meta["step"]:
        raise ConfigError(
            f"{run} is at step {meta['step']} already, so it cannot be trained up to "
            f"{config.train.trainer.steps}: ask for more steps, or leave --steps out"
        )
    check_settings(config)
    held = None if only_look else claim(run)
    if scene is None:
        scene, meta = reload_scene(meta, run, data), _moved(meta, data)
    if not only_look:
        check_same(meta, tensors, scene, run)
    _check_features(config, scene, run)
    where = pick_device(device)
    with as_config_error("model"):
        model = Model(config.model, meta["cameras"]).to(where)
    scene_tensors = {k.removeprefix("scene."): v for k, v in tensors.items() if k.startswith("scene.")}
    pixels, kept = photos_of(scene, config, where), None if only_look else run
    trainer = Trainer(model, pixels, config, kept, meta["scene"], scene_tensors)
    trainer.claim = held
    trainer.restore(tensors, meta)
    trainer.notes += meta["problems"]
    return guarded(trainer, scene), scene


def config_of(meta: dict[str, Any], run: Path) -> Config:
    """The config in a checkpoint's header. CheckpointError where this version has no such settings."""
    try:
        return from_dict(meta["config"])
    except ConfigError as problem:
        raise checkpoint.CheckpointError(
            f"{run} was trained by another version of raymarch, or its checkpoint was changed: {problem}"
        ) from None


def _changed(config: Config, steps: int | None, settings: Sequence[str]) -> Config:
    """The config with settings of the training changed."""
    for assignment in settings:
        if not assignment.startswith("train."):
            raise ConfigError(
                f"--set {assignment}: a run that was begun can change settings below train. only; "
                "start another run with --out for the rest"
            )
        config = override(config, assignment)
    return config if steps is None else override(config, f"train.trainer.steps={steps}")


def _moved(meta: dict[str, Any], data: Path | None) -> dict[str, Any]:
    """The header, naming the folder that the scene lies in now."""
    scene = meta["scene"]
    if data is None or scene["source"] is None:
        return meta
    return meta | {"scene": scene | {"source": scene["source"] | {"path": str(data.resolve())}}}


def check_same(meta: dict[str, Any], tensors: dict[str, Tensor], scene: Scene, run: Path) -> None:
    """ConfigError where a scene is no longer the one that a run was begun with."""
    was = [meta["scene"]["names"][i] for i in meta["scene"]["train"]]
    now = [scene.names[i] for i in scene.train]
    if was != now:
        gone, new = [x for x in was if x not in now], [x for x in now if x not in was]
        which = f"{gone[0]} is gone" if gone else f"{new[0]} is new" if new else "their order is another"
        raise ConfigError(
            f"{run} was trained on {len(was)} photos, the scene has {len(now)} to train on now ({which}): "
            "put back what it was, or start a new run with --out"
        )
    for name in ("camera_to_worlds", "intrinsics"):
        before, after = tensors[f"scene.{name}"], getattr(scene.cameras, name)
        if before.shape != after.shape or not torch.allclose(before, after, rtol=1e-4, atol=1e-4):
            raise ConfigError(
                f"{run} was trained with other {'poses' if 'world' in name else 'lenses'} than the scene has "
                "now: put back what it was, or start a new run with --out"
            )


def _check_features(config: Config, scene: Scene, run: Path) -> None:
    """The maps at hand must be those that the checkpoint's heads were made for."""
    wanted = config.model.fields.feature
    if not wanted.width:
        return
    if scene.features is None:
        raise ConfigError(
            f"{run} distils features, but the scene came without any: put the feature files back where they "
            "were when it was begun"
        )
    heads = heads_of(scene.features)
    if (heads if wanted.heads else sum(width for _, width in heads)) != (wanted.heads or wanted.width):
        found = ", ".join(f"{name} {width}" for name, width in heads)
        made = ", ".join(f"{name} {width}" for name, width in wanted.heads) or str(wanted.width)
        raise ConfigError(
            f"{run} was trained on features {made} wide, those of the scene are {found} wide: "
            "give the features it was started with, or start a new run"
        )


def reload_scene(meta: dict[str, Any], run: Path, data: Path | None = None) -> Scene:
    """The scene a run was trained on, loaded the same way, from `data` if it has moved there."""
    source = meta["scene"].get("source")
    if source is None and data is None:
        raise ConfigError(
            f"{run} was trained from arrays, not from a folder: say with --data where its photos "
            "are, or pass the scene from Python"
        )
    if source is None:
        source = {"path": str(data), "options": {}}
    from raymarch.train.refined import with_adjustments  # reads runs

    path, options = data or Path(source["path"]), _options(source, run)
    if data is None and not path.exists():
        raise ConfigError(
            f"{run} was trained on {path}, which does not exist any more: say where it is now with --data"
        )
    return with_adjustments(load(path, **options), source.get("adjustments"))


def _options(source: dict[str, Any], run: Path) -> dict[str, Any]:
    """How a checkpoint says to load its scene.

    Of what it says, only a cache folder is ever written to: one that has been ours before, else the user's.
    """
    options = dict(source["options"])
    if unknown := sorted(options.keys() - LOAD_OPTIONS):
        raise checkpoint.CheckpointError(
            f"{run} was trained by another version of raymarch, which loads scenes with {unknown[0]!r}: "
            "this one has no such option"
        )
    cache = options.get("cache")
    if cache not in (None, "auto") and not ours(Path(cache).expanduser()):
        options["cache"] = "auto"
    return options


class OpenRun:
    """A run's newest checkpoint, ready to render: model, cameras and units.

    Our own kernels run its fields whoever trained them, so that it opens where tiny-cuda-nn is missing;
    `backend` "tcnn" asks for the other.
    """

    def __init__(self, run: Path, device: str = "auto", backend: str = "native"):
        tensors, meta = checkpoint.newest(run)
        where = pick_device(device)
        self.path, self.meta, self.device = run, meta, where
        checkpoint.check_whole(run, tensors, meta)
        self.config = config_of(meta, run)
        self.step: int = meta["step"]
        with as_config_error("model"):
            self.model = Model(under(backend, self.config).model, meta["cameras"]).to(where)
        load_model(self.model, tensors)
        self.model.eval()
        scene = meta["scene"]
        self.cameras = Cameras(*(tensors[f"scene.{f}"] for f in CAMERA_FIELDS))
        self.names: list[str] = scene["names"]
        self.train, self.test = tuple(scene["train"]), tuple(scene["test"])
        self.background: str = scene["background"]
        self.world_from_scene = Similarity.from_dict(scene["world_from_scene"])

    def refresh(self) -> bool:
        """Take over the newest checkpoint of the same run, in place; whether it is another than before."""
        files = checkpoint.saved(self.path)
        if not files or files[0] == checkpoint.path_at(self.path, self.step):
            return False
        tensors, meta = checkpoint.newest(self.path)
        if meta["step"] == self.step:
            return False
        if config_of(meta, self.path) != self.config or meta["cameras"] != self.meta["cameras"]:
            raise checkpoint.CheckpointError(f"{self.path} is another run now: open it again")
        load_model(self.model, tensors)
        self.meta, self.step = meta, meta["step"]
        return True

    def train_cameras(self, refined: bool = True) -> Cameras:
        """The training cameras, with their poses and lenses as refined where `refined`."""
        found = subset(self.cameras, self.train, self.device)
        if not refined:
            return found
        with torch.no_grad():
            poses = self.model.poses.optimized_camera_to_worlds(found.camera_to_worlds)
            return replace(self.model.intrinsics(found), camera_to_worlds=poses)

    def test_cameras(self) -> Cameras:
        """The held-out cameras: poses as the data set has them, lenses as training refined those it knows."""
        given = self.train_cameras(refined=False)
        return self.model.intrinsics.of_others(given, subset(self.cameras, self.test, self.device))
