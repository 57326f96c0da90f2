"""Between our parameters and tiny-cuda-nn's flat vectors, both ways, and the settings that describe them.

Read from tiny-cuda-nn 6ee3546 (BSD-3; Mueller et al. 2022); no code of it is used. Its modules hold one flat
float32 vector each, cast to half for every call:

- `Encoding` of a hash grid: [level][entry][feature], levels as `ops.hashgrid.table_layout` says.
- `Network`: row-major matrices [out, in], first, hidden, last, without biases. Widths of inputs and outputs
  are rounded up to multiples of 16. Inputs that are missing are `IDENTITY_FILL`; rows of outputs that are too
  many exist and are cut off.
- `NetworkWithInputEncoding`: the network's vector, then the encoding's. What a hash grid leaves open of the
  network's inputs is `GRID_FILL`.

FullyFusedMLP and CutlassMLP agree in all of this. Ours is the same, so that numbers are moved and never
changed, but for one thing: our `MLP` completes its inputs with what its `padding` says.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from raymarch.nn.hashgrid import HashGrid
from raymarch.nn.mlp import MLP

IDENTITY_FILL, GRID_FILL = 1.0, 0.0
FUSED_WIDTHS = (16, 32, 64, 128)  # of FullyFusedMLP; CutlassMLP has the others
INTERPOLATIONS = {"linear": "Linear", "smoothstep": "Smoothstep"}
ACTIVATIONS = {"none": "None", "sigmoid": "Sigmoid", "relu": "ReLU"}


def grid_settings(grid: HashGrid) -> dict[str, Any]:
    """`encoding_config` of tiny-cuda-nn for a grid. ValueError for nerfstudio's layout, which it lacks."""
    _check_layout(grid)
    levels, base, top, log2_size = grid.settings
    growth = math.exp((math.log(top) - math.log(base)) / (levels - 1)) if levels > 1 else 1.0
    return {
        "otype": "HashGrid",
        "n_levels": levels,
        "n_features_per_level": grid.table.shape[1],
        "log2_hashmap_size": log2_size,
        "base_resolution": base,
        "per_level_scale": growth,
        "interpolation": INTERPOLATIONS[grid.interpolation],
    }


def network_settings(mlp: MLP) -> dict[str, Any]:
    """`network_config` of tiny-cuda-nn for a network."""
    return {
        "otype": "FullyFusedMLP" if mlp.hidden in FUSED_WIDTHS else "CutlassMLP",
        "activation": "ReLU",
        "output_activation": ACTIVATIONS[mlp.output_activation],
        "n_neurons": mlp.hidden,
        "n_hidden_layers": mlp.layers,
    }


@torch.no_grad()
def grid_to_tcnn(grid: HashGrid, dtype: torch.dtype = torch.float32) -> Tensor:
    """The params of an `Encoding`: a copy of the table, flat [entries * features]."""
    _check_layout(grid)
    return grid.table.detach().reshape(-1).to(dtype, copy=True)


@torch.no_grad()
def grid_from_tcnn(grid: HashGrid, params: Tensor) -> None:
    """Take over the params of an `Encoding`, of any float dtype. ValueError where their number is another."""
    _check_layout(grid)
    _check_count("hash grid", params, grid.table.numel(), str(grid_settings(grid)))
    grid.table.copy_(params.reshape(grid.table.shape))


@torch.no_grad()
def network_to_tcnn(mlp: MLP, fill: float = IDENTITY_FILL, dtype: torch.dtype = torch.float32) -> Tensor:
    """The params of a `Network`, whose missing inputs are `fill`: flat, the same network.

    ValueError where ours has a bias, from inputs that are 1, and `fill` is 0.
    """
    params = mlp.params.detach().clone()
    _refill(mlp, params, mlp.padding, fill)
    return params.to(dtype)


@torch.no_grad()
def network_from_tcnn(mlp: MLP, params: Tensor, fill: float = IDENTITY_FILL) -> None:
    """Take over the params of a `Network` whose missing inputs are `fill`.

    ValueError where their number is another, or theirs has a bias that our `padding` 0 has no place for.
    """
    widths = [mlp.inputs, *[mlp.hidden] * mlp.layers, mlp.outputs]
    _check_count("network", params, mlp.params.numel(), " -> ".join(map(str, widths)))
    found = params.detach().reshape(-1).to(mlp.params, copy=True)
    _refill(mlp, found, fill, mlp.padding)
    mlp.params.copy_(found)


def pair_to_tcnn(grid: HashGrid, mlp: MLP, dtype: torch.dtype = torch.float32) -> Tensor:
    """The params of a `NetworkWithInputEncoding` of both: first the network's, then the grid's."""
    return torch.cat([network_to_tcnn(mlp, GRID_FILL, dtype), grid_to_tcnn(grid, dtype)])


def pair_from_tcnn(grid: HashGrid, mlp: MLP, params: Tensor) -> None:
    """Take over the params of a `NetworkWithInputEncoding`. ValueError where they do not fit both."""
    count = mlp.params.numel()
    _check_count("network and hash grid", params, count + grid.table.numel(), str(grid_settings(grid)))
    flat = params.reshape(-1)
    network_from_tcnn(mlp, flat[:count], GRID_FILL)
    grid_from_tcnn(grid, flat[count:])


def _refill(mlp: MLP, params: Tensor, before: float, after: float) -> None:
    """Change what the missing inputs are, in place: their columns say the same about another constant."""
    width = mlp.shapes[0][1]
    if width == mlp.inputs or before == after:
        return
    columns = params[: mlp.hidden * width].view(mlp.hidden, width)[:, mlp.inputs :]
    if before == 0:
        columns.zero_()  # said nothing, and must not begin to
    elif bool(columns.any()):
        raise ValueError(
            f"a network of {mlp.inputs} inputs has a bias, in weights of inputs that are always {before:g}; "
            f"where these are {after:g} it has no place: use a network with padding={before:g}"
        )


def _check_layout(grid: HashGrid) -> None:
    if grid.layout != "tcnn":
        raise ValueError(
            f"a hash grid in the layout {grid.layout!r} has no equal in tiny-cuda-nn: expected layout 'tcnn'"
        )


def _check_count(what: str, params: Tensor, expected: int, settings: str) -> None:
    if not params.is_floating_point() or params.numel() != expected:
        raise ValueError(
            f"tiny-cuda-nn's {what} has {params.numel()} parameters ({params.dtype}), expected {expected} "
            f"floats for {settings}: the settings differ from those that it was made with"
        )
