"""A scene that is known exactly: textured solids on a plane under a far sky, seen by a ring of cameras.

Everything is computed, so depth, normals, object ids and features come with their truth and nothing is
downloaded. Light is Lambert + ambient with one sun and hard shadows; no surface shines, so colour does not
depend on the view. World axes: z up, the ground at z = GROUND, objects within 0.6 of the origin, cameras
within 1, the sky a sphere of radius SKY about the origin. Camera axes are OpenGL's (x right, y up, looking
along -z).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymarch.data import solids
from raymarch.data.alignment import perturb
from raymarch.data.scene import Scene
from raymarch.data.things import GROUND, SKY, paint_ground, paint_sky, things

SUN = np.array([3, -2, 6], np.float32) / 7  # unit, towards the sun
AMBIENT = 0.45
NAMES = ("sky", "ground", *(thing.name for thing in things()))  # by object id
SUBPIXELS = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))  # truth, then colour
LIFT = 2e-3  # a shadow ray starts this far above the surface


@dataclass(frozen=True)
class SyntheticScene:
    """N = views + test_views images of h x w with their truth. K names, D feature channels."""

    images: Tensor  # [N, h, w, 3] uint8
    intrinsics: Tensor  # [4] float32: fx, fy, cx, cy in pixels
    camera_to_worlds: Tensor  # [N, 3, 4] float32, the truth
    perturbed_camera_to_worlds: Tensor  # [N, 3, 4] training cameras moved by the noise, test cameras true
    depth: Tensor  # [N, h, w] distance along the ray through the pixel's centre
    z_depth: Tensor  # [N, h, w] distance along the viewing axis
    normals: Tensor  # [N, h, w, 3] unit, world axes, towards the camera
    ids: Tensor  # [N, h, w] uint8, index into names
    names: tuple[str, ...]  # sky and ground first, then the objects
    feature_vectors: Tensor  # [K, D] unit, nearly orthogonal
    train: tuple[int, ...]
    test: tuple[int, ...]
    noise_rotation_deg: float
    noise_translation: float


@dataclass(frozen=True)
class Views:
    """What cameras see: images and truth, NumPy, laid out as in SyntheticScene."""

    images: np.ndarray
    depth: np.ndarray
    z_depth: np.ndarray
    normals: np.ndarray
    ids: np.ndarray


def make_scene(
    views: int = 40,
    test_views: int = 8,
    size: int = 96,
    seed: int = 0,
    noise_rotation_deg: float = 0.0,
    noise_translation: float = 0.0,
    feature_width: int = 32,
    field_of_view_deg: float = 58.0,
) -> SyntheticScene:
    """Trace the scene from `views` training and `test_views` held-out cameras of size x size pixels.

    The seed turns the camera ring and draws the noise and the feature vectors; the objects are always the
    same. Each training pose is turned by exactly `noise_rotation_deg` and shifted by exactly
    `noise_translation` (scene units; no camera is further out than 1) in random directions.
    """
    if min(views, size) < 1 or test_views < 0:
        raise ValueError(
            f"make_scene: needs views, size >= 1 and test_views >= 0, got {views}, {size}, {test_views}"
        )
    poses = np.concatenate([ring_of_cameras(views, seed), ring_of_cameras(test_views, seed, held_out=True)])
    focal = 0.5 * size / np.tan(np.radians(field_of_view_deg) / 2)
    intrinsics = np.array([focal, focal, size / 2, size / 2], np.float32)
    seen = render_views(poses, intrinsics, size, size)
    truth = torch.from_numpy(poses)
    moved = perturb(truth[:views], noise_rotation_deg, noise_translation, seed)
    return SyntheticScene(
        images=torch.from_numpy(seen.images),
        intrinsics=torch.from_numpy(intrinsics),
        camera_to_worlds=truth,
        perturbed_camera_to_worlds=torch.cat([moved.to(truth), truth[views:]]),
        depth=torch.from_numpy(seen.depth),
        z_depth=torch.from_numpy(seen.z_depth),
        normals=torch.from_numpy(seen.normals),
        ids=torch.from_numpy(seen.ids),
        names=NAMES,
        feature_vectors=feature_vectors(len(NAMES), feature_width, seed),
        train=tuple(range(views)),
        test=tuple(range(views, views + test_views)),
        noise_rotation_deg=float(noise_rotation_deg),
        noise_translation=float(noise_translation),
    )


def ring_of_cameras(count: int, seed: int = 0, held_out: bool = False) -> np.ndarray:
    """Poses [count, 3, 4] spiralling up a dome, looking near the origin; held-out ones stand between."""
    random = np.random.default_rng([seed, int(held_out)])
    i = np.arange(count) + (0.37 if held_out else 0.0)
    azimuth = i * (np.pi * (3 - np.sqrt(5))) + seed
    climb = (i + 0.5) / max(count, 1)
    elevation = np.radians(8 + 46 * (0.08 + 0.84 * climb if held_out else climb))
    distance = 0.86 + 0.14 * np.sin(7 * climb * np.pi) ** 2
    flat = np.cos(elevation)
    towards = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1)
    target = random.uniform(-0.06, 0.06, (count, 3)) - np.array([0, 0, 0.02])
    eye = distance[:, None] * towards
    back = eye - target
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(back, right), back, eye], axis=2).astype(np.float32)


def feature_vectors(count: int, width: int = 32, seed: int = 0) -> Tensor:
    """One unit vector [count, width] per name: orthogonal where the width allows, then nudged."""
    random = np.random.default_rng([seed, 2])
    rows = random.normal(size=(count, width))
    if count <= width:
        rows = np.linalg.qr(rows.T)[0].T
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows += 0.1 / np.sqrt(width) * random.normal(size=rows.shape)
    return torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def feature_maps(scene: SyntheticScene, stride: int = 1) -> Tensor:
    """Per-image features [N, h / stride, w / stride, D] float16: the mean of the vectors in each cell."""
    count, height, width = scene.ids.shape
    if stride < 1 or height % stride or width % stride:
        raise ValueError(f"feature_maps: stride {stride} does not divide images of {width} x {height} pixels")
    grid = scene.ids.reshape(count, height // stride, stride, width // stride, stride)
    shares = torch.stack([(grid == k).float().mean(dim=(2, 4)) for k in range(len(scene.names))], dim=-1)
    return (shares @ scene.feature_vectors).half()


def as_scene(truth: SyntheticScene, **options: Any) -> Scene:
    """The scene in its own frame, as training sees it: pictures, true poses and no other truth.

    options: what to give `Scene.from_arrays` besides or instead.
    """
    given: dict[str, Any] = {
        "images": truth.images,
        "intrinsics": truth.intrinsics,
        "poses": truth.camera_to_worlds,
        "split": (truth.train, truth.test),
        "orientation": "none",
        "center": "none",
        "scale": 1.0,
    }
    return Scene.from_arrays(**given | options)


def render_views(camera_to_worlds: np.ndarray, intrinsics: np.ndarray, width: int, height: int) -> Views:
    """Trace pinhole cameras [N, 3, 4]: colour from four rays a pixel, the rest from one at its centre."""
    poses = np.asarray(camera_to_worlds, np.float32)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy lets go of the interpreter in its loops
        seen = list(pool.map(lambda pose: _render(pose, intrinsics, width, height), poses))
    return Views(*(np.stack(parts) for parts in zip(*seen, strict=True)))


def _render(pose, intrinsics, width, height):
    origins, directions = _camera_rays(pose, intrinsics, width, height)
    t, normals, ids = trace(origins, directions)
    centres = width * height  # the rays through the centres come first, colour from the others
    seen = (x[centres:] for x in (origins, directions, t, normals, ids))
    colours = shade(1 / intrinsics[0], *seen).reshape(-1, height, width, 3).mean(axis=0)
    image = np.rint(colours * 255).astype(np.uint8)
    z = t * (directions @ -pose[:, 2])
    maps = (x[:centres].reshape(height, width, *x.shape[1:]) for x in (t, z, normals, ids))
    return image, *maps


def _camera_rays(pose, intrinsics, width, height):
    fx, fy, cx, cy = intrinsics
    column, row = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    ahead = -np.ones_like(row)
    grids = [np.stack([(column + x - cx) / fx, (cy - row - y) / fy, ahead], -1) for x, y in SUBPIXELS]
    directions = np.concatenate(grids).reshape(-1, 3) @ pose[:, :3].T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.broadcast_to(pose[:, 3], directions.shape), directions


def trace(origins: np.ndarray, directions: np.ndarray):
    """First hits of rays [P, 3] (unit directions): distance [P], normals [P, 3], ids [P] uint8."""
    along = solids.dot(origins, directions)
    t = -along + np.sqrt(along * along + SKY * SKY - solids.dot(origins, origins))
    normals = -(origins + t[:, None] * directions) / np.float32(SKY)
    ids = np.zeros(len(t), np.uint8)
    with np.errstate(divide="ignore", invalid="ignore"):
        down = (GROUND - origins[:, 2]) / directions[:, 2]
    flat = (down > solids.FRONT) & (down < t)
    t[flat], normals[flat], ids[flat] = down[flat], (0, 0, 1), 1
    for k, thing in enumerate(things(), start=2):
        near = np.flatnonzero(solids.reaches(origins, directions, thing.centre, thing.ball))
        hit, n = thing.hit((origins[near] - thing.centre) @ thing.turn, directions[near] @ thing.turn)
        closer = hit < t[near]
        near = near[closer]
        t[near], normals[near], ids[near] = hit[closer], n[closer] @ thing.turn.T, k
    return t, normals, ids


def shade(pixel: float, origins, directions, t, normals, ids) -> np.ndarray:
    """Colours [P, 3] in 0..1 of traced hits; `pixel` is the width of a pixel at distance one."""
    points = origins + t[:, None] * directions
    blur = t * np.float32(pixel) / np.maximum(np.abs(solids.dot(directions, normals)), 0.05)
    colours = np.empty_like(points)
    for k, thing in enumerate((None, None, *things())):
        own = np.flatnonzero(ids == k)
        frame = points[own] if thing is None else (points[own] - thing.centre) @ thing.turn
        paint = (paint_sky, paint_ground)[k] if thing is None else thing.paint
        colours[own] = paint(frame, blur[own])
    solid = np.flatnonzero(ids > 0)
    light = np.maximum(normals[solid] @ SUN, 0)
    lit = solid[light > 0]
    above = points[lit] + np.float32(LIFT) * normals[lit]
    light[light > 0] *= trace(above, np.broadcast_to(SUN, above.shape))[2] == 0  # nothing but sky in between
    colours[solid] *= (AMBIENT + (1 - AMBIENT) * light)[:, None]
    return np.clip(colours, 0, 1)
