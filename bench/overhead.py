"""Microseconds of Python per call, on tensors too small to matter, beside torch's own cheapest op.

python -m bench.overhead [--device cpu] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from bench import record
from raymarch import _C
from raymarch.ops.weights import weights

CALLS, ROUNDS = 200, 60
RATIOS = {"op_over_mul": ("op", "mul"), "both_ways_over_mul": ("op_and_backward", "mul_and_backward")}


def lap_us(call: Callable[[], object], device: torch.device) -> float:
    """Microseconds of a call, of many in a row."""
    begin = time.perf_counter()
    for _ in range(CALLS):
        call()
    lap = 1e6 * (time.perf_counter() - begin) / CALLS
    if device.type == "cuda":
        torch.cuda.synchronize()
    return lap


def calls(device: torch.device) -> dict[str, Callable[[], object]]:
    sigma, delta = torch.rand(4, 8, device=device), torch.rand(4, 8, device=device)
    leaf, out = sigma.clone().requires_grad_(), torch.empty_like(sigma)
    seed = torch.ones_like(sigma)
    return {
        "native": lambda: _C.weights_forward(sigma, delta, out),
        "op": lambda: weights(sigma, delta),
        "op_with_grad": lambda: weights(leaf, delta),
        "op_and_backward": lambda: torch.autograd.grad(weights(leaf, delta), leaf, seed),
        "mul": lambda: sigma * delta,
        "mul_and_backward": lambda: torch.autograd.grad(leaf * delta, leaf, seed),
    }


def measure(device: torch.device) -> dict[str, float]:
    """The best of many rounds: what a call costs when nothing interferes. Every round times every call, and a
    ratio is the median of the rounds' own, so that a busy moment of the host slows both of its sides."""
    made = calls(device)
    rounds = [{name: lap_us(call, device) for name, call in made.items()} for _ in range(ROUNDS)]
    found = {f"{name}_us": min(laps[name] for laps in rounds) for name in made}
    for name, (ours, theirs) in RATIOS.items():
        found[name] = statistics.median(laps[ours] / laps[theirs] for laps in rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Python microseconds per call.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--record", action="store_true", help="merge the figures into bench/results")
    args = parser.parse_args()
    found = measure(torch.device(args.device))
    for name, value in found.items():
        print(f"{name:20} {value:7.2f}")
    if args.record:
        record.merge(
            "checks", {f"overhead_{args.device}": found}, f"python -m bench.overhead --device {args.device}"
        )


if __name__ == "__main__":
    main()
