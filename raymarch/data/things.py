"""The objects of the synthetic scene, its ground and its sky: where they stand and how they are painted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raymarch.data import solids, textures
from raymarch.data.textures import colour

GROUND = -0.22  # height of the ground plane
SKY = 20.0  # radius of the sky: far enough that contraction folds most of the way away


@dataclass(frozen=True)
class Thing:
    """A solid, where it stands, a ball around it, and its colour as a function of points in its own frame."""

    name: str
    centre: np.ndarray  # [3] origin of the solid's frame
    turn: np.ndarray  # [3, 3] its axes in the world, as columns
    ball: float  # radius around the centre that holds the solid
    hit: Callable
    paint: Callable


@functools.cache
def things() -> tuple[Thing, ...]:
    """The objects, in the order of NAMES after sky and ground."""
    return (
        _thing("red ball", (0.31, 0.09, 0.15), 0.15, 20, _ellipsoid(0.15, 0.15, 0.15), _ball_paint),
        _thing("mug", (0.02, -0.31, 0.10), 0.22, 200, _mug_hit, _mug_paint),
        _thing("crate", (-0.29, 0.14, 0.12), 0.21, 25, _box(0.12, 0.12, 0.12), _crate_paint),
        _thing("cone", (0.15, 0.38, 0.16), 0.21, 0, _frustum(0.12, 0.015, 0.16), _cone_paint),
        _thing("barrel", (0.0, 0.03, 0.14), 0.18, 0, _frustum(0.10, 0.10, 0.14), _barrel_paint),
        _thing("ring", (0.34, -0.25, 0.048), 0.17, 0, _ring(0.105, 0.048), _ring_paint),
        _thing("lemon", (-0.27, -0.24, 0.08), 0.13, 35, _ellipsoid(0.12, 0.085, 0.08), _lemon_paint),
        _thing("book", (-0.17, 0.45, 0.035), 0.19, -20, _box(0.14, 0.10, 0.035), _book_paint),
    )


def _thing(name, place, ball, turn_deg, hit, paint):
    """A solid whose centre is `place` above the ground's origin, turned about z."""
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)
    return Thing(name, np.array([place[0], place[1], place[2] + GROUND], np.float32), turn, ball, hit, paint)


def _ellipsoid(*radii):
    return functools.partial(solids.ellipsoid, radii=np.array(radii, np.float32))


def _box(*half):
    return functools.partial(solids.box, half=np.array(half, np.float32))


def _frustum(bottom, top, half_height):
    return functools.partial(solids.frustum, bottom=bottom, top=top, low=-half_height, high=half_height)


def _ring(major, minor):
    return functools.partial(solids.ring, major=major, minor=minor)


MUG, WALL = 0.095, 0.012  # radius of the mug and thickness of its wall


def _mug_hit(origins, directions):
    body = solids.cup(origins, directions, MUG, WALL, -0.10, 0.10)
    upright = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)  # stands the ring up, in the x-z plane
    start = (origins - np.array([MUG, 0, 0], np.float32)) @ upright
    t, normals = solids.ring(start, directions @ upright, 0.06, 0.014)
    at = origins + np.where(np.isfinite(t), t, 0)[:, None] * directions
    outside = np.hypot(at[:, 0], at[:, 1]) > MUG - 0.5 * WALL
    return solids.nearest(body, (np.where(outside, t, np.inf), normals @ upright.T))


def _ball_paint(points, blur):
    stripe = textures.step(textures.bands(points, 2, 0.15, blur) - 0.6, 0.3)
    rubber = textures.mix(colour("#c3271f"), colour("#e8a03c"), 0.8 * stripe)
    return rubber * (1 + 0.16 * textures.cloud(points, 0.12, blur, 51))[:, None]


def _mug_paint(points, blur):
    spots = textures.step(textures.dots(points, 0.11, blur) - 0.25, 0.2)
    return textures.mix(colour("#e9ecef"), colour("#1f6fb2"), spots)


def _crate_paint(points, blur):
    grain = textures.cloud(points * np.array([1, 1, 4], np.float32), 0.16, blur, 61)
    wood = textures.mix(colour("#8a5a2b"), colour("#d09a55"), textures.step(grain, 0.8))
    return wood * (1 + 0.18 * textures.bands(points, 2, 0.08, blur))[:, None]


def _cone_paint(points, blur):
    stripe = textures.step(textures.bands(points, 2, 0.16, blur), 0.4)
    cone = textures.mix(colour("#f06a1d"), colour("#f4efe6"), stripe)
    return cone * (1 + 0.08 * textures.cloud(points, 0.1, blur, 71))[:, None]


def _barrel_paint(points, blur):
    patches = textures.step(textures.cloud(points, 0.13, blur, 81), 0.7)
    green = textures.mix(colour("#1d6b45"), colour("#7cc07f"), patches)
    return green * (1 + 0.2 * textures.bands(points, 2, 0.14, blur))[:, None]


def _ring_paint(points, blur):
    icing = textures.step(points[:, 2] - 0.008 + 0.007 * textures.waves(points, 0.08, blur, 91), 0.008)
    sprinkles = textures.step(textures.waves(points, 0.055, blur, 97) - 0.9, 0.4)
    top = textures.mix(colour("#e27fae"), colour("#fff3c4"), 0.8 * sprinkles)
    return textures.mix(np.broadcast_to(colour("#a8703a"), top.shape), top, icing)


def _lemon_paint(points, blur):
    spots = textures.step(textures.cloud(points, 0.09, blur, 101), 0.9)
    return textures.mix(colour("#d8b21c"), colour("#fae36a"), spots)


def _book_paint(points, blur):
    cover = textures.mix(
        colour("#5b2a86"), colour("#a675c9"), textures.step(textures.checks(points, 0.13, blur), 0.6)
    )
    pages = (np.abs(points[:, 2]) < 0.025) & (np.abs(points[:, 2]) > 0)
    side = (np.abs(points[:, 0]) > 0.139) | (np.abs(points[:, 1]) > 0.099)
    return np.where((pages & side)[:, None], colour("#efe9d8"), cover)


def paint_ground(points, blur):
    patches = textures.cloud(points, 0.5, blur, 11, octaves=4)
    base = textures.mix(colour("#8d8a66"), colour("#c9b98d"), textures.step(patches, 0.9))
    tiles = textures.checks(points, 0.34, blur)
    return base * (1 + 0.13 * tiles + 0.10 * textures.waves(points, 0.07, blur, 19))[:, None]


def paint_sky(points, blur):
    directions, blur = points / np.float32(SKY), blur / np.float32(SKY)
    up = directions[:, 2]
    air = textures.mix(colour("#e9dcc6"), colour("#4f83c4"), np.clip(up * 1.6, 0, 1) ** 0.6)
    clouds = textures.cloud(directions * np.array([1, 1, 2.2], np.float32), 0.7, blur, 31)
    air = textures.mix(air, colour("#f7f6f2"), 0.75 * textures.step(clouds - 0.5, 0.5))
    flat = directions * np.array([1, 1, 0], np.float32)
    ridge = 0.09 + 0.035 * textures.cloud(flat, 0.9, blur, 41)
    rock = textures.mix(
        colour("#56705a"), colour("#7b8fa5"), textures.step(textures.waves(directions, 0.3, blur, 47), 1)
    )
    return textures.mix(air, rock, textures.step(ridge - up, 0.012))
