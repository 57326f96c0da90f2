"""Small networks without biases, evaluated whole per point, and the activation that makes densities.

`params` is tiny-cuda-nn's flat vector: one row-major [out, in] matrix per layer, first, hidden, last, with
the widths of inputs and outputs rounded up to multiples of 16. Rounded-up input columns multiply the constant
`padding` (1 gives the first layer a bias), rounded-up output rows make outputs that are cut off.
"""

from itertools import pairwise

import torch
from torch import Tensor, empty, empty_like

from raymarch.ops._op import differentiable, launch, on_gpu, op

ACTIVATIONS = ("none", "sigmoid", "relu")  # in the order of math/activation.h
WIDTHS = tuple(range(16, 129, 16))
MAX_INPUTS, MAX_OUTPUTS, MAX_LAYERS = 256, 128, 4

# On CUDA each block sums the gradient of the parameters over the points it meets, in a row of its own; the
# rows are added up in order afterwards. Two blocks for each of 160 multiprocessors, fewer for long rows.
_ROWS, _PARTIAL_NUMBERS = 320, 1 << 23


def shapes(inputs: int, hidden: int, layers: int, outputs: int) -> tuple[tuple[int, int], ...]:
    """[out, in] of every matrix in `params`, in their order."""
    widths = (-(-inputs // 16) * 16, *[hidden] * layers, -(-outputs // 16) * 16)
    return tuple((out, columns) for columns, out in pairwise(widths))


def parameters(inputs: int, hidden: int, layers: int, outputs: int) -> int:
    """How many numbers `params` holds."""
    return sum(rows * columns for rows, columns in shapes(inputs, hidden, layers, outputs))


def check_widths(name: str, inputs: int, hidden: int, layers: int, outputs: int) -> None:
    """Raise ValueError naming the first argument that no kernel supports."""
    if hidden not in WIDTHS:
        raise ValueError(f"{name}: hidden is {hidden}, expected a multiple of 16 from 16 to 128")
    for word, value, most in (("inputs", inputs, MAX_INPUTS), ("outputs", outputs, MAX_OUTPUTS)):
        if not 1 <= value <= most:
            raise ValueError(f"{name}: {word} is {value}, expected 1 to {most}")
    if not 1 <= layers <= MAX_LAYERS:
        raise ValueError(f"{name}: layers is {layers}, expected 1 to {MAX_LAYERS}")


def activation_index(name: str, output_activation: str) -> int:
    if output_activation not in ACTIVATIONS:
        raise ValueError(
            f"{name}: output_activation is {output_activation!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS.index(output_activation)


@op
def mlp_forward(
    x: Tensor, params: Tensor, hidden: int, layers: int, outputs: int, activation: int, padding: float
) -> Tensor:
    y = empty((x.shape[0], outputs), dtype=params.dtype, device=x.device)
    launch("mlp_forward", x, params, hidden, layers, activation, padding, y)
    return y


@op
def mlp_backward(
    x: Tensor,
    params: Tensor,
    hidden: int,
    layers: int,
    activation: int,
    padding: float,
    y: Tensor | None,
    grad_y: Tensor,
    need_x: bool,
    need_params: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of params; an empty tensor stands for one that is not needed."""
    columns = x.shape[1] if need_x else 0
    return mlp_gradients(x, params, hidden, layers, activation, padding, y, grad_y, columns, need_params)


def mlp_gradients(
    x: Tensor,
    params: Tensor,
    hidden: int,
    layers: int,
    activation: int,
    padding: float,
    y: Tensor | None,
    grad_y: Tensor,
    columns: int,
    need_params: bool,
    share: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`mlp_backward` with the gradient of the first `columns` columns of x alone; 0 for none.

    With share [P] the gradient of point p's outputs is share[p] times the row of grad_y [R, outputs] that
    P / R points in order have in common.
    """
    grad_x = empty((x.shape[0], columns) if columns else (0,), dtype=params.dtype, device=x.device)
    grad_params = empty_like(params) if need_params else params.new_empty(0)
    partial = None
    if need_params and on_gpu(x):
        rows = max(16, min(_ROWS, _PARTIAL_NUMBERS // params.shape[0]))
        partial = empty((rows, params.shape[0]), dtype=params.dtype, device=x.device)
    launch(
        "mlp_backward",
        *(x, params, hidden, layers, activation, padding, y, grad_y, share),
        grad_x if columns else None,
        grad_params if need_params else None,
        partial,
    )
    return grad_x, grad_params


def _backward(inputs, saved, grads, needs):
    x, params, hidden, layers, _, activation, padding = inputs
    y = saved[0] if saved else None
    grad_x, grad_params = mlp_backward(
        x, params, hidden, layers, activation, padding, y, grads[0], needs[0], needs[1]
    )
    return (grad_x if needs[0] else None), (grad_params if needs[1] else None), None, None, None, None, None


_mlp = differentiable(mlp_forward, _backward)
_mlp_activated = differentiable(mlp_forward, _backward, save=(0,))


def _check(name: str, x: Tensor, params: Tensor, hidden: int, layers: int, outputs: int) -> None:
    if x.dim() < 1:
        raise ValueError(f"{name}: x has no dimensions, expected [..., inputs]")
    check_widths(name, x.shape[-1], hidden, layers, outputs)
    want = parameters(x.shape[-1], hidden, layers, outputs)
    if params.shape != (want,):
        raise ValueError(
            f"{name}: params has shape {list(params.shape)}, expected [{want}] for {x.shape[-1]} inputs, "
            f"{layers} hidden layers of {hidden} and {outputs} outputs"
        )


def mlp(
    x: Tensor,
    params: Tensor,
    hidden: int,
    layers: int,
    outputs: int,
    output_activation: str = "none",
    padding: float = 0.0,
) -> Tensor:
    """[..., inputs] -> [..., outputs] through `layers` hidden layers (1 to 4) of `hidden` units with relu.

    x and params are float32 on one device, at most 256 inputs and 128 outputs; `output_activation` is "none",
    "sigmoid" or "relu". Gradients flow to x and params, once. CUDA multiplies on tensor cores in half
    precision (eleven bits; gradients scaled so that they fit, inputs and activations beyond 65504 taken as
    that) and adds in float32. Raises ValueError for widths, names and shapes that do not fit.
    """
    _check("mlp", x, params, hidden, layers, outputs)
    activation = activation_index("mlp", output_activation)
    call = _mlp_activated if activation else _mlp
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = call(rows, params.contiguous(), hidden, layers, outputs, activation, float(padding))
    return y.reshape(*x.shape[:-1], outputs)


def mlp_input_gradient(
    x: Tensor,
    params: Tensor,
    grad_y: Tensor,
    hidden: int,
    layers: int,
    output_activation: str = "none",
    padding: float = 0.0,
) -> Tensor:
    """sum_o grad_y[..., o] dy[..., o]/dx of `mlp`, without autograd: [..., inputs]. Carries no graph."""
    _check("mlp_input_gradient", x, params, hidden, layers, grad_y.shape[-1])
    if grad_y.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"mlp_input_gradient: grad_y has shape {list(grad_y.shape)}, expected {list(x.shape[:-1])} "
            "before the outputs, as x has before the inputs"
        )
    activation = activation_index("mlp_input_gradient", output_activation)
    with torch.no_grad():
        rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
        grads = grad_y.detach().reshape(-1, grad_y.shape[-1]).contiguous()
        flat = params.detach().contiguous()
        y = None
        if activation:
            y = mlp_forward(rows, flat, hidden, layers, grads.shape[-1], activation, float(padding))
        grad_x, _ = mlp_backward(
            rows, flat, hidden, layers, activation, float(padding), y, grads, True, False
        )
        return grad_x.reshape(x.shape)


@op
def density_forward(h: Tensor, y: Tensor, scale: float) -> Tensor:
    sigma = empty(h.shape[:1], dtype=h.dtype, device=h.device)
    launch("density_forward", h, y, scale, sigma)
    return sigma


@op
def density_backward(h: Tensor, y: Tensor, scale: float, grad_sigma: Tensor) -> Tensor:
    grad_h = empty_like(h)
    launch("density_backward", h, y, scale, grad_sigma, grad_h)
    return grad_h


def _density_backward(inputs, saved, grads, needs):
    return density_backward(*inputs, grads[0]), None, None


_density = differentiable(density_forward, _density_backward)


def density(h: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
    """[..., C], [..., 3] -> [...]: scale * exp(h[..., 0]) where any coordinate of y is positive, else 0.

    y is the position normalised to the unit cube, (0, 0, 0) for what lies outside it. exp overflows to
    infinity past 88.7 in float32; the gradient scale * exp(clamp(h, -15, 15)) stays finite. It goes to column
    0, the other columns get zeros. Raises ValueError for shapes that do not fit.
    """
    if h.dim() < 1 or y.shape != (*h.shape[:-1], 3):
        raise ValueError(
            f"density: h has shape {list(h.shape)} and y {list(y.shape)}, "
            "expected [..., channels] and [..., 3]"
        )
    flat = _density(h.reshape(-1, h.shape[-1]).contiguous(), y.reshape(-1, 3).contiguous(), float(scale))
    return flat.reshape(h.shape[:-1])
