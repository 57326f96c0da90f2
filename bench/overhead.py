"""Microseconds of Python per call, on tensors too small to matter, beside torch's own cheapest op.

python -m bench.overhead [--device cpu] [--record]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from bench import record
from raymarch import _C
from raymarch.ops.weights import weights

CALLS, ROUNDS = 500, 25


def best_us(call: Callable[[], object], device: torch.device) -> float:
    """The best of many rounds: what it costs when nothing interferes."""
    laps = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        laps.append((time.perf_counter() - begin) / CALLS)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return 1e6 * min(laps)


def measure(device: torch.device) -> dict[str, float]:
    sigma, delta = torch.rand(4, 8, device=device), torch.rand(4, 8, device=device)
    leaf, out = sigma.clone().requires_grad_(), torch.empty_like(sigma)
    seed = torch.ones_like(sigma)
    return {
        "native_us": best_us(lambda: _C.weights_forward(sigma, delta, out), device),
        "op_us": best_us(lambda: weights(sigma, delta), device),
        "op_with_grad_us": best_us(lambda: weights(leaf, delta), device),
        "op_and_backward_us": best_us(lambda: torch.autograd.grad(weights(leaf, delta), leaf, seed), device),
        "mul_us": best_us(lambda: sigma * delta, device),
        "mul_and_backward_us": best_us(lambda: torch.autograd.grad(leaf * delta, leaf, seed), device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Python microseconds per call.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--record", action="store_true", help="merge the figures into bench/results")
    args = parser.parse_args()
    found = measure(torch.device(args.device))
    for name, us in found.items():
        print(f"{name:20} {us:7.2f}")
    if args.record:
        record.merge(
            "checks", {f"overhead_{args.device}": found}, f"python -m bench.overhead --device {args.device}"
        )


if __name__ == "__main__":
    main()
