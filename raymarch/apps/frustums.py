"""Cameras from above -> inline SVG: frustums before and after refinement, and how each centre moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from raymarch.apps.palette import array

WIDTH, HEIGHT, MARGIN = 640, 480, 40
LEGEND = 24  # pixels at the foot for the legend
DEPTH, HALF = 0.09, 0.05  # of the drawing's reach: a frustum's length and half its width
LONGEST_MOVE = 0.08  # of the drawing's reach: what the largest drawn correction should come to


def frustum_chart(before, after, names: Sequence[str], marked: Sequence[int] = ()) -> str:
    """Poses [C, 3, 4] (OpenGL axes) before and after, seen along the cameras' common up direction.

    Corrections are drawn as lines from the new centres, magnified by the factor in the legend; `marked`
    cameras are named.
    """
    before, after = (array(x).astype(float) for x in (before, after))
    across, down = _plane(after)
    reach = max(float(np.ptp(np.concatenate([before, after])[..., 3] @ axis)) for axis in (across, down))
    reach = reach if reach > 0 else 1.0
    outlines = [_outline(poses, across, down, reach) for poses in (before, after)]
    place = _placer(np.concatenate(outlines).reshape(-1, 2))
    moves = np.linalg.norm(after[..., 3] - before[..., 3], axis=1)
    factor = _round_factor(LONGEST_MOVE * reach / moves.max()) if moves.max() > 0 else 1
    parts = []
    for colour, outline in ((1, outlines[0]), (0, outlines[1])):
        for corners in outline:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, corners))
            parts.append(f'<polygon class="curve c{colour}" points="{points}"/>')
    for i, name in enumerate(names):
        centre = np.array([after[i, :, 3] @ across, after[i, :, 3] @ down])
        step = np.array([(before[i, :, 3] - after[i, :, 3]) @ axis for axis in (across, down)])
        (x1, y1), (x2, y2) = place(centre), place(centre + factor * step)
        parts.append(f'<line class="curve c1" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
        title = f"<title>{escape(name)}</title>"
        parts.append(f'<circle class="dot c0" cx="{x1:.1f}" cy="{y1:.1f}" r="2.6">{title}</circle>')
        if i in marked:
            parts.append(f'<text class="name c1" x="{x1 + 6:.1f}" y="{y1 - 6:.1f}">{escape(name)}</text>')
    words = ((1, 12, "as given"), (0, 96, "refined"), (1, 176, f"corrections, {factor:g} times as long"))
    for colour, x, text in words:
        parts.append(f'<text class="name c{colour}" x="{x}" y="{HEIGHT - 8}">{text}</text>')
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="cameras from above, before and after">{"".join(parts)}</svg>'
    )


def _plane(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit axes of the drawing: to the right, along the longest spread of the centres, and downwards."""
    up = poses[:, :, 1].mean(0)
    length = np.linalg.norm(up)
    up = up / length if length > 1e-6 else np.array([0.0, 0.0, 1.0])
    centres = poses[:, :, 3] - poses[:, :, 3].mean(0)
    flat = centres - np.outer(centres @ up, up)
    across = np.linalg.svd(flat)[2][0] if np.abs(flat).max() > 1e-9 else poses[0, :, 0]
    across = across - (across @ up) * up
    size = np.linalg.norm(across)
    across = across / size if size > 1e-9 else np.cross(up, np.eye(3)[np.abs(up).argmin()])
    return across, np.cross(across, up)


def _outline(poses: np.ndarray, across: np.ndarray, down: np.ndarray, reach: float) -> np.ndarray:
    """The three corners of every frustum on the plane, [C, 3, 2]."""
    centre, ahead, right = poses[..., 3], -poses[..., 2], poses[..., 0]
    far = centre + DEPTH * reach * ahead
    side = HALF * reach * right
    corners = np.stack([centre, far - side, far + side], 1)
    return np.stack([corners @ across, corners @ down], -1)


def _placer(points: np.ndarray):
    """Plane -> pixels: one scale for both axes, everything inside the margins."""
    low, high = points.min(0), points.max(0)
    room = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN - LEGEND])
    scale = float((room / np.maximum(high - low, 1e-12)).min())
    middle = np.array([WIDTH / 2, (HEIGHT - LEGEND) / 2])
    return lambda p: tuple(middle + scale * (np.asarray(p) - (low + high) / 2))


def _round_factor(factor: float) -> float:
    """The largest of 1, 2, 5, 10, 20 ... that is no more than the factor; at least 1."""
    if factor <= 1:
        return 1
    unit = 10 ** math.floor(math.log10(factor))
    return max(k * unit for k in (1, 2, 5) if k * unit <= factor)
