"""Held-out features on real photos: the trained field against features carried over from the nearest photo.

    python -m bench.features SCENES [--preset f3rm] [--steps 5000] [--downscale 1] [--device cuda] [--seeds 3]

SCENES is a folder with `fox`, whose features a real network made (R2D2, 32 channels, 34 x 60 cells).
Every 8th photo is held out; poses are refined for training photos only. A cell's target is the network's
feature of the held-out photo; all cells count, and the measure is their mean cosine.

- `field`: the feature field, rendered at the cells' centres; `field_train`: the same of training photos.
- `reprojection`: the cell's point (at the field's rendered depth, so the baseline borrows our geometry), seen
  by the nearest training photo that has it in its frame; its network feature there, read bilinearly. Cells
  that no training photo has in its frame score 0.
- `reprojection_one`: the same, from the nearest training photo and no other: cells that it does not have in
  its frame score 0.
- `reprojection_nearest_only`: the same, from the nearest photo whether or not it has the point in its frame;
  cells outside count for nothing, and `field_same_cells` is the field on just these cells.
- `reprojection_from_D`: the same, from the nearest photo at least D scene units away, on cells that it has in
  its frame and sees first (to 8 % of the depth that the field gives it); `field_from_D` is the field there.
- `consistent`: the mean of the unit features of all training photos that see the point first, where any
  does: what is common to all views, and so about the most that one vector per place can hold.

R2D2's features change with the view: two photos agree on a surface point the less, the farther apart they
stand. A photo beside the held-out one therefore beats any field with one vector per place, and the field
beats photos that stand farther away. `reprojection_from_D` against `field_from_D` says where they cross.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.record import merge
from raymarch.config import Config, override, preset
from raymarch.data.scene import Scene, load
from raymarch.model.frames import FrameRenderer, Settings
from raymarch.model.rays import generate
from raymarch.train.metrics import feature_cosine
from raymarch.train.runs import start, subset
from raymarch.train.trainer import Trainer
from raymarch.types import Cameras, Pixels

FEATURES = "r2d2_features_60x34.npz"
GAPS = (0.0, 0.25, 0.5, 1.0)  # scene units; the training cameras span about two
IN_FRONT = 1.08  # a point this much farther than what a photo sees is hidden from it
HEADS = frozenset({"rgb", "depth", "feature"})


def config_for(name: str, steps: int, seed: int) -> Config:
    """A preset with a feature field, whose width the scene will say."""
    config = preset(name)
    if not config.model.fields.feature.width:
        config = override(config, "model.fields.feature.width=1")
    config = override(config, f"train.trainer.steps={steps}")
    return override(config, f"train.trainer.seed={seed}")


def at_cells(cameras: Cameras, rows: int, columns: int) -> Cameras:
    """The cameras with one pixel per cell of their feature maps."""
    size = torch.tensor([[columns, rows]], device=cameras.size.device).expand_as(cameras.size)
    scale = (size / cameras.size).repeat(1, 2).to(cameras.intrinsics)
    return replace(cameras, intrinsics=cameras.intrinsics * scale, size=size.contiguous())


def seen_at(points: Tensor, camera: Cameras) -> tuple[Tensor, Tensor]:
    """Where a perspective camera sees points [P, 3]: pixels [P, 2], and whether in its frame [P]."""
    pose, (fx, fy, cx, cy) = camera.camera_to_worlds[0], camera.intrinsics[0].unbind()
    k1, k2, k3, k4, p1, p2 = camera.distortion[0, :6].unbind()
    local = (points - pose[:, 3]) @ pose[:, :3]
    z = (-local[:, 2]).clamp_min(1e-9)
    x, y = local[:, 0] / z, -local[:, 1] / z  # y down, as the lens terms have it
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    pixels = torch.stack([fx * u + cx, fy * v + cy], 1)
    size = camera.size[0].to(pixels)
    inside = (local[:, 2] < 0) & (pixels >= 0).all(1) & (pixels < size).all(1) & (r2 < 4)
    return pixels, inside


def read_map(values: Tensor, pixels: Tensor, size: Tensor) -> Tensor:
    """Features [P, D] of a map [h, w, D] at pixels [P, 2] of its photo, bilinear between cells' centres."""
    grid = (2 * pixels / size - 1).view(1, 1, -1, 2)
    image = values.permute(2, 0, 1)[None].float()
    found = torch.nn.functional.grid_sample(image, grid, align_corners=False, padding_mode="border")
    return found[0, :, 0].T


