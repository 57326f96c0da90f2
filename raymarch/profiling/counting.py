"""Bytes and arithmetic of an op, from its name and the shapes of its arguments: the one place that counts.

Bytes are what an op cannot avoid moving: every input read once, every output written once, what is updated in
place both. An array that is looked up, as hash tables and photos are, counts as often as it is looked up, but
at most once whole; so does one that is scattered into. `bench.cases` states the same figures per ray, written
by hand, and a test compares the two.

Arithmetic counts additions, multiplications, divisions and calls (exp, log, sine, square root) as one each,
and nothing for indices, comparisons and random bits. Matrix products are exact; the others are read off the
formulas in csrc/math and rounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from raymarch.ops import _op

CORNERS = 8  # of a grid cell


@dataclass(frozen=True)
class Work:
    """What one call has to do."""

    bytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


class Shape(dict[str, Any]):
    """A call's settings by name and its named dimensions: rays for kRays, ...; what is absent is 0."""

    def __missing__(self, name: str) -> Any:
        return 0


def work(core: Any, kernel: str, args: tuple) -> Work:
    """Of a native kernel with arguments as `launch` takes them."""
    kinds = _op.declared(core, kernel)
    named = dict(zip(kinds, args, strict=True))
    shape = shape_of(kinds, named)
    moved = 0.0
    for name, kind in kinds.items():
        for i, array in enumerate(_arrays(named[name])):
            moved += _moved(kernel, name, kind, array, shape, named, i)
    formula = FLOPS.get(kernel)
    return Work(moved, float(formula(shape)) if formula else 0.0)


def shape_of(kinds: Mapping[str, str], named: Mapping[str, Any]) -> Shape:
    """Named dimensions, plain settings, and `has_` flags of arrays that may be left out."""
    found = Shape()
    for name, kind in kinds.items():
        value = named[name]
        arrays = _arrays(value)
        if not re.search(r"In<|Out<|Payload<", kind):
            found[name] = value
            continue
        found[f"has_{name}"] = bool(arrays)
        for array in arrays:
            for dimension, size in zip(_dimensions(kind), array.shape, strict=False):
                if dimension.startswith("k"):
                    found.setdefault(dimension[1:].lower(), size)
        if kind.startswith("Several"):
            found[f"all_{name}"] = sum(a.numel() for a in arrays)
        elif arrays:
            found[f"size_{name}"] = arrays[0].numel()
    return found


@cache
def _dimensions(kind: str) -> tuple[str, ...]:
    """`Maybe<In<real, kRays, 3>>` -> (kRays, 3); payloads have no type before their dimensions."""
    match = re.search(r"(\w+)<([^<>]*)>", kind)
    assert match is not None
    words = tuple(w.strip() for w in match[2].split(","))
    return words if "Payload" in match[1] else words[1:]


