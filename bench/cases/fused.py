"""Rows of the fused ops: oracles made of those of their parts."""

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from bench.cases._case import Case
from bench.cases.composite import _composite
from bench.cases.harmonics import _fourier, _harmonics
from bench.cases.inputs import _colour_inputs
from bench.cases.losses import (
    _distortion,
    _edges,
    _interlevel,
    _orientation,
    _predicted_normals,
    _unit,
)
from bench.cases.losses import _weights as _histogram
from bench.cases.mlp import _density
from bench.cases.pixels import MAP_STARTS, MAPS, SIZES, STARTS, _draw, _features, _gather
from bench.cases.pose import _se3, _so3_r3
from bench.cases.rays import _rays
from bench.cases.rays import inputs as pixels_of_lenses
from bench.cases.sample import _along, _pdf, _planes, _positions, _spaced
from bench.cases.sample import _unit as _unit_positions
from bench.cases.weights import _weights
from raymarch.ops.fused import (
    cast_rays,
    draw_truth,
    feature_loss,
    normal_head,
    normal_inputs,
    pixel_losses,
    proposal_loss,
    radiance_inputs,
    refine,
    resample,
    slope_normals,
)


def _truth(counter, starts, widths, images, channels, count, image_size, valid, maps, map_starts, map_size):
    camera, xy, index = _draw(counter, starts, widths, count)
    found = _features(maps, map_starts, map_size, image_size, camera, xy)
    return camera, xy, _gather(images, index, channels), found


def _truth_inputs(n: int):
    images = torch.randint(0, 256, (int(STARTS[-1]) * 4,), dtype=torch.uint8)
    maps = torch.randn(int(MAPS.prod(1).sum()), 768)
    drawn = (torch.tensor([3, 5]), STARTS, SIZES[:, 0].contiguous(), images, 4, n)
    return *drawn, SIZES, None, maps, MAP_STARTS, MAPS


def _refine(xi, mode, small_angle, centred, free, translation, rotation) -> tuple[Tensor, Tensor]:
    if free is not None:
        xi = torch.where(free, xi, 0.0)
    elif centred:
        xi = xi - xi.mean(0)
    lengths = xi.view(-1, 2, 3).norm(dim=-1).mean(0)
    pose = (_se3 if mode == "SE3" else _so3_r3)(xi)
    return pose, (translation * lengths[0] + rotation * lengths[1])[None]


def _twists(n: int) -> Tensor:
    return 0.5 * torch.randn(n, 6) + 0.1


def _cast(camera, xy, poses, intrinsics, distortion, lens, adjustment, compose, near, far, samples):
    origins, directions, _, norm, converged = _rays(
        camera, xy, poses, intrinsics, distortion, lens, adjustment, compose
    )
    s, t = _spaced(torch.full_like(norm, near), torch.full_like(norm, far), samples)
    return (
        origins,
        directions,
        norm,
        converged,
        s,
        t.detach(),
        _unit_positions(origins, directions, t, "linf"),
    )


def _cast_op(*args):
    out = cast_rays(*args)
    return out.origins, out.directions, out.directions_norm, out.converged, out.s, out.t, out.y


def _level(n: int, samples: int = 64):
    """Network output, unit positions and edges of one proposal level."""
    near, far = _planes(n)
    s, t = (x.contiguous() for x in _spaced(near, far, samples))
    y = torch.rand(n * samples, 3) * (torch.rand(n * samples, 1) < 0.9)
    return torch.randn(n * samples, 1), y, s, t, near, far


def _seen(h, y, scale, t) -> Tensor:
    return _weights(_density(h, y, scale).view(t.shape[0], t.shape[1] - 1), t.diff())


def _resample(h, y, scale, s, t, near, far, origins, directions, samples):
    w = _seen(h, y, scale, t)
    s_new, t_new = _pdf(s, w, near, far, samples)
    return w, s_new, t_new, _unit_positions(origins, directions, t_new, "linf")


def _resample_inputs(n: int):
    h, y, s, t, near, far = _level(n)
    origins, directions, _ = _along(n)
    return h, y, 0.5, s, t, near, far, origins, directions, 24


def _proposal_loss(h, y, scale, s, t, s_fine, w_fine) -> Tensor:
    return _interlevel(s_fine, w_fine, s, _seen(h, y, scale, t)).sum()


