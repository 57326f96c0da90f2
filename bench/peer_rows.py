"""The rows of bench.peers: inputs, raymarch's op, plain torch, and the libraries that have the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from bench import libraries as lib
from bench import plain
from bench.libraries import Bound
from raymarch import ops
from raymarch.ops.hashgrid import table_layout
from raymarch.ops.mlp import shapes

HALF = 2e-2  # of ||got - want|| / ||want||, for a way that computes with halves
LOOSE = {"tcnn": HALF, "torch_half": HALF, "compile_half": HALF}
POINTS_ALONG = 48


@dataclass(frozen=True)
class Row:
    """One thing to compute. `inputs(n)` are on the CPU, in float32; `kept` says which are parameters."""

    inputs: Callable[[int], tuple[Any, ...]]
    ways: dict[str, Callable[..., Bound]]  # raymarch, torch, then others
    compiled: bool = True  # whether torch.compile is given the plain one, too
    differentiable: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    tolerance: float = 1e-5
    cuda_tolerance: float | None = None  # of raymarch, where CUDA computes with halves
    cpu_size: int = 4096
    cuda_size: int = 65536
    on_cuda: Callable[[tuple], tuple] = field(default=lambda args: args)

    def tolerance_of(self, way: str, device: str) -> float:
        if way == "raymarch" and device == "cuda" and self.cuda_tolerance:
            return self.cuda_tolerance
        return LOOSE.get(way, self.tolerance)


def row(ours: Callable, theirs: Callable, inputs: Callable[[int], tuple], **rest: Any) -> Row:
    """Keywords are settings of Row, or the names of libraries."""
    known = set(Row.__dataclass_fields__)
    ways = {"raymarch": lambda *_: Bound(ours), "torch": lambda *_: Bound(theirs)}
    ways |= {name: make for name, make in rest.items() if name not in known}
    settings = {name: value for name, value in rest.items() if name in known}
    return Row(inputs, ways, **settings)


def rays_of(n: int, samples: int = 48) -> tuple[Tensor, Tensor]:
    return 5 * torch.rand(n, samples), torch.rand(n, samples)


def ragged(n: int) -> tuple[Tensor, ...]:
    lengths = torch.randint(0, 96, (n,))
    offsets = pad(lengths.cumsum(0), (1, 0))
    total = int(offsets[-1])
    return 5 * torch.rand(total), torch.rand(total), offsets, torch.arange(n).repeat_interleave(lengths)


def opaque(n: int, samples: int = 48) -> tuple[Tensor, Tensor]:
    """Weights that sum to less than one, and edges."""
    w = torch.softmax(2 * torch.randn(n, samples + 1), -1)[:, 1:].contiguous()
    return w, 0.1 + torch.rand(n, samples + 1).cumsum(1)


def planes(n: int) -> tuple[Tensor, Tensor]:
    return 0.05 + torch.rand(n), 2 + 8 * torch.rand(n)


def histogram(n: int) -> tuple[Any, ...]:
    near, far = planes(n)
    return plain.spaced(near, far, 96)[0].contiguous(), torch.rand(n, 96) ** 4, near, far, 48


def along(n: int) -> tuple[Tensor, ...]:
    return 0.5 * torch.randn(n, 3), normalize(torch.randn(n, 3), dim=-1), torch.rand(n, 49).cumsum(1) / 8


def edges(n: int, samples: int) -> Tensor:
    gaps = 0.01 + torch.rand(n, samples + 1)
    return (gaps.cumsum(1) - gaps[:, :1]) / gaps.sum(1, keepdim=True)


def shares(n: int, samples: int) -> Tensor:
    w = torch.rand(n, samples) ** 4
    return w / w.sum(1, keepdim=True)


def unit(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape, 3), dim=-1)


def boxed(n: int) -> tuple[Tensor, ...]:
    """Rays at a point within the box: all of them hit, since 1e10 for a miss would hide every other error."""
    origins = 2 * torch.randn(n, 3)
    box = torch.tensor([[-1.0, -1.2, -0.8], [0.9, 1.1, 1.3]])
    return origins, normalize(box[0] + torch.rand(n, 3) * (box[1] - box[0]) - origins, dim=-1), box


def grid_points(n: int) -> Tensor:
    """Neighbours lie on a ray, as in training; none on the border, where one-sided slopes differ."""
    rays = n // POINTS_ALONG + 1
    steps = unit(rays, 1) * torch.linspace(0, 0.4, POINTS_ALONG)[:, None]
    return (0.3 + 0.4 * torch.rand(rays, 1, 3) + steps).reshape(-1, 3)[:n].clamp(0.001, 0.999).contiguous()


def grid(
    large: tuple[int, int, int, int], features: int, layout: str = "tcnn", **others: Callable[..., Bound]
) -> Row:
    """A hash grid; on CUDA raymarch reads a half copy of the table, as it does in training."""

    def inputs(n: int) -> tuple[Any, ...]:
        last = table_layout(*large, layout)[-1]
        return grid_points(n), torch.rand(last.offset + last.entries, features) - 0.5, large, None

    def ours(x, table, shape, stored):
        levels, base, top, log2_size = shape
        return ops.hashgrid(x, table, levels, base, top, log2_size, stored=stored, layout=layout)

    def theirs(x, table, shape, stored) -> Bound:
        look_up = plain.hashgrid(shape, layout, x.device)
        return Bound(lambda x, table, shape, stored: look_up(x, table))

    return Row(
        inputs,
        {"raymarch": lambda *_: Bound(ours), "torch": theirs, **others},
        differentiable=(0, 1),
        kept=(1, 3),
        tolerance=1e-4,
        cuda_tolerance=1e-3,
        cpu_size=16384,
        cuda_size=196608,
        on_cuda=lambda args: (*args[:3], args[1].half()),
    )


def network(
    inputs: int, hidden: int, layers: int, outputs: int, last: str = "none", padding: float = 0.0
) -> Row:
    def arguments(n: int) -> tuple[Any, ...]:
        matrices = [
            (2 * torch.rand(r * c) - 1) * (6 / (r + c)) ** 0.5
            for r, c in shapes(inputs, hidden, layers, outputs)
        ]
        return torch.randn(n, inputs), torch.cat(matrices), hidden, layers, outputs, last, padding

    return row(
        ops.mlp,
        plain.mlp,
        arguments,
        differentiable=(0, 1),
        kept=(1,),
        tolerance=1e-4,
        cuda_tolerance=5e-3,
        cpu_size=16384,
        cuda_size=196608,
        torch_half=lambda x, *_: halved(x, plain.mlp_half),
        compile_half=lambda x, *_: halved(x, torch.compile(plain.mlp_half, fullgraph=True, dynamic=False)),
        tcnn=lib.tcnn_mlp,
        nerfstudio=lib.nerfstudio_mlp,
    )


def halved(x: Tensor, call: Callable[..., Tensor]) -> Bound:
    """On a GPU, where raymarch and tiny-cuda-nn compute networks with halves, torch may too."""
    lib.need_cuda((x,), "half precision")
    return Bound(call)


def lenses(n: int) -> tuple[Tensor, ...]:
    """Pixels of fifty distorted pinhole cameras."""
    count = 50
    intrinsics = torch.tensor([60.0, 55.0, 32.0, 24.0]) * (1 + 0.1 * torch.rand(count, 4))
    k = 0.02 * torch.randn(count, 6) * torch.tensor([1, 0.5, 0.2, 0.1, 0.2, 0.2])
    xy = torch.rand(n, 2) * torch.tensor([64.0, 48.0])
    poses, perspective = ops.pose(torch.randn(count, 6)), torch.zeros(count, dtype=torch.int64)
    return torch.randint(count, (n,)), xy, poses, intrinsics, k, pad(k, (0, 6)), perspective


def our_rays(camera, xy, poses, intrinsics, k, every_k, lens):
    return ops.rays(camera, xy, poses, intrinsics, every_k, lens)[:3]


def our_composite(w, t, rgb):
    found = ops.composite(w, t, rgb, background="white")
    return found.rgb, found.opacity, found.depth, found.expected_depth


class Stepping:
    """One step of Adam a call, on a parameter of its own."""

    def __init__(self, parameter: Tensor, **settings: Any):
        self.parameter = parameter.detach().clone().requires_grad_()
        self.optim = torch.optim.Adam([self.parameter], lr=1e-2, eps=1e-15, **settings)

    def __call__(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        self.parameter.grad = gradient
        self.optim.step()
        return self.parameter.detach()


class OurStepping:
    def __init__(self, parameter: Tensor):
        self.parameter = parameter.clone()
        self.moments = torch.zeros_like(parameter), torch.zeros_like(parameter)
        self.rate = torch.full((1,), 1e-2, device=parameter.device)
        self.steps = torch.zeros(1, dtype=torch.int64, device=parameter.device)
        self.healthy = torch.ones(1, dtype=torch.bool, device=parameter.device)

    def __call__(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        self.steps += 1
        ops.adam(self.parameter, gradient, *self.moments, self.rate, self.steps, self.healthy)
        return self.parameter


def stepping(**settings: Any) -> Callable[..., Bound]:
    return lambda parameter, gradient: Bound(Stepping(parameter, **settings))


ADAM = Row(
    lambda n: (torch.randn(n), torch.randn(n)),
    {
        "raymarch": lambda parameter, gradient: Bound(OurStepping(parameter)),
        "torch": stepping(foreach=True),
        "torch_fused": stepping(fused=True),
    },
    compiled=False,
    kept=(0, 1),
    tolerance=1e-5,
    cpu_size=1 << 20,
    cuda_size=12_585_984,
)

ROWS: dict[str, Row] = {
    "pose": row(
        ops.pose, plain.pose, lambda n: (torch.randn(n, 6),), differentiable=(0,), cuda_size=4096,
        nerfstudio=lib.nerfstudio_pose,
    ),
    "rays": row(
        our_rays, plain.rays, lenses, differentiable=(2,), kept=(2, 3, 4, 5, 6),
        tolerance=5e-4,  # of areas, differences of neighbours
        nerfstudio=lib.nerfstudio_rays,
    ),
    "near_far": row(
        ops.near_far, plain.near_far,
        boxed,
        nerfstudio=lib.nerfstudio_near_far, nerfacc=lib.nerfacc_near_far, cpu_size=65536,
    ),
    "sample_spaced": row(
        ops.sample_spaced, plain.spaced, lambda n: (*planes(n), 256), nerfstudio=lib.nerfstudio_spaced,
    ),
    "sample_pdf": row(
        ops.sample_pdf, plain.pdf, histogram, tolerance=1e-4,
        nerfacc=lib.nerfacc_pdf, nerfstudio=lib.nerfstudio_pdf,
    ),
    "contract": row(
        ops.contract, plain.contract, lambda n: (3 * torch.randn(n, 3),), differentiable=(0,),
        nerfstudio=lib.nerfstudio_contract, cpu_size=196608, cuda_size=3145728,
    ),
    "unit_positions": row(
        ops.sample_unit_positions, plain.unit_positions, along, differentiable=(0, 1),
        nerfstudio=lib.nerfstudio_unit_positions,
    ),
    "harmonics": row(
        ops.harmonics, plain.harmonics, lambda n: (unit(n),), differentiable=(0,),
        tcnn=lib.tcnn_harmonics, nerfstudio=lib.nerfstudio_harmonics, cpu_size=65536,
    ),
    "fourier": row(
        lambda x, octaves: ops.fourier(x, len(octaves)), plain.fourier,
        lambda n: (torch.rand(n, 3), math.pi * 2.0 ** torch.arange(6)), differentiable=(0,), kept=(1,),
        tcnn=lib.tcnn_fourier, cpu_size=65536, cuda_size=196608,
    ),
    "grid_radiance": grid((16, 16, 2048, 19), 2, tcnn=lib.tcnn_hashgrid),
    "grid_proposal": grid((5, 16, 256, 17), 2, tcnn=lib.tcnn_hashgrid),
    "grid_feature": grid((12, 16, 128, 19), 8, tcnn=lib.tcnn_hashgrid),
    "grid_nerfstudio": grid((16, 16, 2048, 19), 2, "nerfstudio", nerfstudio=lib.nerfstudio_hashgrid),
    "mlp_proposal": network(10, 16, 1, 1, padding=1.0),
    "mlp_base": network(32, 64, 1, 16),
    "mlp_colour": network(63, 64, 2, 3, "sigmoid", 1.0),
    "weights": row(
        ops.weights, plain.weights, rays_of, differentiable=(0, 1), tolerance=1e-4,
        nerfacc=lib.nerfacc_weights, nerfstudio=lib.nerfstudio_weights,
    ),
    "weights_256": row(
        ops.weights, plain.weights, lambda n: rays_of(n, 256), differentiable=(0, 1), tolerance=1e-4,
        nerfacc=lib.nerfacc_weights, nerfstudio=lib.nerfstudio_weights,
    ),
    "weights_packed": row(
        lambda sigma, delta, offsets, ray: ops.weights_packed(sigma, delta, offsets),
        plain.weights_packed, ragged, differentiable=(0, 1), tolerance=1e-4,
        nerfacc=lib.nerfacc_weights_packed,
    ),
    "composite_rgb": row(
        our_composite, plain.composite, lambda n: (*opaque(n), torch.rand(n, 48, 3)), differentiable=(0, 2),
        nerfacc=lib.nerfacc_composite, nerfstudio=lib.nerfstudio_composite,
    ),
    "composite_features": row(
        lambda w, t, f: ops.composite(w, t, feature=f).feature, plain.features,
        lambda n: (*opaque(n), torch.randn(n, 48, 768)), differentiable=(0, 2), cpu_size=256, cuda_size=4096,
        torch_bmm=lambda w, t, f: Bound(plain.features_by_product),
        nerfacc=lib.nerfacc_features, nerfstudio=lib.nerfstudio_features,
    ),
    "distortion": row(
        ops.distortion, plain.distortion, lambda n: (edges(n, 48), shares(n, 48)), differentiable=(1,),
        tolerance=1e-4, nerfacc=lib.nerfacc_distortion, nerfstudio=lib.nerfstudio_distortion,
    ),
    "interlevel": row(
        ops.interlevel, plain.interlevel,
        lambda n: (edges(n, 48), shares(n, 48), edges(n, 96), shares(n, 96)), differentiable=(3,),
        tolerance=1e-3, nerfstudio=lib.nerfstudio_interlevel,
    ),
    "orientation": row(
        ops.orientation, plain.orientation, lambda n: (shares(n, 48), unit(n, 48), unit(n)),
        differentiable=(0, 1, 2), nerfstudio=lib.nerfstudio_orientation,
    ),
    "adam": ADAM,
}  # fmt: skip
