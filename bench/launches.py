"""What one training step would launch on a GPU, counted without one.

    python -m bench.launches --preset f3rm [--set model.fields.radiance.predicted_normals=true]

A step runs on the CPU, with small grids and few rays, since their size changes no count. Every torch op that
writes memory is a launch, and every native op as many as `SEVERAL` (raymarch/profiling/launches.py) says.
torch's own ops may launch more than one kernel, so this is a lower bound for them; for a step without them it
is exact.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from typing import Any

from raymarch.config import PRESETS, Config, override, preset
from raymarch.data.scene import Scene
from raymarch.data.synthetic import feature_maps, make_scene
from raymarch.profiling.launches import Launches
from raymarch.train.runs import start
from raymarch.train.trainer import Kind, Trainer


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
            trainer._one_step(Kind(update_proposals))
        with Launches() as counted:
            trainer._one_step(Kind(update_proposals))
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
