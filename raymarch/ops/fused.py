"""Fused ops: each does in one kernel what several ops of a stage do in turn, and is tested as equal.

They are the parts of the fused stages (`raymarch.model.fused`), which training runs instead of the composed
pipeline. Losses come with constant weights there, so gradients of per-ray losses are one number for all rays.
"""

from typing import NamedTuple

import torch
from torch import Tensor, empty_like

from raymarch.ops._op import differentiable, launch, op
from raymarch.ops.contract import norm_code
from raymarch.ops.harmonics import LAYOUTS, SIGNS
from raymarch.ops.losses import interlevel_forward
from raymarch.ops.mlp import density_forward
from raymarch.ops.pixels import LOOKUPS
from raymarch.ops.pose import MODES, SMALL_ANGLES
from raymarch.ops.rays import COMPOSES, EYE_DISTANCE, rays_backward
from raymarch.ops.sample import JITTERS, SPACINGS
from raymarch.ops.weights import weights_forward

BACKGROUNDS = {"last_sample": 2, "black": 0, "white": 3, "random": 4}  # as in math/composite.h
HARMONICS = 16
FEATURE_PART = 128  # features of a part, in whose losses and gradients to hidden `feature_loss` splits
FEATURE_GROUPS = 43  # and the most parts of rays, for the gradient to the layer
HEAD_PARTS = 264  # of points, for the gradient to the last layer of predicted normals


