"""`raymarch export`: what a run holds, in files that other programs read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from raymarch.config import ConfigError
from raymarch.data.pose_files import POSE_FORMATS, write_poses
from raymarch.train.held_out import aligned_cameras
from raymarch.train.runs import CAMERA_FIELDS, OpenRun
from raymarch.types import Cameras


def export_run(run: Path, out: Path | None, poses: str | None, held_out: bool, device: str) -> Iterator[str]:
    """Write what was asked for; yields the path of each file."""
    poses = poses or "transforms"
    if poses not in POSE_FORMATS:
        raise ConfigError(f"--poses: expected one of {', '.join(POSE_FORMATS)}, got {poses!r}")
    opened = OpenRun(run, device)
    yield from export_poses(opened, poses, out or run / "export" / poses, held_out)


def export_poses(run: OpenRun, form: str, out: Path, held_out: bool) -> Iterator[str]:
    """The training cameras as refined and, if asked for, the held-out ones moved along; world units."""
    cameras, names = run.train_cameras(), [run.names[i] for i in run.train]
    if held_out:
        cameras = _joined(cameras, aligned_cameras(run))
        names += [run.names[i] for i in run.test]
    poses = run.world_from_scene.apply_poses(cameras.camera_to_worlds.cpu().double())
    source = run.meta["scene"]["source"]
    folder = Path(source["path"]) if source else None
    photos = folder.parent if folder is not None and folder.is_file() else folder
    on_cpu = Cameras(*(getattr(cameras, f).cpu() for f in CAMERA_FIELDS))
    for path in write_poses(out, form, names, replace(on_cpu, camera_to_worlds=poses), photos):
        yield str(path)


def _joined(a: Cameras, b: Cameras) -> Cameras:
    return Cameras(*(torch.cat([getattr(a, f), getattr(b, f)]) for f in CAMERA_FIELDS))
