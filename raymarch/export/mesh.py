"""A mesh of what cameras see: rendered depths fused into signed distances, and the surface where they are 0.

Fusion after Curless and Levoy, A Volumetric Method for Building Complex Models from Range Images (1996): each
voxel keeps the mean, over the views that see it, of how far it lies before the surface they see, cut off at a
few voxels. Everything is in scene units until the end, where vertices are led into the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from raymarch.export.surface import chosen_views, places, solid, view_of
from raymarch.trained import TrainedScene
from raymarch.types import LENSES, Cameras

CUT = 4.0  # voxels: signed distances are cut off here
CHUNK = 1 << 21  # voxels at a time
QUANTILE = 0.02  # of the points seen that may lie outside the box on each side
MARGIN = 0.05  # of the box's sides, added around it


class MeshError(ValueError):
    """No mesh can be made; one sentence says why."""


@dataclass(frozen=True)
class Volume:
    """Signed distances on a grid of [x, y, z] voxels: positive before the surface, scene units."""

    low: Tensor  # [3] centre of the first voxel
    step: float
    distance: Tensor  # [X, Y, Z]
    colour: Tensor  # [X, Y, Z, 3]
    weight: Tensor  # [X, Y, Z] views that saw the voxel


@dataclass(frozen=True)
class Mesh:
    """Vertices in world units, triangles that turn left seen from outside, colours 0..1."""

    vertices: Tensor  # [V, 3] float64
    faces: Tensor  # [F, 3] int64
    colours: Tensor  # [V, 3]
    normals: Tensor  # [V, 3] unit


@dataclass(frozen=True)
class View:
    """One pinhole view to be fused; scene units."""

    camera: Cameras
    depth: Tensor  # [h, w] along rays; 0 where nothing is known
    rgb: Tensor  # [h, w, 3]


def mesh_of(
    scene: TrainedScene,
    resolution: int = 256,
    views: int = 64,
    side: int = 512,
    box: Sequence[float] | None = None,
    mode: str = "exact",
) -> Mesh:
    """Render depths from training views; fuse them on a grid of `resolution` voxels along the longest side.

    box: six numbers in world units, the low corner and then the high one; by default what holds most of the
    points seen. MeshError where nothing is seen there, or where scikit-image is missing.
    """
    seen = [_view(scene, i, side, mode) for i in chosen_views(scene, views)]
    low, high = _box(scene, seen) if box is None else _given(scene, box)
    volume = fuse(seen, low, high, resolution)
    vertices, faces, normals = surface(volume)
    colours = _sampled(volume, vertices)
    world = scene.world_from_scene.apply(vertices.double())
    return Mesh(world, faces, colours, scene.world_from_scene.rotate(normals))


def _view(scene: TrainedScene, i: int, side: int, mode: str) -> View:
    camera = plain(view_of(scene, i, side))
    frame = scene.render(camera, ("rgb", "depth", "opacity"), mode)
    depth = torch.where(solid(frame, camera), frame["depth"], 0) / scene.world_from_scene.scale
    return View(camera, depth, frame["rgb"])


def plain(camera: Cameras) -> Cameras:
    """The same eye with a pinhole lens of the same focal length: rendered views need no distortion.

    A lens without a focal length in that sense sees 90 degrees along its longer side.
    """
    width, height = (int(v) for v in camera.size[0])
    intrinsics = camera.intrinsics
    if LENSES[int(camera.lens[0])] not in ("perspective", "fisheye", "fisheye624"):
        focal = max(width, height) / 2
        intrinsics = torch.tensor([[focal, focal, width / 2, height / 2]], device=intrinsics.device)
    zero = torch.zeros_like(camera.distortion)
    return replace(camera, intrinsics=intrinsics, distortion=zero, lens=torch.zeros_like(camera.lens))


def _box(scene: TrainedScene, seen: Sequence[View]) -> tuple[Tensor, Tensor]:
    """What holds all but the outermost of the points seen, within twice the spread of the cameras."""
    inverse = scene.world_from_scene.invert()
    clouds = [
        inverse.apply(places(scene, v.camera, v.depth * scene.world_from_scene.scale)[v.depth > 0])
        for v in seen
    ]
    points = torch.cat(clouds).cpu().float()
    eyes = torch.cat([v.camera.camera_to_worlds[:, :, 3] for v in seen]).cpu()
    middle = eyes.mean(0)
    reach = 2 * (eyes - middle).norm(dim=1).max().clamp_min(1e-3)
    points = points[(points - middle).norm(dim=1) < reach]
    if len(points) < 100:
        raise MeshError("hardly anything solid is seen near the cameras: train longer, or give --box")
    ordered = points.sort(0).values
    cut = int(QUANTILE * (len(points) - 1))
    low, high = ordered[cut], ordered[len(points) - 1 - cut]
    margin = MARGIN * (high - low)
    return low - margin, high + margin


def _given(scene: TrainedScene, box: Sequence[float]) -> tuple[Tensor, Tensor]:
    if len(box) != 6 or any(a >= b for a, b in zip(box[:3], box[3:], strict=True)):
        raise MeshError(f"--box is {tuple(box)}, expected six numbers, the low corner and then the high one")
    corners = torch.tensor(
        [[box[i + 3 * ((k >> i) & 1)] for i in range(3)] for k in range(8)], dtype=torch.float64
    )
    inside = scene.world_from_scene.invert().apply(corners).float()
    return inside.amin(0), inside.amax(0)


def fuse(views: Sequence[View], low: Tensor, high: Tensor, resolution: int) -> Volume:
    """Mean signed distance and colour per voxel over the views that see it."""
    if resolution < 8:
        raise MeshError(f"a mesh needs at least 8 voxels along a side, got {resolution}")
    step = float((high - low).max()) / (resolution - 1)
    counts = [int(n) for n in ((high - low) / step).ceil() + 1]
    device = views[0].depth.device
    total = counts[0] * counts[1] * counts[2]
    distance, weight = (torch.zeros(total, device=device) for _ in range(2))
    colour = torch.zeros(total, 3, device=device)
    start = low.to(device)
    for first in range(0, total, CHUNK):
        number = torch.arange(first, min(first + CHUNK, total), device=device)
        index = torch.stack(
            [number // (counts[1] * counts[2]), number // counts[2] % counts[1], number % counts[2]], 1
        )
        points = start + step * index
        for view in views:
            ahead, rgb, sees = _before(view, points, CUT * step)
            part = number[sees]
            distance[part] += ahead[sees]
            colour[part] += rgb[sees]
            weight[part] += 1
    seen = weight.clamp_min(1)
    shape = (counts[0], counts[1], counts[2])
    distance = torch.where(weight > 0, distance / seen, 0)
    return Volume(
        low, step, distance.view(shape), (colour / seen[:, None]).view(*shape, 3), weight.view(shape)
    )


def _before(view: View, points: Tensor, cut: float) -> tuple[Tensor, Tensor, Tensor]:
    """How far points [P, 3] lie before what a view sees, at most `cut`; its colour; whether it tells."""
    pose, (fx, fy, cx, cy) = view.camera.camera_to_worlds[0], view.camera.intrinsics[0].tolist()
    height, width = view.depth.shape
    local = (points - pose[:, 3]) @ pose[:, :3]
    z = (-local[:, 2]).clamp_min(1e-9)
    column, row = (local[:, 0] / z * fx + cx).floor(), (cy - local[:, 1] / z * fy).floor()
    inside = (local[:, 2] < 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    at = torch.where(inside, row * width + column, 0).long()
    depth = view.depth.reshape(-1)[at]
    ahead = depth - local.norm(dim=1)
    sees = inside & (depth > 0) & (ahead > -cut)
    return ahead.clamp_max(cut), view.rgb.reshape(-1, 3)[at], sees


def surface(volume: Volume) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices [V, 3] and normals [V, 3] in scene units, and faces [F, 3], by marching cubes.

    Only cells whose eight voxels were all seen have a surface, so nothing is made up behind things.
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise MeshError(
            f'meshes need scikit-image, which cannot be imported ({error}): pip install "raymarch[export]"'
        ) from None
    known = (volume.weight > 0).cpu().numpy()
    values = volume.distance.cpu().numpy()
    if not known.any() or values[known].min() >= 0 or values[known].max() <= 0:
        raise MeshError("no surface is seen within the box: give another --box, or train longer")
    try:
        vertices, faces, *_ = marching_cubes(values, 0.0)
    except (ValueError, RuntimeError) as error:
        raise MeshError(f"no surface is seen within the box ({error}): give another --box") from None
    faces = faces[_within(known, vertices[faces].mean(1))]
    if len(faces) == 0:
        raise MeshError("no surface is seen within the box: give another --box, or train longer")
    used, index = np.unique(faces, return_inverse=True)  # drop vertices of cells that were left out
    points = volume.low.cpu() + volume.step * torch.from_numpy(vertices[used].copy())
    faces = torch.from_numpy(index.reshape(faces.shape).astype(np.int64))
    if not outwards(points, faces, volume):
        faces = faces.flip(1)
    return points.float(), faces, _normals(points, faces)


def _within(known: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Which places [F, 3], counted in voxels, lie in cells whose eight voxels are all known."""
    cell = np.ones([n - 1 for n in known.shape], dtype=bool)
    for corner in np.ndindex(2, 2, 2):
        cell &= known[tuple(slice(c, n - 1 + c) for c, n in zip(corner, known.shape, strict=True))]
    index = np.floor(places).astype(int).clip(0, np.array(cell.shape) - 1)
    return cell[tuple(index.T)]


