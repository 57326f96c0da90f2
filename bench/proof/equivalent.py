"""Faults of bench/proof/mutants.py that no test can notice, and why."""

EQUIVALENT: dict[str, str] = {
    # transmittance.h, factor_vjp: || as &&
    "02ed39f1f114": "An infinite factor makes the thickness infinite (or NaN, whose gradient is 0): nothing "
    "passes and the thickness has no gradient, so the two conditions come together.",
}
