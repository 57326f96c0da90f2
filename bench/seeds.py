"""Small valid files of every format that the loaders read: what fuzzing breaks and tests vary.

COLMAP models are written from records of data/colmap_files.py by writers of their own, so that a reader and a
writer that share a mistake are not each other's only witness: the layouts follow COLMAP's documentation.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image as Picture

from raymarch.data.colmap_files import IDENTITY, MODELS, PARAMETERS, Camera, Frame, Image, Rigid, Rigs

Model = dict[str, bytes]  # file name -> bytes


def facing(position, target=(0.0, 0.0, 0.0), up=(0.0, 1.0, 0.0)) -> np.ndarray:
    """A [4, 4] OpenGL pose looking at a point."""
    back = np.subtract(position, target).astype(float)
    back /= np.linalg.norm(back)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, position], axis=1)
    return pose


def ring(count: int) -> list[np.ndarray]:
    return [facing((3 * np.cos(a), 0.4 * np.sin(3 * a), 3 * np.sin(a))) for a in np.arange(count) * 0.7]


def quaternion(R: np.ndarray) -> tuple[float, float, float, float]:
    """w, x, y, z of a rotation [3, 3], by the eigenvector of Bar-Itzhack's matrix (2000)."""
    K = np.zeros((4, 4))
    K[:3, :3] = R + R.T - np.trace(R) * np.eye(3)
    K[3, :3] = K[:3, 3] = (R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1])
    K[3, 3] = np.trace(R)
    x, y, z, w = np.linalg.eigh(K)[1][:, -1].tolist()
    return w, x, y, z


def from_opengl(pose: np.ndarray) -> Rigid:
    """World to camera as COLMAP has it, of an OpenGL camera to world [4, 4]."""
    R = (pose[:3, :3] @ np.diag([1.0, -1.0, -1.0])).T
    a, b, c = (-R @ pose[:3, 3]).tolist()
    return Rigid(quaternion(R), (a, b, c))


def colmap_binary(
    cameras: Mapping[int, Camera],
    images: Mapping[int, Image],
    points: np.ndarray | None = None,
    rigs: Rigs | None = None,
    frames: Mapping[int, Frame] | None = None,
) -> Model:
    """The .bin files of a sparse model."""
    numbers = {name: i for i, (name, _) in enumerate(MODELS)}
    body = struct.pack("<Q", len(cameras))
    for number, c in cameras.items():
        body += struct.pack("<IiQQ", number, numbers[c.model], c.width, c.height)
        body += struct.pack(f"<{len(c.params)}d", *c.params)
    files = {"cameras.bin": body}
    body = struct.pack("<Q", len(images))
    for number, image in images.items():
        pose = image.camera_from_world
        body += struct.pack("<I7dI", number, *pose.quaternion, *pose.translation, image.camera)
        body += image.name.encode("utf-8", "surrogateescape") + b"\0"
        body += struct.pack("<Q", 2) + struct.pack("<ddQddQ", 1.5, 2.5, 7, 3.0, 4.0, (1 << 64) - 1)
    files["images.bin"] = body
    if points is not None:
        body = struct.pack("<Q", len(points))
        for i, p in enumerate(points):
            body += struct.pack("<Q3d3BdQ", i, *p, 9, 8, 7, 0.5, 1) + struct.pack("<II", 1, 0)
        files["points3D.bin"] = body
    if rigs is not None:
        body = struct.pack("<Q", len(rigs))
        for number, sensors in rigs.items():
            body += struct.pack("<II", number, len(sensors))
            for j, (camera, known) in enumerate(sensors.items()):
                body += struct.pack("<iI", 0, camera)
                if j:
                    body += struct.pack("<B", known is not None)
                    body += struct.pack("<7d", *known.quaternion, *known.translation) if known else b""
        files["rigs.bin"] = body
    if frames is not None:
        body = struct.pack("<Q", len(frames))
        for number, frame in frames.items():
            pose = frame.rig_from_world
            body += struct.pack("<II7dI", number, frame.rig, *pose.quaternion, *pose.translation,
                                len(frame.images))  # fmt: skip
            body += b"".join(struct.pack("<iIQ", 0, camera, image) for camera, image in frame.images)
        files["frames.bin"] = body
    return files


