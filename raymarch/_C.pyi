"""The native core. Written from csrc/ops.def by `python -m bench.stubs`; do not edit.

Every op takes contiguous arrays on one device, outputs last, and returns nothing.
"""

from typing import Any, Protocol

class Array(Protocol):
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

has_cuda: bool
cuda_archs: str
cuda_version: str

# Draw pixels evenly from all images: their number, camera and centre. `starts` counts the pixels of the
# images
# before each one; `valid`, if given, lists the pixels that may be drawn. `counter` is (seed, step).
def draw_pixels(
    counter: Array,
    starts: Array,
    widths: Array,
    valid: Array | None,
    camera: Array,
    xy: Array,
    index: Array,
    stream: int,
    /,
) -> None: ...

# Colours of pixels by number, from 8-bit images one after another, as 0 .. 1.
def gather_pixels(images: Array, index: Array, colour: Array, /) -> None: ...

# Feature vectors under pixels, from maps one after another, nearest (0) or bilinear (1).
def gather_features(
    maps: Array,
    map_starts: Array,
    map_size: Array,
    image_size: Array,
    camera: Array,
    xy: Array,
    feature: Array,
    mode: int,
    /,
) -> None: ...

# The exponential map of each camera's pose adjustment.
def pose_forward(xi: Array, mode: int, clamped: bool, pose: Array, /) -> None: ...
def pose_backward(xi: Array, mode: int, clamped: bool, grad_pose: Array, grad_xi: Array, /) -> None: ...

# The ray through each pixel; the gradient to the poses is summed per camera.
def rays_forward(
    camera_to_worlds: Array,
    camera: Array,
    xy: Array,
    intrinsics: Array,
    distortion: Array,
    lens: Array,
    adjustment: Array | None,
    compose: int,
    eye_distance: float,
    origins: Array,
    directions: Array,
    area: Array,
    directions_norm: Array,
    converged: Array,
    /,
) -> None: ...
def rays_backward(
    camera_to_worlds: Array,
    camera: Array,
    xy: Array,
    intrinsics: Array,
    distortion: Array,
    lens: Array,
    adjustment: Array | None,
    compose: int,
    eye_distance: float,
    grad_origins: Array | None,
    grad_directions: Array | None,
    same_every_time: bool,
    grad_camera_to_worlds: Array | None,
    grad_adjustment: Array | None,
    /,
) -> None: ...

# Where each ray enters and leaves a box.
def near_far(
    origins: Array,
    directions: Array,
    box: Array,
    placement: Array | None,
    near: Array,
    far: Array,
    /,
) -> None: ...

# Edges of even bins in a spacing between near and far. jitter: none (0), one offset per ray (1), per edge
# (2).
def sample_spaced(
    near: Array,
    far: Array,
    counter: Array | None,
    s: Array,
    t: Array,
    spacing: int,
    jitter: int,
    stream: int,
    /,
) -> None: ...

# Edges drawn from a histogram of weights between edges s. `anneal` is the exponent that sharpens weights.
def sample_pdf(
    s: Array,
    weights: Array,
    near: Array,
    far: Array,
    counter: Array | None,
    anneal: Array | None,
    s_new: Array,
    t_new: Array,
    spacing: int,
    jitter: int,
    stream: int,
    padding: float,
    /,
) -> None: ...

# Normalised distances s as distances t in a spacing between near and far, or (inverse) the way back.
def sample_distances(
    from_: Array,
    near: Array,
    far: Array,
    to: Array,
    spacing: int,
    inverse: bool,
    /,
) -> None: ...

# Midpoints of intervals along rays.
def positions_forward(origins: Array, directions: Array, t: Array, x: Array, /) -> None: ...
def positions_backward(t: Array, grad_x: Array, grad_origins: Array, grad_directions: Array, /) -> None: ...

# The same midpoints, contracted into the unit cube.
def sample_unit_positions_forward(
    origins: Array,
    directions: Array,
    t: Array,
    y: Array,
    norm: int,
    /,
) -> None: ...
def sample_unit_positions_backward(
    origins: Array,
    directions: Array,
    t: Array,
    grad_y: Array,
    grad_origins: Array,
    grad_directions: Array,
    norm: int,
    /,
) -> None: ...

