"""Gradients by parameter, as the fused stages make them one after another."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Gradients:
    """Gradients by parameter; those `summed` are added to, and must be zero again before the next step."""

    room: dict[nn.Parameter, Tensor]  # for sums, which outlive the step: all zeros whenever one begins
    of: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    summed: set[nn.Parameter] = field(default_factory=set)


def sum_for(parameter: nn.Parameter, found: Gradients) -> Tensor:
    """Room for a parameter's sum of gradients, which is its gradient from here on."""
    if parameter not in found.room:
        found.room[parameter] = torch.zeros_like(parameter)
    found.of[parameter] = found.room[parameter]
    found.summed.add(parameter)
    return found.room[parameter]
