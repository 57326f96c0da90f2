"""What a config cannot ask for, said before a scene is put on a device and before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from raymarch.config import Config, ConfigError
from raymarch.model.losses import DEPTH_KINDS
from raymarch.model.rays import box_on
from raymarch.ops.sample import JITTERS, SPACINGS
from raymarch.train.bundle import releases

AT_LEAST = {
    "train.trainer.steps": 1,
    "train.trainer.rays": 1,
    "train.trainer.log_every": 1,
    "train.trainer.save_every": 1,
    "train.trainer.keep": 1,
    "train.trainer.photos_gb": 0,
    "train.trainer.photos_every": 1,
    "train.trainer.poses_every": 1,
    "train.trainer.guard_at": 0,
    "train.trainer.guard_steps": 1,
    "train.bundle.hold": 0,
    "train.bundle.brake": 0,
    "train.bundle.rounds": 1,
    "train.bundle.steps": 1,
    "train.matches.points": 1,
    "train.matches.partners": 1,
    "train.matches.patch": 3,
    "train.matches.steps": 1,
    "model.rays.near": 0,
    "model.reduced.samples": 1,
    "model.reduced.steps": 1,
    "model.reduced.resolution": 2,
    "model.reduced.kept": 1,
}
WORDS = {
    "model.sampler.spacing": SPACINGS,
    "model.sampler.jitter": JITTERS,
    "model.losses.depth_kind": DEPTH_KINDS,
}
POSITIVE = ("lr", "lr_final")  # of every group of parameters
SEEDS = 2**63  # the counter on the device is int64


def check_settings(config: Config) -> None:
    """ConfigError names the first setting that nothing can be trained with, and what it may be."""
    for name, value in numbers(config):
        if not math.isfinite(value):
            raise ConfigError(f"{name} is {value}, expected a finite number")
    for name, least in AT_LEAST.items():
        if (value := at(config, name)) < least:
            raise ConfigError(f"{name} is {value}, expected at least {least}")
    for name, words in WORDS.items():
        if (word := at(config, name)) not in words:
            raise ConfigError(f"{name} is {word!r}, expected one of {', '.join(words)}")
    for group in ("fields", "proposals", "feature", "poses", "intrinsics"):
        for rate in POSITIVE:
            if (value := at(config, f"train.optim.{group}.{rate}")) <= 0:
                raise ConfigError(f"train.optim.{group}.{rate} is {value}, expected a positive learning rate")
    seed = config.train.trainer.seed
    if not -SEEDS <= seed < SEEDS:
        raise ConfigError(f"train.trainer.seed is {seed}, expected a number of 64 bits")
    for group in ("fields", "proposals", "feature", "poses", "intrinsics"):
        for name in ("delay", "warmup", "decay_steps"):
            if (value := at(config, f"train.optim.{group}.{name}")) is not None and value < 0:
                raise ConfigError(f"train.optim.{group}.{name} is {value}, expected at least 0")
    _check_bundle(config)
    _check_model(config)


def _check_bundle(config: Config) -> None:
    bundle, sides = config.train.bundle, config.train.matches.sides
    if min(bundle.at, default=1) < 1:
        raise ConfigError(f"train.bundle.at is {bundle.at}, expected steps of at least 1")
    if min(sides, default=0) < 16:
        raise ConfigError(f"train.matches.sides is {sides}, expected some, of at least 16 pixels")
    if bundle.at and config.model.poses.gauge == "mean":
        raise ConfigError(
            "train.bundle.at moves cameras together, which model.poses.gauge=mean cannot represent: "
            "set it to similarity or free"
        )
    last = max(releases(bundle), default=0)
    if 0 < config.train.trainer.guard_at < last:
        raise ConfigError(
            f"train.trainer.guard_at is {config.train.trainer.guard_at}, expected 0 or at least "
            f"{last}: until then poses are held by train.bundle.at and train.bundle.hold"
        )


def _check_model(config: Config) -> None:
    samples, proposals = config.model.sampler.samples, config.model.fields.proposals
    if len(samples) != len(proposals) + 1 or min(samples) < 1:
        raise ConfigError(
            f"model.sampler.samples is {samples}, expected {len(proposals) + 1} counts of at least 1: "
            "one for each of model.fields.proposals, then the final one"
        )
    rays = config.model.rays
    if rays.near >= rays.far:
        raise ConfigError(f"model.rays.near is {rays.near} and far is {rays.far}, expected near < far")
    if rays.box is not None:
        with as_config_error("model.rays.box"):
            box_on(rays.box, torch.device("cpu"))


def at(config: Any, name: str) -> Any:
    """The setting of a dotted name."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def numbers(node: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a config with its dotted name."""
    if is_dataclass(node):
        for field in fields(node):
            yield from numbers(getattr(node, field.name), f"{prefix}.{field.name}" if prefix else field.name)
    elif isinstance(node, tuple):
        for i, value in enumerate(node):
            yield from numbers(value, f"{prefix}.{i}")
    elif isinstance(node, float):
        yield prefix, node


@contextmanager
def as_config_error(about: str) -> Iterator[None]:
    """What refuses a setting deep in the model, as a ConfigError that says where settings lie."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        words = str(error)
        words = f"model.{words}" if words.startswith(("poses: ", "intrinsics: ")) else words
        known = words.startswith((about, "camera ", "pose refinement"))
        raise ConfigError(words if known else f"{about}: {words}") from error
