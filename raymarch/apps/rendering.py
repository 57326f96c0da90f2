"""`raymarch render`: images and videos of a run, from its own views, given poses, or a path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymarch.apps.cameras import cameras_for, numbered
from raymarch.apps.images import save_exr, save_npz, save_rgb
from raymarch.apps.pictures import Look
from raymarch.apps.querying import open_with_words
from raymarch.apps.video import write_frames
from raymarch.config import ConfigError
from raymarch.data.paths import (
    KINDS,
    CameraPath,
    is_camera_path,
    make_path,
    read_camera_path,
    through,
    write_camera_path,
)
from raymarch.train.metrics import psnr
from raymarch.train.runs import smaller
from raymarch.trained import Texts, TrainedScene
from raymarch.types import Cameras

FORMATS = ("png", "exr", "npz", "mp4")


@dataclass(frozen=True)
class Route:
    """Where the camera goes, if not to the run's own views."""

    cameras: Path | None = None  # transforms.json or camera_path.json
    path: str | None = None  # one of KINDS
    views: tuple[str, ...] = ()
    frames: int = 120  # of a path
    fps: float | None = None
    loop: bool = False
    save: Path | None = None  # write the path as camera_path.json


def render_run(
    run: Path,
    out: Path | None,
    heads: list[str],
    route: Route,
    formats: list[str],
    texts: tuple[str, ...] = (),
    negatives: tuple[str, ...] = (),
    embeddings: Path | None = None,
    weights: str | None = None,
    side: int | None = None,
    mode: str = "exact",
    device: str = "auto",
) -> Iterator[str]:
    """Render and write; yields the files of each frame (a line) and, in reduced mode, what it costs.

    embeddings: vectors by name for the texts, or a .npy [K, D] of what to look for.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--formats: there is no {name!r}; expected some of {', '.join(FORMATS)}")
    rows = embeddings is not None and embeddings.suffix == ".npy"
    scene = open_with_words(run, None if rows else embeddings, weights, device)
    wanted: tuple[Texts, ...] = (*texts, *(read_rows(embeddings) if rows and embeddings else ()))
    look = Look(scene, heads, wanted, negatives, mode=mode)
    out = out or run / "renders"
    out.mkdir(parents=True, exist_ok=True)
    cameras, fps = along(scene, route, side)
    if route.save is not None and route.path is None:
        raise ConfigError(f"--save-path writes a path: give --path {' | '.join(KINDS)}")
    if mode == "reduced":
        stem, camera = next(iter(cameras))
        yield bound(look, stem, camera)
        cameras, _ = along(scene, route, side)
    shown = frames(look, cameras, out, formats)
    if "mp4" in formats:
        yield from write_frames(out, (pictures for _, pictures in shown), fps)
    else:
        for written, _ in shown:
            yield str(out / ", ".join(written))


def read_rows(path: Path) -> tuple[Tensor, ...]:
    """The rows [D] of a .npy array [K, D]. ConfigError where it holds something else."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--embeddings {path}: expected a .npy file [K, D] ({error})") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f":
        raise ConfigError(f"--embeddings {path}: expected an array [K, D] of floats")
    return torch.from_numpy(found.astype(np.float32)).unbind(0)


def bound(look: Look, stem: str, camera: Cameras) -> str:
    """What the reduced mode leaves out, and how far it is from the exact mode on one view."""
    rgb, exact = (look.scene.render(camera, ("rgb",), mode)["rgb"] for mode in ("reduced", "exact"))
    config = look.scene.config.model.reduced
    return (
        f"reduced: {config.samples} samples from a {config.resolution}^3 grid; colours off by at most "
        f"{math.exp(-config.stop):.1e} for stopping early and {config.samples * config.least:.1e} for light "
        f"samples; {float(psnr(rgb, exact)):.1f} dB against the exact mode on {stem}"
    )


def along(scene: TrainedScene, route: Route, side: int | None) -> tuple[Iterable[tuple[str, Cameras]], float]:
    """Names and cameras of a route, and its frames per second."""
    fps = route.fps or 24.0
    if route.path is None:
        if route.cameras is not None and route.fps is None and is_camera_path(route.cameras):
            fps = read_camera_path(route.cameras).fps
        return cameras_for(scene, route.cameras, route.views, side), fps
    if route.cameras is not None:
        raise ConfigError("--path and --cameras are two different ways to move: give one of them")
    keys = [int(v.removeprefix("train:")) for v in route.views if v.removeprefix("train:").isdigit()]
    if len(keys) != len(route.views) or any(k >= len(scene.train) for k in keys):
        most = len(scene.train) - 1
        raise ConfigError(
            f"--path goes through training views: --view train:0 ... train:{most}, got {route.views}"
        )
    given = through(scene.train_cameras(), keys or range(len(scene.train)))
    made = make_path(route.path, given, route.frames, route.loop)
    made = smaller(made, side) if side else made
    if route.save is not None:
        write_camera_path(route.save, CameraPath(made, fps))
    return numbered(scene, made), fps


def frames(
    look: Look, cameras: Iterable[tuple[str, Cameras]], out: Path, formats: list[str]
) -> Iterator[tuple[list[str], dict[str, np.ndarray]]]:
    """Render each camera, write its still files, and yield their names and its pictures."""
    for stem, camera in cameras:
        frame = look.frame(camera)
        pictures = look.pictures(frame) if {"png", "mp4"} & set(formats) else {}
        yield write(out, stem, frame, pictures if "png" in formats else {}, formats), pictures


def write(
    out: Path, stem: str, frame: dict[str, Tensor], pictures: dict[str, np.ndarray], formats: list[str]
) -> list[str]:
    """Still files of one frame, STEM.npz, STEM_HEAD.exr and STEM_HEAD.png; returns their names."""
    written = []
    if "npz" in formats:
        written.append(f"{stem}.npz")
        save_npz(out / written[-1], frame)
    for name, image in frame.items():
        if "exr" in formats and name != "feature":
            channels = tuple(f"S{i}" for i in range(image.shape[2])) if name == "similarity" else None
            written.append(f"{stem}_{name}.exr")
            save_exr(out / written[-1], image, channels)
    for name, picture in pictures.items():
        written.append(f"{stem}_{name}.png")
        save_rgb(out / written[-1], picture)
    return written
