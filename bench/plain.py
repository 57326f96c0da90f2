"""The stages in plain torch, as somebody who knows torch well would write them, for bench.peers to time.

Whole-tensor ops, nothing quadratic where a sum along the ray will do. Formulas as in bench/cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raymarch.ops.hashgrid import table_layout
from raymarch.ops.mlp import shapes

PRIMES = (1, 2654435761, 805459861)
NEWTON_STEPS = 10


def weights(sigma: Tensor, delta: Tensor) -> Tensor:
    tau = sigma * delta
    return torch.exp(tau - tau.cumsum(-1)) * -torch.expm1(-tau)


def weights_packed(sigma: Tensor, delta: Tensor, offsets: Tensor, ray: Tensor) -> Tensor:
    """One running sum over all rays, in double since it is never reset, less what it was at each start."""
    tau = sigma * delta
    running = F.pad(tau.double().cumsum(0), (1, 0))
    front = (running[:-1] - running[offsets[:-1]][ray]).to(tau.dtype)
    return torch.exp(-front) * -torch.expm1(-tau)


def composite(w: Tensor, t: Tensor, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour over white, opacity, median depth, expected depth."""
    middle = (t[:, 1:] + t[:, :-1]) / 2
    opacity = w.sum(-1)
    colour = (w[..., None] * rgb).sum(1) + (1 - opacity)[:, None]
    index = (w.cumsum(-1) < 0.5).sum(-1, keepdim=True).clamp_max(w.shape[1] - 1)
    expected = (w * middle).sum(-1) / (opacity + 1e-10)
    expected = torch.minimum(torch.maximum(expected, middle[:, 0]), middle[:, -1])
    return colour, opacity, middle.gather(1, index)[:, 0].detach(), expected


def features(w: Tensor, t: Tensor, f: Tensor) -> Tensor:
    return (w[..., None] * f).sum(1)


def features_by_product(w: Tensor, t: Tensor, f: Tensor) -> Tensor:
    return torch.bmm(w[:, None], f)[:, 0]


def _warp(t: Tensor) -> Tensor:
    return torch.where(t < 1, t / 2, 1 - 1 / (2 * t))


def t_from_s(s: Tensor, near: Tensor, far: Tensor) -> Tensor:
    g = s * _warp(far)[:, None] + (1 - s) * _warp(near)[:, None]
    return torch.where(g < 0.5, 2 * g, 1 / (2 - 2 * g))


