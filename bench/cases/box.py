"""Rows of the box: near and far. Misses are brought to zero, or their 1e10 would hide every hit."""

import torch
from torch import Tensor

from bench.cases._case import Case
from raymarch.ops.box import MISS, near_far
from raymarch.ops.pose import pose


def _hits(*args) -> tuple[Tensor, Tensor]:
    near, far = near_far(*args)
    return torch.where(near < MISS, near, 0), torch.where(far < MISS, far, 0)


def _slabs(o: Tensor, d: Tensor, box: Tensor, rotation=None, translation=None) -> tuple[Tensor, Tensor]:
    if rotation is not None:
        o, d = (o - translation) @ rotation, d @ rotation
    a, b = (box[0] - o) / d, (box[1] - o) / d
    near = torch.minimum(a, b).amax(-1).clamp_min(0)
    far = torch.maximum(a, b).amin(-1)
    hit = far > near
    return torch.where(hit, near, 0), torch.where(hit, far, 0)


def _inputs(n: int, turned: bool) -> tuple[Tensor, ...]:
    origins = 2 * torch.randn(n, 3)
    directions = torch.nn.functional.normalize(0.5 * torch.randn(n, 3) - origins, dim=-1)
    box = torch.tensor([[-1.0, -1.2, -0.8], [0.9, 1.1, 1.3]])
    if not turned:
        return origins, directions, box
    placement = pose(torch.tensor([[0.1, -0.2, 0.3, 0.4, 0.5, -0.6]]))[0]
    return origins, directions, box, placement[:, :3].contiguous(), placement[:, 3].contiguous()


CASES = {
    "near_far": Case(
        _hits, _slabs, lambda n: _inputs(n, False), bytes_per_ray=32, tolerance=5e-6, timed=near_far
    ),
    "near_far_turned": Case(
        _hits, _slabs, lambda n: _inputs(n, True), bytes_per_ray=32, tolerance=5e-6, timed=near_far
    ),
}
