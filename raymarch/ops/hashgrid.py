"""Multiresolution hash grid: features of positions in the unit cube (Mueller et al. 2022, Instant NGP)."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from raymarch import _C
from raymarch.ops._op import differentiable, launch, on_gpu, op
from raymarch.ops._vector import vectorisable

INTERPOLATIONS = ("linear", "smoothstep")
LAYOUTS = ("tcnn", "nerfstudio")
FEATURES = (1, 2, 4, 8)
HALVES = (torch.float16, torch.bfloat16)


class LevelLayout(NamedTuple):
    """One level of a grid: vertices per axis, cells per unit, entries in the table, where they start."""

    resolution: int
    scale: float
    entries: int
    offset: int


def _number(name: str, word: str, words: tuple[str, ...]) -> int:
    if word not in words:
        raise ValueError(f"hashgrid: {name} is {word!r}, expected one of {', '.join(words)}")
    return words.index(word)


@lru_cache(maxsize=256)
def table_layout(
    levels: int, base_resolution: int, max_resolution: int, log2_size: int, layout: str = "tcnn"
) -> tuple[LevelLayout, ...]:
    """Where each level of a grid lies in its table [entries, features].

    `layout="tcnn"` is tiny-cuda-nn's: coarse levels dense, the others hashed into 2**log2_size entries.
    `layout="nerfstudio"` is that of nerfstudio's torch fallback: every level hashed.
    """
    if levels < 1:
        raise ValueError(f"hashgrid: levels is {levels}, expected 1 to 32")
    rows = torch.empty(levels, 4, dtype=torch.float64)
    mode = _number("layout", layout, LAYOUTS)
    # The rows are float64 in every build, so their dtype must not pick the core.
    _C.hashgrid_layout(rows, base_resolution, max_resolution, log2_size, mode)
    return tuple(LevelLayout(int(r), s, int(n), int(o)) for r, s, n, o in rows.tolist())


def _entries(levels: int, base_resolution: int, max_resolution: int, log2_size: int, layout: str) -> int:
    last = table_layout(levels, base_resolution, max_resolution, log2_size, layout)[-1]
    return last.offset + last.entries


@op
def hashgrid_forward(
    x: Tensor,
    table: Tensor,
    stored: Tensor | None,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    dtype: torch.dtype | None,
) -> Tensor:
    looked_up = vectorisable(table if stored is None else stored)
    y = torch.empty(x.shape[0], levels * table.shape[1], dtype=dtype or x.dtype, device=x.device)
    settings = (levels, base_resolution, max_resolution, log2_size, interpolation, layout)
    launch("hashgrid_forward", x, looked_up, *settings, 0, 0, y)
    return y


def _entries_aligned(grad_y: Tensor, levels: int, features: int) -> Tensor:
    """grad_y, or a copy of the grid's columns where wider rows would put entries between vectors on CUDA."""
    if on_gpu(grad_y) and grad_y.shape[1] % min(4, features):
        grad_y = grad_y[:, : levels * features].contiguous()
    return vectorisable(grad_y)


@op
def hashgrid_backward(
    x: Tensor,
    table: Tensor,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    grad_y: Tensor,
    deterministic: bool,
) -> Tensor:
    grad_table = torch.zeros_like(table)
    settings = (levels, base_resolution, max_resolution, log2_size, interpolation, layout)
    add_table_gradient(x, settings, grad_y, grad_table, deterministic)
    return grad_table


def add_table_gradient(
    x: Tensor, settings: tuple[int, ...], grad_y: Tensor, grad_table: Tensor, deterministic: bool
) -> None:
    """Add the gradient of the table to `grad_table`, which must be zero where `deterministic` on CUDA.

    settings: what `hashgrid_settings` returns.
    """
    # Integer sums have no order; one more number holds the largest gradient, which sets their scale.
    exact = None
    if deterministic and on_gpu(x):
        exact = torch.zeros(grad_table.numel() + 1, dtype=torch.int64, device=x.device)
    grad_y = _entries_aligned(grad_y, settings[0], grad_table.shape[1])
    launch("hashgrid_backward", x, *settings, grad_y, exact, grad_table)


@op
def hashgrid_slope(
    x: Tensor,
    table: Tensor,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    grad_y: Tensor,
) -> Tensor:
    grad_x = torch.empty_like(x)
    settings = (levels, base_resolution, max_resolution, log2_size, interpolation, layout)
    launch("hashgrid_input_gradient", x, vectorisable(table), *settings, grad_y.contiguous(), grad_x)
    return grad_x


def _backward(inputs, saved, grads, needs):
    x, table, stored, *settings, _ = inputs
    grad_y = grads[0].to(x.dtype)
    grad_x = grad_table = None
    if needs[0]:
        grad_x = hashgrid_slope(x, table if stored is None else stored, *settings, grad_y)
    if needs[1]:
        exactly = torch.are_deterministic_algorithms_enabled()
        grad_table = hashgrid_backward(x, table, *settings, grad_y, exactly)
    return grad_x, grad_table, *(None for _ in inputs[2:])


_hashgrid = differentiable(hashgrid_forward, _backward)


