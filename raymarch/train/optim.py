"""Adam over named groups of parameters, with learning rates that live on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymarch.ops.adam import adam


@dataclass(frozen=True)
class GroupConfig:
    """One group's learning rate: warm-up, then exponential decay from `lr` to `lr_final`, then constant."""

    lr: float = 1e-2
    lr_final: float = 1e-4
    decay_steps: int = 200_000  # steps from `lr` to `lr_final`
    warmup: int = 0  # steps of sinusoidal warm-up from nearly nothing
    eps: float = 1e-15
    weight_decay: float = 0.0  # coupled L2, as torch.optim.Adam


@dataclass(frozen=True)
class OptimConfig:
    fields: GroupConfig = GroupConfig()
    proposals: GroupConfig = GroupConfig()
    feature: GroupConfig = GroupConfig()
    poses: GroupConfig = GroupConfig(lr=1e-3, lr_final=1e-4, decay_steps=5000)
    betas: tuple[float, float] = (0.9, 0.999)


def learning_rate(config: GroupConfig, steps: Tensor) -> Tensor:
    """Learning rate at every step of `steps` (float64), as nerfstudio's ExponentialDecay (spec 14)."""
    steps = steps.double()
    p = ((steps - config.warmup) / max(config.decay_steps - config.warmup, 1)).clamp(0, 1)
    decayed = torch.exp((1 - p) * torch.tensor(config.lr).log() + p * torch.tensor(config.lr_final).log())
    if not config.warmup:
        return decayed
    start = 1e-8
    ramp = start + (config.lr - start) * torch.sin(torch.pi / 2 * (steps / config.warmup).clamp(0, 1))
    return torch.where(steps < config.warmup, ramp, decayed)


class Adam:
    """Moments and step counts per parameter group. A group whose gradients are missing does not step."""

    def __init__(self, groups: dict[str, list[nn.Parameter]], config: OptimConfig):
        self.groups, self.config = groups, config
        self.first = {name: [torch.zeros_like(p) for p in params] for name, params in groups.items()}
        self.second = {name: [torch.zeros_like(p) for p in params] for name, params in groups.items()}
        self.steps = {
            name: torch.zeros(1, dtype=torch.int64, device=params[0].device)
            for name, params in groups.items()
        }

    def step(self, rates: dict[str, Tensor], healthy: Tensor) -> None:
        """Update every group from `.grad`; `rates[name]` [1] float32 and `healthy` [1] bool on the device."""
        for name, params in self.groups.items():
            if all(p.grad is None for p in params):
                continue
            group: GroupConfig = getattr(self.config, name)
            self.steps[name] += healthy
            for p, m, v in zip(params, self.first[name], self.second[name], strict=True):
                if p.grad is not None:
                    adam(
                        p, p.grad.contiguous(), m, v, rates[name], self.steps[name], healthy,
                        self.config.betas, group.eps, group.weight_decay,
                    )  # fmt: skip

    def zero_grad(self) -> None:
        for params in self.groups.values():
            for p in params:
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
