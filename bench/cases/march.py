"""Rows of the march: the stages it swallows, one after another in plain torch."""

import torch
from torch import Tensor

from bench.cases._case import Case
from bench.cases.sample import _pdf, _spaced, _unit
from raymarch.ops.march import march, representatives

CELLS, STEPS = 24, 40  # of the test; a frame's march is below
FRAME_CELLS, FRAME_STEPS, FRAME_SAMPLES = 256, 256, 32


def _weights(sigma: Tensor, t: Tensor) -> Tensor:
    tau = sigma * t.diff()
    return torch.exp(tau - tau.cumsum(-1)) * -torch.expm1(-tau)


def _march(
    origins,
    directions,
    near,
    far,
    baked,
    samples,
    steps,
    norm="linf",
    spacing="piecewise",
    padding=0.0,
    stop=9.2,
):
    s, t = _spaced(near, far, steps)
    y = _unit(origins, directions, t, norm)
    cell = (y * len(baked)).long().clamp_max(len(baked) - 1)
    sigma = baked[cell[..., 2], cell[..., 1], cell[..., 0]] * (y > 0).any(-1)
    tau = sigma * t.diff()
    sigma = torch.where(tau.cumsum(-1) - tau < stop, sigma, 0)
    return _pdf(s, _weights(sigma, t) + padding - 0.01, near, far, samples)[1]


def _rays(n: int) -> tuple[Tensor, ...]:
    origins = 0.5 * torch.randn(n, 3)
    directions = torch.nn.functional.normalize(torch.randn(n, 3), dim=-1)
    return origins, directions, 0.05 + 0.1 * torch.rand(n), 5 + torch.rand(n)


def _march_inputs(n: int):
    large = n > 1000
    cells = FRAME_CELLS if large else CELLS
    place = torch.linspace(-3, 3, cells)
    waves = torch.sin(place)[:, None, None] + torch.cos(2 * place)[:, None] + torch.sin(place + 1)
    baked = (2 * waves).clamp_min(0).exp() - 1
    if large:
        return *_rays(n), baked.half(), FRAME_SAMPLES, FRAME_STEPS, "linf", "piecewise", 0.002
    return *_rays(n), baked, 12, STEPS, "linf", "piecewise", 0.005


def _representatives(origins, directions, t, weights, count) -> tuple[Tensor, Tensor]:
    upto = weights.cumsum(-1)
    all_of_it = upto[:, -1:]
    targets = (torch.arange(count, dtype=t.dtype) + 0.5) / count * all_of_it
    chosen = (upto[:, None] > targets[..., None]).long().argmax(-1)
    middle = ((t[:, 1:] + t[:, :-1]) / 2).gather(1, chosen)
    return origins[:, None] + middle[..., None] * directions[:, None], (all_of_it / count).expand(-1, count)


def _representatives_inputs(n: int):
    t = torch.rand(n, FRAME_SAMPLES + 1).cumsum(-1)
    return *_rays(n)[:2], t, torch.rand(n, FRAME_SAMPLES) ** 3, 4


CASES = {
    "march": Case(
        march,
        _march,
        _march_inputs,
        bytes_per_ray=32 + 4 * (FRAME_SAMPLES + 1),
        tolerance=1e-5,
        gathers=True,
    ),
    "representatives": Case(
        representatives,
        _representatives,
        _representatives_inputs,
        bytes_per_ray=24 + 8 * FRAME_SAMPLES + 4 + 4 * 16,
    ),
}
