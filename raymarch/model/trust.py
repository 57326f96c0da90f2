"""Which cameras fit the picture that the others make, and how much each is believed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SPREADS = 4.0  # of the errors' logarithms, by which a camera must stand out
MEMORY = 0.98  # of a camera's error, from one step that drew its rays to the next


class Trust(nn.Module):
    """Running colour errors of `cameras` cameras, and weights that take hopeless ones out of the map.

    A camera is distrusted whose mean squared error is above `factor` times the median and stands out from the
    others: by SPREADS times the spread of the errors' logarithms (their median absolute deviation, as that of
    a normal distribution), since photos that show more are fitted worse. It weighs (limit / error)^4, the
    others 1. A camera that is wildly wrong then no longer paints over what the others agree on; its own pose
    goes on looking for its place, since the optimiser of poses does not feel the scale of a gradient. All on
    the device, without a wait.
    """

    error: Tensor
    seen: Tensor

    def __init__(self, cameras: int, factor: float):
        super().__init__()
        if factor <= 1:
            raise ValueError(f"model.poses.outlier_factor: expected 0 (off) or more than 1, got {factor}")
        self.factor = factor
        self.register_buffer("error", torch.zeros(cameras))
        self.register_buffer("seen", torch.zeros(cameras))  # steps that drew a camera's rays, fading

    @torch.no_grad()
    def observe(self, camera: Tensor, squared_error: Tensor) -> None:
        """Take in a step: squared_error [R] of rays of camera [R]."""
        zeros = torch.zeros_like(self.error)
        counts = zeros.index_add(0, camera, torch.ones_like(squared_error))
        means = zeros.index_add(0, camera, squared_error) / counts.clamp_min(1)
        drawn = (counts > 0).float()
        keep = 1 - (1 - MEMORY) * drawn
        self.error.mul_(keep).add_((1 - MEMORY) * means * drawn)
        self.seen.mul_(keep).add_((1 - MEMORY) * drawn)

    def ratio(self) -> Tensor:
        """Each camera's error [C] over the median of all; 1 where nothing is known yet."""
        error = self.error / self.seen.clamp_min(1e-12)
        error = torch.where(self.seen > 0, error, 0.0)
        middle = error.sort().values[len(error) // 2]
        return torch.where((self.seen > 0) & (middle > 0), error / middle.clamp_min(1e-30), 1.0)

    def limit(self, ratio: Tensor) -> Tensor:
        """The largest ratio [] of a camera that is trusted, from the ratios [C] of all."""
        off = ratio.clamp_min(1e-12).log().abs()
        spread = 1.4826 * off.sort().values[len(off) // 2]
        return (SPREADS * spread).exp().clamp_min(self.factor)

    def weights(self) -> Tensor:
        """How much each camera's rays count [C]."""
        ratio = self.ratio()
        return (self.limit(ratio) / ratio.clamp_min(1e-12)).clamp_max(1) ** 4

    def suspects(self) -> list[tuple[int, float]]:
        """Cameras that are distrusted, worst first: (id, error over the median). Waits for the device."""
        ratio = self.ratio().cpu()
        order, limit = ratio.argsort(descending=True).tolist(), float(self.limit(ratio))
        return [(i, float(ratio[i])) for i in order if ratio[i] > limit]
