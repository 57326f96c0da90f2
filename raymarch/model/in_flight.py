"""How many rays of a frame are in flight at once: as many as gain something and fit into memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from raymarch.model import reduced

if TYPE_CHECKING:
    from raymarch.model import Model

MOST_RAYS = 1 << 20  # in flight: two chunks of a frame of 1920 x 1080, and more gain 2 per cent
CPU_RAYS = 1 << 14


def bytes_in_flight(model: Model, heads: frozenset[str], mode: str, fused: bool) -> tuple[int, int]:
    """What a ray in flight takes, and all together beside that; roughly, and rather too much."""
    features = bool(heads & {"feature", "similarity", "feature_hidden"})
    normals = bool(heads & {"normals", "predicted_normals"})
    if mode == "reduced":
        config = model.config.reduced
        costly = max(600 * normals, 1200 * features)
        along = config.samples * (2 if costly else 1)  # edges, and weights where something else needs them
        return 4 * (along + 100), reduced.COSTLY_RAYS * config.kept * costly
    samples = model.config.sampler.samples
    if fused and not normals and reduced.networks_fit(model.fields.radiance):
        once = 4 * (5 * max(samples) + 120)
        return 2 * once if features else once, 0  # whose images are as large again
    return 8 * max(*(n * 24 for n in samples), samples[-1] * (512 if features else 352)), 0


def chunk_size(
    model: Model,
    heads: frozenset[str],
    mode: str,
    device: torch.device,
    max_gb: float = 1.0,
    fused: bool = True,
) -> int:
    """Rays in flight: 2^14 on a CPU; on a GPU what takes a third of free memory, and max_gb at most."""
    if device.type != "cuda":
        return CPU_RAYS
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    budget = min(free / 3, 1e9 * max_gb)
    each, together = bytes_in_flight(model, heads, mode, fused)
    return int(min(MOST_RAYS, max(1 << 10, (budget - together) // each)))
