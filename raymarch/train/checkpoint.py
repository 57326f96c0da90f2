"""Checkpoints: one safetensors file each, with a JSON header; written atomically, never pickled.

The header's `raymarch` entry is JSON: format version, step, config, and what of the scene the run needs to
stand alone. Tensors: `model.*`, `optim.*`, `cameras.*` and the trainer's counters.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = 1
SUFFIX = ".safetensors"
DRAFT = ".partial"
HEADER: dict[str, type] = {"step": int, "cameras": int, "config": dict, "scene": dict}
SCENE: dict[str, type] = {
    "names": list,
    "train": list,
    "test": list,
    "background": str,
    "world_from_scene": dict,
}
LARGEST_SIDE = 1 << 20  # pixels of a photo
CAMERAS = tuple(f"scene.{x}" for x in ("camera_to_worlds", "intrinsics", "distortion", "lens", "size"))
EARLIER = "; use an earlier file of the same run"


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message says why and what to do."""


def write(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` is at every moment absent, the old file or the whole new one.

    OSError where that is not possible; nothing half written is left then.
    """
    header = {"raymarch": json.dumps({"format": FORMAT, **meta})}
    body = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, header)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(DRAFT)
    try:
        with open(partial, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror, str(path)) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a checkpoint; CheckpointError where it is truncated, newer or not ours."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a checkpoint file")
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("raymarch")
            if header is None:
                raise CheckpointError(f"{path} is a safetensors file, but not a raymarch checkpoint")
            meta = _header(json.loads(header), path)
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except FileNotFoundError:
        if path.exists():  # what safetensors says of a file that may not be read
            raise CheckpointError(f"{path} cannot be read: allow it, or copy the run") from None
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except (SafetensorError, json.JSONDecodeError, RecursionError, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or not a checkpoint ({reason}){EARLIER}") from None


def _header(meta: Any, path: Path) -> dict[str, Any]:
    """The header, if it is one that this version reads."""
    found = meta.get("format") if isinstance(meta, dict) else None
    if type(found) is not int:
        raise CheckpointError(f"{path} has a header without a format number: it is no raymarch checkpoint")
    if found > FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {found}, this raymarch reads up to {FORMAT}: "
            "upgrade raymarch to open it"
        )
    for name, kind in HEADER.items():
        if type(meta.get(name)) is not kind:
            raise CheckpointError(
                f"{path} has a damaged header: {name} is {meta.get(name)!r:.40}, expected {kind.__name__}"
                f"{EARLIER}"
            )
    return meta


def check_whole(run: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """CheckpointError where the header or the tensors lack what a run is opened with."""
    if wrong := _fault(meta, tensors):
        raise CheckpointError(
            f"the newest checkpoint of {run} is damaged: {wrong} is not what it should be; remove it to go "
            "back to the one before"
        )


def _fault(meta: dict[str, Any], tensors: dict[str, Tensor]) -> str | None:
    """The first thing wrong with a checkpoint's scene, in words."""
    scene = meta["scene"]
    for name, kind in SCENE.items():
        if type(scene.get(name)) is not kind:
            return f"scene.{name}"
    if not _loadable(scene.get("source")):
        return "scene.source"
    count = len(scene["names"])
    known = all(type(i) is int and 0 <= i < count for i in (*scene["train"], *scene["test"]))
    if not known or [tensors[x].shape[:1] for x in CAMERAS if x in tensors] != [(count,)] * len(CAMERAS):
        return "the list of photos or their cameras"
    if meta["cameras"] != len(scene["train"]):
        return "the number of training cameras"
    if not all(tensors[x].isfinite().all() for x in CAMERAS):
        return "a camera's pose or lens"
    size = tensors["scene.size"]
    return None if bool(((size >= 1) & (size <= LARGEST_SIDE)).all()) else "the size of a photo"


def _loadable(source: Any) -> bool:
    """Whether that says how to load a scene, or that nothing is known of it."""
    if source is None:
        return True
    options = source.get("options") if isinstance(source, dict) else None
    if not isinstance(options, dict) or not isinstance(source.get("path"), str):
        return False
    return options.get("cache") is None or isinstance(options["cache"], str)


def path_at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09d}{SUFFIX}"


def saved(run: Path) -> list[Path]:
    """Checkpoints of a run, newest first. CheckpointError for a folder that may not be read."""
    try:
        return sorted((run / "checkpoints").glob(f"step-*{SUFFIX}"), reverse=True)
    except PermissionError:
        raise CheckpointError(f"{run} cannot be read: allow it, or copy the run") from None


def newest(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint of a run that can be read. A damaged newest file falls back to the one before.

    The header's `problems` (not in the file) then says so, a sentence for each file passed over.
    """
    files = saved(run)
    if not run.exists():
        raise CheckpointError(f"there is no run at {run}")
    if not files:
        inside = next((f"; did you mean {x}?" for x in sorted(run.glob("*/")) if saved(x)), "")
        raise CheckpointError(
            f"{run} holds no checkpoint; expected {run / 'checkpoints'}/step-*{SUFFIX}{inside}"
        )
    problems: list[CheckpointError] = []
    for file in files:
        try:
            tensors, meta = read(file)
        except CheckpointError as problem:
            problems.append(problem)
            continue
        return tensors, meta | {"problems": [f"{p}: {file.name} is used" for p in problems]}
    told = str(problems[0]).removesuffix(EARLIER)
    left = "it is the only one" if len(files) == 1 else f"none of the run's {len(files)} can be read"
    raise CheckpointError(f"{told}; {left}: put back a copy, or train again")


def prune(run: Path, keep: int, step: int) -> None:
    """Delete all but the newest `keep` checkpoints up to a step, and drafts that a killed process left.

    Files of later steps are damaged ones that a resumed run went back behind: they count for nothing.
    """
    for file in [file for file in saved(run) if file <= path_at(run, step)][keep:]:
        file.unlink(missing_ok=True)
    for draft in (run / "checkpoints").glob(f"step-*{DRAFT}"):
        draft.unlink(missing_ok=True)
