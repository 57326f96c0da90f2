"""Golden frames: the engine in float32 against bench.reference in float64, on the synthetic scene.

    python -m bench.golden [--frames 12] [--size 64] [--steps 300] [--device cpu] [--no-record]

A small model with every head is trained for a few hundred steps, then both render the same frames: exact mode
from pixel to head, proposal sampling included. The reduced mode is held to what `raymarch.model.reduced` says
of it: on its own samples to the reference, and each of its savings to its bound.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench import record
from bench.reference import Reference
from raymarch.config import Config, override, preset
from raymarch.data.scene import Scene
from raymarch.data.synthetic import feature_maps, make_scene, ring_of_cameras
from raymarch.model import Model
from raymarch.model.frames import FrameRenderer
from raymarch.model.rays import generate
from raymarch.model.reduced import networks_fit, pictures, render_rays
from raymarch.ops.march import march
from raymarch.train.runs import start, subset
from raymarch.train.trainer import Trainer
from raymarch.types import Cameras, Pixels

LEAST_DB = 50.0  # of every frame's rgb
# Of the other heads, over all frames: most of the median error and of what 99 of 100 pixels keep to. Depths
# relative to their truth, unit normals in degrees, features relative to their root mean square.
# A median depth steps from sample to sample, so a few pixels may be a whole sample off. Predicted normals
# read sines of positions that are not contracted, which float32 knows to 6e-5 at a distance of 1000.
BOUNDS = {
    "depth": (1e-4, 1e-3),
    "expected_depth": (1e-4, 1e-3),
    "opacity": (1e-5, 1e-4),
    "normals": (0.02, 0.2),
    "predicted_normals": (0.02, 0.5),
    "feature": (1e-4, 1e-3),
}
# The same where networks run in half precision, as on a GPU: their factors are off by up to 5e-4 of
# themselves, eight thousand times what float's are, and everything that a network says is, too. Normals come
# from the slope of the density, in which half's error of neighbouring samples does not cancel; where nothing
# is seen they point anywhere.
HALF_BOUNDS = {
    "depth": (5e-4, 5e-3),
    "expected_depth": (5e-4, 1e-2),
    "opacity": (5e-5, 1e-3),
    "normals": (1.0, 30.0),
    "predicted_normals": (1.0, 10.0),
    "feature": (1e-3, 1e-2),
}
REDUCED_ON_ITS_SAMPLES_DB = 50.0


def golden_config(steps: int, rays: int = 512) -> Config:
    """The tiny preset with every head, and networks that the ops of several stages run."""
    found = preset("tiny")
    settings = {
        "train.trainer.steps": steps,
        "train.trainer.rays": rays,
        "model.fields.radiance.hidden": 64,
        "model.fields.radiance.colour_hidden": 64,
        "model.fields.radiance.appearance": 4,
        "model.fields.radiance.predicted_normals": "true",
        "model.fields.feature.width": 32,
        **{f"model.fields.{x}.grid.storage": "float32" for x in ("radiance", "feature", "proposals.0")},
        "model.poses.mode": "off",
        "model.reduced.resolution": 128,
        **{f"train.optim.{group}.decay_steps": steps for group in ("fields", "proposals", "feature")},
    }
    for name, value in settings.items():
        found = override(found, f"{name}={value}")
    return found


def trained(steps: int, size: int, device: str = "cpu", views: int = 16, rays: int = 512) -> Trainer:
    """A model that has seen the synthetic scene for a while."""
    truth = make_scene(views=views, test_views=0, size=size, seed=0)
    scene = Scene.from_arrays(
        truth.images, truth.intrinsics, truth.camera_to_worlds, features=list(feature_maps(truth)),
        split=(truth.train, ()), orientation="none", center="none", scale=1.0,
    )  # fmt: skip
    trainer = start(scene, golden_config(steps, rays), device=device)
    for _ in trainer.iterate():
        pass
    trainer.model.eval()
    return trainer


def cameras_of(count: int, size: int, like: Cameras) -> Cameras:
    """Cameras between the training ones, with their lens at another size."""
    poses = torch.from_numpy(ring_of_cameras(count, 0, held_out=True)).to(like.camera_to_worlds)
    first = subset(like, (0,) * count, like.camera_to_worlds.device)
    scale = size / float(like.size[0, 0])
    return replace(
        first,
        camera_to_worlds=poses,
        intrinsics=first.intrinsics * scale,
        size=torch.full_like(first.size, size),
    )


def decibels(got: Tensor, want: Tensor) -> float:
    """PSNR with data range 1; 200 where nothing differs."""
    return min(-10 * math.log10(max(float((got.double() - want.double()).square().mean()), 1e-20)), 200.0)


def errors(name: str, got: Tensor, want: Tensor) -> Tensor:
    """Per pixel, in the units of BOUNDS."""
    got, want = got.cpu().double(), want.double()
    if "normals" in name:
        half = ((got - want).norm(dim=-1) / 2).clamp_max(1)  # an arc cosine would round small angles away
        return torch.rad2deg(2 * torch.asin(half))[want.norm(dim=-1) > 0.5]
    if name == "feature":
        return (got - want).norm(dim=-1).flatten() / want.norm(dim=-1).square().mean().sqrt()
    if name == "opacity":
        return (got - want).abs().flatten()
    return ((got - want).abs() / want).flatten()


def compare(model: Model, cameras: Cameras, frames: FrameRenderer | None = None) -> dict[str, Any]:
    """Exact frames against the reference: the worst rgb in dB, and each other head's errors."""
    reference, frames = Reference.of(model), frames or FrameRenderer(model)
    heads = frozenset({"rgb", *BOUNDS}) - {"expected_depth"}
    worst: list[float] = []
    off: dict[str, list[Tensor]] = {name: [] for name in BOUNDS}
    for i in range(len(cameras.size)):
        width, height = (int(v) for v in cameras.size[i])
        want = reference.render(cameras.camera_to_worlds[i].cpu(), cameras.intrinsics[i].cpu(), width, height)
        got = frames.render(cameras, i, heads)
        if "feature" not in got:
            raise ValueError("golden: the model has no feature field")
        worst.append(decibels(got["rgb"].cpu(), want["rgb"]))
        for name in BOUNDS:
            off[name].append(errors(name, got[name], want[name]).flatten())
    found: dict[str, Any] = {"frames": len(worst), "rgb_least_db": min(worst), "rgb_most_db": max(worst)}
    for name, parts in off.items():
        every = torch.cat(parts)
        found[f"{name}_median"] = float(every.median())
        found[f"{name}_p99"] = float(every.quantile(0.99))
    return found


