"""Rows of the rays stage: every lens in one batch, each camera with numbers of its own."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.pose import pose
from raymarch.ops.rays import EYE_DISTANCE, rays
from raymarch.types import LENSES

CAMERAS = 2 * len(LENSES)

# Arithmetic of math/camera.h, a multiply-add counted as two, a division or a root as eight, a sine and its
# cosine as 28. One of Newton's steps is a distortion with its Jacobian and a solution of two equations; a
# pixel takes five of them, its two neighbours, wanted for the area, three each. A third of LENSES needs
# them, FISHEYE624 for its angle from scratch each time.
_STEP, _STEP624, _ANGLE624 = 67 + 30, 50 + 30, 40 + 30
_PLANE = 11 * _STEP  # perspective and fisheye
_FISHEYE624 = 11 * _STEP624 + 15 * _ANGLE624 + 3 * 60
_PANORAMA = 3 * (2 * 28 + 10)
_LOCAL = (2 * _PLANE + 3 * 60 + _FISHEYE624 + 5 * _PANORAMA) / len(LENSES)
_AREA, _POSE = 3 * 26 + 31, 45 + 18 + 30 + 24
SCALAR_FLOPS = _LOCAL + _AREA + _POSE


def _opencv(p: Tensor, k: Tensor) -> Tensor:
    x, y = p.unbind(-1)
    k1, k2, k3, k4, p1, p2 = k[:, :6].unbind(-1)
    r = x * x + y * y
    d = 1 + k1 * r + k2 * r**2 + k3 * r**3 + k4 * r**4
    return torch.stack(
        [d * x + 2 * p1 * x * y + p2 * (r + 2 * x * x), d * y + 2 * p2 * x * y + p1 * (r + 2 * y * y)], -1
    )


def _prism(p: Tensor, k: Tensor) -> Tensor:
    x, y = p.unbind(-1)
    p0, p1, s0, s1, s2, s3 = k[:, 6:].unbind(-1)
    q = x * x + y * y
    return torch.stack(
        [
            x + (2 * x * x + q) * p0 + 2 * x * y * p1 + s0 * q + s1 * q * q,
            y + (2 * y * y + q) * p1 + 2 * x * y * p0 + s2 * q + s3 * q * q,
        ],
        -1,
    )


def _fixed_point(distort, want: Tensor, k: Tensor) -> Tensor:
    """Undo a mild distortion by correcting the guess with its own error.

    Gradients flow through the last steps: each leaves less than half of what the one before got wrong.
    """
    p = want
    for step in range(240):
        with torch.set_grad_enabled(step >= 200 and torch.is_grad_enabled()):
            p = p + 0.7 * (want - distort(p, k))
    return p


def _angle624(radius: Tensor, k: Tensor) -> Tensor:
    theta = radius
    for _ in range(200):
        bent = theta * (1 + sum(k[:, i] * theta ** (2 + 2 * i) for i in range(6)))
        theta = theta + 0.7 * (radius - bent)
    return theta


def _local(lens: Tensor, uv: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Offset and direction in the camera's frame, not normalised."""
    zero, one = torch.zeros_like(uv[:, 0]), torch.ones_like(uv[:, 0])
    u, v = uv.unbind(-1)
    x, y = _fixed_point(_opencv, uv, k).unbind(-1)
    theta = torch.hypot(x, y)
    ring = torch.sin(theta) / theta
    m, n = _fixed_point(_prism, uv, k).unbind(-1)
    angle = _angle624(torch.hypot(m, n), k)
    spread = torch.tan(angle) / torch.hypot(m, n)

    def panorama(turn: Tensor) -> Tensor:
        polar = math.pi * (0.5 + v)
        return torch.stack([-turn.sin() * polar.sin(), polar.cos(), -turn.cos() * polar.sin()], -1)

    turn, half = -math.pi * u, EYE_DISTANCE / 2
    circle = half * torch.stack([turn.cos(), zero, -turn.sin()], -1)
    eye = torch.stack([half * one, zero, zero], -1)
    nowhere = torch.zeros_like(eye)
    models = {
        "perspective": (nowhere, torch.stack([x, -y, -one], -1)),
        "fisheye": (nowhere, torch.stack([ring * x, -ring * y, -theta.cos()], -1)),
        "equirectangular": (nowhere, panorama(turn)),
        "orthophoto": (torch.stack([u, -v, zero], -1), torch.stack([zero, zero, -one], -1)),
        "fisheye624": (nowhere, torch.stack([spread * m, -spread * n, -one], -1)),
        "ods_left": (-circle, panorama(turn)),
        "ods_right": (circle, panorama(turn)),
        "vr180_left": (-eye, panorama(turn / 2)),
        "vr180_right": (eye, panorama(turn / 2)),
    }
    offset, direction = nowhere, nowhere
    for number, name in enumerate(LENSES):
        chosen = (lens == number)[:, None]
        offset = torch.where(chosen, models[name][0], offset)
        direction = torch.where(chosen, models[name][1], direction)
    return offset, direction


