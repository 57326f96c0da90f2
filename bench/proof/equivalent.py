"""Faults of bench/proof/mutants.py that no test can notice, and why."""

EQUIVALENT: dict[str, str] = {
    # transmittance.h, factor_vjp: || as &&
    "02ed39f1f114": "An infinite factor makes the thickness infinite (or NaN, whose gradient is 0): nothing "
    "passes and the thickness has no gradient, so the two conditions come together.",
    # camera.h, kEpsilon of the double build: 2.2e-16 as 4.4e-16
    "533338f55bf1": "When the search stops: its steps are Newton's, the last lands far below both.",
    # camera.h, kMostTrials: 40 as 41
    "3c15052d5b40": "A search that has not arrived after 40 trials will not in one more; others need fewer.",
    # camera.h, invert: step = {0, 0} as {0, 1}
    "b67ac5399f3d": "Where the search begins: halved until it lands before the fold, it ends at the same "
    "place.",
    # camera.h, invert: m.xx + m.yy > 0 as m.xx > 0
    "f1f84a862eb1": "With a positive determinant the two differ for maps that turn the plane by more than a "
    "right angle, which no lens does before its fold.",
    # camera.h, undistort: lens.k[4] == 0 as lens.k[4] == 1
    "2d5b7ad5bfee": "Lenses without distortion then go through the search, whose first trial is the answer.",
    # camera.h, shear624: numbers of the Jacobian
    "64473351ecaa": "The Jacobian steers a search that ends by the residual: the same place, later.",
    "86fced14a080": "The Jacobian steers a search that ends by the residual: the same place, later.",
    # march.h, kMostCells: 1290 as 1291
    "6ec06d23532d": "Tells apart grids of 1290^3 and 1291^3 cells, which take 8.6 GB.",
}
