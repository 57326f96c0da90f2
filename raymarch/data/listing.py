"""What a format's parser finds in its files: frames and their lenses, before any image is opened."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raymarch.data.similarity import Similarity

MASKS = ("ignore", "empty", "none")
ALPHAS = ("empty", "ignore", "none")
DEPTH_KINDS = ("z", "ray")


@dataclass(frozen=True)
class Options:
    """What `load` was asked for; None leaves the choice to the format."""

    downscale: float = 1
    split: object = None
    orientation: str | None = None
    center: str | None = None
    scale: str | float | None = None
    features: object = None  # FeatureMaps, arrays, or paths of feature files, one per head
    skip_unreadable: bool = False
    threads: int | None = None
    progress: Callable[[int, int], None] | None = None
    masks: str = "ignore"  # what zero in a mask means: ignore the pixel, nothing is there (empty), or nothing
    alpha: str = "empty"  # what transparent means: nothing is there, ignore the pixel, or nothing (none)
    depth_unit: float | None = None
    depth_kind: str | None = None
    memory: str | int = "auto"  # auto, memory, disk, or the bytes that photos may take before disk
    cache: str | Path | None = None  # folder of decoded photos, or "auto"
    only_list: bool = False  # raise Listed instead of opening any image


class Listed(Exception):
    """Not an error: the frames with an image, for who asked for nothing else."""

    def __init__(self, frames: list[Frame]):
        super().__init__(f"{len(frames)} frames")
        self.frames = frames


@dataclass(frozen=True)
class Lens:
    """A camera as files describe it. What is None follows from the size of the image."""

    model: str = "perspective"  # a word of types.LENSES
    width: int | None = None  # the size that the numbers below are for
    height: int | None = None
    fx: float | None = None
    fy: float | None = None
    cx: float | None = None
    cy: float | None = None
    angle_x: float | None = None  # field of view in radians
    angle_y: float | None = None
    distortion: tuple[float, ...] = ()


@dataclass(frozen=True)
class Frame:
    """One photo and where it was taken from."""

    name: str
    image: Path | None  # None: the file names an image that is not there
    pose: object  # camera to world, [3, 4] or [4, 4], OpenGL axes; checked later
    lens: Lens
    hint: str | None = None  # train, val or test
    mask: Path | None = None  # zero: as Options.masks says
    mask_inverted: bool = False  # nonzero instead of zero
    empty_mask: Path | None = None  # zero: nothing is there
    depth: Path | None = None
    normals: Path | None = None  # the positive part of world normals as colours
    near_far: tuple[float, float] | None = None  # in units of the poses


@dataclass(frozen=True)
class Listing:
    """What a parser found, before any image is opened."""

    path: Path
    frames: Sequence[Frame]
    format: str = ""  # in words, for people
    photos: Path | None = None  # the folder that names are relative to, if there is one
    resized: bool = False  # photos smaller than stated are no surprise
    orientation: str = "up"
    center: str = "poses"
    scale: str | float = "auto"
    file_from_world: Similarity = field(default_factory=Similarity)
    background: str = "none"
    depth_unit: float | None = None  # world units in one step of a depth file; None: by its numbers
    depth_kind: str = "z"  # or "ray"
    points: np.ndarray | None = None  # [P, 3] in the frame of the poses
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def spellings(name: str) -> list[str]:
    """A name as it is, and with accents composed or apart: a Mac writes them one way, others another."""
    return list(dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]))


def is_file(path: Path) -> bool:
    """Whether there is such a file; names that no file can have are none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