def hashgrid_settings(
    x: Tensor,
    table: Tensor,
    stored: Tensor | None,
    settings: tuple[int, int, int, int],
    interpolation: str,
    layout: str,
    dtype: torch.dtype | None = None,
) -> tuple[int, ...]:
    """The settings as the core takes them, after a check of everything that a grid rejects."""
    if dtype not in (None, x.dtype) and (dtype not in HALVES or x.dtype == torch.float64):
        raise TypeError(f"hashgrid: dtype is {dtype}, expected {x.dtype}, float16 or bfloat16")
    modes = _number("interpolation", interpolation, INTERPOLATIONS), _number("layout", layout, LAYOUTS)
    _check(x, table, stored, settings, layout)
    return *settings, *modes


def _check(x: Tensor, table: Tensor, stored: Tensor | None, settings: tuple[int, int, int, int], layout: str):
    if table.dim() != 2 or table.shape[1] not in FEATURES:
        shape = tuple(table.shape)
        raise ValueError(f"hashgrid: table has shape {shape}, expected [entries, 1, 2, 4 or 8 features]")
    # A traced call leaves the count to the core: the layout comes from native code, which cannot be traced.
    if not torch.compiler.is_compiling() and table.shape[0] != (entries := _entries(*settings, layout)):
        raise ValueError(
            f"hashgrid: table has {table.shape[0]} entries, expected {entries} for levels={settings[0]}, "
            f"base_resolution={settings[1]}, max_resolution={settings[2]}, log2_size={settings[3]}"
        )
    if stored is not None and stored.shape != table.shape:
        raise ValueError(
            f"hashgrid: stored has shape {tuple(stored.shape)}, expected that of table, {tuple(table.shape)}"
        )
    if table.requires_grad and table.dtype != x.dtype:
        raise TypeError(
            f"hashgrid: table has dtype {table.dtype}, expected {x.dtype} to take a gradient; "
            "pass a half copy as stored"
        )


def hashgrid(
    x: Tensor,
    table: Tensor,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: str = "linear",
    stored: Tensor | None = None,
    layout: str = "tcnn",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Look positions up in a hash grid.

    x: [P, 3] float32 in [0, 1]; outside, the last cell extrapolates, and NaN gives NaN.
    table: [N, F] float32 with F = 1, 2, 4 or 8 and N as `table_layout` says, level after level.
    stored: [N, F] float16 or bfloat16 copy to look up instead; the gradient still goes to `table`.
    dtype: of the result: that of x (None), or float16 or bfloat16, rounded from float32 sums.
    Returns [P, levels * F], level-major. Gradients to x and table, summed in float32.

    Resolutions grow geometrically from base_resolution to max_resolution; a level has at most 2**log2_size
    entries. The default layout, order and +0.5 shift are tiny-cuda-nn's; `layout="nerfstudio"` is that of
    nerfstudio's torch fallback, whose tables are not interchangeable with it. Under
    torch.use_deterministic_algorithms(True) the gradient to the table is the same in every run.

    Raises ValueError for a table of another size or an unknown mode, TypeError for a half table that
    requires grad.
    """
    shape = (levels, base_resolution, max_resolution, log2_size)
    settings = hashgrid_settings(x, table, stored, shape, interpolation, layout, dtype)
    return _hashgrid(x, table, stored, *settings, dtype)


def _slope_backward(inputs, saved, grads, needs):
    _, x, table, window, *settings = inputs
    (grad_y,) = grads
    grad_x = hashgrid_slope(x, table, *settings, grad_y * window) if needs[1] else None
    return grad_y, grad_x, *(None for _ in inputs[2:])


def _passed_on(y, x, table, window, *settings):
    return y.view_as(y)


_with_slope = differentiable(_passed_on, _slope_backward)


def with_slope(
    y: Tensor,
    x: Tensor,
    table: Tensor,
    window: Tensor,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: str = "linear",
    layout: str = "tcnn",
) -> Tensor:
    """y, through which x gets a gradient of its own choice.

    y: [P, levels * F], what `hashgrid` found at x.detach(). The gradient of x [P, 3] is that of a lookup by
    `interpolation` in the `table` looked up, every column weighted by window [levels * F]: coarse levels may
    lead, and the slope may be smooth where the lookup is linear. y's own gradient passes unchanged.
    ValueError as `hashgrid`, and for a window of another length.
    """
    shape = (levels, base_resolution, max_resolution, log2_size)
    settings = hashgrid_settings(x, table.detach(), None, shape, interpolation, layout)
    if window.shape != (outputs := levels * table.shape[1],) or y.shape[-1] != outputs:
        raise ValueError(
            f"with_slope: window has shape {list(window.shape)} and y {list(y.shape)}, expected [{outputs}] "
            f"and [points, {outputs}]: levels * features"
        )
    return _with_slope(y, x, table.detach(), window, *settings)


def hashgrid_input_gradient(
    x: Tensor,
    table: Tensor,
    grad_y: Tensor,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: str = "linear",
    layout: str = "tcnn",
) -> Tensor:
    """Gradient to x [P, 3] of `hashgrid` for upstream gradients grad_y [P, levels * F], as values.

    `table` is the one looked up, in float32, float16 or bfloat16. Nothing is recorded for autograd.
    """
    x, table, grad_y = x.detach(), table.detach(), grad_y.detach()
    shape = (levels, base_resolution, max_resolution, log2_size)
    settings = hashgrid_settings(x, table, None, shape, interpolation, layout)
    if grad_y.shape[-1] != (outputs := levels * table.shape[1]):
        raise ValueError(
            f"hashgrid_input_gradient: grad_y has {grad_y.shape[-1]} columns, expected {outputs}: "
            "levels * features"
        )
    return hashgrid_slope(x, table, *settings, grad_y)