def missed(found: Mapping[str, Any], promised: Mapping[str, tuple[float, float]] = BOUNDS) -> list[str]:
    """What of a comparison is worse than promised."""
    bad = [] if found["rgb_least_db"] >= LEAST_DB else [f"rgb {found['rgb_least_db']:.1f} dB"]
    for name, bounds in promised.items():
        for word, bound in zip(("median", "p99"), bounds, strict=True):
            value = found[f"{name}_{word}"]
            if not value <= bound:
                bad.append(f"{name} {word} {value:.2e} > {bound:g}")
    return bad


@torch.no_grad()
def compare_reduced(model: Model, cameras: Cameras) -> dict[str, Any]:
    """The reduced mode on its own samples against the reference, each saving against its bound.

    `*_most` is the largest change of any colour that a saving makes, `*_bound` what raymarch.model.reduced
    allows.
    """
    frames, reference = FrameRenderer(model), Reference.of(model)
    config, sampler, device = model.config.reduced, model.config.sampler, cameras.camera_to_worlds.device
    baked = frames.bake()
    found: dict[str, Any] = {"reduced_on_its_samples_db": 200.0, "reduced_against_exact_db": 200.0}
    bounds = {"stop": math.exp(-config.stop), "least": config.samples * config.least}
    found |= {f"{name}_bound": bound for name, bound in bounds.items()} | {f"{x}_most": 0.0 for x in bounds}
    for i in range(len(cameras.size)):
        width, height = (int(v) for v in cameras.size[i])
        row, column = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        xy = torch.stack([column, row], -1).view(-1, 2).float() + 0.5
        which = torch.full((len(xy),), i, dtype=torch.int64, device=device)
        rays = generate(Pixels(which, xy), cameras, None, model.config.rays, False)
        got = render_rays(model, rays, baked, frozenset({"rgb"}))["rgb"].cpu()
        spaced = (model.config.fields.norm, sampler.spacing, config.padding / config.steps, config.stop)
        t = march(
            rays.origins, rays.directions, rays.near, rays.far, baked.density, config.samples, config.steps,
            *spaced,
        )  # fmt: skip
        lines = [x.cpu().double() for x in (rays.origins, rays.directions, t)]
        want = reference.composite(*lines)["rgb"]
        exact = frames.render(cameras, i, frozenset({"rgb"}))["rgb"].cpu().view(-1, 3)
        for name, other in (("on_its_samples", want), ("against_exact", exact)):
            key = f"reduced_{name}_db"
            found[key] = min(found[key], decibels(got, other))
        if networks_fit(model.fields.radiance):
            whole = pictures(model, rays, t, False, baked).rgb
            for name, less in (("stop", {"stop": config.stop}), ("least", {"least": config.least})):
                change = float((pictures(model, rays, t, False, baked, **less).rgb - whole).abs().max())
                found[f"{name}_most"] = max(found[f"{name}_most"], change)
    return found


def missed_reduced(found: Mapping[str, Any], rounding: float = 1e-5) -> list[str]:
    """What of the reduced mode is worse than promised."""
    bad = [f"{x} {found[f'{x}_most']:.2e} > {found[f'{x}_bound']:.2e}" for x in ("stop", "least")
           if found[f"{x}_most"] > found[f"{x}_bound"] + rounding]  # fmt: skip
    if found["reduced_on_its_samples_db"] < REDUCED_ON_ITS_SAMPLES_DB:
        bad.append(f"reduced on its samples {found['reduced_on_its_samples_db']:.1f} dB")
    return bad


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.golden", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.golden: --device cuda: no CUDA GPU was found; use --device cpu", file=sys.stderr)
        return 1
    began = time.perf_counter()
    trainer = trained(options.steps, options.size, options.device)
    cameras = cameras_of(options.frames, options.size, trainer.source.cameras)
    found = compare(trainer.model, cameras) | compare_reduced(trainer.model, cameras)
    found |= {"size": options.size, "steps": options.steps, "seconds": round(time.perf_counter() - began, 1)}
    promised = HALF_BOUNDS if options.device == "cuda" else BOUNDS
    bad = missed(found, promised) + missed_reduced(found)
    for name, value in found.items():
        print(f"{name:32} {value:.4g}" if isinstance(value, float) else f"{name:32} {value}")
    print("missed: " + ", ".join(bad) if bad else "every bound is kept")
    if not options.no_record:
        how = f"--frames {options.frames} --size {options.size} --steps {options.steps}"
        command = f"python -m bench.golden {how} --device {options.device}"
        record.merge("checks", {"golden": found | {"missed": bad}}, command)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
