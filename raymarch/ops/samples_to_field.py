"""What surrounds the networks of the fields: what they read, and what becomes of what they say.

Every op equals several of `raymarch.ops` in turn, named in its docstring, and is tested as equal. They are
parts of the fused stage `raymarch.model.samples_to_field`.
"""

import torch
from torch import Tensor, empty_like

from raymarch.ops._op import differentiable, launch, on_gpu, op
from raymarch.ops.contract import norm_code
from raymarch.ops.harmonics import LAYOUTS, SIGNS

HARMONICS = 16
HEAD_PARTS = 264  # of points, for the gradient to the last layer of predicted normals


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
    if on_gpu(grad_codes) and torch.are_deterministic_algorithms_enabled():
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


def normal_head_gradients(
    z: Tensor, weight: Tensor, bias: Tensor, grad_n: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`normal_head_backward` whose gradients of weight and bias are views of one array."""
    grad_z = empty_like(z)
    partial = z.new_empty(HEAD_PARTS if on_gpu(z) else 1, weight.numel() + 3)
    launch("normal_head_backward", z, weight, bias, grad_n, grad_z, partial)
    summed = add_rows(partial, None)
    return grad_z, summed[: weight.numel()].view(weight.shape), summed[weight.numel() :]


@op
def normal_head_backward(
    z: Tensor, weight: Tensor, bias: Tensor, grad_n: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_z, grad_weight, grad_bias = normal_head_gradients(z, weight, bias, grad_n)
    return grad_z, grad_weight.clone(), grad_bias.clone()


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
