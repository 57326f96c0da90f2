"""Random cases for every row of bench.cases: awkward shapes and numbers, broken numbers, views with gaps.

What a case asks:

- `agrees`: with finite inputs, outputs and gradients are finite, and those of the float build are within the
  row's tolerance (of norms, four times) of the double build's; where they are not, every number must lie
  between what the double build makes of inputs and incoming gradients moved by at most 2^-18 of themselves,
  because a threshold (a bin, a cell, a clip, relu) may fall on either side of what float cannot tell apart,
  and a sum may be what is left of large numbers. What the stage promises of its outputs (HOLDS) is held to.
- `keeps_to_its_ray`: NaN, infinities and enormous numbers in one ray change nothing of the others, to the
  last bit, and crash nothing. What the stage promises even then (ALWAYS) is held to.
- `takes_views`: an argument with gaps in memory gives the same numbers or is refused by name.

A row of bench.cases is included as it is; which arguments are edges, weights or directions is read from the
oracle's names. Kernels that no row runs must be named in ELSEWHERE, or the run fails.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
import torch
from hypothesis import strategies
from torch import Tensor

from bench import stubs
from bench.cases import CASES, Case, several
from bench.proof import arguments
from bench.running import backend, floats, moved, seeds_of, tolerances, widened, with_grad, worst
from bench.running import run as run_row
from raymarch.ops import composite, contract, gather_pixels, harmonics, weights

WANTED = 20_000
SIZES = (0, 1, 2, 3, 31, 32, 33, *(2**k + d for k in (3, 4, 6, 7, 8, 9) for d in (-1, 0, 1)))
NUMBERS, OPERATIONS = 2e5, 1e7  # what a case may move and compute; 33 rays are always allowed
LOOSE = 4.0  # times the row's tolerance: short arrays average less
MOVES, NUDGES = (2.0**-22, 2.0**-20, 2.0**-18), 6  # how far, and how often, inputs are moved to explain
# How far tensor cores move the factors of their products, over a kink of relu, too; and how many moves are
# tried: where half the numbers are zero, several units of a network lie on their kinks at once.
HALF_MOVE, HALF_NUDGES = 2.0**-11, 48

EDGES = {"t", "s", "s_fine", "s_proposal"}
MASSES = {"w", "weights", "weights_proposal", "w_fine", "sigma", "delta", "alpha"}
DIRECTIONS = {"d", "directions", "direction"}
POINTS = {"x", "y", "o", "origins"}

# Kernels that no row of bench.cases runs, and what proves them instead.
ELSEWHERE = {
    "hashgrid_layout": "test_hashgrid: levels and sizes of known grids",
    "random_colour": "test_losses: the numbers of math/random.h, written once more",
    "sum_losses": "test_fused: against torch's sums, and the flag of what is not finite",
    "advance": "test_fused: counters and schedules of a step",
    "adam": "test_adam: against torch's, with Hypothesis",
}

# Numbers of cameras and boxes, which mean nothing when they are zero.
FIXED = {"intrinsics", "poses", "camera_to_worlds", "adjustment", "near", "far", "box", "rotation"}
# Rows that end in a mean, which is NaN of no rays, as torch's is.
EMPTY_MEANS = {"refine", "refine_frozen", "feature_loss"}
# Edits that put numbers on a threshold that float cannot tell: gradients are asked to be finite only.
# - All weight in one sample makes the mean distance that sample's; where it is the first or the last, the
#   1e-10 of the opacity's denominator decides in double whether the clip holds it, and vanishes in float.
# - Squares of a vector below 1e-23 are zero in float: its length has the gradient of no vector's.
# - Products of denormal numbers are zero in float, and a unit that is exactly zero passes no gradient.
ON_THRESHOLD = {"composite": "one hot", "composite_rgb": "one hot", "composite_features": "one hot"}
ON_THRESHOLD |= {"refine": "denormal", "refine_frozen": "denormal"}
ON_THRESHOLD |= {name: "denormal" for name in CASES if name.startswith("mlp_")}

# Rows whose rays know of each other, and why.
COUPLED = {
    "refine": "the mean of all cameras is taken out of each",
    "feature_loss": "one number for all rays",
    "proposal_loss": "one number for all rays",
    "pixel_losses": "one number for all rays and each loss",
    "pixel_losses_rgb": "one number for all rays and each loss",
}


@dataclass(frozen=True)
class Example:
    """One case: how many rays, which numbers, and what is done to them."""

    rays: int
    seed: int
    kind: str
    edits: tuple[str, ...]


def most_rays(case: Case) -> int:
    size = min(NUMBERS / max(1, case.bytes_per_ray / 4), OPERATIONS / max(1, case.flops_per_ray))
    return int(max(33, size))


def examples(case: Case) -> strategies.SearchStrategy[Example]:
    sizes = [n for n in SIZES if n <= most_rays(case)]
    edits = strategies.lists(strategies.sampled_from(tuple(EDITS)), max_size=2, unique=True).map(tuple)
    kinds = ("agrees",) * 6 + ("keeps_to_its_ray",) * 3 + ("takes_views",)
    return strategies.builds(
        Example,
        strategies.sampled_from(sizes),
        strategies.integers(0, 2**31),
        strategies.sampled_from(kinds),
        edits,
    )


# ---- Awkward numbers, finite ----


def _some(a: Tensor, dice: torch.Generator) -> Tensor:
    """A mask of about a third of the numbers."""
    return (torch.rand(a.shape, generator=dice) < 0.3).to(a.device)


def _zeros(a: Tensor, name: str, dice: torch.Generator) -> Tensor:
    if name in EDGES | DIRECTIONS:  # edges stay in order, and a direction has a length
        return a
    return a.masked_fill(_some(a, dice), 0.0)


def _negative_zeros(a: Tensor, name: str, dice: torch.Generator) -> Tensor:
    return -a * 0.0 if name in POINTS else a


def _denormal(a: Tensor, name: str, dice: torch.Generator) -> Tensor:
    if name in EDGES | DIRECTIONS:
        return a
    return a.masked_fill(_some(a, dice), 1e-42 if a.dtype is torch.float32 else 0.0)


def _empty(a: Tensor, name: str, dice: torch.Generator) -> Tensor:
    return a * 0 if name in MASSES else a


def _one_hot(a: Tensor, name: str, dice: torch.Generator) -> Tensor:
    if name not in MASSES or a.dim() != 2 or not a.numel():
        return a
    at = torch.randint(a.shape[1], (a.shape[0], 1), generator=dice).to(a.device)
    return torch.zeros_like(a).scatter(1, at, 1.0)


def _coincident(a: Tensor, name: str, dice: torch.Generator) -> Tensor:
    """Bins of no width: some edges fall on the one before."""
    if name not in EDGES or a.dim() != 2 or not a.numel():
        return a
    return torch.where(_some(a, dice), a.roll(1, 1), a).cummax(1).values


def _parallel(a: Tensor, name: str, dice: torch.Generator) -> Tensor:
    """Along an axis: parallel to four faces of a box."""
    if name not in DIRECTIONS or a.shape[-1] != 3:
        return a
    axis = torch.randint(3, a.shape[:-1], generator=dice)
    sign = torch.randint(2, (*a.shape[:-1], 1), generator=dice) * 2 - 1
    return (torch.nn.functional.one_hot(axis, 3) * sign).to(a)


def _on_faces(a: Tensor, name: str, dice: torch.Generator) -> Tensor:
    """Whole numbers: on the faces of boxes, on the cube of the contraction, and at its ties.

    What is contracted already (y) stays where it can be taken back: beyond 2 there is nothing.
    """
    most = 1 if name == "y" else 3
    return a.round().clamp(-most, most) if name in POINTS else a


def _near_is_far(args: list[Any], words: Sequence[str]) -> list[Any]:
    if "near" in words and "far" in words:
        near, far = args[words.index("near")], words.index("far")
        args[far] = near.clone() if isinstance(near, Tensor) else args[far]
    return args


EDITS: dict[str, Callable[[Tensor, str, torch.Generator], Tensor]] = {
    "zeros": _zeros,
    "negative zeros": _negative_zeros,
    "denormal": _denormal,
    "empty": _empty,
    "one hot": _one_hot,
    "coincident": _coincident,
    "parallel": _parallel,
    "on faces": _on_faces,
    "near is far": lambda a, name, dice: a,  # takes both arguments: see edited
}


def edited(args: Sequence[Any], words: Sequence[str], example: Example) -> list[Any]:
    dice = torch.Generator().manual_seed(example.seed)
    args = list(args)
    for edit in example.edits:
        for i, a in enumerate(args):
            if isinstance(a, Tensor) and a.is_floating_point() and words[i] not in FIXED:
                args[i] = EDITS[edit](a, words[i], dice).contiguous()
    return _near_is_far(args, words) if "near is far" in example.edits else args


# ---- What stages promise ----


def _weights_hold(w: Tensor) -> str:
    if not bool((w >= 0).all()):
        return "a weight is negative or NaN"
    return "" if bool((w.sum(-1) <= 1 + 1e-5).all()) else "weights sum to more than 1"


def _sorted(t: Tensor, low: Tensor, high: Tensor, what: str) -> str:
    if bool((t.diff(dim=-1) < -1e-6 * (1 + t[:, 1:].abs())).any()):
        return f"{what} is out of order"
    room = 1e-4 * (1 + high.abs())[:, None]
    inside = (t >= low[:, None] - room) & (t <= high[:, None] + room)
    return "" if bool(inside.all()) else f"{what} leaves its ray"


def _unit_interval(x: Tensor, what: str) -> str:
    return "" if bool(((x >= 0) & (x <= 1)).all()) else f"{what} leaves 0..1"


def _bins(args: Sequence[Any], out: Sequence[Tensor], near: int, far: int) -> str:
    s, t = out
    return _unit_interval(s, "s") or _sorted(t, args[near], args[far], "t")


def _depths(args: Sequence[Any], out: Sequence[Tensor]) -> str:
    t = args[1]
    first, last = (t[:, 0] + t[:, 1]) / 2, (t[:, -2] + t[:, -1]) / 2
    at = 0 if args[2] is None else 1
    for depth in out[at + 1 : at + 3]:
        if bool(((depth < first - 1e-5) | (depth > last + 1e-5 * last.abs())).any()):
            return "a depth lies outside the samples"
    return ""


def _rigid(pose: Tensor) -> str:
    R = pose[..., :3].double()
    off = (R @ R.mT - torch.eye(3, dtype=R.dtype, device=R.device)).abs()
    return "" if not off.numel() or float(off.max()) < 1e-5 else "a rotation is not orthonormal"


def _directions(out: Sequence[Tensor]) -> str:
    length = out[1].norm(dim=-1)
    return "" if bool(((length - 1).abs() < 1e-5).all()) else "a direction is not of length one"


Promise = Callable[[Sequence[Any], Sequence[Tensor]], str]
# With finite inputs; an edit that breaks what the promise needs is answered in `agrees`.
HOLDS: dict[str, Promise] = {
    "weights": lambda a, out: _weights_hold(out[0]),
    "weights_from_alpha": lambda a, out: _weights_hold(out[0]),
    "transmittance": lambda a, out: _unit_interval(out[0], "transmittance"),
    "contract": lambda a, out: "" if bool((out[0].abs() <= 2).all()) else "|y| exceeds 2",
    "contract_l2": lambda a, out: "" if bool((out[0].norm(dim=-1) <= 2 + 1e-6).all()) else "|y| exceeds 2",
    "contract_unit": lambda a, out: _unit_interval(out[0], "y"),
    "sample_unit_positions": lambda a, out: _unit_interval(out[0], "y"),
    "near_far": lambda a, out: "" if bool((out[1] >= out[0]).all()) else "far lies before near",
    "near_far_turned": lambda a, out: "" if bool((out[1] >= out[0]).all()) else "far lies before near",
    "sample_spaced": lambda a, out: _bins(a, out, 0, 1),
    "sample_pdf": lambda a, out: _bins(a, out, 2, 3),
    "sample_pdf_annealed": lambda a, out: _bins(a, out, 2, 3),
    "resample": lambda a, out: _bins(a, out[1:3], 5, 6),
    "march": lambda a, out: _sorted(out[0], a[2], a[3], "t"),
    "composite": _depths,
    "composite_rgb": _depths,
    "composite_features": _depths,
    "pose": lambda a, out: _rigid(out[0]),
    "pose_se3": lambda a, out: _rigid(out[0]),
    "rays": lambda a, out: _directions(out),
    "rays_world": lambda a, out: _directions(out),
    "rays_unadjusted": lambda a, out: _directions(out),
    "cast_rays": lambda a, out: _directions(out),
    "interlevel": lambda a, out: "" if bool((out[0] >= 0).all()) else "a loss is negative",
    "distortion": lambda a, out: "" if bool((out[0] >= 0).all()) else "a loss is negative",
    "orientation": lambda a, out: "" if bool((out[0] >= 0).all()) else "a loss is negative",
}
# Whatever the inputs.
ALWAYS: dict[str, Promise] = {
    "contract_unit": HOLDS["contract_unit"],
    "sample_unit_positions": HOLDS["sample_unit_positions"],
    "near_far": HOLDS["near_far"],
    "near_far_turned": HOLDS["near_far_turned"],
    "draw_pixels": lambda a, out: "" if bool((out[2] >= 0).all()) else "a pixel is negative",
}


# ---- The three questions ----


def finite(arrays: Sequence[Tensor | None]) -> bool:
    return all(a is None or not a.is_floating_point() or bool(a.isfinite().all()) for a in arrays)


def _explained(
    case: Case,
    args: Sequence[Any],
    got: Sequence[Sequence[Tensor | None]],
    tolerance: Sequence[float],
    seed: int,
    moves: Sequence[float],
) -> bool:
    """Whether every number lies between what the double build makes of slightly moved inputs."""
    dice = torch.Generator().manual_seed(seed)
    wide = widened(args)
    low = high = _moved(case, wide, 0.0, dice)
    for move in (m for m in moves for _ in range(HALF_NUDGES if m == HALF_MOVE else NUDGES)):
        nudged = [
            a * (1 + move * (2 * torch.rand(a.shape, generator=dice, dtype=a.dtype) - 1))
            if isinstance(a, Tensor) and a.is_floating_point()
            else a
            for a in wide
        ]
        found = _moved(case, nudged, move, dice)
        low = [[_least(a, b) for a, b in zip(*two, strict=True)] for two in zip(low, found, strict=True)]
        high = [[_most(a, b) for a, b in zip(*two, strict=True)] for two in zip(high, found, strict=True)]
        if all(
            _between(*three, LOOSE * t)
            for three, t in zip(zip(got, low, high, strict=True), tolerance, strict=True)
        ):
            return True
    return False


def _moved(case: Case, args: Sequence[Any], move: float, dice: torch.Generator) -> list[list[Tensor | None]]:
    """Outputs and gradients in double; the incoming gradients move, too: their sums may all but cancel."""
    ready = with_grad(case, args)
    outputs = several(case.op(*ready))
    plain: list[Tensor | None] = [o.detach().double() for o in outputs]
    if not case.differentiable:
        return [plain, []]
    kept = floats(outputs)
    seeds = [s * (1 + move * (2 * torch.rand(s.shape, generator=dice) - 1)) for s in seeds_of(kept)]
    wanted = [ready[i] for i in case.differentiable]
    gradients = torch.autograd.grad(kept, wanted, seeds, allow_unused=True)
    return [plain, [None if g is None else g.double() for g in gradients]]


def _least(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.minimum(a, b)


def _most(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.maximum(a, b)


def _between(
    got: Sequence[Tensor | None],
    low: Sequence[Tensor | None],
    high: Sequence[Tensor | None],
    tolerance: float,
) -> bool:
    for g, a, b in zip(got, low, high, strict=True):
        if g is None or a is None or b is None or not g.numel():
            continue
        width = (b - a).abs()
        scale = torch.maximum(a.abs(), b.abs())
        room = tolerance * (8 * scale + 4 * scale.square().mean().sqrt()) + width
        if not bool(((g.cpu().double() >= a - room) & (g.cpu().double() <= b + room)).all()):
            return False
    return True


def agrees(name: str, example: Example, device: str) -> str:
    case, words = CASES[name], arguments.names(CASES[name])
    args = edited(case.inputs(example.rays), words, example)
    got = run_row(case, with_grad(case, moved(args, device)))
    if not (name in EMPTY_MEANS and not example.rays):
        if not finite(got[0]):
            return "an output is not finite"
        if not finite(got[1]):
            return "a gradient is not finite"
    if name in HOLDS and (broken := HOLDS[name](args, [o.cpu() for o in got[0]])):
        return broken
    if not any(isinstance(a, Tensor) and a.is_floating_point() for a in args):
        return ""  # whole numbers: nothing to round; the oracle tests hold them to the bit
    wide = name not in FLOAT_ONLY
    want = run_row(case, with_grad(case, widened(args))) if wide else _by_oracle(case, args)
    tolerance = tolerances(case, device)
    if ON_THRESHOLD.get(name) in example.edits:
        got, want = (got[0], []), (want[0], [])
    errors = [worst(got[part], want[part]) for part in (0, 1)]
    if all(e <= LOOSE * t for e, t in zip(errors, tolerance, strict=True)):
        return ""
    in_halves = case.cuda_tolerance is not None and backend(device) == "cuda"
    moves = (*MOVES, HALF_MOVE) if in_halves else MOVES
    if name not in FLOAT_ONLY and _explained(case, args, got, tolerance, example.seed, moves):
        return ""
    return f"off by {errors[0]:.2g} and gradients by {errors[1]:.2g}, tolerances {tolerance}"


def _has_no_double(name: str, case: Case) -> bool:
    """Arrays of 16 bits, and pixels, are the float build's alone."""
    stored = any(isinstance(a, Tensor) and a.dtype in (torch.float16, torch.bfloat16) for a in case.inputs(1))
    return stored or name in ("gather_features", "gather_features_bilinear", "draw_truth")


