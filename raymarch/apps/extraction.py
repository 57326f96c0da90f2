"""`raymarch extract`: dense features of every photo of a scene, into one file that training can map."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymarch.apps.terminal import console
from raymarch.data.error import SceneError
from raymarch.data.feature_files import (
    PREFIX,
    SUFFIX,
    Photo,
    find_feature_files,
    image_sha256,
    open_feature_file,
    same_recipe,
)
from raymarch.data.feature_writer import FeatureWriter
from raymarch.data.images import photo_size, read_photo
from raymarch.data.scene import list_photos
from raymarch.features.encoder import Encoder, open_encoder

AHEAD = 2  # photos decoded before the network asks for them

OnProgress = Callable[[int, int, str], None]  # photos done, of how many, the last one's name


@dataclass(frozen=True)
class Extracted:
    path: Path
    made: int  # maps computed now
    kept: int  # found in an unfinished run, or in the finished file that this one replaces
    width: int


def extract(
    scene: Path, encoder: Encoder, out: Path | None = None, on_progress: OnProgress | None = None
) -> Extracted:
    """Extract the features of every photo of a scene, one at a time; no more than AHEAD + 2 are in memory.

    out: default is features_ENCODER.safetensors in the scene's folder. Run again after a kill, it goes on
    with the photo it was at; run again after photos or options changed, it makes the maps that are out of
    date. SceneError where photos cannot be read or the file cannot be written.
    """
    listed = list_photos(scene)
    folder = scene if scene.is_dir() else scene.parent
    path = out or folder / f"{PREFIX}{encoder.recipe['encoder']}{SUFFIX}"
    if path.suffix != SUFFIX:
        raise SceneError(f"--out {path}: expected a name that ends in {SUFFIX}")
    with ThreadPoolExecutor(8) as pool:
        photos = list(pool.map(lambda named: _photo(encoder, *named), listed))
    if (known := _finished(path, encoder.recipe, photos)) is not None:
        return known
    writer = FeatureWriter(path, encoder.recipe, photos, encoder.width)
    kept = sum(writer.done)
    try:
        todo = [i for i, done in enumerate(writer.done) if not done]
        for done, (i, pixels) in enumerate(_decoded(listed, todo), start=kept + 1):
            writer.write(i, encoder.encode(pixels))
            if on_progress:
                on_progress(done, len(photos), photos[i].name)
    except BaseException:
        writer.close()
        raise
    return Extracted(writer.finish(), len(todo), kept, encoder.width)


def _photo(encoder: Encoder, name: str, image: Path) -> Photo:
    rows, columns = encoder.grid(*photo_size(image))
    return Photo(name, image_sha256(image), rows, columns)


def _finished(path: Path, recipe: dict[str, Any], photos: Sequence[Photo]) -> Extracted | None:
    """What is there already, if nothing is out of date."""
    if not path.is_file():
        return None
    try:
        found = open_feature_file(path)
    except SceneError:
        return None  # the writer says what is wrong with it
    current = {p.name: p.sha256 for p in photos} == found.sha256 and not found.missing
    if not current or not same_recipe(found.info, recipe):
        return None
    assert isinstance(found.maps, Mapping)
    return Extracted(path, 0, len(photos), int(found.maps[photos[0].name].shape[2]))


def _decoded(listed: Sequence[tuple[str, Path]], todo: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Photos one after another, the next ones being decoded meanwhile."""
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for i in todo:
                waiting.append((i, pool.submit(lambda path: read_photo(path).pixels, listed[i][1])))
                if len(waiting) > AHEAD:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        finally:
            pool.shutdown(cancel_futures=True)


def _next(waiting: deque[tuple[int, Future[np.ndarray]]]) -> tuple[int, np.ndarray]:
    i, future = waiting.popleft()
    return i, future.result()


def run(
    scene: Path,
    encoders: Sequence[str],
    model: str | None,
    weights: str | None,
    out: Path | None,
    device: torch.device,
    **options: Any,
) -> Iterator[str]:
    """The command: one file per encoder, with a progress bar; yields a line per file."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if len(encoders) > 1 and (model or weights or out):
        raise SceneError(
            "--model, --weights and --out go with one encoder: run `raymarch extract` once for each"
        )
    list_photos(scene)  # a scene that is none is told before weights are read
    for name in encoders:
        encoder = open_encoder(name, model, weights, device, **options)
        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[photo]}"))
        with Progress(*columns, TimeRemainingColumn(), console=console()) as bar:
            task = bar.add_task("", total=None, photo="")

            def show(done: int, total: int, photo: str, bar=bar, task=task) -> None:
                bar.update(task, completed=done, total=total, photo=photo[-32:])

            found = extract(scene, encoder, out, show)
        yield (
            f"{found.path}: {found.width} wide, {found.made} maps made, {found.kept} kept "
            f"({encoder.recipe['model']})"
        )


def features_for(scene: Path, given: Sequence[Path], wanted: bool) -> tuple[list[Path], list[str]]:
    """The feature files to train on, and what to tell the user: those given, else what lies by the scene."""
    if given or not wanted:
        return [path.resolve() for path in given], []
    found = [path.resolve() for path in find_feature_files(scene.expanduser())]
    if len(found) < 2:
        return found, [f"features from {found[0]}"] if found else []
    clip = [path for path in found if path.stem == f"{PREFIX}clip"] or found[:1]
    names = ", ".join(path.name for path in found)
    return clip, [
        f"features from {clip[0]}; there are {names}: name several with --features to distil them all"
    ]
