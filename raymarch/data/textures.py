"""Soft procedural colours: sums of plane waves in 3-D, faded out where a pixel is wider than a wave.

Functions of points only (P at once, float32 NumPy); nothing here knows about rays or shapes. `blur` [P] is
the width of a pixel at the point, in scene units: detail finer than that goes to its mean, not to noise.
"""

from __future__ import annotations

import functools
import math

import numpy as np

TAU = 2 * np.pi


def colour(text: str):
    """`"#rrggbb"` as three numbers in 0..1."""
    return np.array([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)


def mix(a, b, amount):
    """From colour a to colour b, [P, 3] or [3] each, by amount [P]."""
    return a + (b - a) * amount[:, None]


def step(x, softness):
    """A soft threshold at 0, from 0 to 1 over about twice the softness."""
    return 0.5 + 0.5 * np.tanh(x / softness)


def fade(blur, wavelength):
    """How much of a wave is left when a box of width `blur` averages it (a Gaussian of the same variance)."""
    return np.exp(-np.square(TAU / wavelength * blur) / 24)


@functools.lru_cache(maxsize=256)
def _waves(count: int, seed: int):
    random = np.random.default_rng(seed)
    directions = random.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions.T.astype(np.float32), random.uniform(0, TAU, count).astype(np.float32)


def waves(points, wavelength, blur, seed, count=5):
    """A smooth random field of unit variance whose detail has one size."""
    directions, phases = _waves(count, seed)
    field = np.cos(points @ (directions * np.float32(TAU / wavelength)) + phases).sum(axis=1)
    return field * fade(blur, wavelength) * math.sqrt(2 / count)


def cloud(points, wavelength, blur, seed, octaves=3):
    """Waves of several sizes, each half as long and about half as strong as the last."""
    return sum(0.55**i * waves(points, wavelength / 2**i, blur, seed + i) for i in range(octaves))


def bands(points, axis, wavelength, blur):
    """Stripes across one axis, -1..1 with soft edges."""
    return np.tanh(2 * np.sin(points[:, axis] * (TAU / wavelength))) * fade(blur, wavelength)


def dots(points, wavelength, blur):
    """A pattern of round spots about the z axis: positive inside a spot."""
    around = np.arctan2(points[:, 1], points[:, 0]) * 5
    return np.sin(around) * np.sin(points[:, 2] * (TAU / wavelength)) * fade(blur, wavelength)


def checks(points, wavelength, blur):
    """A soft chessboard in x and y."""
    board = np.sin(points[:, 0] * (TAU / wavelength)) * np.sin(points[:, 1] * (TAU / wavelength))
    return np.tanh(2.5 * board) * fade(blur, wavelength)