FLOAT_ONLY = {name for name, case in CASES.items() if _has_no_double(name, case)}


def _by_oracle(case: Case, args: Sequence[Any]) -> tuple[list[Tensor], list[Tensor | None]]:
    slow = with_grad(case, widened(args))
    outputs = several(case.oracle(*slow))
    kept = floats(outputs)
    if not kept:
        return [o.detach() for o in outputs], []
    wanted = [slow[i] for i in case.differentiable]
    gradients = torch.autograd.grad(kept, wanted, seeds_of(kept), allow_unused=True)
    return [o.detach() for o in outputs], list(gradients)


BROKEN = (float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-42)


def keeps_to_its_ray(name: str, example: Example, device: str) -> str:
    case, words = CASES[name], arguments.names(CASES[name])
    rays = max(2, example.rays)
    args = edited(case.inputs(rays), words, example)
    dice = torch.Generator().manual_seed(example.seed)
    ray = int(torch.randint(rays, (), generator=dice))
    number = BROKEN[int(torch.randint(len(BROKEN), (), generator=dice))]
    takes, gives = arguments.rows_per_ray(name)
    packed = "offsets" in words
    spoiled = [a.clone() if isinstance(a, Tensor) else a for a in args]
    for i, a in enumerate(spoiled):
        if isinstance(a, Tensor) and a.is_floating_point() and (takes[i] or packed) and a.numel():
            mine = a[arguments.rows_of(args, words, ray, takes[i])]
            hit = torch.rand(mine.shape, generator=dice) < 0.5
            mine.masked_fill_(hit, torch.tensor(number).to(a.dtype).item())
    clean = run_row(case, with_grad(case, moved(args, device)))
    found = run_row(case, with_grad(case, moved(spoiled, device)))
    if name in ALWAYS and (broken := ALWAYS[name](spoiled, [o.cpu() for o in found[0]])):
        return f"{broken}, with {number} in ray {ray}"
    if name in COUPLED:
        return ""
    per_gradient = [takes[i] for i in case.differentiable]
    for part, per in ((0, gives), (1, per_gradient)):
        for i, (a, b) in enumerate(zip(clean[part], found[part], strict=True)):
            if a is None or b is None or not (per[i] or packed):
                continue
            keep = torch.ones(len(a), dtype=torch.bool, device=a.device)
            keep[arguments.rows_of(args, words, ray, per[i])] = False
            same = torch.equal(torch.nan_to_num(a[keep]), torch.nan_to_num(b[keep]))
            if not same:
                what = ("output", "gradient")[part]
                return f"{number} in ray {ray} changes {what} {i} of another"
    return ""


