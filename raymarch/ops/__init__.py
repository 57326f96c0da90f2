"""Differentiable torch ops, one module per stage, in the order a ray meets them."""

from raymarch.ops._op import find_non_finite
from raymarch.ops.adam import adam
from raymarch.ops.box import near_far
from raymarch.ops.composite import Composite, composite
from raymarch.ops.contract import contract, contract_unit, uncontract
from raymarch.ops.harmonics import fourier, harmonics
from raymarch.ops.hashgrid import hashgrid, hashgrid_input_gradient, table_layout
from raymarch.ops.inputs import colour_inputs, encode
from raymarch.ops.losses import (
    depth_ds_nerf,
    depth_urf,
    distortion,
    interlevel,
    orientation,
    predicted_normals,
    scale_gradients,
)
from raymarch.ops.march import march, representatives
from raymarch.ops.mlp import density, mlp, mlp_input_gradient
from raymarch.ops.pixels import draw_pixels, gather_features, gather_pixels
from raymarch.ops.pose import pose
from raymarch.ops.rays import rays
from raymarch.ops.sample import positions, sample_pdf, sample_spaced, sample_unit_positions
from raymarch.ops.samples_to_pixels import Pictures, samples_to_density, samples_to_pixels
from raymarch.ops.weights import transmittance, weights, weights_from_alpha, weights_packed

__all__ = [
    "Composite",
    "Pictures",
    "adam",
    "colour_inputs",
    "composite",
    "contract",
    "contract_unit",
    "density",
    "depth_ds_nerf",
    "depth_urf",
    "distortion",
    "draw_pixels",
    "encode",
    "find_non_finite",
    "fourier",
    "gather_features",
    "gather_pixels",
    "harmonics",
    "hashgrid",
    "hashgrid_input_gradient",
    "interlevel",
    "march",
    "mlp",
    "mlp_input_gradient",
    "near_far",
    "orientation",
    "pose",
    "positions",
    "predicted_normals",
    "rays",
    "representatives",
    "sample_pdf",
    "sample_spaced",
    "sample_unit_positions",
    "samples_to_density",
    "samples_to_pixels",
    "scale_gradients",
    "table_layout",
    "transmittance",
    "uncontract",
    "weights",
    "weights_from_alpha",
    "weights_packed",
]