@op
def draw_truth_forward(
    counter: Tensor,
    starts: Tensor,
    widths: Tensor,
    valid: Tensor | None,
    images: Tensor,
    maps: Tensor | None,
    map_starts: Tensor | None,
    map_size: Tensor | None,
    image_size: Tensor,
    count: int,
    channels: int,
    stream: int,
    mode: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    camera = counter.new_empty(count)
    xy = counter.new_empty(count, 2, dtype=torch.float32)
    colour = xy.new_empty(count, channels)
    feature = xy.new_empty(0) if maps is None else xy.new_empty(count, maps.shape[1])
    where = (counter, starts, widths, valid, images, maps, map_starts, map_size, image_size)
    launch("draw_truth", *where, camera, xy, colour, None if maps is None else feature, stream, mode)
    return camera, xy, colour, feature


def draw_truth(
    counter: Tensor,
    starts: Tensor,
    widths: Tensor,
    images: Tensor,
    channels: int,
    count: int,
    image_size: Tensor,
    valid: Tensor | None = None,
    maps: Tensor | None = None,
    map_starts: Tensor | None = None,
    map_size: Tensor | None = None,
    mode: str = "nearest",
    stream: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`draw_pixels`, `gather_pixels` and, given maps, `gather_features`: camera, xy, colour, feature or None.

    Arguments and errors are those of the three ops.
    """
    if count < 0 or channels < 1:
        raise ValueError(
            f"draw_truth: count is {count} and channels {channels}, expected at least 0 and at least 1"
        )
    if mode not in LOOKUPS:
        raise ValueError(f"draw_truth: mode is {mode!r}, expected one of {', '.join(LOOKUPS)}")
    where = (counter, starts, widths, valid, images, maps, map_starts, map_size, image_size)
    *found, feature = draw_truth_forward(*where, count, channels, stream, LOOKUPS.index(mode))
    return found[0], found[1], found[2], None if maps is None else feature


@op
def refine_forward(
    xi: Tensor,
    free: Tensor | None,
    centred: bool,
    mode: int,
    clamped: bool,
    translation: float,
    rotation: float,
) -> tuple[Tensor, Tensor]:
    pose, penalty = xi.new_empty(xi.shape[0], 3, 4), xi.new_empty(1)
    launch("refine_forward", xi, free, centred, mode, clamped, translation, rotation, pose, penalty)
    return pose, penalty


@op
def refine_backward(
    xi: Tensor,
    free: Tensor | None,
    centred: bool,
    mode: int,
    clamped: bool,
    translation: float,
    rotation: float,
    grad_pose: Tensor | None,
    grad_penalty: Tensor | None,
) -> Tensor:
    grad_xi = empty_like(xi)
    how = (xi, free, centred, mode, clamped, translation, rotation)
    launch("refine_backward", *how, grad_pose, grad_penalty, grad_xi)
    return grad_xi


_refine = differentiable(
    refine_forward, lambda inputs, saved, grads, needs: (refine_backward(*inputs, *grads), *[None] * 6)
)


def refine(
    xi: Tensor,
    mode: str = "SO3xR3",
    small_angle: str = "exact",
    centred: bool = False,
    free: Tensor | None = None,
    translation: float = 0.0,
    rotation: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`pose` of xi [C, 6], and the penalty [1] on its size: [C, 3, 4] and [1], differentiable.

    `centred` takes the mean over cameras out first; `free` [C, 1] bool holds the others at the identity and
    goes before `centred`. The penalty is translation times the mean length of the translations plus rotation
    times that of the rotation vectors; no length, no gradient. ValueError for unknown words.
    """
    if mode not in MODES or small_angle not in SMALL_ANGLES:
        raise ValueError(
            f"refine: mode is {mode!r} and small_angle {small_angle!r}, expected one of {', '.join(MODES)} "
            f"and one of {', '.join(SMALL_ANGLES)}"
        )
    clamped = small_angle == "nerfstudio"
    return _refine(xi.contiguous(), free, centred, MODES[mode], clamped, float(translation), float(rotation))


@op
def cast_rays_forward(
    camera_to_worlds: Tensor,
    camera: Tensor,
    xy: Tensor,
    intrinsics: Tensor,
    distortion: Tensor,
    lens: Tensor,
    adjustment: Tensor | None,
    compose: int,
    eye_distance: float,
    box: Tensor | None,
    near_plane: float,
    far_plane: float,
    counter: Tensor | None,
    samples: int,
    spacing: int,
    jitter: int,
    stream: int,
    norm: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rays = xy.shape[0]
    origins, directions = xy.new_empty(rays, 3), xy.new_empty(rays, 3)
    area, length, near, far = (xy.new_empty(rays) for _ in range(4))
    converged = torch.empty(rays, dtype=torch.bool, device=xy.device)
    s, t = xy.new_empty(rays, samples + 1), xy.new_empty(rays, samples + 1)
    y = xy.new_empty(rays, samples, 3)
    views = (camera_to_worlds, camera, xy, intrinsics, distortion, lens, adjustment, compose, eye_distance)
    stretch = (box, near_plane, far_plane, counter, spacing, jitter, stream, norm)
    out = (origins, directions, area, length, converged, near, far, s, t, y)
    launch("cast_rays", *views, *stretch, *out)
    return out


@op
def ray_gradients(
    origins: Tensor,
    directions: Tensor,
    t: list[Tensor],
    grad_y: list[Tensor],
    norm: int,
    more_origins: Tensor | None,
    more_directions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of origins and directions from those of unit positions at several levels, plus more."""
    grad_origins, grad_directions = empty_like(origins), empty_like(directions)
    arguments = (origins, directions, t, grad_y, norm, more_origins, more_directions)
    launch("ray_gradients", *arguments, grad_origins, grad_directions)
    return grad_origins, grad_directions


def _cast_rays_backward(inputs, saved, grads, needs):
    views, norm = inputs[:9], inputs[17]
    origins, directions, t = saved
    g_origins, g_directions, g_y = grads[0], grads[1], grads[9]
    levels = ([t], [g_y]) if g_y is not None else ([], [])
    to_rays = ray_gradients(origins, directions, *levels, norm, g_origins, g_directions)
    same = torch.are_deterministic_algorithms_enabled()
    poses, adjustment = rays_backward(*views, *to_rays, needs[0], needs[6], same)
    return (poses if needs[0] else None, *[None] * 5, adjustment if needs[6] else None, *[None] * 11)


_cast_rays = differentiable(
    cast_rays_forward, _cast_rays_backward, save=(0, 1, 8), fixed=(2, 3, 4, 5, 6, 7, 8)
)


class CastRays(NamedTuple):
    """Rays as in `raymarch.types.Rays`, their first samples as in `Samples`, and y [R, S, 3] in the cube."""

    origins: Tensor
    directions: Tensor
    area: Tensor
    directions_norm: Tensor
    converged: Tensor
    near: Tensor
    far: Tensor
    s: Tensor
    t: Tensor
    y: Tensor


def cast_rays(
    camera: Tensor,
    xy: Tensor,
    camera_to_worlds: Tensor,
    intrinsics: Tensor,
    distortion: Tensor,
    lens: Tensor,
    adjustment: Tensor | None = None,
    compose: str = "camera",
    near: float = 0.05,
    far: float = 1000.0,
    samples: int = 256,
    spacing: str = "piecewise",
    jitter: str = "none",
    counter: Tensor | None = None,
    stream: int = 1,
    norm: str = "linf",
    box: Tensor | None = None,
    eye_distance: float = EYE_DISTANCE,
) -> CastRays:
    """`rays`, the stretch between near and far and inside box [2, 3], `sample_spaced` and unit positions.

    Arguments and errors are those of these ops; gradients flow from origins, directions and y to
    camera_to_worlds and adjustment.
    """
    if compose not in COMPOSES or spacing not in SPACINGS or jitter not in JITTERS:
        raise ValueError(
            f"cast_rays: compose, spacing and jitter are {compose!r}, {spacing!r} and {jitter!r}, expected "
            f"one of {', '.join(COMPOSES)}, of {', '.join(SPACINGS)} and of {', '.join(JITTERS)}"
        )
    if not 0 <= near < far or samples < 1:
        raise ValueError(
            f"cast_rays: near is {near}, far {far} and samples {samples}, "
            "expected 0 <= near < far and at least one sample"
        )
    adjustment = None if adjustment is None else adjustment.contiguous()
    views = (camera_to_worlds.contiguous(), camera, xy, intrinsics, distortion, lens, adjustment)
    how = (samples, SPACINGS.index(spacing), JITTERS.index(jitter), stream, norm_code(norm, "cast_rays"))
    stretch = (box, float(near), float(far), counter)
    return CastRays(*_cast_rays(*views, COMPOSES[compose], float(eye_distance), *stretch, *how))


@op
def resample_forward(
    h: Tensor,
    y: Tensor,
    scale: float,
    s: Tensor,
    t: Tensor,
    near: Tensor,
    far: Tensor,
    origins: Tensor,
    directions: Tensor,
    counter: Tensor | None,
    anneal: Tensor | None,
    samples: int,
    spacing: int,
    jitter: int,
    stream: int,
    padding: float,
    norm: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rays = s.shape[0]
    w = s.new_empty(rays, s.shape[1] - 1)
    s_new, t_new = s.new_empty(rays, samples + 1), s.new_empty(rays, samples + 1)
    y_new = s.new_empty(rays, samples, 3)
    level = (h, y, scale, s, t, near, far, origins, directions, counter, anneal)
    launch("resample", *level, spacing, jitter, stream, padding, norm, w, s_new, t_new, y_new)
    return w, s_new, t_new, y_new


def resample(
    h: Tensor,
    y: Tensor,
    scale: float,
    s: Tensor,
    t: Tensor,
    near: Tensor,
    far: Tensor,
    origins: Tensor,
    directions: Tensor,
    samples: int,
    spacing: str = "piecewise",
    jitter: str = "none",
    counter: Tensor | None = None,
    stream: int = 2,
    anneal: Tensor | None = None,
    padding: float = 0.01,
    norm: str = "linf",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One proposal level: `density`, `weights`, `sample_pdf` and `sample_unit_positions`. No gradient.

    h [R * P, C] the network's output and y [R * P, 3] unit positions at the P intervals of s, t [R, P + 1].
    Returns weights [R, P], the new edges s, t [R, samples + 1] and their unit positions [R, samples, 3].
    """
    how = (
        SPACINGS.index(spacing),
        JITTERS.index(jitter),
        stream,
        float(padding),
        norm_code(norm, "resample"),
    )
    with torch.no_grad():
        level = (h, y, float(scale), s, t, near, far, origins, directions, counter, anneal)
        return resample_forward(*level, samples, *how)


@op
def proposal_backward(
    h: Tensor,
    y: Tensor,
    scale: float,
    s: Tensor,
    t: Tensor,
    w: Tensor,
    s_fine: Tensor,
    w_fine: Tensor,
    grad: Tensor,
) -> Tensor:
    """The gradient of h from that of every ray's interlevel loss, one number [1] for all."""
    grad_h = empty_like(h)
    launch("proposal_backward", h, y, scale, s, t, w, s_fine, w_fine, grad, grad_h)
    return grad_h


class _ProposalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, y, scale, s, t, s_fine, w_fine):
        sigma = density_forward(h, y, scale).view(s.shape[0], s.shape[1] - 1)
        w = weights_forward(sigma, t.diff())
        ctx.save_for_backward(h, y, s, t, w, s_fine, w_fine)
        ctx.scale = scale
        return interlevel_forward(s_fine, w_fine, s, w).sum()

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("proposal_loss is once differentiable")
        h, y, s, t, w, s_fine, w_fine = ctx.saved_tensors
        found = proposal_backward(h, y, ctx.scale, s, t, w, s_fine, w_fine, grad.reshape(1))
        return found, *[None] * 6


def proposal_loss(
    h: Tensor, y: Tensor, scale: float, s: Tensor, t: Tensor, s_fine: Tensor, w_fine: Tensor
) -> Tensor:
    """The sum over rays of `interlevel` for the weights that a proposal network's output h gives; a scalar.

    h [R * P, C], y [R * P, 3] and s, t [R, P + 1] as in `resample`; s_fine [R, F + 1], w_fine [R, F]. Its
    gradient, to h alone, goes through interlevel, weights and density in one pass.
    """
    return _ProposalLoss.apply(h, y, float(scale), s, t, s_fine, w_fine)


def _network_inputs(like: Tensor, width: int, halves: bool) -> Tensor:
    """Room for rows that a network reads; halves are as many as tensor cores take, the rest ones."""
    if not halves:
        return like.new_empty(like.shape[0], width)
    return like.new_empty(like.shape[0], -(-width // 16) * 16, dtype=torch.float16)


@op
def radiance_inputs_forward(
    h: Tensor,
    y: Tensor,
    scale: float,
    directions: Tensor,
    signs: int,
    camera: Tensor | None,
    codes: Tensor | None,
    halves: bool,
) -> tuple[Tensor, Tensor]:
    sigma = h.new_empty(h.shape[0])
    x = _network_inputs(h, HARMONICS + h.shape[1] - 1 + (0 if codes is None else codes.shape[1]), halves)
    launch("radiance_inputs_forward", h, y, scale, directions, signs, camera, codes, sigma, x)
    return sigma, x


@op
def radiance_inputs_backward(
    h: Tensor,
    y: Tensor,
    scale: float,
    directions: Tensor,
    signs: int,
    camera: Tensor | None,
    code: int,
    grad_sigma: Tensor,
    grad_x: Tensor,
    more_h: Tensor | None,
    column: int,
    more_directions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of h, directions and, ray by ray [R, code], of the codes (empty where code is 0)."""
    grad_h, grad_directions = empty_like(h), empty_like(directions)
    grad_code = h.new_empty(directions.shape[0], code)
    given = (h, y, scale, directions, signs, camera, grad_sigma, grad_x, more_h, column, more_directions)
    out = (grad_h, grad_directions, None, grad_code if code else None)
    launch("radiance_inputs_backward", *given, *out)
    return grad_h, grad_directions, grad_code


def add_radiance_gradients(
    h: Tensor,
    y: Tensor,
    scale: float,
    directions: Tensor,
    signs: int,
    camera: Tensor,
    grad_sigma: Tensor,
    grad_x: Tensor,
    more_h: Tensor | None,
    column: int,
    more_directions: Tensor | None,
    grad_codes: Tensor,
) -> tuple[Tensor, Tensor]:
    """`radiance_inputs_backward`, adding what rays say about codes to grad_codes [C, A] in place."""
    if grad_codes.is_cuda and torch.are_deterministic_algorithms_enabled():
        found = radiance_inputs_backward(
            h, y, scale, directions, signs, camera, grad_codes.shape[1], grad_sigma, grad_x, more_h, column,
            more_directions,
        )  # fmt: skip
        grad_codes.index_add_(0, camera, found[2])
        return found[0], found[1]
    grad_h, grad_directions = empty_like(h), empty_like(directions)
    given = (h, y, scale, directions, signs, camera, grad_sigma, grad_x, more_h, column, more_directions)
    launch("radiance_inputs_backward", *given, grad_h, grad_directions, grad_codes, None)
    return grad_h, grad_directions


def _radiance_inputs_backward(inputs, saved, grads, needs):
    h, y, scale, directions, signs, camera, codes, _ = inputs
    grad_sigma, grad_x = grads
    if grad_sigma is None:
        grad_sigma = h.new_zeros(h.shape[0])
    if grad_x is None:
        width = HARMONICS + h.shape[1] - 1 + (0 if codes is None else codes.shape[1])
        grad_x = h.new_zeros(h.shape[0], width)
    wide = 0 if codes is None else codes.shape[1]
    grad_h, grad_directions, grad_code = radiance_inputs_backward(
        h, y, scale, directions, signs, camera, wide, grad_sigma, grad_x, None, 0, None
    )
    grad_codes = None if codes is None else torch.zeros_like(codes).index_add_(0, camera, grad_code)
    return grad_h, None, None, grad_directions, None, None, grad_codes, None


_radiance_inputs = differentiable(radiance_inputs_forward, _radiance_inputs_backward)


def radiance_inputs(
    h: Tensor,
    y: Tensor,
    scale: float,
    directions: Tensor,
    codes: Tensor | None = None,
    camera: Tensor | None = None,
    signs: str = "nerfstudio",
) -> tuple[Tensor, Tensor]:
    """`colour_inputs` of `harmonics(directions)` and of rows `camera` [R] of codes [C, A], in one pass.

    Gradients to h, directions and codes. ValueError for unknown signs and codes without camera.
    """
    if signs not in SIGNS or (codes is not None and camera is None):
        raise ValueError(
            f"radiance_inputs: signs is {signs!r}, expected one of {', '.join(SIGNS)}, and camera with codes"
        )
    return _radiance_inputs(h, y, float(scale), directions, SIGNS.index(signs), camera, codes, False)


@op
def slope_normals_forward(
    origins: Tensor, directions: Tensor, t: Tensor, slope: Tensor, norm: int, contracted: bool
) -> Tensor:
    normals = empty_like(slope)
    launch("slope_normals", origins, directions, t, slope, norm, contracted, normals)
    return normals


def slope_normals(
    origins: Tensor,
    directions: Tensor,
    t: Tensor,
    slope: Tensor,
    norm: str = "linf",
    contracted: bool = False,
) -> Tensor:
    """Unit normals [R, S, 3] against slope [R, S, 3], the gradient of density by unit positions. No graph.

    Pulled back through the contraction to the world, unless `contracted`. A slope of zero gives zero.
    """
    with torch.no_grad():
        return slope_normals_forward(
            origins, directions, t, slope, norm_code(norm, "slope_normals"), contracted
        )


@op
def normal_inputs_forward(
    origins: Tensor, directions: Tensor, t: Tensor, h: Tensor, frequencies: int, layout: int, halves: bool
) -> Tensor:
    x = _network_inputs(h, 6 * frequencies + h.shape[1] - 1, halves)
    launch("normal_inputs_forward", origins, directions, t, h, frequencies, layout, x)
    return x


@op
def normal_inputs_backward(
    origins: Tensor,
    directions: Tensor,
    t: Tensor,
    frequencies: int,
    layout: int,
    grad_x: Tensor,
    more_directions: Tensor | None,
) -> tuple[Tensor, Tensor]:
    grad_origins, grad_directions = empty_like(origins), empty_like(directions)
    given = (origins, directions, t, frequencies, layout, grad_x, more_directions)
    launch("normal_inputs_backward", *given, grad_origins, grad_directions)
    return grad_origins, grad_directions


def _normal_inputs_backward(inputs, saved, grads, needs):
    origins, directions, t, _, frequencies, layout, _ = inputs
    (grad_x,) = grads
    to_rays = normal_inputs_backward(origins, directions, t, frequencies, layout, grad_x, None)
    grad_h = torch.nn.functional.pad(grad_x[:, 6 * frequencies :], (1, 0))
    return (*to_rays, None, grad_h, None, None, None)


_normal_inputs = differentiable(normal_inputs_forward, _normal_inputs_backward)


def normal_inputs(
    origins: Tensor, directions: Tensor, t: Tensor, h: Tensor, frequencies: int = 2, layout: str = "tcnn"
) -> Tensor:
    """cat([fourier(positions(origins, directions, t)), h[:, 1:]], -1): [R * S, 6 * frequencies + C - 1].

    h: [R * S, C]. Gradients to origins, directions and h. ValueError for an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"normal_inputs: layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
    return _normal_inputs(origins, directions, t, h, frequencies, LAYOUTS.index(layout), False)


@op
def normal_head_forward(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    n = z.new_empty(z.shape[0], 3)
    launch("normal_head_forward", z, weight, bias, n)
    return n


@op
def normal_head_backward(
    z: Tensor, weight: Tensor, bias: Tensor, grad_n: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_z = empty_like(z)
    parts = HEAD_PARTS if z.is_cuda else 1
    partial = z.new_empty(parts, weight.numel() + 3)
    launch("normal_head_backward", z, weight, bias, grad_n, grad_z, partial)
    summed = add_rows(partial, None)
    return grad_z, summed[: weight.numel()].view(weight.shape).clone(), summed[weight.numel() :].clone()


def normal_head_gradients(
    z: Tensor, weight: Tensor, bias: Tensor, grad_n: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`normal_head_backward` whose gradients of weight and bias are views of one array."""
    grad_z = empty_like(z)
    partial = z.new_empty(HEAD_PARTS if z.is_cuda else 1, weight.numel() + 3)
    launch("normal_head_backward", z, weight, bias, grad_n, grad_z, partial)
    summed = add_rows(partial, None)
    return grad_z, summed[: weight.numel()].view(weight.shape), summed[weight.numel() :]


_normal_head = differentiable(
    normal_head_forward, lambda inputs, saved, grads, needs: normal_head_backward(*inputs, *grads)
)


def normal_head(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """normalize(tanh(z weight^T + bias)): unit vectors [P, 3] of z [P, H]; weight [3, H], bias [3]."""
    return _normal_head(z, weight, bias)


@op
def add_rows(rows: Tensor, scale: Tensor | None) -> Tensor:
    """The sum of rows [E, N] -> [N], in a fixed order, times scale [1]."""
    summed = rows.new_empty(rows.shape[1])
    launch("add_rows", rows, scale, summed)
    return summed


def feature_parts(hidden: Tensor, layer: Tensor) -> int:
    """Rows of losses that `feature_loss_into` writes."""
    return -(-layer.shape[0] // FEATURE_PART) if hidden.is_cuda else 1


def feature_loss_into(losses: Tensor, hidden: Tensor, layer: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`feature_loss_forward` whose squared errors are written into losses [feature_parts(..), R]."""
    (rays, width), outputs = hidden.shape, layer.shape[0]
    groups = max(1, min(FEATURE_GROUPS, -(-rays // 32))) if hidden.is_cuda else 1
    grad_hidden = hidden.new_empty(losses.shape[0], rays, width)
    grad_layer = hidden.new_empty(groups, outputs, width)
    launch("feature_loss", hidden, layer, target, losses, grad_hidden, grad_layer)
    return grad_hidden, grad_layer


@op
def feature_loss_forward(hidden: Tensor, layer: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared errors [parts, R], and the gradients of their sum: [parts, R, H] and [groups, D, H]."""
    losses = hidden.new_empty(feature_parts(hidden, layer), hidden.shape[0])
    return losses, *feature_loss_into(losses, hidden, layer, target)


class _FeatureLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, layer, target):
        losses, grad_hidden, grad_layer = feature_loss_forward(hidden, layer, target)
        ctx.save_for_backward(grad_hidden, grad_layer)
        ctx.count = max(target.numel(), 1)
        return losses.sum() / target.numel()

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError("feature_loss is once differentiable")
        grad_hidden, grad_layer = ctx.saved_tensors
        scale = (grad / ctx.count).reshape(1)
        return (
            grad_hidden.sum(0) * scale,
            add_rows(grad_layer.flatten(1), scale).view(grad_layer.shape[1:]),
            None,
        )


def feature_loss(hidden: Tensor, layer: Tensor, target: Tensor) -> Tensor:
    """mse_loss(hidden layer^T, target), whose gradients are made together with it; a scalar.

    hidden [R, H] with H a multiple of 16 up to 128, layer [D, H], target [R, D] float32. CUDA multiplies on
    tensor cores in TF32. Gradients to hidden and layer.
    """
    return _FeatureLoss.apply(hidden.contiguous(), layer.contiguous(), target)


def field_to_pixels_into(
    losses: Tensor,
    sigma: Tensor,
    s: Tensor,
    t: Tensor,
    rgb: Tensor,
    hidden: Tensor | None,
    normals: Tensor | None,
    predicted: Tensor | None,
    directions: Tensor | None,
    truth: Tensor,
    counter: Tensor | None,
    s_proposal: list[Tensor],
    w_proposal: list[Tensor],
    background: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`field_to_pixels_forward` whose losses are written into rows of `losses` [3 to 5, R]."""
    rays = sigma.shape[0]
    w, colour, opacity = empty_like(sigma), sigma.new_empty(rays, 3), sigma.new_empty(rays)
    summed = sigma.new_empty(0) if hidden is None else sigma.new_empty(rays, hidden.shape[2])
    given = (sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter, s_proposal, w_proposal)
    out = (w, colour, opacity, None if hidden is None else summed, losses)
    launch("field_to_pixels_forward", *given, background, stream, *out)
    return w, colour, opacity, summed


@op
def field_to_pixels_forward(
    sigma: Tensor,
    s: Tensor,
    t: Tensor,
    rgb: Tensor,
    hidden: Tensor | None,
    normals: Tensor | None,
    predicted: Tensor | None,
    directions: Tensor | None,
    truth: Tensor,
    counter: Tensor | None,
    s_proposal: list[Tensor],
    w_proposal: list[Tensor],
    background: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    losses = sigma.new_empty(3 + (normals is not None) + (predicted is not None), sigma.shape[0])
    given = (sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter, s_proposal, w_proposal)
    return *field_to_pixels_into(losses, *given, background, stream), losses


@op
def field_to_pixels_backward(
    sigma: Tensor,
    s: Tensor,
    t: Tensor,
    rgb: Tensor,
    hidden: Tensor | None,
    normals: Tensor | None,
    directions: Tensor | None,
    truth: Tensor,
    counter: Tensor | None,
    background: int,
    stream: int,
    calm: bool,
    detached: bool,
    w: Tensor,
    colour: Tensor,
    opacity: Tensor,
    grad: Tensor,
    g_hidden: Tensor | None,
    hidden_scale: Tensor | None,
    to_predicted: bool,
    to_directions: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_sigma, grad_rgb = empty_like(sigma), empty_like(rgb)
    grad_hidden = sigma.new_empty(0) if hidden is None else empty_like(hidden)
    grad_predicted = empty_like(rgb) if to_predicted else sigma.new_empty(0)
    grad_directions = sigma.new_empty(sigma.shape[0], 3) if to_directions else sigma.new_empty(0)
    given = (
        sigma,
        s,
        t,
        rgb,
        hidden,
        normals,
        directions,
        truth,
        counter,
        background,
        stream,
        calm,
        detached,
    )
    seen = (w, colour, opacity, grad, g_hidden, hidden_scale)
    launch(
        "field_to_pixels_backward", *given, *seen, grad_sigma, grad_rgb,
        None if hidden is None else grad_hidden,
        grad_predicted if to_predicted else None,
        grad_directions if to_directions else None,
    )  # fmt: skip
    return grad_sigma, grad_rgb, grad_hidden, grad_predicted, grad_directions


class _PixelLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter, levels, how):
        background, stream, _, _ = how
        given = (sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter)
        lists = ([a for a, _ in levels], [b for _, b in levels])
        w, colour, opacity, summed, losses = field_to_pixels_forward(*given, *lists, background, stream)
        ctx.save_for_backward(*given, w, colour, opacity)
        ctx.how = how
        return losses.sum(1), summed

    @staticmethod
    def backward(ctx, grad, g_hidden):
        if torch.is_grad_enabled():
            raise RuntimeError("pixel_losses is once differentiable")
        *given, w, colour, opacity = ctx.saved_tensors
        sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter = given
        parts = None if hidden is None else g_hidden.contiguous()[None]
        wanted = (predicted is not None, normals is not None and directions is not None)
        found = field_to_pixels_backward(
            sigma, s, t, rgb, hidden, normals, directions, truth, counter, *ctx.how, w, colour, opacity,
            grad.contiguous(), parts, None, *wanted,
        )  # fmt: skip
        grad_hidden = None if hidden is None else found[2]
        to_predicted = found[3] if wanted[0] else None
        to_directions = found[4] if wanted[1] else None
        heads = (grad_hidden, None, to_predicted, to_directions)
        return found[0], None, None, found[1], *heads, None, None, None, None


def pixel_losses(
    sigma: Tensor,
    s: Tensor,
    t: Tensor,
    rgb: Tensor,
    truth: Tensor,
    hidden: Tensor | None = None,
    normals: Tensor | None = None,
    predicted: Tensor | None = None,
    directions: Tensor | None = None,
    counter: Tensor | None = None,
    proposals: tuple[tuple[Tensor, Tensor], ...] = (),
    background: str = "last_sample",
    stream: int = 64,
    calm: bool = True,
    detached: bool = False,
) -> tuple[Tensor, Tensor]:
    """From the field to what losses sum up over rays, and hidden vectors composited [R, H] (or empty).

    sigma [R, S], s, t [R, S + 1], rgb [R, S, 3], hidden [R, S, H], normals, predicted [R, S, 3], directions
    [R, 3], truth [R, 3 or 4] float32; proposals: edges s and weights of each level. The first result holds
    sums over rays: the squared error of the colour (over three channels), interlevel, distortion and, with
    normals, orientation, and with predicted, predicted_normals; each as the op of that name, background as
    in `raymarch.model.losses.blended`. `calm` scales gradients as `scale_gradients`; `detached` keeps hidden
    from the weights. Gradients to sigma, rgb, hidden, predicted and directions.
    """
    if background not in BACKGROUNDS:
        raise ValueError(
            f"pixel_losses: background is {background!r}, expected one of {', '.join(BACKGROUNDS)}"
        )
    how = (BACKGROUNDS[background], stream, calm, detached)
    given = (sigma, s, t, rgb, hidden, normals, predicted, directions, truth, counter)
    return _PixelLosses.apply(*given, proposals, how)


class LossRoom(NamedTuple):
    """What `sum_losses` writes and updates, made once."""

    sums: Tensor  # [rows]
    ticket: Tensor  # [1] int32, zero between calls


def loss_room(scales: Tensor) -> LossRoom:
    return LossRoom(torch.empty_like(scales), torch.zeros(1, dtype=torch.int32, device=scales.device))


def sum_losses(
    rows: Tensor,
    scales: Tensor,
    owner: Tensor,
    penalty: Tensor | None,
    room: LossRoom,
    terms: Tensor,
    healthy: Tensor,
    steps: Tensor,
    stepping: Tensor,
) -> None:
    """terms[owner[k]] = sum over k and rays of scales[k] rows[k]; the last term is the penalty, if any.

    rows [K, R], scales [K], owner [K] int64, terms [T]. A sum of terms that is not finite makes healthy [1]
    bool false; otherwise, where healthy, steps [G] int64 grow by stepping [G]. In place; sums have one order.
    """
    launch("sum_losses", rows, scales, owner, penalty, *room, terms, healthy, steps, stepping)


def advance(counter: Tensor, healthy: Tensor, schedules: Tensor, row: Tensor) -> None:
    """Count a step in counter [2] int64 = (seed, step) where healthy, and look its row of schedules up."""
    launch("advance", counter, healthy, schedules, row)
