"""Depth along the viewing axis to distance along the ray, for perspective cameras, distorted or not."""

from __future__ import annotations

import numpy as np
import torch

from raymarch.types import LENSES


def ray_distance(depth: np.ndarray, intrinsics: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """Turn z-depth [h, w] into distance along the rays that these pixels have; zeros stay zero.

    intrinsics [4] = fx fy cx cy; distortion [12] as `raymarch.ops.rays` takes it, which undoes it here as it
    does there.
    """
    from raymarch.ops.rays import rays

    height, width = depth.shape
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    xy = torch.stack([columns, rows], -1).view(-1, 2)
    camera = torch.zeros(height * width, dtype=torch.int64)
    lens = torch.tensor([LENSES.index("perspective")])
    numbers, terms = (torch.from_numpy(np.asarray(x, np.float32))[None] for x in (intrinsics, distortion))
    norm = rays(camera, xy, torch.eye(4)[None, :3], numbers, terms, lens)[3]
    return (depth * norm.view(height, width).numpy()).astype(np.float32)
