"""What every op must do: one row per op, one file per stage, read by the tests and by the benchmark."""

from bench.cases import (
    box,
    composite,
    contract,
    feature_loss,
    field_to_pixels,
    harmonics,
    hashgrid,
    inputs,
    losses,
    march,
    mlp,
    pixels,
    pose,
    rays,
    rays_to_samples,
    sample,
    samples_to_field,
    samples_to_pixels,
    weights,
)
from bench.cases._case import Case, several

STAGES = (
    pixels,
    pose,
    rays,
    box,
    sample,
    march,
    contract,
    hashgrid,
    harmonics,
    mlp,
    inputs,
    samples_to_pixels,
    weights,
    composite,
    losses,
    rays_to_samples,
    samples_to_field,
    field_to_pixels,
    feature_loss,
)
CASES: dict[str, Case] = {name: case for stage in STAGES for name, case in stage.CASES.items()}

__all__ = ["CASES", "Case", "several"]