# Contract positions into a cube or a ball, in the given norm (math/contract.h), and back.
def contract_forward(x: Array, y: Array, norm: int, /) -> None: ...
def contract_backward(x: Array, grad_y: Array, grad_x: Array, norm: int, /) -> None: ...
def uncontract_forward(y: Array, x: Array, norm: int, /) -> None: ...
def uncontract_backward(y: Array, grad_x: Array, grad_y: Array, norm: int, /) -> None: ...
def contract_unit_forward(x: Array, y: Array, norm: int, /) -> None: ...
def contract_unit_backward(x: Array, grad_y: Array, grad_x: Array, norm: int, /) -> None: ...

# Multiresolution hash grid: features of positions in [0, 1]^3. A layout row is resolution, scale, entries,
# offset.
# Behind levels * features columns, y may have 6 * frequencies Fourier features in the layout `waves`.
def hashgrid_layout(
    rows: Array,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    layout: int,
    /,
) -> None: ...
def hashgrid_forward(
    x: Array,
    table: Array,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    frequencies: int,
    waves: int,
    y: Array,
    /,
) -> None: ...
def hashgrid_backward(
    x: Array,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    grad_y: Array,
    exact: Array | None,
    grad_table: Array,
    /,
) -> None: ...
def hashgrid_input_gradient(
    x: Array,
    table: Array,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    grad_y: Array,
    grad_x: Array,
    /,
) -> None: ...

# Spherical harmonics of directions, Fourier features of positions (6 * frequencies columns of y from `column`
# on).
def harmonics_forward(d: Array, signs: int, y: Array, /) -> None: ...
def harmonics_backward(d: Array, signs: int, grad_y: Array, grad_d: Array, /) -> None: ...
def fourier_forward(x: Array, frequencies: int, layout: int, column: int, y: Array, /) -> None: ...
def fourier_backward(
    x: Array,
    frequencies: int,
    layout: int,
    column: int,
    grad_y: Array,
    grad_x: Array,
    /,
) -> None: ...

# A network without biases, through `layers` hidden layers of `hidden` units with relu. `params` is flat:
# [out, in] per layer, row-major, widths of input and output rounded up to 16 (ops/mlp.py). An input column
# that only pads is the constant `padding`. Backward computes the hidden layers again; it reads `y` where
# the output activation is not kLinear, and needs `partial` on CUDA for the gradient of the parameters.
def mlp_forward(
    x: Array,
    params: Array,
    hidden: int,
    layers: int,
    activation: int,
    padding: float,
    y: Array,
    /,
) -> None: ...
def mlp_backward(
    x: Array,
    params: Array,
    hidden: int,
    layers: int,
    activation: int,
    padding: float,
    y: Array | None,
    grad_y: Array,
    grad_x: Array | None,
    grad_params: Array | None,
    partial: Array | None,
    /,
) -> None: ...

# Density from column 0 of h: scale * exp where the normalised position y selects the sample, else 0.
def density_forward(h: Array, y: Array, scale: float, sigma: Array, /) -> None: ...
def density_backward(h: Array, y: Array, scale: float, grad_sigma: Array, grad_h: Array, /) -> None: ...

# The output h of the base network goes two ways: column 0 to density, as above, and the others to the colour
# network, between what all samples of a ray share: x = direction, h[1:], code. Samples are ray-major.
def colour_inputs_forward(
    h: Array,
    y: Array,
    scale: float,
    direction: Array,
    code: Array | None,
    sigma: Array,
    x: Array,
    /,
) -> None: ...
def colour_inputs_backward(
    h: Array,
    y: Array,
    scale: float,
    grad_sigma: Array | None,
    grad_x: Array,
    grad_h: Array,
    grad_direction: Array,
    grad_code: Array | None,
    /,
) -> None: ...

# Rendering weights along each ray.
def weights_forward(sigma: Array, delta: Array, w: Array, /) -> None: ...
def weights_backward(
    sigma: Array,
    delta: Array,
    w: Array,
    grad_w: Array,
    grad_sigma: Array | None,
    grad_delta: Array | None,
    /,
) -> None: ...

# The same for rays of different lengths, one after another: ray r has the samples offsets[r] .. offsets[r +
# 1].
def weights_packed_forward(sigma: Array, delta: Array, offsets: Array, w: Array, /) -> None: ...
def weights_packed_backward(
    sigma: Array,
    delta: Array,
    offsets: Array,
    w: Array,
    grad_w: Array,
    grad_sigma: Array | None,
    grad_delta: Array | None,
    /,
) -> None: ...

