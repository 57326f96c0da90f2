"""The nouns of the pipeline: frozen dataclasses of tensors, with no methods that compute.

Letters: C cameras, R rays, S samples per ray, D feature width. Positions and distances are in scene units
(the training frame); world units are reached through `Scene.world_from_scene`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Lens models, by the number that `Cameras.lens` holds. The order is part of the checkpoint format.
LENSES = (
    "perspective",
    "fisheye",
    "equirectangular",
    "orthophoto",
    "fisheye624",
    "ods_left",
    "ods_right",
    "vr180_left",
    "vr180_right",
)


@dataclass(frozen=True)
class Cameras:
    """Pinhole and other cameras; OpenGL axes (x right, y up, looking along -z)."""

    camera_to_worlds: Tensor  # [C, 3, 4] float32, [R | t]
    intrinsics: Tensor  # [C, 4] float32: fx, fy, cx, cy in pixels; pixel centres lie at +0.5
    distortion: Tensor  # [C, 12] float32: k1 k2 k3 k4 p1 p2, or the twelve numbers of fisheye624
    lens: Tensor  # [C] int64, index into LENSES
    size: Tensor  # [C, 2] int64: width, height


@dataclass(frozen=True)
class Pixels:
    """Where rays start on the images, and the truth found there (None where there is none)."""

    camera: Tensor  # [R] int64
    xy: Tensor  # [R, 2] float32 pixel coordinates, x right, y down, centre of the first pixel (0.5, 0.5)
    rgb: Tensor | None = None  # [R, 3] or [R, 4] (straight alpha), float32 in 0..1
    feature: Tensor | None = None  # [R, D]
    depth: Tensor | None = None  # [R] distance along the ray, 0 where unknown


@dataclass(frozen=True)
class Sight:
    """How positions get their gradient from hash grids while poses are refined."""

    detail: Tensor  # [1] log2 of the finest resolution that counts fully, on the device
    smooth: bool = False  # slopes of smoothstep interpolation, though the lookup is linear
    blurs_map: bool = False  # finer levels are hidden from the lookup too, not from the gradient alone


@dataclass(frozen=True)
class Rays:
    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3] unit
    area: Tensor  # [R] solid angle of a pixel
    directions_norm: Tensor  # [R] length before normalisation: z depth times this is ray distance
    near: Tensor  # [R]
    far: Tensor  # [R]
    camera: Tensor  # [R] int64
    converged: Tensor | None = None  # [R] bool, false where the lens could not be undone
    sight: Sight | None = None  # None: the plain gradient


@dataclass(frozen=True)
class Samples:
    """Intervals along rays, ray-major: S intervals have S + 1 edges."""

    s: Tensor  # [R, S + 1] edges in normalised distance, 0 at near and 1 at far
    t: Tensor  # [R, S + 1] edges in distance along the ray


@dataclass(frozen=True)
class Proposal:
    """One level of proposal sampling: where it looked and what it saw."""

    samples: Samples
    weights: Tensor  # [R, S]


@dataclass(frozen=True)
class Field:
    """What the fields hold at the samples; heads that were not asked for are None."""

    density: Tensor  # [R, S] per scene unit
    rgb: Tensor | None = None  # [R, S, 3]
    normals: Tensor | None = None  # [R, S, 3] unit, from the density gradient, no graph
    predicted_normals: Tensor | None = None  # [R, S, 3] unit
    feature: Tensor | None = None  # [R, S, H] the feature head's last hidden layer
    feature_layer: Tensor | None = None  # [D, H] the linear layer that turns it into features, if wanted


@dataclass(frozen=True)
class Rendering:
    """What a ray sees; heads that were not asked for are None."""

    rgb: Tensor | None = None  # [R, 3]
    opacity: Tensor | None = None  # [R] sum of weights
    depth: Tensor | None = None  # [R] median distance along the ray
    expected_depth: Tensor | None = None  # [R] mean distance along the ray
    normals: Tensor | None = None  # [R, 3]
    predicted_normals: Tensor | None = None  # [R, 3]
    feature: Tensor | None = None  # [R, D]
    feature_hidden: Tensor | None = None  # [R, H] composited hidden layer, before `feature_layer`
    weights: Tensor | None = None  # [R, S]
    samples: Samples | None = None
    field: Field | None = None
    rays: Rays | None = None
    proposals: tuple[Proposal, ...] = ()