def colmap_text(
    cameras: Mapping[int, Camera],
    images: Mapping[int, Image],
    points: np.ndarray | None = None,
    rigs: Rigs | None = None,
    frames: Mapping[int, Frame] | None = None,
) -> Model:
    """The .txt files of a sparse model."""

    def seven(pose: Rigid) -> str:
        return " ".join(map(repr, (*pose.quaternion, *pose.translation)))

    rows = {"cameras": ["# Camera list", "#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]}
    for number, c in cameras.items():
        rows["cameras"].append(f"{number} {c.model} {c.width} {c.height} {' '.join(map(repr, c.params))}")
    rows["images"] = ["# Image list with two lines of data per image:"]
    for number, image in images.items():
        rows["images"] += [f"{number} {seven(image.camera_from_world)} {image.camera} {image.name}", ""]
    if points is not None:
        rows["points3D"] = [
            f"{i} {' '.join(map(repr, p.tolist()))} 9 8 7 0.5 1 0" for i, p in enumerate(points)
        ]
    if rigs is not None:
        rows["rigs"] = []
        for number, sensors in rigs.items():
            words = [f"{number} {len(sensors)}"]
            for j, (camera, known) in enumerate(sensors.items()):
                words.append(f"CAMERA {camera}")
                if j:
                    words.append(f"1 {seven(known)}" if known else "0")
            rows["rigs"].append(" ".join(words))
    if frames is not None:
        rows["frames"] = [
            f"{number} {frame.rig} {seven(frame.rig_from_world)} {len(frame.images)} "
            + " ".join(f"CAMERA {camera} {image}" for camera, image in frame.images)
            for number, frame in frames.items()
        ]
    return {f"{name}.txt": ("\n".join(lines) + "\n").encode() for name, lines in rows.items()}


def small_model(count: int = 3, rigged: bool = True) -> dict:
    """The records of a model of a few photos, as the keyword arguments of the writers."""
    cameras = {i + 1: Camera(name, 12, 8, _lens(name)) for i, (name, _) in enumerate(MODELS[:6])}
    poses = [from_opengl(pose) for pose in ring(count)]
    images = {i + 1: Image(f"photo {i}.png", 1 + i % 6, pose) for i, pose in enumerate(poses)}
    made: dict = {"cameras": cameras, "images": images, "points": np.array([[0.1, 0.2, 0.3], [-0.1, 0, 1]])}
    if rigged:
        made["rigs"] = {i: {i: IDENTITY} for i in cameras}
        made["frames"] = {
            i: Frame(x.camera, x.camera_from_world, ((x.camera, i),)) for i, x in images.items()
        }
    return made


def _lens(name: str) -> tuple[float, ...]:
    count = PARAMETERS[name]
    focal = (10.0, 6.0, 4.0) if name.startswith("SIMPLE") or name == "RADIAL" else (10.0, 11.0, 6.0, 4.0)
    return (*focal, *[0.01] * (count - len(focal)))


def poses_bounds(poses: Sequence[np.ndarray], width: float, height: float, focal: float) -> bytes:
    """poses_bounds.npy of OpenGL poses [4, 4]."""
    rows = []
    for pose in poses:
        right, up, back, position = pose[:3].T
        matrix = np.stack([-up, right, back, position, (height, width, focal)], axis=1)
        rows.append([*matrix.ravel(), 0.5, 9.0])
    file = io.BytesIO()
    np.save(file, np.array(rows))
    return file.getvalue()


def transforms(count: int = 3, folder: str = "images", **changes) -> bytes:
    """A transforms.json of nerfstudio."""
    frames = [
        {"file_path": f"{folder}/{i:03d}.png", "transform_matrix": pose.tolist()}
        for i, pose in enumerate(ring(count))
    ]
    lens = {"fl_x": 10.0, "fl_y": 11.0, "cx": 6.5, "cy": 4.25, "w": 12, "h": 8, "k1": 0.01}
    meta = {**lens, "camera_model": "OPENCV", "frames": frames, **changes}
    return json.dumps({k: v for k, v in meta.items() if v is not None}).encode()


def picture(values: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Picture.fromarray(values).save(file, format=kind)
    return file.getvalue()


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def exr(planes: Mapping[str, np.ndarray], compression: str = "ZIP", half: bool = False) -> bytes:
    """An OpenEXR file of scan lines: NONE, RLE, ZIPS or ZIP."""
    number = ("NONE", "RLE", "ZIPS", "ZIP").index(compression)
    lines = 16 if compression == "ZIP" else 1
    names = sorted(planes)
    height, width = planes[names[0]].shape
    kind = struct.pack("<iiii", 1 if half else 2, 0, 1, 1)
    window = struct.pack("<iiii", 3, 5, 2 + width, 4 + height)  # a window need not begin at zero
    attributes = (
        ("channels", "chlist", b"".join(x.encode() + b"\0" + kind for x in names) + b"\0"),
        ("compression", "compression", bytes([number])),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<ff", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    )
    header = struct.pack("<ii", 20000630, 2)
    for name, word, data in attributes:
        header += f"{name}\0{word}\0".encode() + struct.pack("<i", len(data)) + data
    header += b"\0"
    blocks = []
    for y in range(0, height, lines):
        rows = [planes[x][row].astype("<f2" if half else "<f4").tobytes()
                for row in range(y, min(y + lines, height)) for x in names]  # fmt: skip
        plain = b"".join(rows)
        packed = _packed(plain, compression)
        blocks.append(struct.pack("<ii", 5 + y, len(packed)) + packed)
    at = len(header) + 8 * len(blocks) + np.cumsum([0, *map(len, blocks)])[:-1]
    return header + struct.pack(f"<{len(blocks)}Q", *at.tolist()) + b"".join(blocks)


def _packed(plain: bytes, compression: str) -> bytes:
    if compression == "NONE":
        return plain
    apart = np.frombuffer(plain[0::2] + plain[1::2], np.uint8).astype(np.int64)
    steps = np.concatenate([apart[:1], (np.diff(apart) + 128) % 256]).astype(np.uint8).tobytes()
    packed = _runs(steps) if compression == "RLE" else zlib.compress(steps)
    return packed if len(packed) < len(plain) else plain


def _runs(data: bytes) -> bytes:
    out, at = b"", 0
    while at < len(data):
        run = 1
        while run < 128 and at + run < len(data) and data[at + run] == data[at]:
            run += 1
        if run > 2:
            out += bytes([run - 1, data[at]])
            at += run
        else:
            out += bytes([255, data[at]])  # minus one: one byte as it is
            at += 1
    return out
