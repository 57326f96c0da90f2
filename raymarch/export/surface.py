"""The surface that cameras see, as points: where each ray's depth lies, with whatever heads say of it.

Letters: P points. All points are in world units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from raymarch.export.ply import coordinates
from raymarch.features.pca import apply
from raymarch.model.rays import generate
from raymarch.train.runs import smaller, subset
from raymarch.trained import TrainedScene
from raymarch.types import Cameras, Pixels

SOLID = 0.5  # a ray with less opacity than this hits nothing
STEEPEST = 8.0  # tangent of the angle (83 degrees) up to which a slanted surface is told from an edge


@dataclass(frozen=True)
class Points:
    """What was seen at P points. Columns that were not asked for are None."""

    xyz: Tensor  # [P, 3] float64, world units
    rgb: Tensor  # [P, 3] 0..1
    normals: Tensor | None = None  # [P, 3] unit, world axes
    pca: Tensor | None = None  # [P, 3] feature colours, 0..1
    similarity: Tensor | None = None  # [P]

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, keep: Tensor) -> Points:
        """The points of a mask [P], or of indices."""
        normals, pca, similarity = (
            None if v is None else v[keep] for v in (self.normals, self.pca, self.similarity)
        )
        return Points(self.xyz[keep], self.rgb[keep], normals, pca, similarity)

    def columns(self) -> dict[str, np.ndarray]:
        """PLY columns: x y z, nx ny nz, red green blue, pca_red pca_green pca_blue, similarity.

        Coordinates are doubles where they have to be (`ply.coordinates`).
        """
        found = coordinates(self.xyz.numpy())
        if self.normals is not None:
            found |= dict(zip(("nx", "ny", "nz"), self.normals.float().numpy().T, strict=True))
        for prefix, colours in (("", self.rgb), ("pca_", self.pca)):
            if colours is not None:
                values = (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy().T
                found |= {prefix + k: v for k, v in zip(("red", "green", "blue"), values, strict=True)}
        if self.similarity is not None:
            found["similarity"] = self.similarity.float().numpy()
        return found


def joined(parts: Iterable[Points]) -> Points:
    """Points of several views, one after another."""
    parts = list(parts)

    def column(name: str) -> Tensor | None:
        values = [getattr(p, name) for p in parts]
        return None if any(v is None for v in values) else torch.cat(values)

    xyz, rgb = (torch.cat([getattr(p, name) for p in parts]) for name in ("xyz", "rgb"))
    return Points(xyz, rgb, column("normals"), column("pca"), column("similarity"))


def places(scene: TrainedScene, camera: Cameras, depth: Tensor) -> Tensor:
    """World points [h, w, 3] float64 at distances `depth` [h, w] (world units) along one camera's rays."""
    height, width = depth.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xy = torch.stack([x, y], -1).view(-1, 2).float().to(scene.device) + 0.5
    zero = torch.zeros(len(xy), dtype=torch.int64, device=scene.device)
    rays = generate(Pixels(zero, xy), camera, None, scene.config.model.rays, False)
    along = depth.reshape(-1, 1).to(scene.device) / scene.world_from_scene.scale
    inside = rays.origins + along * rays.directions
    return scene.world_from_scene.apply(inside.double()).view(
        height, width, 3
    )  # maps lie far from the origin


def solid(frame: dict[str, Tensor], camera: Cameras) -> Tensor:
    """[h, w] bool: where a camera's rendering hits something and its depth does not jump to a neighbour's.

    On a surface at angle a to the viewing plane, depth changes by tan a times a pixel's angle per pixel.
    """
    depth = frame["depth"]
    most = STEEPEST / float(camera.intrinsics[0, 0])
    keep = (frame["opacity"] >= SOLID) & depth.isfinite() & (depth > 0)
    jump = torch.zeros_like(depth, dtype=torch.bool)
    for axis in (0, 1):
        size = depth.shape[axis] - 1
        a, b = depth.narrow(axis, 0, size), depth.narrow(axis, 1, size)
        far = (a - b).abs() > most * torch.minimum(a, b)
        jump.narrow(axis, 0, size).logical_or_(far)
        jump.narrow(axis, 1, size).logical_or_(far)
    return keep & ~jump


def chosen_views(scene: TrainedScene, most: int) -> list[int]:
    """At most so many training views, spread evenly over the run."""
    count = len(scene.train)
    return sorted({k * count // most for k in range(most)}) if count > most else list(range(count))


def view_of(scene: TrainedScene, index: int, side: int) -> Cameras:
    """Training camera `index` with its refined pose, at most `side` pixels long."""
    return smaller(subset(scene.train_cameras(), (index,), scene.device), side)


def seen_points(
    scene: TrainedScene, views: int = 64, side: int = 256, most: int = 1_000_000, mode: str = "exact"
) -> Points:
    """The surface as training views see it, with colours, normals and, given features, feature colours.

    At most `most` points, drawn evenly from all (the same ones every time).
    """
    features = scene.model.fields.feature is not None
    heads = ("rgb", "depth", "opacity", "normals", *(("feature",) if features else ()))
    parts = []
    for i in chosen_views(scene, views):
        camera = view_of(scene, i, side)
        frame = scene.render(camera, heads, mode)
        keep = solid(frame, camera)
        colours = apply(frame["feature"][keep], scene.pca()).cpu() if features else None
        xyz = places(scene, camera, frame["depth"])[keep].cpu()
        normals = torch.nn.functional.normalize(frame["normals"][keep], dim=-1).cpu()
        parts.append(Points(xyz, frame["rgb"][keep].cpu(), normals, colours))
    found = joined(parts)
    if len(found) > most:
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:most]
        found = found.select(order.sort().values)
    return found


def matching(points: Points, similarity: Tensor, threshold: float) -> Points:
    """The points whose similarity [P] reaches the threshold, with it as a column."""
    return replace(points, similarity=similarity).select(similarity >= threshold)