def _rays(camera, xy, camera_to_worlds, intrinsics, distortion, lens, adjustment, compose):
    f, c = intrinsics[camera, :2], intrinsics[camera, 2:]
    k, model = distortion[camera], lens[camera]
    one_pixel = torch.eye(2, dtype=xy.dtype)
    offset, direction = _local(model, (xy - c) / f, k)
    unit = direction / direction.norm(dim=-1, keepdim=True)
    area = torch.ones_like(xy[:, 0])
    for step in one_pixel:
        other = _local(model, (xy + step - c) / f, k)[1]
        area = area * (unit - other / other.norm(dim=-1, keepdim=True)).norm(dim=-1)

    R, t = camera_to_worlds[..., :3], camera_to_worlds[..., 3]
    if adjustment is not None:
        dR, dt = adjustment[..., :3], adjustment[..., 3]
        R, t = (R @ dR, t + (R @ dt[..., None])[..., 0]) if compose == "camera" else (dR @ R, t + dt)
    R, t = R[camera], t[camera]
    along = (R @ direction[..., None])[..., 0]
    norm = along.norm(dim=-1)
    origins = t + (R @ offset[..., None])[..., 0]
    return origins, along / norm[:, None], area, norm.detach(), torch.ones_like(camera, dtype=torch.bool)


def inputs(rays: int, compose: str, adjusted: bool = True) -> tuple[Any, ...]:
    """Two cameras of each lens, mildly distorted, with random pixels on images of about 64 x 48."""
    lens = torch.arange(CAMERAS) % len(LENSES)
    wide = torch.tensor([1.0, 0.8, 0.6, 3.0, 0.8, 0.6, 0.6, 0.6, 0.6])[lens]
    intrinsics = torch.tensor([60.0, 55.0, 32.0, 24.0]) * (1 + 0.1 * torch.rand(CAMERAS, 4))
    intrinsics[:, :2] *= wide[:, None]
    distortion = 0.02 * torch.randn(CAMERAS, 12) * torch.tensor([1, 0.5, 0.2, 0.1, 0.2, 0.2, *[0.2] * 6])
    poses = pose(torch.randn(CAMERAS, 6))
    adjustment = pose(0.1 * torch.randn(CAMERAS, 6)) if adjusted else None
    camera = torch.randint(CAMERAS, (rays,))
    xy = torch.rand(rays, 2) * torch.tensor([64.0, 48.0])
    return camera, xy, poses, intrinsics, distortion, lens, adjustment, compose


def lens_inputs(rays: int) -> tuple[Any, ...]:
    """The same with lenses that can be refined, perspective and fisheye, some of them without distortion."""
    camera, xy, poses, intrinsics, distortion, lens, adjustment, compose = inputs(rays, "camera")
    wide = torch.where(lens == 1, 0.8, 1.0)[:, None]
    intrinsics = torch.cat([55 * (1 + 0.1 * torch.rand(CAMERAS, 2)) * wide, intrinsics[:, 2:]], 1)
    distortion = distortion * (torch.arange(CAMERAS) > 3)[:, None]
    return camera, xy, poses, intrinsics, distortion, torch.arange(CAMERAS) % 2, adjustment, compose


def _without_area(*args):
    out = rays(*args)
    return out[0], out[1], out[3], out[4]


@functools.wraps(_rays)
def _oracle_without_area(*args):
    out = _rays(*args)
    return out[0], out[1], out[3], out[4]


def _area(*args):
    return rays(*args)[2]


@functools.wraps(_rays)
def _oracle_area(*args):
    return _rays(*args)[2].detach()


CASES = {
    "rays": Case(
        _without_area,
        _oracle_without_area,
        lambda n: inputs(n, "camera"),
        bytes_per_ray=49,
        scalar_flops_per_ray=SCALAR_FLOPS,
        differentiable=(2, 6),
    ),
    "rays_world": Case(
        _without_area,
        _oracle_without_area,
        lambda n: inputs(n, "world"),
        bytes_per_ray=49,
        scalar_flops_per_ray=SCALAR_FLOPS,
        differentiable=(2, 6),
    ),
    "rays_unadjusted": Case(
        _without_area,
        _oracle_without_area,
        lambda n: inputs(n, "camera", adjusted=False),
        bytes_per_ray=49,
        scalar_flops_per_ray=SCALAR_FLOPS,
        differentiable=(2,),
    ),
    "rays_lens": Case(
        _without_area,
        _oracle_without_area,
        lens_inputs,
        bytes_per_ray=49,
        differentiable=(3, 4),
    ),
    # Differences of neighbouring unit vectors keep about three digits fewer than the vectors.
    "rays_area": Case(
        _area,
        _oracle_area,
        lambda n: inputs(n, "camera"),
        bytes_per_ray=49,
        scalar_flops_per_ray=SCALAR_FLOPS,
        tolerance=2e-4,
    ),
}
