"""Rows of the pose stage."""

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.pose import pose


def _twist(rho: Tensor, w: Tensor) -> Tensor:
    """The 4x4 matrix of a screw, whose matrix exponential is the rigid motion."""
    x, y, z = w.unbind(-1)
    o = torch.zeros_like(x)
    rows = ([o, -z, y, rho[:, 0]], [z, o, -x, rho[:, 1]], [-y, x, o, rho[:, 2]], [o, o, o, o])
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _se3(xi: Tensor) -> Tensor:
    return torch.linalg.matrix_exp(_twist(xi[:, :3], xi[:, 3:]))[:, :3]


def _so3_r3(xi: Tensor) -> Tensor:
    turn = torch.linalg.matrix_exp(_twist(torch.zeros_like(xi[:, :3]), xi[:, 3:]))[:, :3, :3]
    return torch.cat([turn, xi[:, :3, None]], -1)


def _inputs(n: int) -> tuple[Tensor]:
    return (torch.randn(n, 6) * torch.logspace(-4, 0.5, n)[:, None],)  # from tiny to whole turns


CASES = {
    "pose": Case(lambda xi: pose(xi, "SO3xR3"), _so3_r3, _inputs, bytes_per_ray=72, differentiable=(0,)),
    "pose_se3": Case(lambda xi: pose(xi, "SE3"), _se3, _inputs, bytes_per_ray=72, differentiable=(0,)),
}
