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
# images before each one; `valid`, if given, lists the pixels that may be drawn. `counter` is (seed, step).
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

# Edges of the samples of rays that march through a grid of densities (math/march.h) in `steps` even steps:
# sample_spaced, the density of the cells, weights and sample_pdf in one. Past a thickness of `stop` a ray has
# nothing to see. `baked` holds resolution^3 densities, x fastest.
def march(
    origins: Array,
    directions: Array,
    near: Array,
    far: Array,
    baked: Array,
    resolution: int,
    norm: int,
    spacing: int,
    steps: int,
    padding: float,
    stop: float,
    t: Array,
    /,
) -> None: ...

# A few samples to stand for all of a ray: those that hold the middles of equal shares of its weight.
def representatives(
    origins: Array,
    directions: Array,
    t: Array,
    w: Array,
    x: Array,
    w_kept: Array,
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

# Spherical harmonics of directions, Fourier features of positions (6 * frequencies columns of y from
# `column` on).
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
# that only pads is the constant `padding`. Backward computes the hidden layers again; on a CPU it reads `y`
# where the output activation is not kLinear, on CUDA it needs `partial` for the gradient of the parameters.
# grad_x may have the first columns of x alone.
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
    share: Array | None,
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

# Density at the middles of intervals along rays: sample_unit_positions, hashgrid, mlp with one hidden layer
# and density in one, for small grids (at most 16 columns) and at most 64 hidden units. Nothing per sample
# but the density reaches memory. No gradient.
def samples_to_density(
    origins: Array,
    directions: Array,
    t: Array,
    norm: int,
    table: Array,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    params: Array,
    hidden: int,
    padding: float,
    scale: float,
    sigma: Array,
    /,
) -> None: ...

# Pictures of samples: sample_unit_positions, hashgrid (two features, at most 16 levels), the base network
# (one hidden layer of 64, 16 outputs), density, weights, the colour network (two hidden layers of 64; inputs
# direction, the base's outputs but the first, code) and composite in one. `params` is the base's parameters,
# then the colour's. Left out: samples in cells of the unit cube, `resolution` along an axis and x fastest,
# whose bit in `occupied` is 0 (low bits first), samples behind a thickness of `stop`, and, where the
# schedule gains by it, colours of weights of at most `least`. No gradient.
def samples_to_pixels(
    origins: Array,
    directions: Array,
    t: Array,
    norm: int,
    table: Array,
    levels: int,
    base_resolution: int,
    max_resolution: int,
    log2_size: int,
    interpolation: int,
    layout: int,
    params: Array,
    scale: float,
    direction: Array,
    code: Array | None,
    occupied: Array | None,
    resolution: int,
    colour: Array | None,
    background: int,
    least: float,
    stop: float,
    rgb: Array,
    opacity: Array,
    depth: Array,
    expected: Array,
    w: Array | None,
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
# finite and clamps colours.
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

# draw_pixels, gather_pixels and, where there are maps, gather_features.
def draw_truth(
    counter: Array,
    starts: Array,
    widths: Array,
    valid: Array | None,
    images: Array,
    maps: Array | None,
    map_starts: Array | None,
    map_size: Array | None,
    image_size: Array,
    camera: Array,
    xy: Array,
    colour: Array,
    feature: Array | None,
    stream: int,
    mode: int,
    /,
) -> None: ...

# Pose refinement: the mean of all cameras taken out of xi (`centred`) or frozen cameras held, pose_forward,
# and the penalty: factors times the mean lengths of translations and rotations.
def refine_forward(
    xi: Array,
    free: Array | None,
    centred: bool,
    mode: int,
    clamped: bool,
    translation: float,
    rotation: float,
    pose: Array,
    penalty: Array,
    /,
) -> None: ...
def refine_backward(
    xi: Array,
    free: Array | None,
    centred: bool,
    mode: int,
    clamped: bool,
    translation: float,
    rotation: float,
    grad_pose: Array | None,
    grad_penalty: Array | None,
    grad_xi: Array,
    /,
) -> None: ...

# rays_forward, near_far within two planes, sample_spaced and sample_unit_positions_forward.
def cast_rays(
    camera_to_worlds: Array,
    camera: Array,
    xy: Array,
    intrinsics: Array,
    distortion: Array,
    lens: Array,
    adjustment: Array | None,
    compose: int,
    eye_distance: float,
    box: Array | None,
    near_plane: float,
    far_plane: float,
    counter: Array | None,
    spacing: int,
    jitter: int,
    stream: int,
    norm: int,
    origins: Array,
    directions: Array,
    area: Array,
    directions_norm: Array,
    converged: Array,
    near: Array,
    far: Array,
    s: Array,
    t: Array,
    y: Array | None,
    /,
) -> None: ...

# sample_unit_positions_backward, summed over several levels of samples of the same rays, plus more.
def ray_gradients(
    origins: Array,
    directions: Array,
    t: list[Array],
    grad_y: list[Array],
    norm: int,
    more_origins: Array | None,
    more_directions: Array | None,
    grad_origins: Array,
    grad_directions: Array,
    /,
) -> None: ...

# One proposal level: density_forward, weights_forward, sample_pdf and sample_unit_positions_forward.
def resample(
    h: Array,
    y: Array | None,
    scale: float,
    s: Array,
    t: Array,
    near: Array,
    far: Array,
    origins: Array,
    directions: Array,
    counter: Array | None,
    anneal: Array | None,
    spacing: int,
    jitter: int,
    stream: int,
    padding: float,
    norm: int,
    w: Array,
    s_new: Array,
    t_new: Array,
    y_new: Array | None,
    /,
) -> None: ...

# The way back from the interlevel loss of one proposal level, `grad` for each ray: interlevel_backward,
# weights_backward and density_backward.
def proposal_backward(
    h: Array,
    y: Array,
    scale: float,
    s: Array,
    t: Array,
    w: Array,
    s_fine: Array,
    w_fine: Array,
    grad: Array,
    grad_h: Array,
    /,
) -> None: ...

# colour_inputs of the harmonics of directions and of each camera's row of `codes`. Backward adds to
# grad_codes, or writes what each ray says to grad_code; `more_h` [column ..] joins the gradient of h[1 ..].
# x, here and below, may have more columns, which are one.
def radiance_inputs_forward(
    h: Array,
    y: Array,
    scale: float,
    directions: Array,
    signs: int,
    camera: Array | None,
    codes: Array | None,
    sigma: Array,
    x: Array,
    /,
) -> None: ...
def radiance_inputs_backward(
    h: Array,
    y: Array,
    scale: float,
    directions: Array,
    signs: int,
    camera: Array | None,
    grad_sigma: Array,
    grad_x: Array,
    more_h: Array | None,
    column: int,
    more_directions: Array | None,
    grad_h: Array,
    grad_directions: Array,
    grad_codes: Array | None,
    grad_code: Array | None,
    /,
) -> None: ...

# Gradients of density against positions in the cube as unit normals of the world, pulled back through the
# contraction unless `contracted`.
def slope_normals(
    origins: Array,
    directions: Array,
    t: Array,
    slope: Array,
    norm: int,
    contracted: bool,
    normals: Array,
    /,
) -> None: ...

# What the network of predicted normals reads: fourier features of positions, then h[1 ..].
def normal_inputs_forward(
    origins: Array,
    directions: Array,
    t: Array,
    h: Array,
    frequencies: int,
    layout: int,
    x: Array,
    /,
) -> None: ...
def normal_inputs_backward(
    origins: Array,
    directions: Array,
    t: Array,
    frequencies: int,
    layout: int,
    grad_x: Array,
    more_directions: Array | None,
    grad_origins: Array,
    grad_directions: Array,
    /,
) -> None: ...

# Its last layer: n = normalised tanh(weight z + bias). `partial` holds what several parts of the points say
# about weight and bias, side by side.
def normal_head_forward(z: Array, weight: Array, bias: Array, n: Array, /) -> None: ...
def normal_head_backward(
    z: Array,
    weight: Array,
    bias: Array,
    grad_n: Array,
    grad_z: Array,
    partial: Array,
    /,
) -> None: ...

# weights_forward, the heads a loss needs of composite_forward, and per ray (a row each, as many as there is
# room for) the squared error of the colour, interlevel losses, distortion, orientation, predicted normals.
# background: as composite_forward, or a random colour from `counter` (4). truth has 3 or 4 (alpha) columns.
def field_to_pixels_forward(
    sigma: Array,
    s: Array,
    t: Array,
    rgb: Array,
    hidden: Array | None,
    normals: Array | None,
    predicted: Array | None,
    directions: Array | None,
    truth: Array,
    counter: Array | None,
    s_proposal: list[Array],
    w_proposal: list[Array],
    background: int,
    stream: int,
    w: Array,
    colour: Array,
    opacity: Array,
    hidden_out: Array | None,
    losses: Array,
    /,
) -> None: ...

# `grad` of each row above (the same for all rays); g_hidden is the sum of its parts times
# grad_hidden_scale[0]. `calm` shrinks gradients of the field near the camera (scale_gradients).
def field_to_pixels_backward(
    sigma: Array,
    s: Array,
    t: Array,
    rgb: Array,
    hidden: Array | None,
    normals: Array | None,
    directions: Array | None,
    truth: Array,
    counter: Array | None,
    background: int,
    stream: int,
    calm: bool,
    detached: bool,
    w: Array,
    colour: Array,
    opacity: Array,
    grad: Array,
    g_hidden: Array | None,
    grad_hidden_scale: Array | None,
    grad_sigma: Array,
    grad_rgb: Array,
    grad_hidden: Array | None,
    grad_predicted: Array | None,
    grad_directions: Array | None,
    /,
) -> None: ...

# The squared error of features = hidden layer^T, by parts of the features (rows of `losses`), and at the
# same time its gradients: to hidden by the same parts, to the layer by parts of the rays.
def feature_loss(
    hidden: Array,
    layer: Array,
    target: Array,
    losses: Array,
    grad_hidden: Array,
    grad_layer: Array,
    /,
) -> None: ...

# The sum of rows, always in the same order, times a number.
def add_rows(rows: Array, scale: Array | None, sum: Array, /) -> None: ...

# Losses of rays to terms: each row of `rows` times its scale, summed, goes to term `owner`; `penalty` is the
# last term. A term that is not finite clears `healthy`; the counts `steps` that are `stepping` go on while
# healthy.
def sum_losses(
    rows: Array,
    scales: Array,
    owner: Array,
    penalty: Array | None,
    sums: Array,
    ticket: Array,
    terms: Array,
    healthy: Array,
    steps: Array,
    stepping: Array,
    /,
) -> None: ...

# After a step: counts it in `counter` (seed, step) if all went well, and looks up the schedules of the next.
def advance(counter: Array, healthy: Array, schedules: Array, row: Array, /) -> None: ...

# One step of Adam on flat parameters, in place, all in one pass. Learning rates, step counts (from 1) and
# whether to step at all live on the device, so that a CUDA graph can replay it. `stored` are copies in
# another dtype that follow their parameters. A gradient that is not finite is not applied and clears
# `healthy`, which stops every later step. Gradients to `clear` are zeroed where they are not zero already.
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
    clear: list[bool],
    healthy: Array,
    beta1: float,
    beta2: float,
    /,
) -> None: ...