# Transmittance in front of every sample, of such packed rays.
def transmittance_forward(sigma: Array, delta: Array, offsets: Array, front: Array, /) -> None: ...
def transmittance_backward(
    sigma: Array,
    delta: Array,
    offsets: Array,
    front: Array,
    grad_front: Array,
    grad_sigma: Array | None,
    grad_delta: Array | None,
    /,
) -> None: ...

# Weights and transmittance at the edges, from opacities.
def weights_from_alpha_forward(alpha: Array, w: Array, front: Array, epsilon: float, /) -> None: ...
def weights_from_alpha_backward(
    alpha: Array,
    front: Array,
    grad_w: Array | None,
    grad_front: Array | None,
    grad_alpha: Array,
    epsilon: float,
    /,
) -> None: ...

# Every head of a rendering in one pass over the weights. Heads that are None are left out. background:
# none (0), the constant `colour` (1), the ray's last sample (2), white (3). `clean` replaces what is not
# finite
# and clamps colours.
def composite_forward(
    w: Array,
    t: Array,
    rgb: Array | None,
    normals: Array | None,
    predicted: Array | None,
    feature: Array | None,
    colour: Array | None,
    background: int,
    clean: bool,
    rgb_out: Array | None,
    opacity: Array,
    depth: Array,
    expected: Array,
    normals_out: Array | None,
    predicted_out: Array | None,
    feature_out: Array | None,
    /,
) -> None: ...
def composite_backward(
    w: Array,
    t: Array,
    rgb: Array | None,
    normals: Array | None,
    predicted: Array | None,
    feature: Array | None,
    colour: Array | None,
    background: int,
    clean: bool,
    g_rgb: Array | None,
    g_opacity: Array | None,
    g_expected: Array | None,
    g_normals: Array | None,
    g_predicted: Array | None,
    g_feature: Array | None,
    grad_w: Array | None,
    grad_rgb: Array | None,
    grad_normals: Array | None,
    grad_predicted: Array | None,
    grad_feature: Array | None,
    /,
) -> None: ...

# Losses, one number per ray. Interlevel: the fine weights in excess of what proposal weights allow.
def interlevel_forward(s: Array, w: Array, s_proposal: Array, w_proposal: Array, loss: Array, /) -> None: ...
def interlevel_backward(
    s: Array,
    w: Array,
    s_proposal: Array,
    w_proposal: Array,
    grad_loss: Array,
    grad_w_proposal: Array,
    /,
) -> None: ...

# Distortion: how far weights lie from each other.
def distortion_forward(s: Array, w: Array, loss: Array, /) -> None: ...
def distortion_backward(s: Array, w: Array, grad_loss: Array, grad_w: Array, /) -> None: ...

# Orientation: weights of normals that face away from the camera.
def orientation_forward(w: Array, normals: Array, directions: Array, loss: Array, /) -> None: ...
def orientation_backward(
    w: Array,
    normals: Array,
    directions: Array,
    grad_loss: Array,
    grad_w: Array | None,
    grad_normals: Array | None,
    grad_directions: Array | None,
    /,
) -> None: ...

# Predicted normals: one minus the cosine between predictions and normals, weighted.
def predicted_normals_forward(w: Array, normals: Array, predicted: Array, loss: Array, /) -> None: ...
def predicted_normals_backward(
    w: Array,
    normals: Array,
    grad_loss: Array,
    grad_predicted: Array,
    /,
) -> None: ...

# A colour per ray, even in 0 .. 1, to put behind what is seen. `counter` is (seed, step).
def random_colour(counter: Array, colour: Array, stream: int, /) -> None: ...

# One step of Adam on flat parameters, in place, all in one pass. Learning rates, step counts (from 1) and
# whether to step at all live on the device, so that a CUDA graph can replay it. `stored` are copies in
# another
# dtype that follow their parameters. A gradient that is not finite is not applied and clears `healthy`, which
# stops every later step.
def adam(
    parameters: list[Array],
    gradients: list[Array],
    first: list[Array],
    second: list[Array],
    stored: list[Array | None],
    rates: list[Array],
    steps: list[Array],
    epsilon: list[float],
    decay: list[float],
    healthy: Array,
    beta1: float,
    beta2: float,
    /,
) -> None: ...
