"""Which cameras a command shows: views of a run, the frames of a file, or a path made here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raymarch.apps.images import file_stems
from raymarch.config import ConfigError
from raymarch.data.nerfstudio import read_cameras
from raymarch.data.paths import is_camera_path, read_camera_path
from raymarch.train.runs import smaller, subset
from raymarch.trained import TrainedScene
from raymarch.types import Cameras


def cameras_for(
    scene: TrainedScene, file: Path | None, views: tuple[str, ...], side: int | None = None
) -> Iterator[tuple[str, Cameras]]:
    """Name and camera of each frame: of `file` where there is one, else of views as train:0 or test:3.

    file: a transforms.json (poses in world units) or a camera_path.json of nerfstudio (in its training frame,
    which is our scene frame). side: shrink to so many pixels on the longer side. ConfigError, SceneError.
    """
    for stem, camera in _all(scene, file, views):
        yield stem, smaller(camera, side) if side else camera


def _all(scene: TrainedScene, file: Path | None, views: tuple[str, ...]) -> Iterator[tuple[str, Cameras]]:
    if file is not None:
        yield from _of_file(scene, file)
        return
    for view in views or [f"test:{i}" for i in range(len(scene.test))] or ["train:0"]:
        which, _, index = view.partition(":")
        if which not in ("train", "test") or not index.isdigit():
            raise ConfigError(f"--view: expected train:N or test:N, got {view!r}")
        try:
            yield f"{which}_{int(index):04d}", scene.camera(which, int(index))
        except IndexError as error:
            raise ConfigError(f"--view: {error}") from None


def _of_file(scene: TrainedScene, file: Path) -> Iterator[tuple[str, Cameras]]:
    if is_camera_path(file):
        yield from numbered(scene, read_camera_path(file).cameras)
        return
    names, cameras = read_cameras(file, scene.world_from_scene)
    for i, stem in enumerate(file_stems(names)):
        yield stem, subset(cameras, (i,), scene.device)


def numbered(scene: TrainedScene, cameras: Cameras) -> Iterator[tuple[str, Cameras]]:
    """Frames of a path by their number."""
    for i in range(len(cameras.size)):
        yield f"frame_{i:05d}", subset(cameras, (i,), scene.device)
