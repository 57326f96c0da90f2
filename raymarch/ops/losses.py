"""Losses of a ray: proposals against the final samples, compactness, normals, depth. One number per ray."""

import math

import torch
from torch import Tensor, empty_like

from raymarch.ops._op import differentiable, launch, op

LOG_EPS = 1e-7  # keeps the logarithm of a weight finite
URF_SCALE = 3.0  # the Gaussian of `depth_urf` is this many times narrower than its window


@op
def interlevel_forward(s: Tensor, weights: Tensor, s_proposal: Tensor, weights_proposal: Tensor) -> Tensor:
    loss = s.new_empty(s.shape[0])
    launch("interlevel_forward", s, weights, s_proposal, weights_proposal, loss)
    return loss


@op
def interlevel_backward(
    s: Tensor, weights: Tensor, s_proposal: Tensor, weights_proposal: Tensor, grad_loss: Tensor
) -> Tensor:
    grad = empty_like(weights_proposal)
    launch("interlevel_backward", s, weights, s_proposal, weights_proposal, grad_loss, grad)
    return grad


@op
def distortion_forward(s: Tensor, weights: Tensor) -> Tensor:
    loss = s.new_empty(s.shape[0])
    launch("distortion_forward", s, weights, loss)
    return loss


@op
def distortion_backward(s: Tensor, weights: Tensor, grad_loss: Tensor) -> Tensor:
    grad = empty_like(weights)
    launch("distortion_backward", s, weights, grad_loss, grad)
    return grad


