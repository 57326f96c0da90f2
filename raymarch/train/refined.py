"""What pose refinement found, camera by camera, in world units; and adjustments from elsewhere put to use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymarch.data.alignment import align_most, rotation_angle, standing_out
from raymarch.data.error import SceneError
from raymarch.data.pose_files import read_adjustments
from raymarch.data.scene import Scene
from raymarch.data.similarity import RIGID_TOLERANCE
from raymarch.model.poses import compose
from raymarch.ops.pose import MODES, pose
from raymarch.ops.rays import COMPOSES
from raymarch.train.runs import OpenRun


@dataclass(frozen=True)
class RefinedPoses:
    """C training cameras before and after refinement. Everything is on the CPU; poses have OpenGL axes."""

    names: tuple[str, ...]
    adjustment: Tensor  # [C, 6] float32 (translation in scene units, rotation vector in radians); 0 where off
    mode: str  # off, SO3xR3 or SE3
    compose: str  # camera or world: how `adjustment` is applied
    frozen: tuple[bool, ...]
    given: Tensor  # [C, 3, 4] float64, world units
    refined: Tensor  # [C, 3, 4] float64, world units
    turned: Tensor  # [C] degrees from given to refined
    moved: Tensor  # [C] world units from given to refined
    turned_alone: Tensor  # [C] degrees that remain after the common similarity is taken out
    moved_alone: Tensor  # [C] world units, the same
    drift: dict[str, float]  # that similarity: scale, degrees, and how far the mean of the centres went
    outliers: tuple[int, ...]  # cameras that were corrected far more than the others


@torch.no_grad()
def refined_poses(run: OpenRun) -> RefinedPoses:
    """Read the training cameras' corrections out of a run."""
    poses = run.model.poses
    given_scene = run.train_cameras(refined=False).camera_to_worlds.cpu()
    refined_scene = run.train_cameras().camera_to_worlds.cpu()
    to_world = run.world_from_scene
    given, refined = (to_world.apply_poses(x.double()) for x in (given_scene, refined_scene))
    count = len(given)
    six = poses.six_numbers()
    xi = None if six is None else six.cpu()
    free = [True] * count if poses.free is None else poses.free.flatten().tolist()
    back = align_most(refined, given)
    spread = float((given[..., 3] - given[..., 3].mean(0)).norm(dim=-1).max())
    turned_alone, moved_alone = back.rotation_error_deg, back.translation_error
    drift = {
        "scale": 1 / back.scale if back.scale > 0 else math.inf,
        "degrees": math.degrees(float(rotation_angle(back.rotation))),
        "centre_moved": float((refined[..., 3].mean(0) - given[..., 3].mean(0)).norm()),
    }
    return RefinedPoses(
        names=tuple(run.names[i] for i in run.train),
        adjustment=torch.zeros(count, 6) if xi is None else xi,
        mode=poses.config.mode,
        compose=poses.config.compose,
        frozen=tuple(not x or poses.config.mode == "off" for x in free),
        given=given,
        refined=refined,
        turned=_degrees_between(given, refined),
        moved=(given[..., 3] - refined[..., 3]).norm(dim=-1),
        turned_alone=turned_alone,
        moved_alone=moved_alone,
        drift=drift,
        outliers=tuple(standing_out(turned_alone, moved_alone, spread).nonzero()[:, 0].tolist()),
    )


def _degrees_between(a: Tensor, b: Tensor) -> Tensor:
    return rotation_angle(a[..., :3].transpose(-1, -2) @ b[..., :3]) * (180 / math.pi)


def report_rows(poses: RefinedPoses) -> list[dict[str, Any]]:
    """One dictionary per camera, ready for JSON: degrees and world units."""
    return [
        {
            "camera": i,
            "name": name,
            "frozen": poses.frozen[i],
            "degrees": float(poses.turned[i]),
            "world_units": float(poses.moved[i]),
            "degrees_without_drift": float(poses.turned_alone[i]),
            "world_units_without_drift": float(poses.moved_alone[i]),
            "stands_out": i in poses.outliers,
            "adjustment": poses.adjustment[i].tolist(),
            "camera_to_world": poses.refined[i].tolist(),
        }
        for i, name in enumerate(poses.names)
    ]


def adjusted(scene: Scene, adjustments: Tensor, convention: str, mode: str = "SO3xR3") -> Scene:
    """The scene with its poses moved by adjustments from elsewhere, in the scene's frame.

    adjustments: [C, 6] (translation, rotation vector in radians; a matrix by `mode`, SO3xR3 or SE3) or
    [C, 3, 4]; C training photos, in their order, or all photos. convention: camera (pose x adjustment, the
    camera's axes; nerfstudio 0.3 and F3RM) or world (turn about the centre, move along the scene's axes;
    nerfstudio 1.x). nerfstudio's frame is the default one here: orientation up, centre poses, scale auto.
    SceneError where they do not fit.
    """
    if convention not in COMPOSES:
        raise SceneError(f"the convention of pose adjustments is camera or world, not {convention!r}")
    if mode not in MODES:
        raise SceneError(f"pose adjustments [C, 6] are read as {' or '.join(MODES)}, not {mode!r}")
    if (adjustments.ndim, tuple(adjustments.shape[1:])) not in ((2, (6,)), (3, (3, 4))):
        shape = list(adjustments.shape)
        raise SceneError(f"pose adjustments have shape {shape}, expected [C, 6] or [C, 3, 4]")
    if not bool(adjustments.isfinite().all()):
        raise SceneError("pose adjustments hold numbers that are not finite")
    which: Sequence[int] = range(len(scene.names)) if len(adjustments) == len(scene.names) else scene.train
    if len(adjustments) != len(which):
        raise SceneError(
            f"there are {len(adjustments)} pose adjustments, expected one for each of {len(scene.train)} "
            f"training photos or of all {len(scene.names)}"
        )
    matrices = adjustments if adjustments.ndim == 3 else pose(adjustments.float(), mode)
    turn = matrices[..., :3].double()
    off = (turn.transpose(1, 2) @ turn - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
    if wrong := (off > RIGID_TOLERANCE).nonzero()[:, 0].tolist():
        raise SceneError(f"pose adjustment {wrong[0]} is not rigid: its 3 x 3 part is not a rotation")
    poses = scene.cameras.camera_to_worlds.clone()
    rows = torch.tensor(list(which))
    poses[rows] = compose(poses[rows], matrices.float(), convention)
    return replace(scene, cameras=replace(scene.cameras, camera_to_worlds=poses))


def named_adjustments(
    path: str | Path | None, convention: str | None, mode: str | None = None
) -> dict[str, str] | None:
    """How to find adjustments again, for `with_adjustments`; None where none were asked for."""
    if path is None:
        for option, word in (("--convention", convention), ("--adjustments-mode", mode)):
            if word is not None:
                raise SceneError(f"{option} says how to read --adjustments, but none were given")
        return None
    if convention is None:
        raise SceneError("--adjustments needs --convention camera or --convention world: files do not say")
    return {"path": str(Path(path).resolve()), "convention": convention, "mode": mode or "SO3xR3"}


def with_adjustments(scene: Scene, named: dict[str, str] | None) -> Scene:
    """The scene with the adjustments of a file, or as it is."""
    if named is None:
        return scene
    values = read_adjustments(named["path"])
    return adjusted(scene, values, named["convention"], named.get("mode", "SO3xR3"))  # older runs name none
