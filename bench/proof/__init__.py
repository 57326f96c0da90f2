"""Correctness that a sceptic can repeat: what `python -m bench.proof` runs and docs/numerics.md tells."""
