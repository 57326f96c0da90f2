"""`raymarch render`: images of a run from its own views or from given poses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from raymarch.apps.images import file_stems, save_depth, save_exr, save_normals, save_npz, save_rgb
from raymarch.config import ConfigError
from raymarch.data.nerfstudio import read_cameras
from raymarch.features.pca import Pca, apply, fit_pca
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
) -> Iterator[str]:
    """Render and write; yields the path of each file set."""
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--formats: there is no {name!r}; expected some of {', '.join(FORMATS)}")
    scene = TrainedScene(run, device)
    out = out or run / "renders"
    out.mkdir(parents=True, exist_ok=True)
    pca: Pca | None = None
    for stem, camera in _cameras(scene, poses, views):
        try:
            frame = scene.render(camera, heads)
        except ValueError as error:
            raise ConfigError(f"--heads: {error}") from None
        if "feature" in frame and pca is None:  # one projection for all frames: stable colours
            pca = fit_pca(frame["feature"].flatten(0, -2))
        _write(out / stem, frame, formats, pca)
        yield str(out / stem)


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
        if "exr" in formats and name != "feature":
            save_exr(file.with_suffix(".exr"), image)
        if "png" not in formats:
            continue
        if name in ("depth", "expected_depth"):
            save_depth(file, image)
        elif name in ("normals", "predicted_normals"):
            save_normals(file, image)
        elif name == "feature" and pca is not None:
            save_rgb(file, apply(image, pca))
        else:
            save_rgb(file, image if image.ndim == 3 else image[..., None].expand(*image.shape, 3))