@torch.no_grad()
def measure(trainer: Trainer, scene: Scene) -> dict[str, float]:
    """The figures of one trained model."""
    assert scene.features is not None
    device, model = trainer.device, trainer.model
    rows, columns = scene.features.maps[0].shape[:2]
    train = subset(scene.cameras, scene.train, device)
    train = replace(train, camera_to_worlds=model.poses.optimized_camera_to_worlds(train.camera_to_worlds))
    test = at_cells(subset(scene.cameras, scene.test, device), rows, columns)
    maps = [scene.features.maps[i].to(device) for i in scene.train]
    frames = FrameRenderer(model, Settings(graph=False))
    seen, field_train = training_views(frames, train, maps)
    field, carried, one, nearest, same, common = [], [], [], [], [], []
    far: dict[str, list[Tensor]] = {
        f"{who}_from_{g:g}": [] for g in GAPS for who in ("reprojection", "field")
    }
    for k, index in enumerate(scene.test):
        target = scene.features.maps[index].to(device).float().view(rows * columns, -1)
        frame = frames.render(test, k, HEADS)
        ours = feature_cosine(frame["feature"].view(rows * columns, -1), target)
        points = points_of(model, subset(test, (k,), device), frame["depth"])
        away = (train.camera_to_worlds[:, :, 3] - test.camera_to_worlds[k, :, 3]).norm(dim=1)
        found = torch.zeros_like(target)
        open_ = torch.ones(len(points), dtype=torch.bool, device=device)
        total, waiting = torch.zeros_like(target), list(GAPS)
        for rank, j in enumerate(away.argsort().tolist()):
            camera = subset(train, (j,), device)
            pixels, inside = seen_at(points, camera)
            there = read_map(maps[j], pixels, camera.size[0].to(pixels))
            new = open_ & inside
            found[new] = there[new]
            open_ &= ~inside
            first = inside & in_front(points, camera, pixels, seen[j])
            total[first] += torch.nn.functional.normalize(there[first], dim=1)
            while waiting and float(away[j]) >= waiting[0]:
                gap = waiting.pop(0)
                far[f"reprojection_from_{gap:g}"].append(feature_cosine(there[first], target[first]))
                far[f"field_from_{gap:g}"].append(ours[first])
            if rank == 0:
                one.append(feature_cosine(found, target))
                nearest.append(one[-1][inside])
                same.append(ours[inside])
        field.append(ours)
        carried.append(feature_cosine(found, target))
        known = total.any(dim=1)
        common.append(feature_cosine(total[known], target[known]))
    named = {
        "field": field,
        "reprojection": carried,
        "reprojection_one": one,
        "reprojection_nearest_only": nearest,
        "field_same_cells": same,
        "field_train": field_train,
        "consistent": common,
        **{name: values for name, values in far.items() if values},
    }
    return {name: float(torch.cat(values).mean()) for name, values in named.items()}


def training_views(
    frames: FrameRenderer, train: Cameras, maps: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each training camera: distances [rows, columns] at its cells, and the cosines of the field there."""
    rows, columns = maps[0].shape[:2]
    small, depths, cosines = at_cells(train, rows, columns), [], []
    for j, cells in enumerate(maps):
        frame = frames.render(small, j, HEADS)
        depths.append(frame["depth"])
        cosines.append(feature_cosine(frame["feature"].flatten(0, 1), cells.float().flatten(0, 1)))
    return depths, cosines


def in_front(points: Tensor, camera: Cameras, pixels: Tensor, depth: Tensor) -> Tensor:
    """Which points [P, 3], seen at `pixels` by a camera, nothing hides: its cells' distances say so, [P]."""
    reach = read_map(depth[..., None], pixels, camera.size[0].to(pixels))[:, 0]
    return (points - camera.camera_to_worlds[0, :, 3]).norm(dim=1) < IN_FRONT * reach


def points_of(model, camera: Cameras, depth: Tensor) -> Tensor:
    """Scene points [P, 3] at distances [h, w] along one camera's rays."""
    height, width = depth.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xy = torch.stack([x, y], -1).view(-1, 2).float().to(depth.device) + 0.5
    zero = torch.zeros(len(xy), dtype=torch.int64, device=depth.device)
    rays = generate(Pixels(zero, xy), camera, None, model.config.rays, False)
    return rays.origins + depth.view(-1, 1) * rays.directions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--preset", default="f3rm")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lookup", default="nearest", help="of maps: nearest, bilinear")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--dry", action="store_true", help="print, but leave the record alone")
    args = parser.parse_args()
    folder = args.scenes / "fox"
    scene = load(folder, downscale=args.downscale, features=str(folder / FEATURES), split="every8")
    assert scene.features is not None
    scene = replace(scene, features=replace(scene.features, mode=args.lookup))
    runs = []
    for seed in range(args.seeds):
        config = config_for(args.preset, args.steps, seed)
        for assignment in args.set:
            config = override(config, assignment)
        trainer = start(scene, config, device=args.device)
        began = time.perf_counter()
        trainer.train()
        trained = time.perf_counter() - began
        values = measure(trainer, scene) | {"train_seconds": trained}
        print("seed", seed, {k: round(v, 4) for k, v in values.items()}, flush=True)
        runs.append(values)
    mean = {k: statistics.fmean(r[k] for r in runs) for k in runs[0]}
    words = f"{args.preset}, {args.steps} steps, downscale {args.downscale}, {args.lookup} lookup"
    words += f", {args.seeds} seeds, {args.device}" + "".join(f", {s}" for s in args.set)
    print(words, {k: round(v, 4) for k, v in mean.items()}, flush=True)
    if not args.dry:
        said = [word for word in sys.argv[1:] if word != str(args.scenes)]
        command = "python -m bench.features SCENES " + shlex.join(said)
        result = mean | {"protocol": " ".join((__doc__ or "").split("\n\n", 2)[2].split())}
        merge("quality", {"fox": {f"features {words}": result}}, command)


if __name__ == "__main__":
    main()
