"""Where rays meet spheres, boxes, cups, cones and rings, in closed form. Shapes only: no colour, no scene.

Every solid is a function `(origins [P, 3], directions [P, 3], ...) -> (t [P], normals [P, 3])` in its own
frame: t is the distance of the nearest hit in front of the origin (inf where there is none) for unit
directions, the normals are unit and face the ray. float32 NumPy arrays throughout; P rays at once.
"""

from __future__ import annotations

import numpy as np

FRONT = 1e-4  # hits nearer than this are the surface the ray starts on


def dot(a, b):
    """Row by row [P] of two arrays [P, 3]."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def nearest(*hits):
    """The first of several candidate hits along each ray."""
    t, normals = hits[0]
    for other, n in hits[1:]:
        closer = other < t
        t = np.where(closer, other, t)
        normals = np.where(closer[:, None], n, normals)
    return t, normals


def facing(directions, normals):
    """Normals turned to the side the ray comes from."""
    behind = dot(directions, normals) > 0
    return np.where(behind[:, None], -normals, normals)


def reaches(origins, directions, centre, radius):
    """Whether a ray passes through a ball: the cheap test before an exact one."""
    along = directions @ centre - dot(origins, directions)
    squared = centre @ centre - 2 * (origins @ centre) + dot(origins, origins)
    return (squared - along * along < radius * radius) & ((along > 0) | (squared < radius * radius))


def ellipsoid(origins, directions, radii):
    """An ellipsoid about the origin; three equal radii make a sphere."""
    o, d = origins / radii, directions / radii
    a, b, c = (dot(x, y) for x, y in ((d, d), (o, d), (o, o)))
    t = np.full_like(a, np.inf)
    inside = b * b - a * (c - 1)
    ok = inside >= 0
    root = np.sqrt(inside[ok])
    first, second = (-b[ok] - root) / a[ok], (-b[ok] + root) / a[ok]
    t[ok] = np.where(first > FRONT, first, np.where(second > FRONT, second, np.inf))
    normals = (origins + np.where(np.isfinite(t), t, 0)[:, None] * directions) / np.square(radii)
    return t, facing(directions, normals / np.linalg.norm(normals, axis=1, keepdims=True))


def box(origins, directions, half):
    """A box about the origin with the given half sizes (the slab test)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = (-half - origins) / directions, (half - origins) / directions
    low = np.nan_to_num(np.minimum(one, two), nan=-np.inf)
    high = np.nan_to_num(np.maximum(one, two), nan=np.inf)
    enter, leave = low.max(axis=1), high.min(axis=1)
    from_outside = enter > FRONT
    t = np.where(from_outside, enter, leave)
    t = np.where((enter <= leave) & (t > FRONT), t, np.inf)
    axis = np.where(from_outside, low.argmax(axis=1), high.argmin(axis=1))
    return t, facing(directions, np.eye(3, dtype=np.float32)[axis])


