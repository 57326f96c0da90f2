"""From poses and pixels to samples: refined poses, rays with their first samples, and each proposal level.

Every op equals several of `raymarch.ops` in turn, named in its docstring, and is tested as equal. They are
parts of the fused stage `raymarch.model.rays_to_samples`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, empty_like

from raymarch.ops._op import differentiable, launch, op
from raymarch.ops.contract import norm_code
from raymarch.ops.losses import interlevel_forward
from raymarch.ops.mlp import density_forward
from raymarch.ops.pose import MODES, SMALL_ANGLES
from raymarch.ops.rays import COMPOSES, EYE_DISTANCE, views_backward
from raymarch.ops.sample import JITTERS, SPACINGS
from raymarch.ops.weights import weights_forward


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
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rays = xy.shape[0]
    origins, directions = xy.new_empty(rays, 3), xy.new_empty(rays, 3)
    area, length, near, far = (xy.new_empty(rays) for _ in range(4))
    converged = torch.empty(rays, dtype=torch.bool, device=xy.device)
    s, t = xy.new_empty(rays, samples + 1), xy.new_empty(rays, samples + 1)
    y = xy.new_empty((rays, samples, 3) if need_y else 0)
    views = (camera_to_worlds, camera, xy, intrinsics, distortion, lens, adjustment, compose, eye_distance)
    stretch = (box, near_plane, far_plane, counter, spacing, jitter, stream, norm)
    out = (origins, directions, area, length, converged, near, far, s, t)
    launch("cast_rays", *views, *stretch, *out, y if need_y else None)
    return *out, y


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
    levels = ([t], [g_y]) if g_y is not None and g_y.numel() else ([], [])
    to_rays = ray_gradients(origins, directions, *levels, norm, g_origins, g_directions)
    return (*views_backward(views, to_rays[0], to_rays[1], needs), *[None] * 10)


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
    positions: bool = True,
) -> CastRays:
    """`rays`, the stretch between near and far and inside box [2, 3], `sample_spaced` and unit positions.

    Arguments, errors and gradients are those of these ops; gradients flow from origins, directions and y.
    Without `positions` y is empty.
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
    return CastRays(*_cast_rays(*views, COMPOSES[compose], float(eye_distance), *stretch, *how, positions))


@op
def resample_forward(
    h: Tensor,
    y: Tensor | None,
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
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rays = s.shape[0]
    w = s.new_empty(rays, s.shape[1] - 1)
    s_new, t_new = s.new_empty(rays, samples + 1), s.new_empty(rays, samples + 1)
    y_new = s.new_empty((rays, samples, 3) if need_y else 0)
    level = (h, y, scale, s, t, near, far, origins, directions, counter, anneal)
    how = (spacing, jitter, stream, padding, norm)
    launch("resample", *level, *how, w, s_new, t_new, y_new if need_y else None)
    return w, s_new, t_new, y_new


def resample(
    h: Tensor,
    y: Tensor | None,
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
    positions: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One proposal level: `density`, `weights`, `sample_pdf` and `sample_unit_positions`. No gradient.

    h [R * P, C] the network's output and y [R * P, 3] unit positions at the P intervals of s, t [R, P + 1];
    without y the first column of h is density already. Returns weights [R, P], the new edges s, t
    [R, samples + 1] and their unit positions [R, samples, 3], which are empty without `positions`.
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
        return resample_forward(*level, samples, *how, positions)


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
        w = weights_forward(sigma, t.diff().clamp_min(0))
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
