"""Config: the tree of every module's own settings. Presets, overrides by dotted name, and JSON both ways.

A knob's dotted name is the path of the file that reads it: `model.sampler.samples` is read in
`raymarch/model/sampler.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Any

from raymarch.model import ModelConfig
from raymarch.model.fields import FeatureConfig, FieldsConfig, GridConfig, ProposalConfig, RadianceConfig
from raymarch.model.poses import PosesConfig
from raymarch.model.reduced import ReducedConfig
from raymarch.train.bundle import BundleConfig
from raymarch.train.matches import MatchConfig
from raymarch.train.optim import GroupConfig, OptimConfig
from raymarch.train.trainer import TrainerConfig


class ConfigError(ValueError):
    """A setting that does not exist or does not fit; the message says which and what would."""


@dataclass(frozen=True)
class TrainConfig:
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    bundle: BundleConfig = field(default_factory=BundleConfig)
    matches: MatchConfig = field(default_factory=MatchConfig)


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


CAREFUL = PosesConfig(  # for poses that structure from motion found
    compose="camera",
    gauge="similarity",
    precondition=True,
    precondition_damping=0.01,
    precondition_spread=1.5,
    translation_penalty=0.0,
    rotation_penalty=0.0,
    through_proposals=False,
)


def nerfacto() -> Config:
    """nerfacto of nerfstudio 1.1, but for how poses are refined, which does no harm where they are right.

    There, refinement in the world frame, held by penalties, costs held-out photos (docs/poses.md). Here the
    cameras' common motion is taken out, coordinates move the picture equally, refinement waits until there
    is a map to align with, its rate is so low that noise does not lead it anywhere, and cameras move in every
    fourth step, which costs a fourth. Tenths of a degree are found; `nerfacto_rough` finds degrees.
    """
    base = Config()
    later = GroupConfig(lr=1e-3, lr_final=1e-5, decay_steps=5000, delay=500, warmup=500)
    return replace(
        base,
        model=replace(base.model, poses=CAREFUL),
        train=replace(
            base.train,
            trainer=replace(base.train.trainer, poses_every=4),
            optim=replace(base.train.optim, poses=replace(later, lr=2e-5, lr_final=2e-6), intrinsics=later),
        ),
    )


def f3rm() -> Config:
    """F3RM: nerfacto plus a feature field, which learns from what the radiance field knows of depth.

    F3RM itself lets the feature loss shape the density too (`model.fields.feature.detach_weights=false`):
    maps of one vector per 14 x 14 pixels blur it, by 0.2 to 0.3 dB of held-out PSNR (docs/performance.md).
    F3RM itself refines poses in the camera frame, without penalties, at a constant rate of 6e-4
    (`model.poses.compose=camera`, `train.optim.poses.lr_final=6e-4`, ...). There the cameras' common motion
    cannot be taken out, and held-out photos lose a decibel (docs/performance.md).
    """
    base = nerfacto()
    fields = replace(base.model.fields, feature=FeatureConfig(width=768, detach_weights=True))
    return replace(base, model=replace(base.model, fields=fields))


def rough(config: Config) -> Config:
    """The same for poses that are off by degrees, as odometry and trackers leave them (docs/poses.md).

    Poses move early, in every step and far, and are put right by bundle adjustment twice, after which they
    stay. Poses that are right end as good as they began: a thirtieth of a degree on fox.
    """
    moving = GroupConfig(lr=4e-3, lr_final=3e-5, decay_steps=10_000, delay=100, warmup=100, betas=(0.9, 0.99))
    train = config.train
    return replace(
        config,
        train=replace(
            train,
            trainer=replace(train.trainer, poses_every=1, steps=10_000),
            optim=replace(train.optim, poses=moving),
            bundle=replace(train.bundle, at=(1000, 3000)),
        ),
    )


def nerfacto_rough() -> Config:
    """nerfacto for poses that are off by degrees: `rough`."""
    return rough(nerfacto())


def f3rm_rough() -> Config:
    """f3rm for poses that are off by degrees: `rough`."""
    return rough(f3rm())


def tiny() -> Config:
    """For a laptop without a GPU: small grids, few samples, the same pipeline."""
    grid = GridConfig(levels=10, base_resolution=8, max_resolution=256, log2_size=15)
    look = GridConfig(levels=5, base_resolution=8, max_resolution=96, log2_size=14)
    base = nerfacto()
    return Config(
        model=replace(
            base.model,
            poses=PosesConfig(gauge="mean"),
            rays=replace(base.model.rays, far=1000.0),
            reduced=ReducedConfig(samples=32, steps=192, resolution=256),
            sampler=replace(base.model.sampler, samples=(48, 24), anneal_steps=200, update_warmup=500),
            fields=FieldsConfig(
                proposals=(ProposalConfig(grid=look),),
                radiance=RadianceConfig(grid=grid, hidden=32, colour_hidden=32, appearance=0),
                feature=FeatureConfig(
                    width=0,
                    grid=GridConfig(levels=6, base_resolution=8, max_resolution=96, log2_size=14, features=2),
                    hidden=32,
                ),
            ),
        ),
        train=replace(
            base.train,
            trainer=replace(base.train.trainer, rays=1024, steps=1000, poses_every=1),
            optim=OptimConfig(
                fields=GroupConfig(lr=1e-2, lr_final=1e-3, decay_steps=1000),
                proposals=GroupConfig(lr=1e-2, lr_final=1e-3, decay_steps=1000),
                feature=GroupConfig(lr=1e-2, lr_final=1e-3, decay_steps=1000),
                poses=GroupConfig(lr=1e-3, lr_final=1e-4, decay_steps=1000),
                intrinsics=GroupConfig(lr=1e-3, lr_final=1e-5, decay_steps=1000),
            ),
        ),
    )


PRESETS = {
    "nerfacto": nerfacto,
    "f3rm": f3rm,
    "nerfacto_rough": nerfacto_rough,
    "f3rm_rough": f3rm_rough,
    "tiny": tiny,
}


def preset(name: str) -> Config:
    """The named preset; ConfigError names the nearest one if there is none."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}{_nearest(name, PRESETS)} (there are {', '.join(PRESETS)})")
    return PRESETS[name]()


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.3)
    return f"; did you mean {close[0]!r}?" if close else ""


