"""The seven motions of all cameras together that no picture can see, taken out of pose refinement.

Moving, turning and scaling the whole rig with the map leaves every picture as it was. Refinement that does
so gains nothing, and held-out cameras that stay behind are judged for it. To first order these motions are
seven directions in the 6 C numbers of C cameras; what is left without them is a rig that least-squares
alignment of centres would leave where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def common_motions(camera_to_worlds: Tensor, compose: str) -> Tensor:
    """How the six numbers of C cameras change with the rig: [C, 6, 7], three shifts, three turns, scale.

    camera_to_worlds [C, 3, 4]. Turns and scale are about the mean of the centres.
    """
    R, centres = camera_to_worlds[:, :, :3], camera_to_worlds[:, :, 3]
    away = centres - centres.mean(0)
    count = len(centres)
    eye = torch.eye(3, dtype=away.dtype, device=away.device).expand(count, 3, 3)
    zero = torch.zeros_like(eye)
    turn = torch.linalg.cross(eye, away[:, :, None].expand(count, 3, 3), dim=1)  # column k: e_k x away
    moved = torch.cat([eye, turn, away[:, :, None]], -1)
    turned = torch.cat([zero, eye, zero[:, :, :1]], -1)
    if compose == "camera":  # the same, in each camera's own axes
        moved, turned = R.transpose(1, 2) @ moved, R.transpose(1, 2) @ turned
    return torch.cat([moved, turned], 1)


def gauge(camera_to_worlds: Tensor, compose: str) -> tuple[Tensor, Tensor]:
    """(along, across), each [C, 6, 7] float32: xi - along (across . xi) has no common motion.

    Lengths count as parts of the scene's size, so that metres or millimetres give the same. Directions that
    do not exist (the scale of cameras that all stand in one place) are zero. float64 on the CPU.
    """
    poses = camera_to_worlds.detach().cpu().double()
    centres = poses[:, :, 3]
    size = (centres - centres.mean(0)).square().sum(-1).mean().sqrt()
    size = size if float(size) > 1e-9 else torch.ones_like(size)
    units = torch.cat([size.expand(3), torch.ones(3, dtype=torch.float64)]).view(1, 6, 1)
    motions = common_motions(poses, compose) / units
    flat = motions.reshape(-1, 7)
    flat = flat / flat.norm(dim=0).clamp_min(1e-12)
    left, values, _ = torch.linalg.svd(flat, full_matrices=False)
    directions = torch.zeros(len(flat), 7, dtype=torch.float64)
    directions[:, : left.shape[1]] = left * (values > 1e-6 * values.max())
    directions = directions.view(-1, 6, 7)
    return (directions * units).float(), (directions / units).float()


def without(xi: Tensor, along: Tensor, across: Tensor) -> Tensor:
    """xi [C, 6] less its common motion. Sums and not matrix products, which autocast and TF32 may round.

    The gradient goes back by `without(gradient, across, along)`.
    """
    return xi - (along * (across * xi[:, :, None]).sum((0, 1))).sum(-1)
