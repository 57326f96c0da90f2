"""Our grids and networks against tiny-cuda-nn's, under the same converted parameters, and how long both take.

    python -m bench.tcnn [--preset f3rm] [--points 131072] [--record]

For every hash grid and network of a preset (f3rm with predicted normals has all there are) as the backend
tcnn runs it, and for the two that nerfstudio joins in one module: outputs, gradients of parameters and
inputs, microseconds forward, and forward with backward. Parameters are halves, so that both look up the same
numbers. `output` is the largest difference over the largest output, gradients are compared by the norm of the
difference; a row is ok where output is at most 1e-2: tiny-cuda-nn adds halves, ours adds float32. Needs a GPU
and tiny-cuda-nn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench import record
from raymarch.config import override, preset
from raymarch.model.fields import Fields
from raymarch.nn import MLP, HashGrid, TcnnError, bricks, tcnn
from raymarch.nn import tcnn_layout as layout

TOLERANCE = 1e-2  # of the largest output
SPREAD = 0.5  # table entries lie in plus or minus this; as trained ones, not as new ones
WARMUPS, LAPS = 5, 30


@dataclass(frozen=True)
class Row:
    """One of ours and its equal, both called with x [P, inputs]."""

    ours: nn.Module
    theirs: nn.Module
    inputs: int
    sizes: tuple[torch.Size, ...]  # of our parameters, which theirs hold one after another


class Pair(nn.Module):
    """A network behind a grid."""

    def __init__(self, grid: HashGrid, network: MLP):
        super().__init__()
        self.network, self.grid = network, grid  # in the order of tiny-cuda-nn's parameters

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.grid(x))


@torch.no_grad()
def halved(module: nn.Module) -> nn.Module:
    """With parameters as after some training, each of which a half can hold."""
    for part in module.modules():
        if isinstance(part, HashGrid):
            part.table.uniform_(-SPREAD, SPREAD)
    for p in module.parameters():
        p.copy_(p.half())
    return module


def backed(part: HashGrid | MLP) -> nn.Module:
    """The same brick of the backend tcnn."""
    grid, mlp = bricks("tcnn")
    made: HashGrid | MLP
    if isinstance(part, HashGrid):
        made = grid(*part.settings, part.table.shape[1], part.interpolation)
    else:
        made = mlp(part.inputs, part.outputs, part.hidden, part.layers, part.output_activation, part.padding)
    made.load_state_dict(part.state_dict())
    return made.to(next(part.parameters()).device)


def joined(grid: HashGrid, mlp: MLP) -> nn.Module:
    """As nerfstudio has them: one module of tiny-cuda-nn. ValueError where it has other parameters."""
    settings = layout.grid_settings(grid), layout.network_settings(mlp)
    made = tcnn.required().NetworkWithInputEncoding(3, mlp.outputs, *settings)
    params = layout.pair_to_tcnn(grid, mlp)
    if made.params.numel() != params.numel():
        raise ValueError(
            f"tiny-cuda-nn has {made.params.numel()} parameters for these settings, converted were "
            f"{params.numel()}"
        )
    made.params = nn.Parameter(params)
    return made


def rows(fields: Fields) -> Iterator[tuple[str, Row]]:
    """Every grid and network, and the base of the radiance field as one module."""
    owners: dict[str, nn.Module] = {f"proposal_{i}": field for i, field in enumerate(fields.proposals)}
    owners["radiance"] = fields.radiance
    if fields.feature is not None:
        owners["feature"] = fields.feature
    for owner, field in owners.items():
        for name, part in field.named_children():
            if isinstance(part, (HashGrid, MLP)):
                halved(part)
                inputs = part.inputs if isinstance(part, MLP) else 3
                sizes = tuple(p.shape for p in part.parameters())
                yield f"{owner}.{name}", Row(part, backed(part), inputs, sizes)
    pair = Pair(fields.radiance.grid, fields.radiance.mlp)
    sizes = tuple(p.shape for p in pair.parameters())
    yield "radiance.joined", Row(pair, joined(pair.grid, pair.network), 3, sizes)


def apart(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """The norm of the difference over that of what is wanted."""
    off = torch.stack([(a.float() - b.float()).norm() for a, b in zip(got, want, strict=True)]).norm()
    return float(off / torch.stack([b.float().norm() for b in want]).norm().clamp_min(1e-30))


def compared(row: Row, x: Tensor) -> dict[str, Any]:
    """Errors of tiny-cuda-nn's results against ours."""
    x = x.clone().requires_grad_()
    want = row.ours(x)
    seed = torch.randn(want.shape, generator=torch.Generator().manual_seed(2)).half().float().to(x.device)
    wanted = torch.autograd.grad((want * seed).sum(), [x, *row.ours.parameters()])
    got = row.theirs(x)
    (flat,) = row.theirs.parameters()
    to_x, to_flat = torch.autograd.grad((got.float() * seed).sum(), [x, flat])
    parts = to_flat.reshape(-1).split([size.numel() for size in row.sizes])
    output = float((got.float() - want).detach().abs().max() / want.detach().abs().max().clamp_min(1e-30))
    return {
        "ok": output <= TOLERANCE,
        "parameters": flat.numel(),
        "output": output,
        "grad_parameters": apart(
            [p.view(size) for p, size in zip(parts, row.sizes, strict=True)], wanted[1:]
        ),
        "grad_inputs": apart([to_x], [wanted[0]]),
    }


def microseconds(call: Callable[[], Any]) -> float:
    """Median on the device, launches included."""
    for _ in range(WARMUPS):
        call()
    laps = []
    for _ in range(LAPS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        laps.append(1e3 * begin.elapsed_time(end))
    return statistics.median(laps)


def timed(row: Row, x: Tensor) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, part in (("ours", row.ours), ("tcnn", row.theirs)):
        parameters, given = list(part.parameters()), x.clone().requires_grad_()

        def forward(part=part) -> None:
            with torch.no_grad():
                part(x)

        def both(part=part, parameters=parameters, given=given) -> None:
            torch.autograd.grad(part(given).float().sum(), [given, *parameters])

        found |= {f"{name}_forward_us": microseconds(forward), f"{name}_us": microseconds(both)}
    return found


def points(count: int, inputs: int, device: torch.device | str) -> Tensor:
    """Positions in the cube for grids, numbers around 0 for networks; halves, which both can hold."""
    random = torch.Generator().manual_seed(1)
    if inputs == 3:
        return torch.rand(count, 3, generator=random).to(device)
    return torch.randn(count, inputs, generator=random).half().float().to(device)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="f3rm")
    parser.add_argument("--points", type=int, default=1 << 17)
    parser.add_argument("--record", action="store_true", help="add the figures to bench/results")
    args = parser.parse_args()
    try:
        tcnn.required()
    except TcnnError as error:
        print(f"nothing compared: {error}")
        return 1
    torch.manual_seed(0)
    config = override(preset(args.preset), "model.fields.radiance.predicted_normals=true")
    fields, failed = Fields(config.model.fields, 1).cuda(), 0
    for name, row in rows(fields):
        x = points(args.points, row.inputs, "cuda")
        found = compared(row, x) | timed(row, x)
        failed += not found["ok"]
        print(f"{name:20} " + "  ".join(f"{k} {record.spelled(v)}" for k, v in found.items()))
        if args.record:
            command = f"python -m bench.tcnn --preset {args.preset} --points {args.points}"
            record.merge("checks", {"tiny_cuda_nn": {name: found}}, command)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