def override(config: Any, assignment: str) -> Any:
    """`config` with one knob changed, as in `model.sampler.samples=256,96,48`."""
    name, sign, text = assignment.partition("=")
    if not sign:
        raise ConfigError(f"expected NAME=VALUE, got {assignment!r}")
    return _set(config, name.strip().split("."), text.strip(), name.strip())


def _set(node: Any, path: list[str], text: str, full: str) -> Any:
    head, *rest = path
    if isinstance(node, tuple) and head.isdigit() and int(head) < len(node) and rest:
        changed = _set(node[int(head)], rest, text, full)
        return (*node[: int(head)], changed, *node[int(head) + 1 :])
    if not dataclasses.is_dataclass(node):
        raise ConfigError(f"{full}: nothing lies below a {type(node).__name__}")
    names = [f.name for f in dataclasses.fields(node)]
    if head not in names:
        known = list(_names(node))
        raise ConfigError(f"unknown setting {full!r}{_nearest('.'.join(path), known)}")
    if rest:
        return replace(node, **{head: _set(getattr(node, head), rest, text, full)})  # type: ignore[type-var]
    hint = typing.get_type_hints(type(node))[head]
    return replace(node, **{head: _parse(hint, text, full)})  # type: ignore[type-var]


def _names(node: Any, prefix: str = "") -> typing.Iterator[str]:
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        yield prefix + f.name
        if dataclasses.is_dataclass(value):
            yield from _names(value, f"{prefix}{f.name}.")


def _parse(hint: Any, text: str, name: str) -> Any:
    """Text from the command line as a value of the annotated type."""
    if hint is str:
        return text
    if hint is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ConfigError(f"{name}: expected true or false, got {text!r}")
        return text.lower() in ("true", "1", "yes")
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    bare = any(typing.get_origin(kind) is tuple for kind in kinds) and "(" not in text
    bare = bare and not (text.lower() == "none" and type(None) in kinds)
    try:
        value = ast.literal_eval(f"({text},)" if bare else text)
    except (ValueError, SyntaxError):
        value = text
    return _typed(hint, value, name)


def _typed(hint: Any, value: Any, name: str) -> Any:
    """A JSON or literal value as the annotated type, or one sentence about why not."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            try:
                return _typed(option, value, name)
            except ConfigError:
                continue
    elif hint is type(None) and value in (None, "none", "None"):
        return None
    elif origin is tuple and isinstance(value, (list, tuple)):
        kinds = typing.get_args(hint)
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            return tuple(_typed(kinds[0], v, f"{name}[{i}]") for i, v in enumerate(value))
        if len(kinds) == len(value):
            return tuple(
                _typed(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
            )
    elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _from_dict(hint, value, name + ".")
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint in (int, bool, str) and type(value) is hint:
        return value
    spelled = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"{name}: expected {spelled}, got {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """The whole tree as JSON-ready values."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """A config from `to_dict`'s form. Missing settings take their defaults; unknown ones are refused."""
    return _from_dict(Config, values, "")


def _from_dict(kind: Any, values: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise ConfigError(f"unknown setting {prefix + name!r}{_nearest(name, hints)}")
    return kind(**{name: _typed(hints[name], value, prefix + name) for name, value in values.items()})
