"""Where along a ray to look: evenly in a spacing, or where a histogram says, and the points found there."""

import torch
from torch import Tensor, empty_like

from raymarch.ops._op import differentiable, launch, op
from raymarch.ops.contract import norm_code

SPACINGS = ("uniform", "linear-disparity", "sqrt", "log", "piecewise")
JITTERS = ("none", "single", "each")


def _code(name: str, known: tuple[str, ...], what: str) -> int:
    if name not in known:
        raise ValueError(f"{what} is {name!r}, expected one of {', '.join(known)}")
    return known.index(name)


@op
def sample_spaced_forward(
    near: Tensor, far: Tensor, counter: Tensor | None, samples: int, spacing: int, jitter: int, stream: int
) -> tuple[Tensor, Tensor]:
    s = near.new_empty(near.shape[0], samples + 1)
    t = empty_like(s)
    launch("sample_spaced", near, far, counter, s, t, spacing, jitter, stream)
    return s, t


@op
def sample_pdf_forward(
    s: Tensor,
    weights: Tensor,
    near: Tensor,
    far: Tensor,
    counter: Tensor | None,
    anneal: Tensor | None,
    samples: int,
    spacing: int,
    jitter: int,
    stream: int,
    padding: float,
) -> tuple[Tensor, Tensor]:
    s_new = s.new_empty(s.shape[0], samples + 1)
    t_new = empty_like(s_new)
    launch(
        "sample_pdf", s, weights, near, far, counter, anneal, s_new, t_new, spacing, jitter, stream, padding
    )
    return s_new, t_new


def sample_spaced(
    near: Tensor,
    far: Tensor,
    samples: int,
    spacing: str = "piecewise",
    jitter: str = "none",
    counter: Tensor | None = None,
    stream: int = 1,
) -> tuple[Tensor, Tensor]:
    """Edges of `samples` even bins per ray: s [R, samples + 1] in 0..1, t [R, samples + 1] near to far.

    near, far [R] are distances; `spacing` is uniform, linear-disparity, sqrt, log or piecewise (uniform up
    to distance 1, then in disparity). `jitter` moves edges within half a bin: none, single (one offset per
    ray) or each; it needs `counter` [2] int64 = (seed, step) on the arrays' device. No gradient. Spacings
    and stratification are nerfstudio's SpacedSampler. `near` may be 0: disparity and logarithm begin at
    1e-6 then. ValueError for unknown words, no samples, or jitter without a counter.
    """
    if samples < 1:
        raise ValueError(f"sample_spaced: samples is {samples}, expected at least 1")
    how = _code(spacing, SPACINGS, "sample_spaced: spacing"), _code(jitter, JITTERS, "sample_spaced: jitter")
    with torch.no_grad():
        return sample_spaced_forward(near.contiguous(), far.contiguous(), counter, samples, *how, stream)


def sample_pdf(
    s: Tensor,
    weights: Tensor,
    near: Tensor,
    far: Tensor,
    samples: int,
    spacing: str = "piecewise",
    jitter: str = "none",
    counter: Tensor | None = None,
    stream: int = 2,
    anneal: Tensor | None = None,
    padding: float = 0.01,
    include_original: bool = False,
) -> tuple[Tensor, Tensor]:
    """Edges drawn where weights are: s [R, samples + 1] and t [R, samples + 1]. No gradient flows.

    s [R, P + 1] and weights [R, P] are the previous level; `anneal` [1] is an exponent on the weights (0^0
    is 1); `padding` is added to every weight. `include_original` merges the old edges in, giving P +
    samples + 2. Inverse transform sampling as nerfstudio's PDFSampler: the new edges need not reach s = 0
    and s = 1. Without jitter they lie at the middles of equal shares of the histogram. Weights that are
    negative or no numbers count as 0; a histogram of nothing is even. On CUDA a ray may have 4096 bins at
    most.

    `jitter`, `counter` and ValueErrors are as in `sample_spaced`; a `stream` per level keeps the levels'
    offsets apart.
    """
    if samples < 1:
        raise ValueError(f"sample_pdf: samples is {samples}, expected at least 1")
    how = _code(spacing, SPACINGS, "sample_pdf: spacing"), _code(jitter, JITTERS, "sample_pdf: jitter")
    with torch.no_grad():
        arrays = [x.detach().contiguous() for x in (s, weights, near, far)]
        found, t = sample_pdf_forward(*arrays, counter, anneal, samples, *how, stream, padding)
        if include_original:
            found = torch.cat([arrays[0], found], -1).sort(-1).values
            t = sample_distances_forward(found, *arrays[2:], how[0], False)
    return found, t


