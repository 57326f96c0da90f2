"""`raymarch render`: images of a run from its own views or from given poses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from raymarch.apps.images import file_stems, save_depth, save_exr, save_normals, save_npz, save_rgb
from raymarch.config import ConfigError
from raymarch.data.nerfstudio import read_cameras
from raymarch.features.pca import Pca, apply, fit_pca
from raymarch.train.metrics import psnr
from raymarch.trained import TrainedScene
from raymarch.types import Cameras

FORMATS = ("png", "exr", "npz")


def render_run(
    run: Path,
    out: Path | None,
    heads: list[str],
    poses: Path | None,
    views: tuple[str, ...],
    formats: list[str],
    device: str,
    mode: str = "exact",
    embeddings: Path | None = None,
) -> Iterator[str]:
    """Render and write; yields the path of each file set and, in reduced mode, what it costs."""
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--formats: there is no {name!r}; expected some of {', '.join(FORMATS)}")
    scene = TrainedScene(run, device)
    out = out or run / "renders"
    out.mkdir(parents=True, exist_ok=True)
    texts = None if embeddings is None else _embeddings(embeddings)
    if "similarity" in heads and texts is None:
        raise ConfigError("--heads similarity: give --embeddings, a .npy file [K, D] as from a text encoder")
    pca: Pca | None = None
    said = mode == "exact"
    for stem, camera in _cameras(scene, poses, views):
        try:
            frame = scene.render(camera, heads, mode, texts)
        except ValueError as error:
            raise ConfigError(f"--heads: {error}") from None
        if not said:
            yield _bound(scene, camera, stem, frame["rgb"])
            said = True
        if "feature" in frame and pca is None:  # one projection for all frames: stable colours
            pca = fit_pca(frame["feature"].flatten(0, -2))
        _write(out / stem, frame, formats, pca)
        yield str(out / stem)


def _embeddings(path: Path) -> torch.Tensor:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--embeddings {path}: expected a .npy file [K, D] ({error})") from None
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f":
        raise ConfigError(f"--embeddings {path}: expected an array [K, D] of floats")
    return torch.from_numpy(found.astype(np.float32))


def _bound(scene: TrainedScene, camera: Cameras, stem: str, rgb: torch.Tensor) -> str:
    """What the reduced mode leaves out, and how far it is from the exact mode on one view."""
    exact = scene.render(camera, ("rgb",))["rgb"]
    config = scene.config.model.reduced
    return (
        f"reduced: {config.samples} samples from a {config.resolution}^3 grid; colours off by at most "
        f"{math.exp(-config.stop):.1e} for stopping early and {config.samples * config.least:.1e} for light "
        f"samples; {float(psnr(rgb, exact)):.1f} dB against the exact mode on {stem}"
    )


def _cameras(
    scene: TrainedScene, poses: Path | None, views: tuple[str, ...]
) -> Iterator[tuple[str, Cameras]]:
    if poses is not None:
        names, cameras = read_cameras(poses, scene.world_from_scene)
        for i, stem in enumerate(file_stems(names)):
            one = Cameras(*(getattr(cameras, f)[i : i + 1] for f in cameras.__dataclass_fields__))
            yield stem, one
        return
    for view in views or [f"test:{i}" for i in range(len(scene.test))] or ["train:0"]:
        which, _, index = view.partition(":")
        if which not in ("train", "test") or not index.isdigit():
            raise ConfigError(f"--view: expected train:N or test:N, got {view!r}")
        try:
            yield f"{which}_{int(index):04d}", scene.camera(which, int(index))
        except IndexError as error:
            raise ConfigError(f"--view: {error}") from None


def _write(stem: Path, frame: dict[str, torch.Tensor], formats: list[str], pca: Pca | None) -> None:
    if "npz" in formats:
        save_npz(stem.with_suffix(".npz"), frame)
    for name, image in frame.items():
        file = stem.with_name(f"{stem.name}_{name}.png")
        if "exr" in formats and name not in ("feature", "similarity"):
            save_exr(file.with_suffix(".exr"), image)
        if "png" not in formats:
            continue
        if name in ("depth", "expected_depth"):
            save_depth(file, image)
        elif name in ("normals", "predicted_normals"):
            save_normals(file, image)
        elif name == "feature" and pca is not None:
            save_rgb(file, apply(image, pca))
        elif name == "similarity":
            for i, one in enumerate(image.clamp(0, 1).unbind(-1)):
                named = file.with_name(f"{stem.name}_similarity_{i}.png")
                save_rgb(named, one[..., None].expand(*one.shape, 3))
        else:
            save_rgb(file, image if image.ndim == 3 else image[..., None].expand(*image.shape, 3))
