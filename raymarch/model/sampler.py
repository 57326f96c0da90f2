"""Rays -> Samples: proposal levels that look where the one before saw something.

Densities come in as functions, so the sampler knows no field. New edges carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from raymarch.ops.sample import sample_pdf, sample_spaced
from raymarch.ops.weights import weights
from raymarch.types import Proposal, Rays, Samples

DensityFn = Callable[[Rays, Samples], Tensor]


@dataclass(frozen=True)
class SamplerConfig:
    samples: tuple[int, ...] = (256, 96, 48)  # per ray: proposal levels, then the final one
    spacing: str = "piecewise"  # of the first level: uniform | linear-disparity | sqrt | log | piecewise
    jitter: str = "single"  # while training: none | single (one offset per ray) | each
    padding: float = 0.01  # added to every weight before resampling
    anneal_steps: int = 1000  # steps over which proposal weights sharpen
    anneal_slope: float = 10.0
    update_every: int = 5  # proposals learn every so many steps, once warmed up
    update_warmup: int = 5000  # steps over which they learn ever more seldom


def anneal_at(step: int, config: SamplerConfig) -> float:
    """The exponent on proposal weights at a step: 0 flattens, 1 leaves them (mip-NeRF 360, section 4)."""
    x = min(max(step / config.anneal_steps, 0.0), 1.0) if config.anneal_steps > 0 else 1.0
    b = config.anneal_slope
    return b * x / ((b - 1) * x + 1)


def updates_at(steps: int, config: SamplerConfig) -> list[bool]:
    """For each of `steps` steps whether proposals learn in it.

    nerfstudio's cadence, its off-by-one included, since training follows it: always in the first steps, then
    every second step, and after the warm-up every (update_every + 1)-th.
    """
    flags, since = [], 0
    for step in range(steps):
        # the counters that the decision reads were set after the step before
        known = max(step - 1, 0)
        ramp = min(max(known / config.update_warmup, 0.0), 1.0) if config.update_warmup else 1.0
        every = min(max(ramp * config.update_every, 1.0), float(config.update_every))
        update = since > every or known < 10
        flags.append(update)
        since = 1 if update else since + 1
    return flags


class Sampler(nn.Module):
    """Proposal sampling (mip-NeRF 360; nerfstudio's ProposalNetworkSampler)."""

    def __init__(self, config: SamplerConfig, moves_rays: bool = True):
        super().__init__()
        if not config.samples or min(config.samples) < 1:
            raise ValueError(f"model.sampler.samples: expected counts of at least 1, got {config.samples}")
        self.config, self.moves_rays = config, moves_rays

    def forward(
        self,
        rays: Rays,
        density_fns: Sequence[DensityFn],
        counter: Tensor | None = None,
        anneal: Tensor | None = None,
        train: bool = False,
        update: bool = True,
    ) -> tuple[Samples, tuple[Proposal, ...]]:
        """The final samples and every proposal level.

        density_fns: one per proposal level, (rays, samples) -> density [R, S]. counter [2] int64 = (seed,
        step) and anneal [1] live on the rays' device; both matter only while training. With `update` false
        the proposals are evaluated without a graph. ValueError where the levels do not match the functions.
        """
        config = self.config
        if len(density_fns) != len(config.samples) - 1:
            raise ValueError(
                f"model.sampler.samples has {len(config.samples) - 1} proposal levels, but there are "
                f"{len(density_fns)} proposal fields"
            )
        jitter = config.jitter if train else "none"
        near, far = rays.near, rays.far
        samples = Samples(
            *sample_spaced(near, far, config.samples[0], config.spacing, jitter, counter, stream=1)
        )
        proposals = []
        seen = rays
        if not self.moves_rays:
            seen = replace(rays, origins=rays.origins.detach(), directions=rays.directions.detach())
        for level, density in enumerate(density_fns):
            with nullcontext() if update else torch.no_grad():
                w = weights(density(seen, samples), samples.t.diff().clamp_min(0))
            proposals.append(Proposal(samples, w))
            samples = Samples(
                *sample_pdf(
                    samples.s, w, near, far, config.samples[level + 1], config.spacing, jitter, counter,
                    stream=level + 2, anneal=anneal if train else None, padding=config.padding,
                )
            )  # fmt: skip
        return samples, tuple(proposals)