@op
def sample_distances_forward(edges: Tensor, near: Tensor, far: Tensor, spacing: int, inverse: bool) -> Tensor:
    moved = empty_like(edges)
    launch("sample_distances", edges, near, far, moved, spacing, inverse)
    return moved


def t_from_s(s: Tensor, near: Tensor, far: Tensor, spacing: str = "piecewise") -> Tensor:
    """Distances t [R, E] of normalised distances s [R, E] in 0..1; near, far [R]. No gradient.

    t = g^-1(s g(far) + (1 - s) g(near)), g the warp of the spacing. Disparity and logarithm begin at 1e-6
    where `near` is closer. ValueError for an unknown spacing.
    """
    code = _code(spacing, SPACINGS, "t_from_s: spacing")
    with torch.no_grad():
        arrays = [x.detach().contiguous() for x in (s, near, far)]
        return sample_distances_forward(*arrays, code, False)


def s_from_t(t: Tensor, near: Tensor, far: Tensor, spacing: str = "piecewise") -> Tensor:
    """Normalised distances s [R, E] in 0..1 of distances t [R, E]: the inverse of `t_from_s`. No gradient.

    Distances before near and beyond far become 0 and 1, and all do become 0 where near equals far.
    """
    code = _code(spacing, SPACINGS, "s_from_t: spacing")
    with torch.no_grad():
        arrays = [x.detach().contiguous() for x in (t, near, far)]
        return sample_distances_forward(*arrays, code, True)


@op
def positions_forward(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    x = origins.new_empty(t.shape[0], t.shape[1] - 1, 3)
    launch("positions_forward", origins, directions, t, x)
    return x


@op
def positions_backward(t: Tensor, grad_x: Tensor) -> tuple[Tensor, Tensor]:
    grad_origins = t.new_empty(t.shape[0], 3)
    grad_directions = empty_like(grad_origins)
    launch("positions_backward", t, grad_x, grad_origins, grad_directions)
    return grad_origins, grad_directions


@op
def sample_unit_positions_forward(origins: Tensor, directions: Tensor, t: Tensor, norm: int) -> Tensor:
    y = origins.new_empty(t.shape[0], t.shape[1] - 1, 3)
    launch("sample_unit_positions_forward", origins, directions, t, y, norm)
    return y


@op
def sample_unit_positions_backward(
    origins: Tensor, directions: Tensor, t: Tensor, grad_y: Tensor, norm: int
) -> tuple[Tensor, Tensor]:
    grad_origins, grad_directions = empty_like(origins), empty_like(directions)
    launch(
        "sample_unit_positions_backward", origins, directions, t, grad_y, grad_origins, grad_directions, norm
    )
    return grad_origins, grad_directions


def _positions_backward(inputs, saved, grads, needs):
    return (*positions_backward(inputs[2], grads[0]), None)


def _unit_backward(inputs, saved, grads, needs):
    return (*sample_unit_positions_backward(*inputs[:3], grads[0], inputs[3]), None, None)


_positions = differentiable(positions_forward, _positions_backward)
_unit_positions = differentiable(sample_unit_positions_forward, _unit_backward)


def positions(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """Midpoints of intervals, [R, S, 3]: origins + directions (t_i + t_{i+1}) / 2.

    origins, directions [R, 3]; t [R, S + 1] edges. Gradients reach origins and directions, not t.
    """
    return _positions(origins.contiguous(), directions.contiguous(), t.detach().contiguous())


def sample_unit_positions(origins: Tensor, directions: Tensor, t: Tensor, norm: str = "linf") -> Tensor:
    """contract_unit(positions(origins, directions, t), norm) in one pass, [R, S, 3]."""
    code = norm_code(norm, "sample_unit_positions")
    return _unit_positions(origins.contiguous(), directions.contiguous(), t.detach().contiguous(), code)
