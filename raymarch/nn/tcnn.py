"""The same bricks from tiny-cuda-nn, if it is installed. The only file that imports it.

They own the parameters that ours own, under the same names and in the same layout (`nn/tcnn_layout.py`): a
checkpoint opens under either. tiny-cuda-nn is handed them with every call and casts them to half; results
come back as float32. It runs on CUDA alone. Gradients by hand (`input_gradient`, `slope`, ...) are still made
by our kernels.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from raymarch.nn.harmonics import Fourier
from raymarch.nn.hashgrid import HashGrid
from raymarch.nn.mlp import MLP
from raymarch.nn.tcnn_layout import grid_settings, network_settings

INSTALL = (
    'pip install "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch", or keep '
    "model.fields.backend=native"
)


class TcnnError(RuntimeError):
    """tiny-cuda-nn cannot be used; one sentence says why and what to do."""


def required() -> ModuleType:
    """The package. TcnnError where it is missing or does not load."""
    try:
        import tinycudann
    except ModuleNotFoundError as error:
        missing = "is not installed" if error.name == "tinycudann" else f"lacks {error.name}"
        raise TcnnError(f"the backend tcnn needs tiny-cuda-nn, which {missing}: {INSTALL}") from None
    except (ImportError, OSError) as error:  # OSError is what it raises without a GPU
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise TcnnError(
            f"the backend tcnn needs tiny-cuda-nn, which does not load here ({reason}): {INSTALL}"
        ) from None
    return tinycudann


def require_gpu(x: Tensor) -> None:
    """TcnnError where x is not on a GPU."""
    if not x.is_cuda:
        raise TcnnError(
            f"tiny-cuda-nn got inputs on {x.device}, it runs on CUDA alone: move the model and its inputs "
            "there, or use model.fields.backend=native"
        )


class Borrowed:
    """A module of tiny-cuda-nn without parameters of its own, made on each device when first called there."""

    def __init__(self, kind: str, *arguments: Any):
        self.kind, self.arguments = kind, arguments
        self.modules: dict[torch.device, nn.Module] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # copies make their own
        return Borrowed, (self.kind, *self.arguments)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        """x [P, inputs] float32 -> [P, outputs] float32 under flat float32 params."""
        require_gpu(x)
        if x.device not in self.modules:
            with torch.cuda.device_of(x):
                module = getattr(required(), self.kind)(*self.arguments)
            module.params = nn.Parameter(module.params.detach().new_empty(0), requires_grad=False)
            self.modules[x.device] = module
        return functional_call(self.modules[x.device], {"params": params}, (x,)).to(params.dtype)


class TcnnHashGrid(HashGrid):
    """`HashGrid` whose lookups are tiny-cuda-nn's, in half whatever `storage` says."""

    native = False

    def __init__(self, *settings: Any, **more: Any):
        required()
        super().__init__(*settings, **more)
        self.storage = "float32"  # no copy of ours: nobody would look it up
        self._encoding = Borrowed("Encoding", 3, grid_settings(self))

    def encode(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self._encoding(x, self.table.view(-1)).to(dtype or x.dtype)

    def beside(self, fourier: Fourier, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return torch.cat([self.encode(x, dtype), fourier(x).to(dtype or x.dtype)], -1)


class TcnnMLP(MLP):
    """`MLP` run by tiny-cuda-nn, as FullyFusedMLP where that has the width, else as CutlassMLP."""

    native = False

    def __init__(self, *settings: Any, **more: Any):
        required()
        super().__init__(*settings, **more)
        # A network completes its inputs with 1; those that shall be 0 are inputs.
        self._given = self.inputs if self.padding else self.shapes[0][1]
        self._network = Borrowed("Network", self._given, self.outputs, network_settings(self))

    def forward(self, x: Tensor) -> Tensor:
        rows = F.pad(x.reshape(-1, self.inputs), (0, self._given - self.inputs))
        return self._network(rows, self.params).to(x.dtype).reshape(*x.shape[:-1], self.outputs)