def takes_views(name: str, example: Example, device: str) -> str:
    case = CASES[name]
    args = moved(case.inputs(example.rays), device)
    want = run_row(case, with_grad(case, args))
    tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.dim() and a.numel() > 1]
    if not tensors:
        return ""
    at = tensors[example.seed % len(tensors)]
    views = with_grad(case, args)
    a = args[at]
    if example.seed % 2 and a.dim() > 1:
        view = a.transpose(0, -1).contiguous().transpose(0, -1)  # column-major
    else:
        view = torch.stack([a, a], -1)[..., 0]
    views[at] = view.requires_grad_(at in case.differentiable)
    try:
        got = run_row(case, views)
    except ValueError as refusal:
        return "" if "contiguous" in str(refusal) else f"refused with other words: {refusal}"
    for part in (0, 1):
        if worst(got[part], want[part]) > 1e-6:
            return f"argument {at} as a view gives other numbers"
    return ""


QUESTIONS = {"agrees": agrees, "keeps_to_its_ray": keeps_to_its_ray, "takes_views": takes_views}


def asked(name: str, example: Example, device: str) -> str:
    """What is wrong, or nothing. Errors are answers, too."""
    torch.manual_seed(example.seed)
    return QUESTIONS[example.kind](name, example, device)


def uncovered() -> list[str]:
    """Kernels that neither a row runs nor ELSEWHERE names."""
    run: set[str] = set()
    for case in CASES.values():
        torch.manual_seed(0)
        run |= set(arguments.launched(case))
    return [op.name for op in stubs.read_ops() if op.name not in run and op.name not in ELSEWHERE]