def outwards(points: Tensor, faces: Tensor, volume: Volume) -> bool:
    """Whether faces turn left seen from where distances are positive, by majority."""
    corners = points[faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    middle, unit = corners.mean(1), torch.nn.functional.normalize(normal, dim=-1)
    ahead = _trilinear(volume, middle + volume.step * unit, volume.distance[..., None])
    behind = _trilinear(volume, middle - volume.step * unit, volume.distance[..., None])
    return bool((ahead > behind).float().mean() > 0.5)


def _normals(points: Tensor, faces: Tensor) -> Tensor:
    """Unit normals per vertex: the mean of its triangles', weighted by area."""
    corners = points[faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    summed = torch.zeros_like(points)
    for corner in range(3):
        summed.index_add_(0, faces[:, corner], normal)
    return torch.nn.functional.normalize(summed, dim=-1)


def _sampled(volume: Volume, points: Tensor) -> Tensor:
    """Colours at points, from the voxels that were seen."""
    seen = (volume.weight > 0).float()[..., None]
    mixed = _trilinear(volume, points, torch.cat([volume.colour * seen, seen], -1))
    return (mixed[:, :3] / mixed[:, 3:].clamp_min(1e-6)).clamp(0, 1)


def _trilinear(volume: Volume, points: Tensor, values: Tensor) -> Tensor:
    """Values [X, Y, Z, C] between voxels at points [P, 3]: [P, C] on the CPU."""
    sizes = torch.tensor(values.shape[:3])
    place = 2 * (points.cpu() - volume.low.cpu()) / volume.step / (sizes - 1) - 1
    grid = place.flip(1).view(1, -1, 1, 1, 3).float()
    grids = values.cpu().permute(3, 0, 1, 2)[None]
    found = torch.nn.functional.grid_sample(grids, grid, align_corners=True, padding_mode="border")
    return found[0, :, :, 0, 0].T
