"""Coordinates for pose refinement in which every direction moves the picture equally.

Turning a camera and moving it sideways shift what it sees almost alike, so the six numbers of a pose are
strongly coupled, and steps that treat them one by one crawl along the valley between them. CamP (Park,
Henzler, Mildenhall, Barron, Martin-Brualla 2023, section 4) measures the coupling with points projected into
a camera and takes it out: with Sigma = J^T J of the projections, refine xi' where xi = Sigma^(-1/2) xi'.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raymarch.ops.rays import rays
from raymarch.types import Cameras

GRID = 12  # pixels per image side that points are projected from
DEPTHS = 16  # points along the ray of each


def focus(camera_to_worlds: Tensor) -> Tensor:
    """The point [3] nearest to all optical axes of poses [C, 3, 4], by least squares.

    Pulled weakly to the cameras' mean where axes are parallel and there is no such point.
    """
    centres, axes = camera_to_worlds[:, :, 3], camera_to_worlds[:, :, 2]
    eye = torch.eye(3, dtype=centres.dtype, device=centres.device)
    across = eye - axes[:, :, None] * axes[:, None, :]
    pull = 1e-3 * len(centres) * eye
    right = (across @ centres[:, :, None]).sum(0)[:, 0] + pull @ centres.mean(0)
    return torch.linalg.solve(across.sum(0) + pull, right)


def seen_points(cameras: Cameras, spread: float) -> Tensor:
    """Points [C, P, 3] seen by each camera, relative to its centre, in world axes.

    One camera's distances are spaced evenly in logarithm between 1 / spread and spread times that of the
    focus, which is held between a fifth of the scene's size and five times that.
    """
    poses = cameras.camera_to_worlds
    count = len(poses)
    steps = (torch.arange(GRID, device=poses.device, dtype=poses.dtype) + 0.5) / GRID
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    xy = torch.stack([x, y], -1).view(1, -1, 2) * cameras.size[:, None]
    which = torch.arange(count, device=poses.device).repeat_interleave(GRID * GRID)
    origins, directions, *_ = rays(
        which, xy.reshape(-1, 2).to(poses.dtype), poses, cameras.intrinsics, cameras.distortion, cameras.lens
    )
    centres = poses[:, :, 3]
    size = (centres - centres.mean(0)).norm(dim=-1).max().clamp_min(1e-3)
    distance = (focus(poses) - centres).norm(dim=-1)
    distance = distance.clamp(0.2 * size, 5 * size) if count > 1 else distance.clamp_min(1e-3)
    powers = torch.linspace(-1, 1, DEPTHS, device=poses.device, dtype=poses.dtype)
    t = distance[:, None, None, None] * spread ** powers.view(1, 1, DEPTHS, 1)
    start = (origins - centres[which]).view(count, -1, 1, 3)
    return (start + t * directions.view(count, -1, 1, 3)).reshape(count, -1, 3)


def coupling(points: Tensor, camera_to_worlds: Tensor, compose: str) -> Tensor:
    """Sigma [C, 6, 6]: mean of J^T J, J how points' directions [radians] move with a pose's six numbers.

    points [C, P, 3] relative to the camera's centre, in world axes; at the identity both modes agree.
    """
    R = camera_to_worlds[:, :, :3]
    p = points @ R if compose == "camera" else points
    length = p.norm(dim=-1).clamp_min(1e-12)
    d = p / length[..., None]
    eye = torch.eye(3, dtype=p.dtype, device=p.device)
    across = (eye - d[..., :, None] * d[..., None, :]) / length[..., None, None]
    turn = torch.linalg.cross(p[..., None, :].expand(*p.shape, 3), eye.expand(*p.shape, 3), dim=-1)
    # Moving by dt and turning by w takes a point from p to p - dt - w x p, and w x p = sum of w_k e_k x p.
    J = across @ torch.cat([-eye.expand(*p.shape, 3), turn.transpose(-1, -2)], -1)
    return (J.transpose(-1, -2) @ J).mean(1)


def whitening(sigma: Tensor, damping: float) -> Tensor:
    """(Sigma + damping diag(Sigma))^(-1/2) [C, 6, 6], symmetric. float64."""
    damped = sigma + damping * torch.diag_embed(sigma.diagonal(dim1=-2, dim2=-1))
    values, vectors = torch.linalg.eigh(damped)
    return vectors @ (values.clamp_min(1e-12).rsqrt()[..., None] * vectors.transpose(-1, -2))


def preconditioner(cameras: Cameras, compose: str, damping: float, spread: float) -> Tensor:
    """P [C, 6, 6] float32 with xi = P xi': a step in any direction moves the picture by so many radians.

    Root mean square over points, at the pose given and but for the damping. Made on the CPU in float64.
    """
    at = Cameras(
        *(
            getattr(cameras, name).detach().cpu()
            for name in ("camera_to_worlds", "intrinsics", "distortion", "lens", "size")
        )
    )
    points = seen_points(at, spread).double()
    return whitening(coupling(points, at.camera_to_worlds.double(), compose), damping).float()
