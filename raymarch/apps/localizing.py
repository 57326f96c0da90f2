"""`raymarch localize`: where a photo was taken from, told, and written beside the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raymarch.apps.images import file_stems, save_rgb
from raymarch.apps.numbers import told_to
from raymarch.data.atomic import write_text
from raymarch.data.error import some
from raymarch.data.plain import json_text
from raymarch.train.localize import Localisation
from raymarch.train.photos import LocalizeError
from raymarch.trained import TrainedScene


class NotFound(LocalizeError):
    """Everything was done, and some photo is nowhere in the scene."""

    status = 3  # of the command


POSE_KEYS = ("camera_to_world", "transform_matrix")


def localize_photos(
    run: Path, photos: list[Path], intrinsics: str | None, init: str | None, out: Path | None, device: str
) -> Iterator[str]:
    """Localise photos one after another; yields lines to show, writes OUT/NAME.json and NAME_overlay.png.

    NotFound at the end, when all have been looked for, where some were not found.
    """
    camera = None if intrinsics is None else _numbers(intrinsics)
    start = _start(init)
    if missing := [photo for photo in photos if not photo.is_file()]:
        if missing[0].is_dir():
            raise LocalizeError(f"{missing[0]} is a folder: name the photos in it, as {missing[0]}/*.jpg")
        raise LocalizeError(f"there is no photo at {missing[0]}")
    if not photos:
        raise LocalizeError("no photo was given; expected raymarch localize RUN PHOTO ...")
    scene = TrainedScene(run, device)
    out = out or run / "localized"
    lost = []
    for photo, stem in zip(photos, file_stems([photo.as_posix() for photo in photos]), strict=True):
        found = scene.localize(photo, camera, start)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / f"{stem}.json", json_text(record(found, photo)) + "\n")
        if found.overlay is not None:
            save_rgb(out / f"{stem}_overlay.png", found.overlay)
        yield from told(found, photo)
        yield f"  {out / stem}.json, {stem}_overlay.png"
        if not found.converged:
            lost.append(photo.name)
    if lost:
        raise NotFound(f"not found: {some(lost)} ({len(lost)} of {len(photos)} photos)")


def record(found: Localisation, photo: Path) -> dict[str, Any]:
    """What was found, ready for JSON, with its units."""
    return {
        "photo": photo.name,
        "camera_to_world": found.camera_to_world.tolist(),
        "axes": "OpenGL: x right, y up, looking along -z; world units of the scene's data",
        "covariance": found.covariance.tolist(),
        "covariance_of": "centre (world units), rotation vector (radians), both along world axes",
        "position_std": found.position_std,
        "rotation_std_deg": found.rotation_std_deg,
        "converged": found.converged,
        "why_not": found.why,
        "residual": found.residual,
        "explained": found.explained,
        "seconds": found.seconds,
    }


def told(found: Localisation, photo: Path) -> Iterator[str]:
    centre = found.camera_to_world[:, 3].tolist()
    where = ", ".join(told_to(v, found.position_std, least=6) for v in centre)
    state = "found" if found.converged else f"not found: {found.why};"
    yield f"{photo.name}: {state} centre ({where}) +- {found.position_std:.2g} world units,"
    yield (
        f"  orientation +- {found.rotation_std_deg:.2g} degrees, residual {found.residual:.3g}, "
        f"{found.explained:.0%} explained, {found.seconds:.2f} s"
    )


def _numbers(text: str) -> list[float]:
    try:
        found = [float(x) for x in text.split(",")]
    except ValueError:
        found = []
    if len(found) != 4:
        raise LocalizeError(f"--intrinsics: expected fx,fy,cx,cy in pixels, got {text!r}")
    return found


def _start(init: str | None) -> Any:
    """A word, or the pose in a JSON file: a matrix, or an object with camera_to_world or transform_matrix."""
    if init is None or not init.endswith(".json"):
        return init
    try:
        values = json.loads(Path(init).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LocalizeError(f"--init: {init} cannot be read as JSON: {error}") from None
    if isinstance(values, dict):
        found = next((values[key] for key in POSE_KEYS if key in values), None)
        if found is None:
            raise LocalizeError(f"--init: {init} has neither {' nor '.join(POSE_KEYS)}")
        return found
    return values