def _proposal_inputs(n: int):
    h, y, s, t, _, _ = _level(n)
    return h, y, 0.1, s, t, _edges(n, 24), _histogram(n, 24)


def _radiance_inputs(h, y, scale, directions, codes=None, camera=None) -> tuple[Tensor, Tensor]:
    code = None if codes is None else codes[camera]
    return _colour_inputs(h, y, scale, _harmonics(directions), code)


def _radiance_rows(n: int, codes: bool):
    h = torch.randn(n * 24, 16)
    y = torch.rand(n * 24, 3) * (torch.rand(n * 24, 1) < 0.8)
    rest = (torch.randn(5, 32), torch.randint(5, (n,))) if codes else ()
    return h, y, 0.01, _unit(n), *rest


def _slope_normals(origins, directions, t, slope, norm) -> Tensor:
    x = _positions(origins, directions, t).requires_grad_()
    from bench.cases.contract import _contract_unit

    with torch.enable_grad():
        (pulled,) = torch.autograd.grad(_contract_unit(x, norm), x, slope)
    return -normalize(pulled, dim=-1)


def _normal_inputs(origins, directions, t, h, frequencies) -> Tensor:
    waves = _fourier(_positions(origins, directions, t).reshape(-1, 3), frequencies)
    return torch.cat([waves, h[:, 1:]], -1)


def _normal_head(z, weight, bias) -> Tensor:
    return normalize(torch.tanh(z @ weight.T + bias), dim=-1)


def _feature_loss(hidden, layer, target) -> Tensor:
    return mse_loss(hidden @ layer.T, target)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


def _pixel_losses(
    sigma, s, t, rgb, truth, hidden, normals, predicted, directions, counter, proposals, background, calm
) -> tuple[Tensor, ...]:
    if calm:
        near = ((t[:, 1:] + t[:, :-1]) / 2).square().clamp_max(1)
        sigma, rgb = _Scaled.apply(sigma, near), _Scaled.apply(rgb, near[..., None])
    w = _weights(sigma, t.diff())
    colour, *_ = _composite(w, t, rgb, None, None, None, background)
    summed = () if hidden is None else ((w[..., None] * hidden).sum(1),)
    alpha = truth[:, 3:] if truth.shape[1] == 4 else torch.ones_like(truth[:, :1])
    behind = 1.0 if background == "white" else 0.0
    wanted = truth[:, :3] * alpha + behind * (1 - alpha)
    excess = sum(_interlevel(s, w.detach(), a.double(), b.double()) for a, b in proposals)
    rows = [(colour - wanted).square().sum(-1), excess, _distortion(s, w)]
    if normals is not None:
        rows.append(_orientation(w.detach(), normals, directions))
    if predicted is not None:
        rows.append(_predicted_normals(w.detach(), normals, predicted))
    return torch.stack([row.sum() if isinstance(row, Tensor) else w.sum() * 0 for row in rows]), *summed


def _pixel_losses_op(
    sigma, s, t, rgb, truth, hidden, normals, predicted, directions, counter, proposals, background, calm
):
    levels = tuple((a.to(sigma), b.to(sigma)) for a, b in proposals)
    heads = (hidden, normals, predicted, directions)
    out = pixel_losses(sigma, s, t, rgb, truth, *heads, counter, levels, background, calm=calm)
    return out[:1] if hidden is None else out


def _field(n: int, samples: int = 24, channels: int = 4):
    t = 0.3 * torch.rand(n, samples + 1).cumsum(1)
    return (
        3 * torch.rand(n, samples),
        _edges(n, samples),
        t,
        torch.rand(n, samples, 3),
        torch.rand(n, channels),
    )


def _all_heads(n: int):
    levels = tuple((_edges(n, bins), _histogram(n, bins)) for bins in (33, 48))
    heads = (torch.randn(n, 24, 64), _unit(n, 24), _unit(n, 24), _unit(n))
    return *_field(n), *heads, None, levels, "last_sample", True


CASES = {
    "draw_truth": Case(draw_truth, _truth, _truth_inputs, bytes_per_ray=36 + 2 * 4 * 768, bench_rays=4096),
    "refine": Case(
        refine,
        _refine,
        lambda n: (_twists(n), "SO3xR3", "exact", True, None, 1e-2, 1e-3),
        bytes_per_ray=72,
        differentiable=(0,),
        bench_rays=64,
    ),
    "refine_frozen": Case(
        refine,
        _refine,
        lambda n: (_twists(n), "SE3", "exact", False, torch.rand(n, 1) < 0.7, 1e-2, 1e-3),
        bytes_per_ray=73,
        differentiable=(0,),
        bench_rays=64,
    ),
    "cast_rays": Case(
        _cast_op,
        _cast,
        lambda n: (*pixels_of_lenses(n, "world"), 0.05, 8.0, 64),
        bytes_per_ray=57 + 8 * 65 + 12 * 64,
        differentiable=(2, 6),
        tolerance=1e-5,
        bench_rays=4096,
    ),
    "resample": Case(
        resample,
        _resample,
        _resample_inputs,
        bytes_per_ray=4 * (64 * 4 + 2 * 65 + 8 + 64 + 2 * 25 + 3 * 24),
        tolerance=1e-4,
        bench_rays=4096,
    ),
    "proposal_loss": Case(
        proposal_loss,
        _proposal_loss,
        _proposal_inputs,
        bytes_per_ray=4 * (64 * 4 + 2 * 65 + 49),
        differentiable=(0,),
        tolerance=1e-4,
        gradient_tolerance=1e-4,
        bench_rays=4096,
    ),
    "radiance_inputs": Case(
        radiance_inputs,
        _radiance_inputs,
        lambda n: _radiance_rows(n, True),
        bytes_per_ray=24 * 4 * (16 + 3 + 1 + 63) + 20,
        differentiable=(0, 3, 4),
        bench_rays=4096,
    ),
    "radiance_inputs_no_code": Case(
        radiance_inputs,
        _radiance_inputs,
        lambda n: _radiance_rows(n, False),
        bytes_per_ray=24 * 4 * (16 + 3 + 1 + 31) + 12,
        differentiable=(0, 3),
        bench_rays=4096,
    ),
    "slope_normals": Case(
        slope_normals,
        _slope_normals,
        lambda n: (*_along(n), torch.randn(n, 48, 3), "linf"),
        bytes_per_ray=24 + 4 * 49 + 24 * 48,
        tolerance=1e-5,
        bench_rays=4096,
    ),
    "normal_inputs": Case(
        normal_inputs,
        _normal_inputs,
        lambda n: (*_along(n), torch.randn(n * 48, 16), 2),
        bytes_per_ray=24 + 4 * 49 + 48 * 4 * (16 + 27),
        differentiable=(0, 1, 3),
        bench_rays=4096,
    ),
    "normal_head": Case(
        normal_head,
        _normal_head,
        lambda n: (torch.randn(n, 64), 0.2 * torch.randn(3, 64), 0.1 * torch.randn(3)),
        bytes_per_ray=4 * 67,
        differentiable=(0, 1, 2),
        tolerance=1e-5,
        gradient_tolerance=1e-4,
    ),
    "feature_loss": Case(
        feature_loss,
        _feature_loss,
        lambda n: (torch.randn(n, 64), 0.2 * torch.randn(300, 64), torch.randn(n, 300)),
        bytes_per_ray=4 * (64 + 300 + 64),
        flops_per_ray=6 * 64 * 300,
        differentiable=(0, 1),
        cuda_tolerance=1e-3,
        cuda_gradient_tolerance=1e-3,
        bench_rays=4096,
    ),
    "pixel_losses": Case(
        _pixel_losses_op,
        _pixel_losses,
        _all_heads,
        bytes_per_ray=4 * (24 * 77 + 2 * 25 + 64 + 4 + 3 + 2 * (33 + 48)),
        differentiable=(0, 3, 5, 7, 8),
        tolerance=1e-5,
        gradient_tolerance=1e-4,
        gradcheck=False,  # gradients are scaled near the camera, and three losses hold the weights constant
        bench_rays=4096,
    ),
    "pixel_losses_rgb": Case(
        _pixel_losses_op,
        _pixel_losses,
        lambda n: (*_field(n, 37, 3), None, None, None, None, None, (), "white", False),
        bytes_per_ray=4 * (37 * 5 + 2 * 38 + 6),
        differentiable=(0, 3),
        tolerance=1e-5,
        gradient_tolerance=1e-4,
        bench_rays=4096,
    ),
}
