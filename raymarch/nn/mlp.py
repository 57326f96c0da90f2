"""A small network that owns its parameters."""

import torch
from torch import Tensor, nn

from raymarch.ops.mlp import (
    activation_index,
    check_widths,
    mlp,
    mlp_forward,
    mlp_gradients,
    mlp_input_gradient,
    shapes,
)


class MLP(nn.Module):
    """`layers` hidden layers (1 to 4) of `hidden` units (16, 32, .. 128) with relu, no biases.

    `params` is one flat float32 vector in tiny-cuda-nn's layout (ops/mlp.py). Inputs that do not fill a
    multiple of 16 are completed with the constant `padding`; 1 gives the first layer a bias. Every matrix
    starts uniform within +-sqrt(6 / (in + out)) of its padded sizes, drawn by torch's CPU generator under
    `seed` (the same numbers on every device), or by torch's default generator where seed is None.
    """

    native = True  # run by raymarch's own kernels

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int,
        layers: int,
        output_activation: str = "none",
        padding: float = 0.0,
        seed: int | None = None,
    ):
        super().__init__()
        check_widths("MLP", inputs, hidden, layers, outputs)
        activation_index("MLP", output_activation)
        if padding not in (0, 1):
            raise ValueError(f"MLP: padding is {padding}, expected 0 or 1")
        self.inputs, self.outputs, self.hidden, self.layers = inputs, outputs, hidden, layers
        self.output_activation, self.padding = output_activation, float(padding)
        self.shapes = shapes(inputs, hidden, layers, outputs)
        self.params = nn.Parameter(torch.empty(sum(rows * columns for rows, columns in self.shapes)))
        self.reset(seed)

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> None:
        """Draw the parameters again."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for i, (rows, columns) in enumerate(self.shapes):
            bound = (6 / (rows + columns)) ** 0.5
            uniform = torch.rand((rows, columns), generator=generator)
            self.weight(i).copy_((2 * uniform - 1) * bound)

    def weight(self, i: int) -> Tensor:
        """A view of matrix i, [out, in] with padded sizes; negative i counts from the last."""
        rows, columns = self.shapes[i]
        at = sum(r * c for r, c in self.shapes[: i % len(self.shapes)])
        return self.params[at : at + rows * columns].view(rows, columns)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return mlp(
            x, self.params, self.hidden, self.layers, self.outputs, self.output_activation, self.padding
        )

    def run(self, x: Tensor) -> Tensor:
        """`forward` of rows [P, inputs] as values: no graph."""
        code = activation_index("MLP", self.output_activation)
        how = (self.hidden, self.layers, self.outputs, code, self.padding)
        return mlp_forward(x, self.params.detach(), *how)

    def gradients(
        self,
        x: Tensor,
        y: Tensor,
        grad_y: Tensor,
        columns: int | None = None,
        need_params: bool = True,
        share: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x [P, inputs] and params from grad_y, y = run(x); empty where not needed.

        `columns`: of the first so many columns of x alone. `share` [P]: see `mlp_gradients`.
        """
        code = activation_index("MLP", self.output_activation)
        how = (self.hidden, self.layers, code, self.padding)
        seen = y if code else None
        wanted = x.shape[1] if columns is None else columns
        return mlp_gradients(x, self.params.detach(), *how, seen, grad_y, wanted, need_params, share)

    def input_gradient(self, x: Tensor, grad_y: Tensor) -> Tensor:
        """The gradient of x for a gradient of the outputs, without autograd and without a graph."""
        return mlp_input_gradient(
            x, self.params, grad_y, self.hidden, self.layers, self.output_activation, self.padding
        )

    def extra_repr(self) -> str:
        widths = " -> ".join(str(w) for w in (self.inputs, *[self.hidden] * self.layers, self.outputs))
        return f"{widths}, output_activation={self.output_activation}, padding={self.padding:g}"
