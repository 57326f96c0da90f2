"""Arithmetic of every native kernel from its shapes, read off the formulas in csrc/math and rounded.

Additions, multiplications, divisions and calls (exp, log, sine, square root) count one each; indices,
comparisons and random bits count nothing. Matrix products are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CORNERS = 8  # of a grid cell


class Shape(dict[str, Any]):
    """A call's settings by name and its named dimensions: rays for kRays, ...; what is absent is 0."""

    def __missing__(self, name: str) -> Any:
        return 0


def _samples(d: Shape) -> float:
    """Numbers in an array of one per sample."""
    return d["rays"] * d["samples"] if d["rays"] else d["samples"]


def _per_ray(count: float) -> Callable[[Shape], float]:
    return lambda d: count * d["rays"]


def _per_point(count: float) -> Callable[[Shape], float]:
    return lambda d: count * d["points"]


def _per_sample(count: float) -> Callable[[Shape], float]:
    return lambda d: count * _samples(d)


def _per_camera(count: float) -> Callable[[Shape], float]:
    return lambda d: count * d["cameras"]


def _mlp(d: Shape) -> float:
    return 2 * d["points"] * d["params"]


def _mlp_backward(d: Shape) -> float:
    """Hidden layers again, then the gradients that are asked for."""
    return (1 + d["has_grad_x"] + d["has_grad_params"]) * _mlp(d)


def _grid(points: float, d: Shape) -> float:
    return points * d["levels"] * 2 * CORNERS * d["channels"]


def _heads(d: Shape) -> int:
    """Numbers per sample that are composited."""
    threes = d["has_rgb"] + d["has_normals"] + d["has_predicted"]
    return 3 * threes + (d["channels"] if d["has_feature"] or d["has_hidden"] else 0)


def _intervals(d: Shape) -> float:
    return d["rays"] * (d["edges"] - 1)


def _resample(d: Shape) -> float:
    return 12 * d["rays"] * d["fine"] + 14 * d["rays"] * d["edges"] + 14 * d["rays"] * d["samples"]


def _networks_along_rays(d: Shape) -> float:
    """Base and colour networks: all parameters at every sample, and the lookups before them."""
    return 2 * _intervals(d) * d["params"] + _grid(_intervals(d), d) + 20 * _intervals(d)


WEIGHTS, WEIGHTS_BACK = 5, 8  # per sample: optical thickness, its sum, two exponentials, a product
UNIT = 14  # per sample: a point on the ray, its contraction into the unit cube
RAY = 120  # per ray: three lens models' worth of one (OpenCV's undoing is iterative), a rotation, lengths
HARMONICS = 52  # per direction: sixteen polynomials