@op
def orientation_forward(weights: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    loss = weights.new_empty(weights.shape[0])
    launch("orientation_forward", weights, normals, directions, loss)
    return loss


@op
def orientation_backward(
    weights: Tensor,
    normals: Tensor,
    directions: Tensor,
    grad_loss: Tensor,
    to_weights: bool,
    to_normals: bool,
    to_directions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = (to_weights, to_normals, to_directions)
    inputs = (weights, normals, directions)
    grads = [x.new_empty(x.shape if want else 0) for x, want in zip(inputs, wanted, strict=True)]
    out = (g if want else None for g, want in zip(grads, wanted, strict=True))
    launch("orientation_backward", *inputs, grad_loss, *out)
    return grads[0], grads[1], grads[2]


@op
def predicted_normals_forward(weights: Tensor, normals: Tensor, predicted: Tensor) -> Tensor:
    loss = weights.new_empty(weights.shape[0])
    launch("predicted_normals_forward", weights, normals, predicted, loss)
    return loss


@op
def predicted_normals_backward(weights: Tensor, normals: Tensor, grad_loss: Tensor) -> Tensor:
    grad = empty_like(normals)
    launch("predicted_normals_backward", weights, normals, grad_loss, grad)
    return grad


@op
def random_colour_forward(counter: Tensor, rays: int, stream: int) -> Tensor:
    colour = torch.empty(rays, 3, dtype=torch.float32, device=counter.device)
    launch("random_colour", counter, colour, stream)
    return colour


def _orientation_backward(inputs, saved, grads, needs):
    found = orientation_backward(*inputs, grads[0], *needs)
    return tuple(g if need else None for g, need in zip(found, needs, strict=True))


_interlevel = differentiable(
    interlevel_forward, lambda x, saved, g, needs: (None, None, None, interlevel_backward(*x, g[0]))
)
_distortion = differentiable(
    distortion_forward, lambda x, saved, g, needs: (None, distortion_backward(*x, g[0]))
)
_orientation = differentiable(orientation_forward, _orientation_backward)
_predicted_normals = differentiable(
    predicted_normals_forward,
    lambda x, saved, g, needs: (None, None, predicted_normals_backward(x[0], x[1], g[0])),
)


def interlevel(s: Tensor, weights: Tensor, s_proposal: Tensor, weights_proposal: Tensor) -> Tensor:
    """How far the fine weights exceed what a proposal allows, [R]: the mean over each ray's fine bins.

    s [R, F + 1] edges in 0..1 and weights [R, F] of the final level; s_proposal [R, P + 1] and
    weights_proposal [R, P] of the proposal. Per fine bin: max(0, w - W)^2 / (w + 1e-7), W the sum of the
    proposal weights whose bins touch it; a proposal bin that begins where the fine bin ends touches it. The
    gradient reaches weights_proposal only. Mip-NeRF 360, equation 13, with nerfstudio's rule for ties.
    """
    return _interlevel(
        s.detach().contiguous(),
        weights.detach().contiguous(),
        s_proposal.detach().contiguous(),
        weights_proposal.contiguous(),
    )


def distortion(s: Tensor, weights: Tensor) -> Tensor:
    """How far each ray's weights lie from each other, [R]: sum_ij w_i w_j |u_i - u_j| + sum_i w_i^2 d_i / 3.

    s [R, S + 1] increasing edges, u midpoints and d widths of the bins; weights [R, S]. Linear in S. The
    gradient reaches weights only. Mip-NeRF 360, equation 15.
    """
    return _distortion(s.detach().contiguous(), weights.contiguous())


def orientation(weights: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    """Weights of normals that face away from the camera, [R]: sum_i w_i max(0, n_i . d)^2.

    weights [R, S], normals [R, S, 3], directions [R, 3]. A NaN normal adds nothing. Gradients reach whatever
    needs them; detach what should be a constant. Ref-NeRF, equation 11.
    """
    return _orientation(weights.contiguous(), normals.contiguous(), directions.contiguous())


def predicted_normals(weights: Tensor, normals: Tensor, predicted: Tensor) -> Tensor:
    """How predicted normals differ from normals, [R]: sum_i w_i (1 - n_i . predicted_i).

    weights [R, S], normals and predicted [R, S, 3], unit. The gradient reaches predicted only. Ref-NeRF,
    equation 10, for unit vectors and halved.
    """
    return _predicted_normals(
        weights.detach().contiguous(), normals.detach().contiguous(), predicted.contiguous()
    )


def random_colour(counter: Tensor, rays: int, stream: int) -> Tensor:
    """A colour per ray, [rays, 3] float32, even in [0, 1).

    counter [2] int64 = (seed, step) on the device that gets the colours; `stream` tells uses in a step apart.
    """
    with torch.no_grad():
        return random_colour_forward(counter, rays, stream)


def interlevel_zipnerf(
    s: Tensor, weights: Tensor, s_proposal: Tensor, weights_proposal: Tensor, radius: float
) -> Tensor:
    """`interlevel` against the final weights blurred by a box of half-width `radius`, [R]; in plain torch.

    Shapes as in `interlevel`. The final density in s is convolved with the box, which makes its cumulative
    sum piecewise quadratic and continuous in s_proposal; each proposal bin then owes its share w_s of it. The
    mean over proposal bins of max(0, w_s - w)^2 / (w + 1e-5). The gradient reaches weights_proposal only.
    Zip-NeRF, section 3; the paper's radii are 0.03 and 0.003. ValueError if radius is not positive.
    """
    if not radius > 0:
        raise ValueError(f"interlevel_zipnerf: radius is {radius}, expected a positive number")
    with torch.no_grad():
        target = _blurred(s.double(), weights.double(), s_proposal.double(), radius).to(weights.dtype)
    return ((target - weights_proposal).clamp_min(0).square() / (weights_proposal + 1e-5)).mean(-1)


def _blurred(s: Tensor, weights: Tensor, at: Tensor, radius: float) -> Tensor:
    """What of the blurred step function lies between the edges `at`."""
    density = weights / s.diff(dim=-1).clamp_min(torch.finfo(torch.float32).eps)
    jump = torch.nn.functional.pad(density, (1, 1)).diff(dim=-1) / (2 * radius)
    knots, order = torch.cat([s - radius, s + radius], -1).sort(-1)
    slope = (
        torch.cat([jump, -jump], -1).gather(-1, order).cumsum(-1)
    )  # of the blurred density, after each knot
    gap = knots.diff(dim=-1)
    value = torch.nn.functional.pad((slope[:, :-1] * gap).cumsum(-1), (1, 0))  # at each knot
    cdf = torch.nn.functional.pad(((value[:, 1:] + value[:, :-1]) / 2 * gap).cumsum(-1), (1, 0))
    i = (torch.searchsorted(knots, at.contiguous(), right=True) - 1).clamp_min(0)
    beyond = (at - knots.gather(-1, i)).clamp_min(0)
    return (cdf.gather(-1, i) + beyond * (value.gather(-1, i) + beyond * slope.gather(-1, i) / 2)).diff(
        dim=-1
    )


def _check_rays(op: str, samples: Tensor, t: Tensor, **of_rays: Tensor) -> None:
    """ValueError unless t [R, S + 1] are edges of samples [R, S, ...] and the rest has one number a ray."""
    if samples.dim() < 2 or t.dim() != 2 or t.shape != (samples.shape[0], samples.shape[1] + 1):
        raise ValueError(
            f"{op}: t is {list(t.shape)}, expected [R, S + 1] for samples of shape {list(samples.shape)}"
        )
    for name, x in of_rays.items():
        if x.shape != t.shape[:1]:
            raise ValueError(f"{op}: {name} is {list(x.shape)}, expected [{t.shape[0]}]")


def depth_ds_nerf(weights: Tensor, t: Tensor, depth: Tensor, sigma: float = 0.01) -> Tensor:
    """Weights drawn to a measured depth, [R]; 0, and no gradient, where depth is not positive or NaN.

    weights [R, S], t [R, S + 1] edges, depth [R] distance along the ray in the same units. The sum of
    -ln(w_i + 1e-7) exp(-(t_i - depth)^2 / (2 sigma)) (length of i) over midpoints t_i. DS-NeRF, with
    nerfstudio's 2 sigma in place of 2 sigma^2. In plain torch. ValueError for other shapes.
    """
    _check_rays("depth_ds_nerf", weights, t, depth=depth)
    known = depth > 0
    depth = torch.where(known, depth, 0.0)  # zero times NaN would be the gradient of an unknown depth
    middle = (t[:, 1:] + t[:, :-1]) / 2
    near = torch.exp((middle - depth[:, None]).square() / (-2 * sigma)) * t.diff(dim=-1)
    loss = -((weights + LOG_EPS).log() * near).sum(-1)
    return torch.where(known, loss, 0.0)


def depth_urf(weights: Tensor, t: Tensor, depth: Tensor, expected: Tensor, sigma: float) -> Tensor:
    """Weights shaped into a narrow bell at a measured depth, [R]; 0, and no gradient, where there is none.

    weights [R, S], t [R, S + 1], depth [R], not positive or NaN where unknown; expected [R] is the rendered
    mean distance. The sum of
    (expected - depth)^2, of (w - N(t - depth; 0, sigma / 3))^2 within sigma of depth, and of w^2 before that.
    Urban Radiance Fields, equations 13 to 18, as nerfstudio weighs them. In plain torch. ValueError for
    other shapes.
    """
    _check_rays("depth_urf", weights, t, depth=depth, expected=expected)
    known = depth > 0
    depth = torch.where(known, depth, 0.0)
    away = (t[:, 1:] + t[:, :-1]) / 2 - depth[:, None]
    scale = sigma / URF_SCALE
    bell = torch.exp((away / scale).square() / -2) / (scale * math.sqrt(2 * math.pi))
    miss = torch.where(away.abs() <= sigma, (weights - bell).square(), 0.0)
    miss = torch.where(away < -sigma, weights.square(), miss)
    return torch.where(known, (expected - depth).square() + miss.sum(-1), 0.0)


class _ScaleGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


def scale_gradients(x: Tensor, t: Tensor) -> Tensor:
    """x unchanged; its gradient times min(1, t_i^2), t_i the distance of the sample's midpoint.

    x [R, S] or [R, S, K]; t [R, S + 1] edges. Balances samples near the camera, which more pixels see
    ("Radiance Field Gradient Scaling for Unbiased Near-Camera Training", 2023).
    """
    if x.dim() not in (2, 3):
        raise ValueError(f"scale_gradients: x is {list(x.shape)}, expected [R, S] or [R, S, K]")
    _check_rays("scale_gradients", x, t)
    factor = ((t[:, 1:] + t[:, :-1]) / 2).square().clamp(0, 1)
    return _ScaleGradients.apply(x, factor.view(*factor.shape, *[1] * (x.dim() - 2)).detach())
