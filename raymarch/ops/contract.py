"""Scene contraction: all of space into a cube of side 4 ("linf") or a ball of radius 2 ("l2").

Barron et al. 2022 (mip-NeRF 360), equation 10; the largest component in place of the length is nerfstudio's.
"""

import math

import torch
from torch import Tensor, empty_like

from raymarch.ops._op import differentiable, launch, op

NORMS = ("linf", "l2")


def norm_code(name: str, where: str) -> int:
    """The number math/contract.h has for a norm; ValueError names the ones there are."""
    if name not in NORMS:
        raise ValueError(f"{where}: norm is {name!r}, expected one of {', '.join(NORMS)}")
    return NORMS.index(name)


@op
def contract_forward(x: Tensor, norm: int) -> Tensor:
    y = empty_like(x)
    launch("contract_forward", x, y, norm)
    return y


@op
def contract_backward(x: Tensor, grad_y: Tensor, norm: int) -> Tensor:
    grad_x = empty_like(x)
    launch("contract_backward", x, grad_y, grad_x, norm)
    return grad_x


@op
def uncontract_forward(y: Tensor, norm: int) -> Tensor:
    x = empty_like(y)
    launch("uncontract_forward", y, x, norm)
    return x


@op
def uncontract_backward(y: Tensor, grad_x: Tensor, norm: int) -> Tensor:
    grad_y = empty_like(y)
    launch("uncontract_backward", y, grad_x, grad_y, norm)
    return grad_y


@op
def contract_unit_forward(x: Tensor, norm: int) -> Tensor:
    y = empty_like(x)
    launch("contract_unit_forward", x, y, norm)
    return y


@op
def contract_unit_backward(x: Tensor, grad_y: Tensor, norm: int) -> Tensor:
    grad_x = empty_like(x)
    launch("contract_unit_backward", x, grad_y, grad_x, norm)
    return grad_x


_contract = differentiable(contract_forward, lambda i, s, g, n: (contract_backward(i[0], g[0], i[1]), None))
_uncontract = differentiable(
    uncontract_forward, lambda i, s, g, n: (uncontract_backward(i[0], g[0], i[1]), None)
)
_contract_unit = differentiable(
    contract_unit_forward, lambda i, s, g, n: (contract_unit_backward(i[0], g[0], i[1]), None)
)


def _points(x: Tensor, where: str) -> Tensor:
    if x.ndim < 1 or x.shape[-1] != 3:
        raise ValueError(f"{where}: x has shape {tuple(x.shape)}, expected [..., 3]")
    return x.contiguous().view(-1, 3)


def contract(x: Tensor, norm: str = "linf") -> Tensor:
    """Contract positions [..., 3]: the identity where |x| < 1, (2 - 1/|x|) x/|x| elsewhere, so that |y| < 2.

    The gradient is finite everywhere, the origin included; where components tie for the largest, each has an
    equal part of it. ValueError for an unknown norm or a last dimension other than 3.
    """
    return _contract(_points(x, "contract"), norm_code(norm, "contract")).view(x.shape)


def uncontract(y: Tensor, norm: str = "linf") -> Tensor:
    """The inverse of `contract` on |y| < 2, [..., 3]; infinite beyond."""
    return _uncontract(_points(y, "uncontract"), norm_code(norm, "uncontract")).view(y.shape)


def contract_unit(x: Tensor, norm: str = "linf") -> Tensor:
    """Contract and scale to the unit cube: (contract(x) + 2) / 4, [..., 3].

    Points that rounding puts on the cube's border (|x| beyond 8e6) or that are not finite become exactly
    (0, 0, 0), with gradient 0; fields give that point density 0. This is nerfacto's strict selector.
    """
    return _contract_unit(_points(x, "contract_unit"), norm_code(norm, "contract_unit")).view(x.shape)


def contract_gaussian(mean: Tensor, covariance: Tensor, norm: str = "linf") -> tuple[Tensor, Tensor]:
    """Contract Gaussians: means [..., 3]; covariances [..., 3, 3] as J S J^T, J the Jacobian at the mean.

    mip-NeRF 360, equation 9, in plain torch. Gaussians with |mean| < 1 stay as they are, |.| being the norm
    that contracts (nerfstudio asks for the Euclidean length in every case, and so transforms covariances in
    the corners of the inner cube). No model here uses Gaussians yet: this is for encodings that do.
    ValueError for an unknown norm or shapes other than these.
    """
    if mean.shape[-1:] != (3,) or covariance.shape != (*mean.shape, 3):
        raise ValueError(
            f"contract_gaussian: mean has shape {tuple(mean.shape)} and covariance has shape "
            f"{tuple(covariance.shape)}, expected [..., 3] and [..., 3, 3]"
        )
    y = contract(mean, norm)
    if norm == "linf":
        length, axis = mean.abs().max(-1, keepdim=True)
        outwards = torch.zeros_like(mean).scatter(-1, axis, mean.gather(-1, axis).sign())  # d length / d mean
    else:
        length = mean.norm(dim=-1, keepdim=True)
        outwards = mean / length.clamp_min(1e-30)
    m = length[..., None].clamp_min(1)
    across, along = (2 - 1 / m) / m, 1 / m.square()
    jacobian = across * torch.eye(3, dtype=mean.dtype, device=mean.device)
    jacobian = jacobian + (along - across) * (mean[..., :, None] / m) * outwards[..., None, :]
    far = jacobian @ covariance @ jacobian.transpose(-1, -2)
    return y, torch.where(length[..., None] < 1, covariance, far)


def conical_frustum(origins: Tensor, directions: Tensor, t: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussians of the pieces of a pixel's cone: means [..., S, 3] and covariances [..., S, 3, 3].

    origins, directions [..., 3]; t [..., S + 1] edges; area [...] of the pixel at distance 1, taken for a
    disc of radius sqrt(area / pi). Barron et al. 2021 (mip-NeRF), equations 7 and 8 in their stable form, in
    plain torch.
    """
    middle, half = (t[..., 1:] + t[..., :-1]) / 2, (t[..., 1:] - t[..., :-1]) / 2
    a, b = middle.square(), half.square()
    both = (3 * a + b).clamp_min(torch.finfo(t.dtype).tiny)
    distance = middle + 2 * middle * b / both
    along = b / 3 - 4 / 15 * (b / both).square() * (12 * a - b)
    across = area[..., None] / math.pi * (a / 4 + 5 / 12 * b - 4 / 15 * b * (b / both))
    mean = origins[..., None, :] + distance[..., None] * directions[..., None, :]
    outer = directions[..., :, None] * directions[..., None, :]
    length = directions.square().sum(-1).clamp_min(1e-10)[..., None, None]
    flat = torch.eye(3, dtype=t.dtype, device=t.device) - outer / length
    along, across = along[..., None, None], across[..., None, None]
    return mean, along * outer[..., None, :, :] + across * flat[..., None, :, :]
