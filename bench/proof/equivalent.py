"""Faults of bench/proof/mutants.py that no test can notice, and why."""

EQUIVALENT: dict[str, str] = {}
