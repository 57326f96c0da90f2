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


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint; the message says why and what to do."""


def write(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` is at every moment absent, the old file or the whole new one."""
    header = {"raymarch": json.dumps({"format": FORMAT, **meta})}
    body = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, header)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a checkpoint; CheckpointError where it is truncated, newer or not ours."""
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("raymarch")
            if header is None:
                raise CheckpointError(f"{path} is a safetensors file, but not a raymarch checkpoint")
            meta = json.loads(header)
            if meta.get("format", 0) > FORMAT:
                raise CheckpointError(
                    f"{path} has checkpoint format {meta['format']}, this raymarch reads up to {FORMAT}: "
                    "upgrade raymarch to open it"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except (SafetensorError, json.JSONDecodeError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint ({error}); use an earlier file of the same run"
        ) from None


def path_at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:09d}{SUFFIX}"


def saved(run: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    return sorted((run / "checkpoints").glob(f"step-*{SUFFIX}"), reverse=True)


def newest(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint of a run that can be read. A damaged newest file falls back to the one before."""
    if not run.exists():
        raise CheckpointError(f"there is no run at {run}")
    files = saved(run)
    if not files:
        raise CheckpointError(f"{run} holds no checkpoint; expected {run / 'checkpoints'}/step-*{SUFFIX}")
    first_problem = None
    for file in files:
        try:
            return read(file)
        except CheckpointError as problem:
            first_problem = first_problem or problem
    raise first_problem or CheckpointError(f"{run} holds no checkpoint")


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for file in saved(run)[keep:]:
        file.unlink(missing_ok=True)
