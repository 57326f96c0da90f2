"""What every op is asked to do: one row per op, one file per stage, read by the tests and by the benchmark."""

from bench.cases import contract, harmonics, hashgrid, weights
from bench.cases._case import Case, several

STAGES = (contract, hashgrid, harmonics, weights)
CASES: dict[str, Case] = {name: case for stage in STAGES for name, case in stage.CASES.items()}

__all__ = ["CASES", "Case", "several"]
