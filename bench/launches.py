"""What one training step would launch on a GPU, counted without one.

    python -m bench.launches --preset f3rm [--set model.fields.radiance.predicted_normals=true]

A step runs on the CPU, with small grids and few rays, since their size changes no count. Every torch op that
writes memory is a launch, and every native op as many as `SEVERAL` says. torch's own ops may launch more than
one kernel, so this is a lower bound for them; for a step without them it is exact.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raymarch.config import PRESETS, Config, override, preset
from raymarch.data.scene import Scene
from raymarch.data.synthetic import feature_maps, make_scene
from raymarch.ops import _op
from raymarch.train.runs import start
from raymarch.train.trainer import Trainer

# Native ops of more or fewer launches than one, given their arguments (memsets count).
SEVERAL: dict[str, Callable[[dict[str, Any]], int]] = {
    "rays_backward": lambda a: (
        (1 if a["same_every_time"] else 2)
        * ((a["grad_camera_to_worlds"] is not None) + (a["grad_adjustment"] is not None))
    ),
    "mlp_backward": lambda a: 1 + (a["grad_params"] is not None),
    "composite_backward": lambda a: 1 + (a["grad_feature"] is not None and a["g_feature"] is None),
    "hashgrid_backward": lambda a: 1 if a["exact"] is None else 3,
    "hashgrid_layout": lambda a: 0,
}

# torch ops that launch nothing though their schema does not call them views.
SILENT = {
    "detach", "alias", "_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "_reshape_alias", "lift_fresh", "set_", "resize_", "is_same_size", "reshape",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """While open, counts in `found` what a GPU would launch. Sees what torch does in native ops, too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __enter__(self) -> Launches:
        self._launch = _op.watch_launches(self._native)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _op.watch_launches(self._launch)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "raymarch":
            with self:
                return _op.bodies[func._schema.name](*args, **kwargs)
        result = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if not func.is_view and name not in SILENT and not _unmoved(func, args, result):
            self.found[name] += 1
        return result

    def _native(self, kernel: str, arguments: dict[str, Any]) -> None:
        self.found[kernel] += SEVERAL.get(kernel, lambda a: 1)(arguments)


def _unmoved(func: Any, args: tuple, result: Any) -> bool:
    """Whether the result of an op that might copy is its argument."""
    return (
        bool(args) and isinstance(result, torch.Tensor) and result is args[0] and not func._schema.is_mutable
    )


def small(config: Config) -> Config:
    """The same step over a small scene: counts depend on what there is, not on how much."""
    fields = config.model.fields
    shrunk = {"log2_size": 10}

    def cut(part: Any) -> Any:
        return replace(part, grid=replace(part.grid, **shrunk))

    fields = replace(
        fields,
        proposals=tuple(cut(p) for p in fields.proposals),
        radiance=cut(fields.radiance),
        feature=cut(fields.feature),
    )
    trainer = replace(config.train.trainer, rays=8, steps=20)
    return replace(
        config,
        model=replace(config.model, fields=fields),
        train=replace(config.train, trainer=trainer),
    )


def trainer_of(config: Config) -> Trainer:
    truth = make_scene(views=4, test_views=1, size=16, seed=0)
    width = config.model.fields.feature.width
    scene = Scene.from_arrays(
        truth.images,
        truth.intrinsics,
        truth.camera_to_worlds,
        features=list(feature_maps(truth)) if width else None,
        split=(truth.train, truth.test),
        orientation="none",
        center="none",
        scale=1.0,
    )
    return start(scene, small(config), device="cpu")


def launches(config: Config, update_proposals: bool = True) -> Counter[str]:
    """What a step of the config launches, by name, after the first steps have made what they keep."""
    trainer = trainer_of(config)
    trainer.model.train()
    with trainer.optim.keeping_copies():
        for _ in range(2):
            trainer._one_step(update_proposals)
        with Launches() as counted:
            trainer._one_step(update_proposals)
    return counted.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="f3rm", choices=PRESETS)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    config = preset(args.preset)
    for assignment in args.set:
        config = override(config, assignment)
    for update in (True, False):
        found = launches(config, update)
        print(f"{sum(found.values())} launches where proposals {'learn' if update else 'do not learn'}")
        for name, count in found.most_common():
            print(f"  {count:4d} {name}")


if __name__ == "__main__":
    main()
