"""Adam over named groups of parameters, with learning rates that live on the device."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from raymarch.nn import HashGrid
from raymarch.ops.adam import AdamItem, adam_many


@dataclass(frozen=True)
class GroupConfig:
    """One group's learning rate: nothing, warm-up, exponential decay from `lr` to `lr_final`, constant."""

    lr: float = 1e-2
    lr_final: float = 1e-4
    decay_steps: int = 200_000  # steps from `lr` to `lr_final`
    delay: int = 0  # steps in which the group does not move at all
    warmup: int = 0  # steps of sinusoidal warm-up from nearly nothing, after the delay
    eps: float = 1e-15
    weight_decay: float = 0.0  # coupled L2, as torch.optim.Adam
    betas: tuple[float, float] | None = None  # this group's own; None: those of OptimConfig


@dataclass(frozen=True)
class OptimConfig:
    fields: GroupConfig = GroupConfig()
    proposals: GroupConfig = GroupConfig()
    feature: GroupConfig = GroupConfig()
    poses: GroupConfig = GroupConfig(lr=1e-3, lr_final=1e-4, decay_steps=5000)
    intrinsics: GroupConfig = GroupConfig(lr=1e-3, lr_final=1e-5, decay_steps=5000)
    betas: tuple[float, float] = (0.9, 0.999)


def learning_rate(config: GroupConfig, steps: Tensor) -> Tensor:
    """Learning rate at every step of `steps` (float64), as nerfstudio's ExponentialDecay (spec 14)."""
    steps = steps.double()
    warm = config.delay + config.warmup
    p = ((steps - warm) / max(config.decay_steps - warm, 1)).clamp(0, 1)
    decayed = torch.exp((1 - p) * torch.tensor(config.lr).log() + p * torch.tensor(config.lr_final).log())
    decayed = torch.where(steps < config.delay, 0.0, decayed)
    if not config.warmup:
        return decayed
    start = 1e-8
    part = ((steps - config.delay) / config.warmup).clamp(0, 1)
    ramp = start + (config.lr - start) * torch.sin(torch.pi / 2 * part)
    return torch.where((steps >= config.delay) & (steps < warm), ramp, decayed)


def runs(flags: list[bool]) -> list[tuple[int, int]]:
    """Begin and end of every run of true flags."""
    edges = [i for i, (a, b) in enumerate(zip([False, *flags], [*flags, False], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


class Adam:
    """Moments and step counts per parameter group. A group whose gradients are missing does not step.

    `grids` are the hash grids among the owners of the parameters; `keeping_copies` is for them.
    """

    def __init__(
        self, groups: dict[str, list[nn.Parameter]], config: OptimConfig, grids: Iterable[HashGrid] = ()
    ):
        self.groups, self.config = groups, config
        self.grids = {grid.table: grid for grid in grids}
        self.first = {name: [torch.zeros_like(p) for p in params] for name, params in groups.items()}
        self.second = {name: [torch.zeros_like(p) for p in params] for name, params in groups.items()}
        device = next(iter(groups.values()))[0].device
        self.counts = torch.zeros(len(groups), dtype=torch.int64, device=device)
        self.steps = {name: self.counts[i : i + 1] for i, name in enumerate(groups)}

    @contextmanager
    def keeping_copies(self) -> Iterator[None]:
        """While open, `step` writes the half copies of tables too, so that forward passes need not.

        Only this optimiser may change the tables meanwhile. Capture and replay CUDA graphs inside.
        """
        for grid in self.grids.values():
            grid.refresh()
            grid.kept = True
        try:
            yield
        finally:
            for grid in self.grids.values():
                grid.kept = False

    def replayed(self) -> None:
        """Tell torch what replays of a captured `step` did: parameters changed, copies followed."""
        followed = [grid for grid in self.grids.values() if grid.kept and grid.current]
        increment_version([p for params in self.groups.values() for p in params])
        for grid in followed:
            grid.mark_current()

    def stepping(self, gradients: Mapping[nn.Parameter, Tensor]) -> list[bool]:
        """Which groups a step with these gradients updates."""
        return [any(p in gradients for p in params) for params in self.groups.values()]

    def step(self, rates: dict[str, Tensor], healthy: Tensor) -> None:
        """Update every group from `.grad`. `rates[name]` [1] float32, `healthy` [1] bool: on the device."""
        gradients = {p: p.grad for params in self.groups.values() for p in params if p.grad is not None}
        for begin, end in runs(self.stepping(gradients)):
            self.counts[begin:end] += healthy
        self.apply(rates, healthy, gradients)

    def apply(
        self,
        rates: dict[str, Tensor],
        healthy: Tensor,
        gradients: Mapping[nn.Parameter, Tensor],
        clear: Collection[nn.Parameter] = (),
    ) -> None:
        """`step` with given gradients, once their groups' `counts` were raised.

        The gradients of `clear` are set to zero.
        """
        kept = []
        by_betas: dict[tuple[float, float], list[AdamItem]] = {}
        for name, params in self.groups.items():
            group: GroupConfig = getattr(self.config, name)
            for p, m, v in zip(params, self.first[name], self.second[name], strict=True):
                gradient = gradients.get(p)
                if gradient is None:
                    continue
                grid = self.grids.get(p)
                stored = None
                if grid is not None and grid.kept and grid.current:  # a step need not write every entry
                    stored = grid.stored
                    kept.append(grid)
                by_betas.setdefault(group.betas or self.config.betas, []).append(
                    AdamItem(
                        p, gradient.contiguous(), m, v, rates[name], self.steps[name],
                        group.eps, group.weight_decay, stored, p in clear,
                    )
                )  # fmt: skip
        for betas, items in by_betas.items():
            adam_many(items, healthy, betas)
        for grid in kept:
            grid.mark_current()

    def zero_grad(self, names: Iterable[str] | None = None) -> None:
        """Forget the gradients of all groups, or of those named."""
        for name, params in self.groups.items():
            for p in params if names is None or name in names else ():
                p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, for a checkpoint."""
        found = {}
        for name in self.groups:
            found[f"{name}.steps"] = self.steps[name]
            for i, (m, v) in enumerate(zip(self.first[name], self.second[name], strict=True)):
                found[f"{name}.{i}.first"], found[f"{name}.{i}.second"] = m, v
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.state().items():
                tensor.copy_(state[name])