def _arrays(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [a for a in value if isinstance(a, Tensor)] if isinstance(value, (list, tuple)) else []


def _moved(
    kernel: str, name: str, kind: str, array: Tensor, shape: Shape, named: Mapping[str, Any], i: int
) -> float:
    """Bytes of one argument."""
    if (touched := TOUCHED.get((kernel, name))) is not None:
        entries, ways = touched(shape)
        return ways * min(entries, array.numel()) * array.element_size()
    if (kernel, name) == ("adam", "gradients"):
        return (1 + bool(named["clear"][i])) * array.nbytes
    return (2 if (kernel, name) in UPDATED else 1) * array.nbytes


# Arguments that are read and written, though they are declared as outputs.
UPDATED = {
    ("radiance_inputs_backward", "grad_codes"),
    ("sum_losses", "healthy"), ("sum_losses", "steps"), ("sum_losses", "ticket"),
    ("advance", "counter"),
    ("adam", "healthy"), ("adam", "parameters"), ("adam", "first"), ("adam", "second"),
}  # fmt: skip


def _looked_up(points: str = "points") -> Callable[[Shape], tuple[float, int]]:
    return lambda d: (d[points] * d["levels"] * CORNERS * d["channels"], 1)


def _along_rays(d: Shape) -> tuple[float, int]:
    """Lookups at the middles of intervals."""
    return d["rays"] * (d["edges"] - 1) * d["levels"] * CORNERS * d["channels"], 1


def _texels(mode: str, dimension: str) -> Callable[[Shape], tuple[float, int]]:
    return lambda d: (d["rays"] * d[dimension] * (4 if d[mode] else 1), 1)


# (kernel, argument) of arrays of which only some entries are touched: how many numbers, and 2 where they are
# both read and written.
TOUCHED: dict[tuple[str, str], Callable[[Shape], tuple[float, int]]] = {
    ("hashgrid_forward", "table"): _looked_up(),
    ("hashgrid_input_gradient", "table"): _looked_up(),
    ("hashgrid_backward", "grad_table"): lambda d: (
        d["points"] * d["levels"] * CORNERS * d["channels"],
        2,
    ),
    # Columns behind those of the grid are somebody else's.
    ("hashgrid_backward", "grad_y"): lambda d: (d["points"] * d["levels"] * d["channels"], 1),
    ("hashgrid_input_gradient", "grad_y"): lambda d: (d["points"] * d["levels"] * d["channels"], 1),
    ("samples_to_density", "table"): _along_rays,
    ("samples_to_pixels", "table"): _along_rays,
    ("samples_to_pixels", "occupied"): lambda d: (d["rays"] * (d["edges"] - 1), 1),
    ("march", "baked"): lambda d: (d["rays"] * d["steps"], 1),
    ("gather_pixels", "images"): lambda d: (d["rays"] * d["channels"], 1),
    ("gather_features", "maps"): _texels("mode", "channels"),
    ("draw_truth", "images"): lambda d: (d["rays"] * d["inputs"], 1),
    ("draw_truth", "maps"): _texels("mode", "channels"),
    ("draw_truth", "valid"): lambda d: (d["rays"], 1),
    ("draw_pixels", "valid"): lambda d: (d["rays"], 1),
    ("radiance_inputs_forward", "codes"): lambda d: (d["rays"] * d["code"], 1),
    # Density needs column 0 alone, and of the position only whether it is zero.
    ("density_forward", "h"): lambda d: (d["points"], 1),
}


def _samples(d: Shape) -> float:
    """Numbers in an array of one per sample."""
    return d["rays"] * d["samples"] if d["rays"] else d["samples"]


def _per_ray(count: float) -> Callable[[Shape], float]:
    return lambda d: count * d["rays"]


def _per_point(count: float) -> Callable[[Shape], float]:
    return lambda d: count * d["points"]


def _per_sample(count: float) -> Callable[[Shape], float]:
    return lambda d: count * _samples(d)


def _per_camera(count: float) -> Callable[[Shape], float]:
    return lambda d: count * d["cameras"]


def _mlp(d: Shape) -> float:
    return 2 * d["points"] * d["params"]


def _mlp_backward(d: Shape) -> float:
    """Hidden layers again, then the gradients that are asked for."""
    return (1 + d["has_grad_x"] + d["has_grad_params"]) * _mlp(d)


def _grid(points: float, d: Shape) -> float:
    return points * d["levels"] * 2 * CORNERS * d["channels"]


def _heads(d: Shape) -> int:
    """Numbers per sample that are composited."""
    threes = d["has_rgb"] + d["has_normals"] + d["has_predicted"]
    return 3 * threes + (d["channels"] if d["has_feature"] or d["has_hidden"] else 0)


def _intervals(d: Shape) -> float:
    return d["rays"] * (d["edges"] - 1)


def _resample(d: Shape) -> float:
    return 12 * d["rays"] * d["fine"] + 14 * d["rays"] * d["edges"] + 14 * d["rays"] * d["samples"]


def _networks_along_rays(d: Shape) -> float:
    """Base and colour networks: all parameters at every sample, and the lookups before them."""
    return 2 * _intervals(d) * d["params"] + _grid(_intervals(d), d) + 20 * _intervals(d)


WEIGHTS, WEIGHTS_BACK = 5, 8  # per sample: optical thickness, its sum, two exponentials, a product
UNIT = 14  # per sample: a point on the ray, its contraction into the unit cube
RAY = 120  # per ray: three lens models' worth of one (OpenCV's undoing is iterative), a rotation, lengths
HARMONICS = 52  # per direction: sixteen polynomials

FLOPS: dict[str, Callable[[Shape], float]] = {
    "draw_pixels": _per_ray(4),
    "gather_pixels": lambda d: d["rays"] * d["channels"],
    "gather_features": lambda d: d["rays"] * d["channels"] * (7 if d["mode"] else 0),
    "pose_forward": _per_camera(60),
    "pose_backward": _per_camera(150),
    "rays_forward": _per_ray(3 * RAY),  # the ray and its two neighbours, for the area
    "rays_backward": _per_ray(60),
    "near_far": _per_ray(24),
    "sample_spaced": lambda d: 10 * d["rays"] * d["edges"],
    "sample_pdf": lambda d: 5 * d["rays"] * d["fine"] + 14 * d["rays"] * d["edges"],
    "sample_distances": lambda d: 8 * d["rays"] * d["edges"],
    "march": lambda d: (UNIT + 12) * d["rays"] * d["steps"] + 14 * d["rays"] * d["edges"],
    "representatives": lambda d: 2 * _samples(d) + 8 * d["rays"] * d["fine"],
    "positions_forward": _per_sample(8),
    "positions_backward": _per_sample(11),
    "sample_unit_positions_forward": _per_sample(UNIT),
    "sample_unit_positions_backward": _per_sample(25),
    "contract_forward": _per_point(8),
    "contract_backward": _per_point(16),
    "uncontract_forward": _per_point(8),
    "uncontract_backward": _per_point(16),
    "contract_unit_forward": _per_point(14),
    "contract_unit_backward": _per_point(19),
    "hashgrid_forward": lambda d: _grid(d["points"], d) + 18 * d["points"] * d["frequencies"],
    "hashgrid_backward": lambda d: _grid(d["points"], d),
    "hashgrid_input_gradient": lambda d: (
        d["points"] * d["levels"] * CORNERS * (2 * d["channels"] + 6)
    ),
    "harmonics_forward": _per_point(HARMONICS),
    "harmonics_backward": _per_point(2 * HARMONICS),
    "fourier_forward": lambda d: 12 * d["points"] * d["frequencies"],
    "fourier_backward": lambda d: 24 * d["points"] * d["frequencies"],
    "mlp_forward": _mlp,
    "mlp_backward": _mlp_backward,
    "density_forward": _per_point(2),
    "density_backward": _per_point(3),
    "colour_inputs_forward": _per_point(2),
    "colour_inputs_backward": lambda d: d["points"] * (3 + d["outputs"]),
    "samples_to_density": lambda d: (
        2 * _intervals(d) * (d["params"] - 15 * d["hidden"])  # one output; the other 15 rows only pad
        + _grid(_intervals(d), d)
        + (UNIT + 2) * _intervals(d)
    ),
    "samples_to_pixels": _networks_along_rays,
    "weights_forward": _per_sample(WEIGHTS),
    "weights_backward": _per_sample(WEIGHTS_BACK),
    "weights_packed_forward": _per_sample(WEIGHTS),
    "weights_packed_backward": _per_sample(WEIGHTS_BACK),
    "transmittance_forward": _per_sample(3),
    "transmittance_backward": _per_sample(5),
    "weights_from_alpha_forward": _per_sample(3),
    "weights_from_alpha_backward": _per_sample(8),
    "composite_forward": lambda d: (2 * _heads(d) + 6) * _samples(d),
    "composite_backward": lambda d: (4 * _heads(d) + 6) * _samples(d),
    "interlevel_forward": lambda d: d["rays"] * (2 * d["samples"] + 10 * d["fine"]),
    "interlevel_backward": lambda d: d["rays"] * (3 * d["samples"] + 12 * d["fine"]),
    "distortion_forward": _per_sample(12),
    "distortion_backward": _per_sample(12),
    "orientation_forward": _per_sample(9),
    "orientation_backward": _per_sample(14),
    "predicted_normals_forward": _per_sample(8),
    "predicted_normals_backward": _per_sample(4),
    "random_colour": _per_ray(3),
    "draw_truth": lambda d: d["rays"] * (4 + d["inputs"] + d["channels"] * (7 if d["mode"] else 0)),
    "refine_forward": _per_camera(90),
    "refine_backward": _per_camera(200),
    "cast_rays": lambda d: d["rays"] * (3 * RAY + 24 + 10 * d["edges"] + UNIT * d["samples"]),
    "ray_gradients": lambda d: 25 * (d["all_grad_y"] / 3),
    "resample": _resample,
    "proposal_backward": lambda d: d["rays"] * (12 * d["samples"] + 12 * d["fine"]),
    "radiance_inputs_forward": lambda d: 2 * d["points"] + HARMONICS * d["rays"],
    "radiance_inputs_backward": lambda d: d["points"] * (3 + d["outputs"]) + 2 * HARMONICS * d["rays"],
    "slope_normals": _per_sample(35),
    "normal_inputs_forward": lambda d: d["points"] * (8 + 12 * d["frequencies"]),
    "normal_inputs_backward": lambda d: d["points"] * (11 + 24 * d["frequencies"]),
    "normal_head_forward": lambda d: d["points"] * (6 * d["inputs"] + 12),
    "normal_head_backward": lambda d: d["points"] * (18 * d["inputs"] + 40),
    "field_to_pixels_forward": lambda d: (
        (WEIGHTS + 2 * _heads(d) + 12 + 9 * d["has_normals"] + 8 * d["has_predicted"]) * _samples(d)
        + 3 * d["all_w_proposal"]
    ),
    "field_to_pixels_backward": lambda d: (
        (WEIGHTS_BACK + 4 * _heads(d) + 14 + 14 * d["has_normals"]) * _samples(d)
    ),
    # features = hidden layer^T, and both gradients of their squared error
    "feature_loss": lambda d: 6 * d["rays"] * d["outputs"] * d["inputs"],
    "add_rows": lambda d: d["entries"] * d["params"],
    "sum_losses": lambda d: d["entries"] * d["rays"],
    "advance": lambda d: 1,
    "adam": lambda d: 14 * d["all_parameters"],
}  # fmt: skip


PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addbmm"}
MOVES = {
    "copy_", "_to_copy", "clone", "cat", "stack", "index_select", "gather", "fill_", "zero_", "zeros", "ones",
    "full", "zeros_like", "ones_like", "full_like", "arange", "index", "index_copy_", "index_put_",
    "scatter_", "constant_pad_nd", "scalar_tensor", "new_zeros", "new_full", "where",
}  # fmt: skip


def torch_work(name: str, args: Any, result: Any) -> Work:
    """Of one of torch's own ops: every tensor read or written once, one operation per number that it sees.

    `args`: all arguments, `result`: what it returned; both may nest lists.
    """
    given, made = _tensors(args), _tensors(result)
    unique = {(t.data_ptr(), t.shape): t.nbytes for t in given}
    written = sum(t.nbytes for t in made)
    moved = sum(unique.values()) + written
    if name in PRODUCTS:
        matrices = [t for t in given if t.dim() >= 2][-2:]
        return Work(moved, 2.0 * made[0].numel() * matrices[0].shape[-1])
    if name in MOVES or not any(t.is_floating_point() for t in made):
        return Work(moved, 0.0)
    return Work(moved, float(max([t.numel() for t in (*given, *made)], default=0)))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.layout is torch.strided else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []
