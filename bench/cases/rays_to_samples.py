"""Rows of the ops between rays and samples: oracles made of those of their parts."""

import torch
from torch import Tensor

from bench.cases._case import Case
from bench.cases.losses import _edges, _interlevel
from bench.cases.losses import _weights as _histogram
from bench.cases.mlp import _density
from bench.cases.pose import _se3, _so3_r3
from bench.cases.rays import SCALAR_FLOPS, _rays
from bench.cases.rays import inputs as pixels_of_lenses
from bench.cases.sample import _along, _pdf, _planes, _spaced
from bench.cases.sample import _unit as _unit_positions
from bench.cases.weights import _weights
from raymarch.ops.rays_to_samples import cast_rays, proposal_loss, refine, resample


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


def _resample_density(sigma, y, scale, s, t, near, far, origins, directions, samples):
    w = _weights(sigma.view(t.shape[0], t.shape[1] - 1), t.diff())
    s_new, t_new = _pdf(s, w, near, far, samples)
    return w, s_new, t_new


def _resample_density_inputs(n: int):
    h, _, *rest = _resample_inputs(n)
    return h.exp(), None, *rest


def _resample_density_op(sigma, y, scale, s, t, near, far, origins, directions, samples):
    return resample(sigma, y, scale, s, t, near, far, origins, directions, samples, positions=False)[:3]


def _proposal_loss(h, y, scale, s, t, s_fine, w_fine) -> Tensor:
    return _interlevel(s_fine, w_fine, s, _seen(h, y, scale, t)).sum()


def _proposal_inputs(n: int):
    h, y, s, t, _, _ = _level(n)
    return h, y, 0.1, s, t, _edges(n, 24), _histogram(n, 24)


CASES = {
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
        scalar_flops_per_ray=SCALAR_FLOPS + 65 * 20 + 64 * 40,  # edges of a spacing; middles, contracted
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
    "resample_density": Case(  # what training asks where proposals are not trained
        _resample_density_op,
        _resample_density,
        _resample_density_inputs,
        bytes_per_ray=4 * (64 + 2 * 65 + 8 + 64 + 2 * 25),
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
}