def disc(origins, directions, height, inner, outer):
    """A flat ring at one height, between two radii."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (height - origins[:, 2]) / directions[:, 2]
    t = np.where(np.isfinite(t), t, -1)
    x, y = (origins[:, i] + t * directions[:, i] for i in (0, 1))
    squared = x * x + y * y
    ok = (t > FRONT) & (squared <= outer * outer) & (squared >= inner * inner)
    up = np.broadcast_to(np.array([0, 0, 1], np.float32), origins.shape)
    return np.where(ok, t, np.inf), facing(directions, up)


def wall(origins, directions, bottom, top, low, high):
    """The side of a cone cut off at two heights: radius `bottom` at `low`, `top` at `high`, no caps."""
    slope = (top - bottom) / (high - low)
    o, d = origins, directions
    radius = bottom + slope * (o[:, 2] - low)
    a = d[:, 0] ** 2 + d[:, 1] ** 2 - (slope * d[:, 2]) ** 2
    b = o[:, 0] * d[:, 0] + o[:, 1] * d[:, 1] - radius * slope * d[:, 2]
    c = o[:, 0] ** 2 + o[:, 1] ** 2 - radius**2
    root = np.sqrt(np.maximum(b * b - a * c, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        roots = np.stack([(-b - root) / a, (-b + root) / a])
        heights = o[:, 2] + roots * d[:, 2]
        ok = (roots > FRONT) & (heights >= low) & (heights <= high) & (b * b >= a * c)
    t = np.where(ok, roots, np.inf).min(axis=0)
    at = o + np.where(np.isfinite(t), t, 0)[:, None] * d
    normals = np.stack([at[:, 0], at[:, 1], -slope * (bottom + slope * (at[:, 2] - low))], axis=1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return t, facing(d, normals / np.maximum(length, 1e-12))


def frustum(origins, directions, bottom, top, low, high):
    """A cone cut off at two heights, closed by discs; equal radii make a cylinder."""
    rays = origins, directions
    caps = disc(*rays, low, 0, bottom), disc(*rays, high, 0, top)
    return nearest(wall(*rays, bottom, top, low, high), *caps)


def cup(origins, directions, radius, thickness, low, high):
    """A cylinder hollowed from above."""
    rays, inner, floor = (origins, directions), radius - thickness, low + thickness
    sides = wall(*rays, radius, radius, low, high), wall(*rays, inner, inner, floor, high)
    flats = disc(*rays, low, 0, radius), disc(*rays, floor, 0, inner), disc(*rays, high, inner, radius)
    return nearest(*sides, *flats)


def ring(origins, directions, major, minor):
    """A torus around z: marched by its distance to within 1e-4, then two Newton steps on the quartic."""
    t = np.full(len(origins), np.inf, np.float32)
    normals = np.zeros_like(directions)
    near = np.flatnonzero(reaches(origins, directions, np.zeros(3, np.float32), major + minor))
    o, d = origins[near], directions[near]
    far = _march(o, d, major, minor)
    for _ in range(2):
        value, slope = _quartic(o + far[:, None] * d, d, major, minor)
        far -= np.clip(value / np.where(np.abs(slope) < 1e-6, np.inf, slope), -1e-3, 1e-3)
    at = o + far[:, None] * d
    across = np.hypot(at[:, 0], at[:, 1])
    on = (np.abs(np.hypot(across - major, at[:, 2]) - minor) < 1e-4) & (far > FRONT)
    to_axis = 1 - major / np.maximum(across, 1e-6)
    n = np.stack([at[:, 0] * to_axis, at[:, 1] * to_axis, at[:, 2]], axis=1)
    n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-12)
    t[near], normals[near] = np.where(on, far, np.inf), facing(d, n)
    return t, normals


def _march(origins, directions, major, minor):
    """Distance at which a ray comes within 1e-4 of the torus, or where it gave up."""
    t = np.maximum(-dot(origins, directions) - (major + minor), FRONT * 10)
    far = t + 2 * (major + minor)
    live, o, d = np.arange(len(t)), origins, directions
    for _ in range(48):
        at = o + t[live, None] * d
        gap = np.hypot(np.hypot(at[:, 0], at[:, 1]) - major, at[:, 2]) - minor
        t[live] += gap
        on = (gap > 1e-4) & (t[live] < far[live])
        live, o, d = live[on], o[on], d[on]
    return t


def _quartic(at, directions, major, minor):
    """Value and slope along the ray of (x^2 + y^2 + z^2 + R^2 - r^2)^2 - 4 R^2 (x^2 + y^2)."""
    inner = dot(at, at) + major * major - minor * minor
    value = inner**2 - 4 * major**2 * (at[:, 0] ** 2 + at[:, 1] ** 2)
    along = dot(at, directions)
    flat = at[:, 0] * directions[:, 0] + at[:, 1] * directions[:, 1]
    return value, 4 * inner * along - 8 * major**2 * flat