def spaced(near: Tensor, far: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    s = torch.linspace(0, 1, samples + 1, dtype=near.dtype, device=near.device).expand(len(near), -1)
    return s, t_from_s(s, near, far)


def inverse_cdf(s: Tensor, w: Tensor, u: Tensor) -> Tensor:
    cdf = F.pad((w / w.sum(-1, keepdim=True)).cumsum(-1), (1, 0)).clamp_max(1)
    above = torch.searchsorted(cdf, u, right=True).clamp(1, w.shape[1])
    c0, c1 = cdf.gather(1, above - 1), cdf.gather(1, above)
    s0, s1 = s.gather(1, above - 1), s.gather(1, above)
    return s0 + ((u - c0) / (c1 - c0)).clamp(0, 1) * (s1 - s0)


def pdf(s: Tensor, w: Tensor, near: Tensor, far: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    u = (torch.arange(samples + 1, dtype=s.dtype, device=s.device) + 0.5) / (samples + 1)
    found = inverse_cdf(s, w + 0.01, u.expand(len(s), -1).contiguous())
    return found, t_from_s(found, near, far)


def contract(x: Tensor) -> Tensor:
    r = x.abs().amax(-1, keepdim=True)
    return torch.where(r < 1, x, (2 - 1 / r) * (x / r))


def unit_positions(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    middle = (t[:, 1:] + t[:, :-1]) / 2
    return (contract(origins[:, None] + middle[..., None] * directions[:, None]) + 2) / 4


def harmonics(d: Tensor) -> Tensor:
    """Sixteen real harmonics, nerfstudio's signs: polynomials with the constants of degrees 0 to 3."""
    x, y, z = d.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    c = [
        math.sqrt(k / math.pi)
        for k in (1 / 4, 3 / 4, 15 / 4, 5 / 16, 15 / 16, 35 / 32, 105 / 4, 21 / 32, 7 / 16)
    ]
    return torch.stack(
        [
            torch.full_like(x, c[0]), c[1] * y, c[1] * z, c[1] * x,
            c[2] * x * y, c[2] * y * z, c[3] * (3 * zz - 1), c[2] * x * z, c[4] * (xx - yy),
            c[5] * y * (3 * xx - yy), c[6] * x * y * z, c[7] * y * (5 * zz - 1), c[8] * z * (5 * zz - 3),
            c[7] * x * (5 * zz - 1), c[6] / 2 * z * (xx - yy), c[5] * x * (xx - 3 * yy),
        ],
        -1,
    )  # fmt: skip


def fourier(x: Tensor, octaves: Tensor) -> Tensor:
    angle = x[:, :, None] * octaves
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def hashgrid(
    grid: tuple[int, int, int, int], layout: str, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """(points [P, 3], table) -> [P, levels * F], all levels and corners at once."""
    found = table_layout(*grid, layout)
    scale = torch.tensor([float(level.scale) for level in found], device=device)
    numbers = ([getattr(level, k) for level in found] for k in ("resolution", "entries", "offset"))
    resolution, entries, offset = (torch.tensor(n, device=device)[:, None] for n in numbers)
    dense = (resolution**3 <= entries) & (layout == "tcnn")
    shift = 0.5 if layout == "tcnn" else 0.0
    corners = torch.tensor([[c >> d & 1 for d in range(3)] for c in range(8)], device=device)
    upper = corners.float()

    def look_up(x: Tensor, table: Tensor) -> Tensor:
        p = x[:, None] * scale[:, None] + shift
        floor = p.detach().floor()
        f = (p - floor)[:, :, None]
        a, b, c = (floor.long()[:, :, None] + corners).unbind(-1)
        hashed = a ^ (b * PRIMES[1] & 0xFFFFFFFF) ^ (c * PRIMES[2] & 0xFFFFFFFF)
        index = torch.where(dense, a + resolution * (b + resolution * c), hashed)
        weight = (upper * f + (1 - upper) * (1 - f)).prod(-1)
        return (weight[..., None] * F.embedding(index % entries + offset, table)).sum(2).flatten(1)

    return look_up


def mlp(
    x: Tensor, params: Tensor, hidden: int, layers: int, outputs: int, last: str, padding: float
) -> Tensor:
    matrices = shapes(x.shape[-1], hidden, layers, outputs)
    h = F.pad(x, (0, matrices[0][1] - x.shape[-1]), value=padding)
    at = 0
    for i, (rows, columns) in enumerate(matrices):
        layer = params[at : at + rows * columns].view(rows, columns)
        h = F.linear(h, layer if i < layers else layer[:outputs])
        h = h.relu() if i < layers else h
        at += rows * columns
    return h.sigmoid() if last == "sigmoid" else h


def mlp_half(x: Tensor, params: Tensor, *settings: Any) -> Tensor:
    return mlp(x.half(), params.half(), *settings)


def distortion(s: Tensor, w: Tensor) -> Tensor:
    """2 sum_i w_i (u_i W_i - V_i), with W and V what lies before i of w and w u."""
    u = (s[:, 1:] + s[:, :-1]) / 2
    wu = w * u
    before, moment = w.cumsum(-1) - w, wu.cumsum(-1) - wu
    return (2 * w * (u * before - moment) + w.square() * s.diff(dim=-1) / 3).sum(-1)


def interlevel(s: Tensor, w: Tensor, s_proposal: Tensor, w_proposal: Tensor) -> Tensor:
    running = F.pad(w_proposal.cumsum(-1), (1, 0))
    most = w_proposal.shape[1] - 1
    low = torch.searchsorted(s_proposal[:, :-1].contiguous(), s[:, :-1].contiguous(), right=True) - 1
    high = torch.searchsorted(s_proposal[:, 1:].contiguous(), s[:, 1:].contiguous(), right=True)
    bound = running.gather(1, high.clamp(0, most) + 1) - running.gather(1, low.clamp(0, most))
    return ((w - bound).clamp_min(0).square() / (w + 1e-7)).mean(-1)


def orientation(w: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    return (w * (normals * directions[:, None]).sum(-1).clamp_min(0).square()).sum(-1)


def near_far(origins: Tensor, directions: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    a, b = (box[0] - origins) / directions, (box[1] - origins) / directions
    near, far = torch.minimum(a, b).amax(-1).clamp_min(0), torch.maximum(a, b).amin(-1).clamp_min(0)
    missed = far <= near
    return near.masked_fill(missed, 1e10), far.masked_fill(missed, 1e10)


def pose(xi: Tensor) -> Tensor:
    """Rodrigues' formula beside the translation."""
    w = xi[:, 3:]
    angle = w.norm(dim=-1).clamp_min(1e-6)[:, None, None]
    zero = torch.zeros_like(w[:, 0])
    x, y, z = w.unbind(-1)
    k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    turn = torch.eye(3, device=xi.device) + angle.sin() / angle * k + (1 - angle.cos()) / angle**2 * (k @ k)
    return torch.cat([turn, xi[:, :3, None]], -1)


def rays(
    camera: Tensor, xy: Tensor, poses: Tensor, intrinsics: Tensor, k: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Origins, directions and pixels' areas of pinhole cameras with distortion k [C, 6] = k1 k2 k3 k4 p1 p2.

    The area is the product of the distances to the unit directions of the next pixel in x and in y.
    """
    f, c = intrinsics[camera, :2], intrinsics[camera, 2:]
    steps = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], device=xy.device)
    want = ((xy + steps[:, None] - c) / f).view(-1, 2)
    x, y = _undistorted(want, k[camera].repeat(3, 1)).unbind(-1)
    local = F.normalize(torch.stack([x, -y, -torch.ones_like(x)], -1), dim=-1).view(3, -1, 3)
    area = (local[0] - local[1]).norm(dim=-1) * (local[0] - local[2]).norm(dim=-1)
    pose = poses[camera]
    return pose[:, :, 3], F.normalize((pose[:, :, :3] * local[0][:, None]).sum(-1), dim=-1), area


def _undistorted(want: Tensor, k: Tensor) -> Tensor:
    """Newton's method on both coordinates."""
    k1, k2, k3, k4, p1, p2 = k.unbind(-1)
    x, y = want.unbind(-1)
    for _ in range(NEWTON_STEPS):
        r = x * x + y * y
        d = 1 + r * (k1 + r * (k2 + r * (k3 + r * k4)))
        slope = k1 + r * (2 * k2 + r * (3 * k3 + r * 4 * k4))
        fx = d * x + 2 * p1 * x * y + p2 * (r + 2 * x * x) - want[:, 0]
        fy = d * y + 2 * p2 * x * y + p1 * (r + 2 * y * y) - want[:, 1]
        xx = d + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
        xy = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
        yy = d + 2 * y * y * slope + 2 * p2 * x + 6 * p1 * y
        det = xx * yy - xy * xy
        x, y = x - (fx * yy - fy * xy) / det, y - (fy * xx - fx * xy) / det
    return torch.stack([x, y], -1)
