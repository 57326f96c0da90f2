"""Depth along the viewing axis to distance along the ray, for perspective cameras, distorted or not."""

from __future__ import annotations

import numpy as np

NEWTON_STEPS = 10  # as ray generation (spec 1.4)


def ray_distance(depth: np.ndarray, intrinsics: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """Turn z-depth [h, w] into ray distance: times |(u, v, -1)| of the undistorted pixel. Zeros stay zero."""
    fx, fy, cx, cy = (float(x) for x in intrinsics)
    height, width = depth.shape
    u = np.broadcast_to((np.arange(width) + 0.5 - cx) / fx, (height, width))
    v = np.broadcast_to(((np.arange(height) + 0.5 - cy) / fy)[:, None], (height, width))
    if np.any(distortion[:6]):
        u, v = undistort(u, v, *(float(x) for x in distortion[:6]))
    return (depth * np.sqrt(1 + u * u + v * v)).astype(np.float32)


def undistort(xd, yd, k1, k2, k3, k4, p1, p2):
    """Undo the polynomial and tangential lens model by Newton's method, in normalised y-down coordinates."""
    x, y = np.array(xd, np.float64), np.array(yd, np.float64)
    for _ in range(NEWTON_STEPS):
        r = x * x + y * y
        d = 1 + r * (k1 + r * (k2 + r * (k3 + r * k4)))
        slope = k1 + r * (2 * k2 + r * (3 * k3 + r * 4 * k4))
        f = x * d + 2 * p1 * x * y + p2 * (r + 2 * x * x) - xd
        g = y * d + 2 * p2 * x * y + p1 * (r + 2 * y * y) - yd
        f_x = d + 2 * slope * x * x + 2 * p1 * y + 6 * p2 * x
        f_y = 2 * slope * x * y + 2 * p1 * x + 2 * p2 * y
        g_y = d + 2 * slope * y * y + 2 * p2 * x + 6 * p1 * y
        determinant = f_x * g_y - f_y * f_y  # the Jacobian is symmetric
        safe = np.where(np.abs(determinant) > 1e-3, determinant, np.inf)
        x, y = x - (f * g_y - g * f_y) / safe, y - (g * f_x - f * f_y) / safe
    return x, y
