"""Bricks that own parameters."""

from raymarch.nn.harmonics import Fourier, Harmonics
from raymarch.nn.hashgrid import HashGrid
from raymarch.nn.mlp import MLP

__all__ = ["MLP", "Fourier", "Harmonics", "HashGrid"]
