"""Scene contraction: all of space into a cube of side 4 ("linf") or a ball of radius 2 ("l2").

Barron et al. 2022 (mip-NeRF 360), equation 10; the largest component in place of the length is nerfstudio's.
"""

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
_uncontract = differentiable(uncontract_forward, lambda i, s, g, n: (uncontract_backward(i[0], g[0], i[1]), None))
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
    equal part of it. Infinite components count as the largest number there is. ValueError for an unknown norm or a last dimension other than 3.
    """
    return _contract(_points(x, "contract"), norm_code(norm, "contract")).view(x.shape)


def uncontract(y: Tensor, norm: str = "linf") -> Tensor:
    """The inverse of `contract` on |y| < 2, [..., 3]; finite beyond, where there is none."""
    return _uncontract(_points(y, "uncontract"), norm_code(norm, "uncontract")).view(y.shape)


def contract_unit(x: Tensor, norm: str = "linf") -> Tensor:
    """Contract and scale to the unit cube: (contract(x) + 2) / 4, [..., 3].

    Points that rounding puts on the cube's border (|x| beyond 8e6) or that are not finite become exactly
    (0, 0, 0), with gradient 0; fields give that point density 0. This is nerfacto's strict selector.
    """
    return _contract_unit(_points(x, "contract_unit"), norm_code(norm, "contract_unit")).view(x.shape)


def contract_gaussian(mean: Tensor, covariance: Tensor, norm: str = "linf") -> tuple[Tensor, Tensor]:
    """Contract Gaussians: mean [..., 3] as `contract`, covariance [..., 3, 3] by the Jacobian at the mean.

    mip-NeRF 360, equation 9. Plain torch, no part of the rendering path; the Jacobian carries no gradient. Gaussians whose mean lies inside |x| < 1,
    in the norm asked for, stay as they are (nerfstudio decides by the Euclidean length whatever the norm).
    """
    x = _points(mean, "contract_gaussian")
    if covariance.shape != (*mean.shape, 3):
        raise ValueError(
            f"contract_gaussian: covariance has shape {tuple(covariance.shape)}, expected {(*mean.shape, 3)}"
        )
    code = norm_code(norm, "contract_gaussian")
    rows = torch.eye(3, dtype=x.dtype, device=x.device)
    with torch.no_grad():  # row k of the Jacobian is the vjp of unit vector k
        jacobian = torch.stack(
            [contract_backward(x.detach(), row.expand_as(x).contiguous(), code) for row in rows], 1
        )
    spread = jacobian @ covariance.reshape(-1, 3, 3) @ jacobian.mT
    return contract(mean, norm), spread.view(covariance.shape)


def frustum_gaussian(
    origins: Tensor, directions: Tensor, t0: Tensor, t1: Tensor, area: Tensor
) -> tuple[Tensor, Tensor]:
    """The Gaussian of a pixel's cone between two distances: mean [..., 3] and covariance [..., 3, 3].

    origins, directions [..., 3]; t0, t1 [...] distances in units of `directions`; area [...] of the pixel at
    distance 1, whose circle of equal area is the cone's base. Barron et al. 2021 (mip-NeRF), equations 7 and 8
    in their stable form. Plain torch: no part of the rendering path.
    """
    middle, half = (t0 + t1) / 2, (t1 - t0) / 2
    mm, hh = middle.square(), half.square()
    whole = (3 * mm + hh).clamp_min(torch.finfo(mm.dtype).tiny)
    distance = middle + 2 * middle * hh / whole
    along = hh / 3 - (4 / 15) * hh.square() * (12 * mm - hh) / whole.square()
    across = area / torch.pi * (mm / 4 + (5 / 12) * hh - (4 / 15) * hh.square() / whole)
    outer = directions[..., :, None] * directions[..., None, :]
    length = directions.square().sum(-1).clamp_min(1e-10)[..., None, None]
    flat = torch.eye(3, dtype=outer.dtype, device=outer.device) - outer / length
    covariance = along[..., None, None] * outer + across[..., None, None] * flat
    return origins + distance[..., None] * directions, covariance
