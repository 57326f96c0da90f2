"""Bytes and arithmetic of an op, from its name and the shapes of its arguments: the one place that counts.

Bytes are what an op cannot avoid moving: every input read once, every output written once, what is updated in
place both. An array that is looked up, as hash tables and photos are, counts as often as it is looked up, but
at most once whole; so does one that is scattered into. `bench.cases` states the same figures per ray, written
by hand, and a test compares the two.
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
from raymarch.profiling.arithmetic import CORNERS, FLOPS, Shape


@dataclass(frozen=True)
class Work:
    """What one call has to do."""

    bytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


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
