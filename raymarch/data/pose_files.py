"""Camera poses to files that other programs read, and pose adjustments out of files that others wrote.

Poses come in as camera to world, OpenGL axes, world units. Three formats go out:

    transforms  transforms.json of nerfstudio and instant-ngp: camera to world, OpenGL axes
    colmap      cameras.txt, images.txt (world to camera, OpenCV axes) and an empty points3D.txt
    tum         `timestamp tx ty tz qx qy qz qw` a line: camera to world, OpenCV axes; the timestamp is the
                place of the photo in the list, in seconds, for photos have no times
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymarch.data.archive import open_npz
from raymarch.data.atomic import write_text
from raymarch.data.error import SceneError
from raymarch.data.nerfstudio import MODELS, NUMBERS, TERMS
from raymarch.types import LENSES, Cameras

POSE_FORMATS = ("transforms", "colmap", "tum")
MODEL_OF = {
    "perspective": "OPENCV",
    "fisheye": "OPENCV_FISHEYE",
    **{lens: model for model, lens in MODELS.items() if lens not in ("perspective", "fisheye")},
}
OPENCV_FROM_OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))


def write_poses(
    out: Path, form: str, names: Sequence[str], cameras: Cameras, photos: Path | None = None
) -> list[Path]:
    """Write poses into the folder `out`; returns the files. `cameras` holds world poses [C, 3, 4].

    `photos` is the folder that the names are relative to: where a photo lies there, transforms.json names it
    relative to `out`. SceneError for a format or a lens that cannot be written; nothing is written then.
    """
    if form not in POSE_FORMATS:
        raise SceneError(f"poses can be written as {', '.join(POSE_FORMATS)}, not {form!r}")
    if len(names) != len(cameras.size) or not len(names):
        raise SceneError(f"there are {len(names)} names for {len(cameras.size)} poses: nothing was written")
    if not bool(cameras.camera_to_worlds.isfinite().all()):
        raise SceneError("some poses are not finite: nothing was written")
    if form == "transforms":
        texts = _transforms(names, cameras, out, photos)
    else:
        texts = _colmap(names, cameras) if form == "colmap" else _tum(names, cameras)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def _transforms(names, cameras: Cameras, out: Path, photos: Path | None) -> dict[str, str]:
    frames = []
    for i, name in enumerate(names):
        lens = LENSES[int(cameras.lens[i])]
        frame: dict[str, Any] = {"file_path": _stated(name, out, photos), "camera_model": MODEL_OF[lens]}
        frame |= dict(zip(("w", "h"), cameras.size[i].tolist(), strict=True))
        numbers = zip(("fx", "fy", "cx", "cy"), cameras.intrinsics[i].tolist(), strict=True)
        frame |= {NUMBERS[key]: value for key, value in numbers}
        terms = cameras.distortion[i].tolist()
        if lens == "fisheye624":
            frame["distortion_params"] = terms
        else:
            frame |= {key: value for key, value in zip(TERMS, terms[:6], strict=True) if value}
        pose = cameras.camera_to_worlds[i].double().tolist()
        frames.append(frame | {"transform_matrix": [*pose, [0.0, 0.0, 0.0, 1.0]]})
    return {"transforms.json": json.dumps({"frames": frames}, indent=1) + "\n"}


def _stated(name: str, out: Path, photos: Path | None) -> str:
    if photos is not None and (photos / name).is_file():
        return Path(os.path.relpath(photos / name, out)).as_posix()
    return name


def _colmap(names, cameras: Cameras) -> dict[str, str]:
    lines = [
        "# Camera list with one line of data per camera:",
        "#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]",
    ]
    ids: dict[str, int] = {}
    owner = []
    for i, name in enumerate(names):
        line = _colmap_camera(cameras, i, name)
        if line not in ids:
            ids[line] = len(ids) + 1
            lines.append(f"{ids[line]} {line}")
        owner.append(ids[line])
    rows = [
        "# Image list with two lines of data per image:",
        "#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
        "#   POINTS2D[] as (X, Y, POINT3D_ID)",
    ]
    for i, name in enumerate(names):
        pose = cameras.camera_to_worlds[i].double().cpu()
        turn = (pose[:, :3] @ OPENCV_FROM_OPENGL).T
        x, y, z, w = quaternion(turn).tolist()
        numbers = (w, x, y, z, *(-(turn @ pose[:, 3])).tolist())
        rows += [f"{i + 1} {_spelled(numbers)} {owner[i]} {name}", ""]
    points = "# 3D point list with one line of data per point: none were exported\n"
    return {
        "cameras.txt": "\n".join(lines) + "\n",
        "images.txt": "\n".join(rows) + "\n",
        "points3D.txt": points,
    }


def _colmap_camera(cameras: Cameras, i: int, name: str) -> str:
    lens = LENSES[int(cameras.lens[i])]
    width, height = cameras.size[i].tolist()
    numbers = cameras.intrinsics[i].double().tolist()
    k1, k2, k3, k4, p1, p2 = cameras.distortion[i].double().tolist()[:6]
    if lens == "fisheye" and not (p1 or p2):
        return f"OPENCV_FISHEYE {width} {height} {_spelled((*numbers, k1, k2, k3, k4))}"
    if lens != "perspective" or k4:
        raise SceneError(f"{name}: COLMAP has no model for this lens ({lens}); export as transforms or tum")
    if k3:
        return f"FULL_OPENCV {width} {height} {_spelled((*numbers, k1, k2, p1, p2, k3, 0, 0, 0))}"
    if k1 or k2 or p1 or p2:
        return f"OPENCV {width} {height} {_spelled((*numbers, k1, k2, p1, p2))}"
    return f"PINHOLE {width} {height} {_spelled(numbers)}"


def _tum(names, cameras: Cameras) -> dict[str, str]:
    rows = [
        "# timestamp tx ty tz qx qy qz qw: camera to world, x right, y down, z ahead",
        "# timestamps are places in the list below, in seconds",
        *(f"# {i} {name}" for i, name in enumerate(names)),
    ]
    for i in range(len(names)):
        pose = cameras.camera_to_worlds[i].double().cpu()
        numbers = (*pose[:, 3].tolist(), *quaternion(pose[:, :3] @ OPENCV_FROM_OPENGL).tolist())
        rows.append(f"{float(i):.6f} {_spelled(numbers)}")
    return {"poses.tum": "\n".join(rows) + "\n"}


def _spelled(numbers: Sequence[float]) -> str:
    return " ".join(f"{x:.12g}" for x in numbers)


def quaternion(rotation: Tensor) -> Tensor:
    """(x, y, z, w) with w >= 0 of a rotation [3, 3], float64; by the largest component (Shepperd 1978)."""
    m = rotation.double()
    trace = m.diagonal().sum()
    squares = torch.stack([m[0, 0], m[1, 1], m[2, 2], trace])
    largest = int(squares.argmax())
    q = torch.empty(4, dtype=torch.float64)
    if largest == 3:
        q[:3] = torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
        q[3] = 1 + trace
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        q[i], q[j], q[k] = 1 + m[i, i] - m[j, j] - m[k, k], m[j, i] + m[i, j], m[k, i] + m[i, k]
        q[3] = m[k, j] - m[j, k]
    q = q / q.norm()
    return -q if q[3] < 0 else q


def read_adjustments(path: str | Path) -> Tensor:
    """Pose adjustments from .safetensors, .npz or .json: [C, 6] (translation, rotation vector) or [C, 3, 4].

    The one array of that shape in the file is taken; where there are several, the one whose name ends in
    `pose_adjustment`. Float64. Nothing is unpickled. SceneError says what is wrong.
    """
    path = Path(path)
    arrays = {name: value for name, value in _arrays(path).items() if _fits(value)}
    if len(arrays) > 1:
        arrays = {k: v for k, v in arrays.items() if k.endswith("pose_adjustment")}
    if len(arrays) != 1:
        raise SceneError(
            f"{path} holds no array of pose adjustments, or several: expected one [C, 6] or [C, 3, 4], "
            "or one named pose_adjustment"
        )
    found = torch.from_numpy(np.array(next(iter(arrays.values())), dtype=np.float64))
    if not bool(found.isfinite().all()):
        raise SceneError(f"{path} holds pose adjustments that are not finite")
    return found


def _fits(value: np.ndarray) -> bool:
    return value.dtype.kind in "iuf" and (value.ndim, value.shape[1:]) in ((2, (6,)), (3, (3, 4)))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return {name: value.float().numpy() for name, value in load_file(path).items()}
        if path.suffix == ".npz":
            with open_npz(path) as file:
                return {name: file[name] for name in file.files}
        if path.suffix == ".json":
            values = json.loads(path.read_text("utf-8"))
            values = values if isinstance(values, dict) else {"pose_adjustment": values}
            return {k: np.array(v, dtype=np.float64) for k, v in values.items() if isinstance(v, list)}
    except Exception as error:  # a damaged file makes readers raise what they like
        raise SceneError(f"{path} cannot be read as pose adjustments: {error}") from None
    raise SceneError(
        f"{path}: pose adjustments are read from .safetensors, .npz and .json; a pickled checkpoint (.ckpt, "
        ".pt) is never opened: save its pose_adjustment tensor as one of these"
    )
