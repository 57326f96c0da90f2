"""A hash grid that owns its table."""

import torch
from torch import Tensor, nn

from raymarch.nn.harmonics import Fourier
from raymarch.ops.harmonics import LAYOUTS as FOURIER_LAYOUTS
from raymarch.ops.hashgrid import (
    FEATURES,
    INTERPOLATIONS,
    LAYOUTS,
    add_table_gradient,
    hashgrid,
    hashgrid_forward,
    hashgrid_input_gradient,
    hashgrid_slope,
    table_layout,
    with_slope,
)
from raymarch.ops.inputs import encode, encode_forward
from raymarch.types import Sight

STORAGES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INITIAL = {"tcnn": 1e-4, "nerfstudio": 1e-3}  # entries start uniform in plus or minus this


class HashGrid(nn.Module):
    """Features of positions in [0, 1]^3 from a trained multiresolution hash table.

    `table` [N, features] float32 is the parameter, in the layout of `table_layout`. `storage` is what
    lookups read: "float32" the table itself, "float16" or "bfloat16" a copy at half the size, "auto" float16
    on CUDA and float32 on the CPU. The copy is refreshed in every forward pass while training (into the same
    memory, so a captured CUDA graph stays valid); in evaluation it is kept until the table changes. While
    `kept` is true, an optimiser writes the copy with the table and says so (`mark_current`): then training
    refreshes it only after other changes, too.
    """

    native = True  # lookups are raymarch's own kernels

    def __init__(
        self,
        levels: int,
        base_resolution: int,
        max_resolution: int,
        log2_size: int,
        features: int,
        interpolation: str = "linear",
        storage: str = "auto",
        seed: int = 1337,
        layout: str = "tcnn",
    ):
        super().__init__()
        if features not in FEATURES:
            raise ValueError(f"HashGrid: features is {features}, expected 1, 2, 4 or 8")
        if storage != "auto" and storage not in STORAGES:
            raise ValueError(f"HashGrid: storage is {storage!r}, expected one of auto, {', '.join(STORAGES)}")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"HashGrid: interpolation is {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}"
            )
        self.settings = (levels, base_resolution, max_resolution, log2_size)
        self.interpolation, self.layout, self.storage = interpolation, layout, storage
        self.outputs = levels * features
        self.fineness: Tensor
        rows = table_layout(*self.settings, layout)
        last = rows[-1]
        fineness = torch.tensor([row.resolution for row in rows]).float().log2()
        self.register_buffer("fineness", fineness.repeat_interleave(features), persistent=False)
        table = torch.empty(last.offset + last.entries, features)
        random = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(table.uniform_(-INITIAL[layout], INITIAL[layout], generator=random))
        self.stored: Tensor | None
        self.register_buffer("stored", None, persistent=False)
        self._stored_version: int | None = None  # of the table, when `stored` was last equal to it
        self.kept = False

    def train(self, mode: bool = True) -> "HashGrid":
        self._stored_version = None  # an optimiser may have written the table behind torch's back
        return super().train(mode)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._stored_version = None  # a copy's table counts its changes anew

    def _apply(self, fn, recurse: bool = True) -> "HashGrid":
        self.stored = None  # moved tables get a new copy, of the dtype that fits the new device
        return super()._apply(fn, recurse)

    @property
    def current(self) -> bool:
        """Whether there is a copy with the table's present values."""
        return self.stored is not None and self._stored_version == self.table._version

    def mark_current(self) -> None:
        """Say that `stored` was written with the table, and has its present values."""
        self._stored_version = self.table._version

    def refresh(self) -> None:
        """Make the copy, if lookups read one, and bring it up to date, if the table has changed."""
        auto = torch.float16 if self.table.is_cuda else torch.float32
        dtype = STORAGES.get(self.storage, auto)
        if self.table.dtype in (dtype, torch.float64):  # double is for checks, which no copy should round
            return
        if self.stored is None:
            self.stored, self._stored_version = torch.empty_like(self.table, dtype=dtype), None
        if self._stored_version != self.table._version:
            # Through .data: a refresh must not count as a change of what an earlier forward pass saved.
            table = self.table.data
            if dtype == torch.float16:  # what no half can hold becomes the largest one, as in Adam's copies
                table = table.clamp(-65504, 65504)
            self.stored.data.copy_(table)
            self.mark_current()

    def _looked_up(self) -> Tensor | None:
        """The copy to look up, as fresh as it must be; None for the table itself."""
        if self.training and not self.kept:
            self._stored_version = None  # an optimiser may have written the table behind torch's back
        self.refresh()
        return self.stored

    def forward(self, x: Tensor, sight: Sight | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """x: [P, 3] in [0, 1]. Returns [P, outputs] in dtype (that of x), level-major.

        `sight` says how x gets its gradient, in the dtype of x; None: as it is.
        """
        if sight is None or not x.requires_grad:
            y = self.encode(x, dtype)
            return y if sight is None or not sight.blurs_map else y * self.window(sight.detail)
        y, stored = self.encode(x.detach()), self.stored  # which `encode` has just refreshed
        window, table = self.window(sight.detail), self.table if stored is None else stored
        smooth = "smoothstep" if sight.smooth else self.interpolation
        y = with_slope(
            y, x, table, torch.ones_like(window) if sight.blurs_map else window,
            *self.settings, smooth, self.layout
        )  # fmt: skip
        return y * window if sight.blurs_map else y

    def encode(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`forward` where positions get their gradient as it is."""
        stored = self._looked_up()
        return hashgrid(x, self.table, *self.settings, self.interpolation, stored, self.layout, dtype)

    def window(self, detail: Tensor) -> Tensor:
        """How much each column [outputs] counts where levels up to resolution 2**detail [1] do.

        The raised cosine of BARF (Lin et al. 2021, eq. 14) over one octave above that resolution.
        """
        return 0.5 - 0.5 * torch.cos(torch.pi * (detail - self.fineness + 1).clamp(0, 1))

    def beside(self, fourier: Fourier, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """cat([self(x), fourier(x)], -1), written in one go: [P, outputs + fourier.outputs]."""
        stored, layouts = self._looked_up(), (self.layout, fourier.layout)
        settings = (*self.settings, self.interpolation, stored, *layouts, dtype)
        return encode(x, self.table, fourier.frequencies, *settings)

    @torch.no_grad()
    def input_gradient(self, x: Tensor, grad_y: Tensor) -> Tensor:
        """Gradient to x [P, 3] for upstream gradients grad_y [P, outputs], as values."""
        stored = self._looked_up()
        table = self.table if stored is None else stored
        return hashgrid_input_gradient(x, table, grad_y, *self.settings, self.interpolation, self.layout)

    def codes(self) -> tuple[int, ...]:
        """The settings as ops below autograd take them."""
        return *self.settings, INTERPOLATIONS.index(self.interpolation), LAYOUTS.index(self.layout)

    def look_up(self, x: Tensor, fourier: Fourier | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """`forward`, or `beside` given fourier, as values of `dtype` (None: float32): no graph."""
        table, stored = self.table.detach(), self._looked_up()
        if fourier is None:
            return hashgrid_forward(x, table, stored, *self.codes(), dtype)
        waves = (fourier.frequencies, FOURIER_LAYOUTS.index(fourier.layout))
        return encode_forward(x, table, stored, *waves, *self.codes(), dtype)

    def add_gradient(self, x: Tensor, grad_y: Tensor, grad_table: Tensor) -> None:
        """Add to grad_table [N, features] what grad_y [P, outputs or more] says about the table at x."""
        exactly = torch.are_deterministic_algorithms_enabled()
        add_table_gradient(x, self.codes(), grad_y, grad_table, exactly)

    def slope(self, x: Tensor, grad_y: Tensor) -> Tensor:
        """`input_gradient` for rows of grad_y that may be wider than the outputs."""
        stored = self._looked_up()
        return hashgrid_slope(x, self.table.detach() if stored is None else stored, *self.codes(), grad_y)

    def extra_repr(self) -> str:
        levels, base, top, size = self.settings
        entries, features = self.table.shape
        shape = f"{levels} levels {base} to {top}, 2^{size} entries, {features} features"
        return f"{shape}, {entries * features} parameters"