# ---- More than 2^31 elements ----

BEYOND = 2**31 + 2**20


def _gather(device: str) -> tuple[Tensor, Tensor]:
    images = torch.zeros(BEYOND, dtype=torch.uint8, device=device)
    images[-33 * 3 :] = torch.arange(33 * 3, dtype=torch.uint8)
    index = torch.arange(BEYOND // 3 - 33, BEYOND // 3, device=device)
    shift = BEYOND % 3
    return gather_pixels(images[shift:], index, 3).cpu() * 255, torch.arange(99.0).view(33, 3)


def _tail(
    op: Callable[..., Any], widths: Sequence[int], dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    """The last rows of a large call, and the same rows alone."""
    rows = BEYOND // max(widths)
    dice = torch.Generator(device).manual_seed(0)
    args = [torch.rand(rows, w, generator=dice, device=device, dtype=dtype) for w in widths]
    got = several(op(*args))[0][-33:].cpu()
    return got, several(op(*(a[-33:].contiguous() for a in args)))[0].cpu()


def _heads(w: Tensor, t: Tensor, feature: Tensor) -> Tensor:
    found = composite(w.float(), t.float(), feature=feature.view(len(w), 8, -1)).feature
    assert found is not None
    return found


# Bytes that each takes, roughly, and what it runs. (got, want) must be equal to the bit.
HUGE: dict[str, tuple[float, Callable[[str], tuple[Tensor, Tensor]]]] = {
    "gather_pixels": (1.1 * BEYOND, _gather),
    "composite of half features": (
        2.8 * BEYOND,
        lambda device: _tail(_heads, (8, 9, 8 * 768), torch.float16, device),
    ),
    "contract": (8.2 * BEYOND, lambda device: _tail(contract, (3,), torch.float32, device)),
    "harmonics": (4.9 * BEYOND, lambda device: _tail_of_outputs(device)),
    "weights": (12.2 * BEYOND, lambda device: _tail(weights, (64, 64), torch.float32, device)),
}


def _tail_of_outputs(device: str) -> tuple[Tensor, Tensor]:
    d = torch.nn.functional.normalize(torch.rand(BEYOND // 16, 3, device=device), dim=-1)
    return harmonics(d)[-33:].cpu(), harmonics(d[-33:].contiguous()).cpu()


def free_bytes(device: str) -> float:
    """What may be taken: all that a GPU has free, half of what a CPU has."""
    if device != "cpu":
        return float(torch.cuda.mem_get_info(device)[0])
    with open("/proc/meminfo") as file:
        told = dict(line.split(":") for line in file)
    return float(told["MemAvailable"].split()[0]) * 1024 / 2


def huge(device: str = "cpu") -> dict[str, Any]:
    """Ops on arrays of more than 2^31 elements; what does not fit into memory is skipped, and told."""
    found: dict[str, str] = {}
    for name, (need, body) in HUGE.items():
        free = free_bytes(device)
        if need > 0.9 * free:
            found[name] = f"skipped: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB may be taken"
            continue
        got, want = body(device)
        found[name] = "equal" if torch.equal(got, want) else "differs"
    for name, said in found.items():
        print(f"  {name}: {said}", flush=True)
    return {"elements": BEYOND, **found, "ok": "differs" not in found.values()}


def today() -> int:
    return (datetime.datetime.now(datetime.UTC) - datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)).days


def of_row(name: str, count: int, device: str, seed: int) -> tuple[int, str]:
    """How many cases ran, and the first failure in words that repeat it."""
    ran = [0]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink), print_blob=False,
    )  # fmt: skip
    @hypothesis.given(examples(CASES[name]))
    def body(example: Example) -> None:
        ran[0] += 1
        wrong = asked(name, example, device)
        if wrong:
            raise AssertionError(f"{name}: {example}: {wrong}")

    try:
        body()
    except Exception as failure:
        words = str(failure).splitlines() or [""]
        return ran[0], words[0] if isinstance(failure, AssertionError) else f"{name}: {failure!r:.300}"
    return ran[0], ""


def summed(rows: dict[str, dict[str, Any]], forgotten: Sequence[str], wanted: int) -> dict[str, Any]:
    """The counts of all rows."""
    total, failed = (sum(row[key] for row in rows.values()) for key in ("cases", "failed"))
    failed += len(forgotten)
    return {
        "rows": len(rows),
        "cases": total,
        "failed": failed,
        "seconds": round(sum(row["seconds"] for row in rows.values())),
        "ok": not failed and total >= wanted and len(rows) == len(CASES),
    }


def run(
    cases: int = WANTED,
    device: str = "cpu",
    only: Sequence[str] = (),
    keep: Callable[[dict[str, Any]], None] = lambda rows: None,
    kept: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """At least `cases` random cases, as many for every row; the seed is the number of the day.

    Each row goes to `keep` as soon as it is known. `only` repeats some rows, as after a fault was mended; the
    counts of the others are those of `kept()`.
    """
    each, found = -(-cases // len(CASES)), {}
    for name in only or CASES:
        began = time.perf_counter()
        ran, failure = of_row(name, each, device, today())
        seconds = round(time.perf_counter() - began, 1)
        found[name] = {"cases": ran, "failed": int(bool(failure)), "failure": failure, "seed": today()}
        found[name] |= {"seconds": seconds}
        keep({name: found[name]})
        print(f"  {name}: {ran} cases, {seconds} s {failure}", flush=True)
    forgotten = [f"{name}: no row runs it" for name in uncovered()]
    if forgotten:
        print("  " + "\n  ".join(forgotten), flush=True)
    rows = {name: row for name, row in kept().items() if name in CASES} if only else {}
    return {"all": summed(rows | found, forgotten, cases)}
