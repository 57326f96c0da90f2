"""Faults of bench/proof/mutants.py that no test can notice, and why."""

EQUIVALENT: dict[str, str] = {
    # transmittance.h, factor_vjp: || as &&
    "02ed39f1f114": "An infinite factor makes the thickness infinite (or NaN, whose gradient is 0): nothing "
    "passes and the thickness has no gradient, so the two conditions come together.",
    # camera.h, kEpsilon of the double build: 2.2e-16 as 4.4e-16
    "533338f55bf1": "When the search stops: its steps are Newton's, the last lands far below both.",
    # camera.h, kMostTrials: 40 as 41
    "3c15052d5b40": "A search that has not arrived after 40 trials will not in one more; others need fewer.",
}