FLOPS: dict[str, Callable[[Shape], float]] = {
    "draw_pixels": _per_ray(4),
    "gather_pixels": lambda d: d["rays"] * d["channels"],
    "gather_features": lambda d: d["rays"] * d["channels"] * (7 if d["mode"] else 0),
    "pose_forward": _per_camera(60),
    "pose_backward": _per_camera(150),
    "rays_forward": _per_ray(3 * RAY),  # the ray and its two neighbours, for the area
    "rays_backward": _per_ray(60),
    "rays_lens_backward": _per_ray(150),
    "near_far": _per_ray(24),
    "sample_spaced": lambda d: 10 * d["rays"] * d["edges"],
    "sample_pdf": lambda d: 5 * d["rays"] * d["fine"] + 14 * d["rays"] * d["edges"],
    "sample_distances": lambda d: 8 * d["rays"] * d["edges"],
    "march": lambda d: (UNIT + 12) * d["rays"] * d["steps"] + 14 * d["rays"] * d["edges"],
    "representatives": lambda d: 2 * _samples(d) + 8 * d["rays"] * d["fine"],
    "positions_forward": _per_sample(8),
    "positions_backward": _per_sample(11),
    "sample_unit_positions_forward": _per_sample(UNIT),
    "sample_unit_positions_backward": _per_sample(25),
    "contract_forward": _per_point(8),
    "contract_backward": _per_point(16),
    "uncontract_forward": _per_point(8),
    "uncontract_backward": _per_point(16),
    "contract_unit_forward": _per_point(14),
    "contract_unit_backward": _per_point(19),
    "hashgrid_forward": lambda d: _grid(d["points"], d) + 18 * d["points"] * d["frequencies"],
    "hashgrid_backward": lambda d: _grid(d["points"], d),
    "hashgrid_input_gradient": lambda d: (
        d["points"] * d["levels"] * CORNERS * (2 * d["channels"] + 6)
    ),
    "harmonics_forward": _per_point(HARMONICS),
    "harmonics_backward": _per_point(2 * HARMONICS),
    "fourier_forward": lambda d: 12 * d["points"] * d["frequencies"],
    "fourier_backward": lambda d: 24 * d["points"] * d["frequencies"],
    "mlp_forward": _mlp,
    "mlp_backward": _mlp_backward,
    "density_forward": _per_point(2),
    "density_backward": _per_point(3),
    "colour_inputs_forward": _per_point(2),
    "colour_inputs_backward": lambda d: d["points"] * (3 + d["outputs"]),
    "samples_to_density": lambda d: (
        2 * _intervals(d) * (d["params"] - 15 * d["hidden"])  # one output; the other 15 rows only pad
        + _grid(_intervals(d), d)
        + (UNIT + 2) * _intervals(d)
    ),
    "samples_to_pixels": _networks_along_rays,
    "weights_forward": _per_sample(WEIGHTS),
    "weights_backward": _per_sample(WEIGHTS_BACK),
    "weights_packed_forward": _per_sample(WEIGHTS),
    "weights_packed_backward": _per_sample(WEIGHTS_BACK),
    "transmittance_forward": _per_sample(3),
    "transmittance_backward": _per_sample(5),
    "weights_from_alpha_forward": _per_sample(3),
    "weights_from_alpha_backward": _per_sample(8),
    "composite_forward": lambda d: (2 * _heads(d) + 6) * _samples(d),
    "composite_backward": lambda d: (4 * _heads(d) + 6) * _samples(d),
    "interlevel_forward": lambda d: d["rays"] * (2 * d["samples"] + 10 * d["fine"]),
    "interlevel_backward": lambda d: d["rays"] * (3 * d["samples"] + 12 * d["fine"]),
    "distortion_forward": _per_sample(12),
    "distortion_backward": _per_sample(12),
    "orientation_forward": _per_sample(9),
    "orientation_backward": _per_sample(14),
    "predicted_normals_forward": _per_sample(8),
    "predicted_normals_backward": _per_sample(4),
    "random_colour": _per_ray(3),
    "draw_truth": lambda d: d["rays"] * (4 + d["inputs"] + d["channels"] * (7 if d["mode"] else 0)),
    "refine_forward": _per_camera(90),
    "refine_backward": _per_camera(200),
    "cast_rays": lambda d: d["rays"] * (3 * RAY + 24 + 10 * d["edges"] + UNIT * d["samples"]),
    "ray_gradients": lambda d: 25 * (d["all_grad_y"] / 3),
    "resample": _resample,
    "proposal_backward": lambda d: d["rays"] * (12 * d["samples"] + 12 * d["fine"]),
    "radiance_inputs_forward": lambda d: 2 * d["points"] + HARMONICS * d["rays"],
    "radiance_inputs_backward": lambda d: d["points"] * (3 + d["outputs"]) + 2 * HARMONICS * d["rays"],
    "slope_normals": _per_sample(35),
    "normal_inputs_forward": lambda d: d["points"] * (8 + 12 * d["frequencies"]),
    "normal_inputs_backward": lambda d: d["points"] * (11 + 24 * d["frequencies"]),
    "normal_head_forward": lambda d: d["points"] * (6 * d["inputs"] + 12),
    "normal_head_backward": lambda d: d["points"] * (18 * d["inputs"] + 40),
    "field_to_pixels_forward": lambda d: (
        (WEIGHTS + 2 * _heads(d) + 12 + 9 * d["has_normals"] + 8 * d["has_predicted"]) * _samples(d)
        + 3 * d["all_w_proposal"]
    ),
    "field_to_pixels_backward": lambda d: (
        (WEIGHTS_BACK + 4 * _heads(d) + 14 + 14 * d["has_normals"]) * _samples(d)
    ),
    # features = hidden layer^T, and both gradients of their squared error
    "feature_loss": lambda d: 6 * d["rays"] * d["outputs"] * d["inputs"],
    "add_rows": lambda d: d["entries"] * d["params"],
    "sum_losses": lambda d: d["entries"] * d["rays"],
    "advance": lambda d: 1,
    "adam": lambda d: 14 * d["all_parameters"],
}  # fmt: skip
