"""Bricks that own parameters."""

from typing import NamedTuple

from raymarch.nn.harmonics import Fourier, Harmonics
from raymarch.nn.hashgrid import HashGrid
from raymarch.nn.mlp import MLP
from raymarch.nn.tcnn import TcnnError, TcnnHashGrid, TcnnMLP


class Bricks(NamedTuple):
    """Who computes grids and networks; parameters are the same."""

    grid: type[HashGrid]
    mlp: type[MLP]


BACKENDS = {"native": Bricks(HashGrid, MLP), "tcnn": Bricks(TcnnHashGrid, TcnnMLP)}
NATIVE = BACKENDS["native"]


def bricks(backend: str) -> Bricks:
    """Those of a backend. ValueError for unknown words; TcnnError, later, where tiny-cuda-nn is missing."""
    if backend not in BACKENDS:
        raise ValueError(f"fields.backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    return BACKENDS[backend]


__all__ = ["BACKENDS", "MLP", "NATIVE", "Bricks", "Fourier", "Harmonics", "HashGrid", "TcnnError", "bricks"]
