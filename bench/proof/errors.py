"""The error of every op and of every gradient, against its oracle in float64.

For each row of bench.cases, on 1000 rays (fewer where a row is heavy), three seeds: the largest error, and
the mean of the signed error (bias), both over the root mean square of the wanted array; of several outputs
the worst. Where an op takes arrays of 16 bits the row is repeated with them rounded to half and bfloat16; the
oracle keeps the numbers before rounding, so these errors hold all that storage costs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.cases import CASES, Case, several
from bench.proof import arguments
from bench.running import floats, moved, tolerances, widened, with_grad

SEEDS = 3
NUMBERS, OPERATIONS = 2e6, 2e8  # what one run of a row may move and compute
# Which argument of a row may be of 16 bits. `stored` is a copy beside the table that gets the gradient.
PAYLOADS = {
    "gather_features": 0,
    "gather_features_bilinear": 0,
    "draw_truth": 8,
    "march": 4,
    "hashgrid": (7, 1),
    "hashgrid_one": (7, 1),
    "hashgrid_smooth": (7, 1),
    "hashgrid_nerfstudio": (7, 1),
    "encode": (8, 1),
    "encode_uneven": (8, 1),
    "encode_pairs": (8, 1),
    "mlp_proposal": 0,
    "mlp_base": 0,
    "mlp_colour": 0,
    "mlp_normals": 0,
    "mlp_feature": 0,
    "mlp_uneven": 0,
    "mlp_largest": 0,
    "samples_to_density": 3,
    "samples_to_pixels": 3,
    "samples_to_pixels_over_colour": 3,
    "composite": 5,
    "composite_features": 5,
}
KINDS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Half a unit of the last place: what rounding to a payload's kind changes of a number, at most.
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Rounded inputs push units of a deep network over the kink of relu, and a point's whole gradient with them.
KINKED = {"mlp_largest"}


def rays_for(case: Case) -> int:
    most = min(NUMBERS * 4 / max(1, case.bytes_per_ray), OPERATIONS / max(1, case.flops_per_ray))
    return int(max(33, min(999, most)))


def rounded(name: str, args: list[Any], dtype: torch.dtype) -> list[Any]:
    """The arguments with the payload in another dtype."""
    if dtype is torch.float32:
        return args
    place = PAYLOADS[name]
    target, source = place if isinstance(place, tuple) else (place, place)
    return [args[source].detach().to(dtype) if i == target else a for i, a in enumerate(args)]


class Errors(NamedTuple):
    """Over the root mean square of what is wanted, whose own largest number is `peak`."""

    largest: float = 0.0
    bias: float = 0.0
    peak: float = 0.0


def of(got: Tensor, want: Tensor) -> Errors:
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    if not want.numel():
        return Errors()
    scale = float(want.square().mean().sqrt().clamp_min(1e-300))
    difference = (got - want) / scale
    return Errors(float(difference.abs().max()), float(difference.mean()), float(want.abs().max()) / scale)


def worse(a: Errors, b: Errors) -> Errors:
    """The largest of both, and the bias that is farther from 0; NaN is the worst."""

    def size(e: float) -> float:
        return math.inf if math.isnan(e) else abs(e)

    return Errors(*(max(pair, key=size) for pair in zip(a, b, strict=True)))


def allowed(case: Case, name: str, kind: str, what: str, errors: Errors, device: str) -> tuple[float, float]:
    """The largest error and bias that pass.

    A tolerance is of norms, and one number may be off by far more than the mean; rounding to 16 bits costs up
    to four roundings of the largest number.
    """
    tolerance = tolerances(case, device)[what != "forward"]
    if name in KINKED and kind != "float32" and what != "forward":
        return math.inf, ROUNDING[kind]
    return 30 * tolerance + 4 * ROUNDING[kind] * max(4, errors.peak), 2 * tolerance + ROUNDING[kind]


def measure(name: str, kind: str, device: str) -> dict[str, Errors]:
    """Of `forward` and of the gradient to each differentiable argument."""
    case = CASES[name]
    found: dict[str, Errors] = {}
    words = arguments.names(case)
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        args = list(case.inputs(rays_for(case)))
        fast = rounded(name, moved(args, device), KINDS[kind])
        fast = with_grad(case, fast)
        slow = with_grad(case, widened(args))
        got, want = several(case.op(*fast)), several(case.oracle(*slow))
        pairs = zip(got, want, strict=True)
        here = {"forward": Errors()}
        for g, w in pairs:
            here["forward"] = worse(here["forward"], of(g, w))
        if case.differentiable:
            kept, wanted = floats(got), floats(want)
            incoming = [torch.randn_like(w) for w in wanted]
            torch.autograd.backward(kept, [i.to(k) for i, k in zip(incoming, kept, strict=True)])
            torch.autograd.backward(wanted, incoming)
            for i in case.differentiable:
                if fast[i].grad is not None:
                    here[f"d {words[i]}"] = of(fast[i].grad, slow[i].grad)
        found = {k: worse(found.get(k, Errors()), v) for k, v in here.items()}
    return found


def run(device: str = "cpu") -> dict[str, Any]:
    """Every row, in every precision it takes; `ok` is false where a row leaves its own tolerance."""
    rows: dict[str, Any] = {}
    failures, refused = [], []
    for name, case in CASES.items():
        if name not in PAYLOADS and arguments.takes_payload(case):
            failures.append(f"{name}: takes an array of 16 bits; name it in bench.proof.errors.PAYLOADS")
        for kind in KINDS if name in PAYLOADS else ("float32",):
            try:
                found = measure(name, kind, device)
            except ValueError as error:  # the GPU's networks take no bfloat16, and say so
                if device == "cpu" or " must be float32 or float16" not in str(error):
                    raise
                refused.append(f"{name}, {kind}")
                continue
            rows[f"{name}, {kind}"] = {
                f"{what} {word}": value
                for what, pair in found.items()
                for word, value in zip(("max", "bias"), pair, strict=False)
            }
            for what, errors in found.items():
                largest, bias = allowed(case, name, kind, what, errors, device)
                if not (errors.largest <= largest and abs(errors.bias) <= bias):
                    failures.append(
                        f"{name}, {kind}, {what}: {errors.largest:.2g} and bias {errors.bias:.2g}, "
                        f"allowed {largest:.2g} and {bias:.2g}"
                    )
    for failure in failures:
        print("  " + failure, flush=True)
    refusals = {"refused": refused} if refused else {}
    return {"ok": not failures, "rows": len(rows), "failures": failures, **refusals, "table": rows}
