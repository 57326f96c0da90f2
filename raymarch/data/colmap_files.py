"""The files of a COLMAP sparse model, binary and text: cameras, images, points3D, rigs and frames.

Each reader takes the bytes of one file and returns plain records; nothing here opens a file or knows about
photos. Poses are COLMAP's: world to camera, quaternions w x y z, camera axes x right, y down, z forward.
SceneError says where a file breaks. Formats: colmap.github.io/format.html and /rigs.html.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raymarch.data.error import SceneError

# Every camera model that COLMAP writes, by its number: name and number of parameters.
MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    ("SIMPLE_DIVISION", 4),
    ("DIVISION", 5),
    ("SIMPLE_FISHEYE", 3),
    ("FISHEYE", 4),
    ("EUCM", 6),
    ("EQUIRECTANGULAR", 2),
)
PARAMETERS = dict(MODELS)
LARGEST_SIDE = 1 << 20
CAMERA = 0  # the sensor that takes photos; others are inertial
SENSORS = {"CAMERA": CAMERA, "IMU": 1}


@dataclass(frozen=True)
class Camera:
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True)
class Rigid:
    """x -> R(quaternion) x + translation."""

    quaternion: tuple[float, float, float, float]  # w, x, y, z; of any length but zero
    translation: tuple[float, float, float]


@dataclass(frozen=True)
class Image:
    name: str
    camera: int
    camera_from_world: Rigid


@dataclass(frozen=True)
class Frame:
    """One moment of a rig."""

    rig: int
    rig_from_world: Rigid
    images: tuple[tuple[int, int], ...]  # (camera, image) of each photo taken


Rigs = dict[int, dict[int, Rigid | None]]  # rig -> camera -> camera from rig, None where unknown
IDENTITY = Rigid((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


class Bytes:
    """Little-endian values off a binary file, one after another."""

    def __init__(self, data: bytes, name: str):
        self.data, self.name, self.at = data, name, 0
        self.item = "its header"

    def take(self, layout: str) -> tuple:
        """The next values, as struct spells them."""
        size = struct.calcsize("<" + layout)
        start = self.skip(size)
        return struct.unpack_from("<" + layout, self.data, start)

    def skip(self, size: int) -> int:
        """Step over bytes that must be there; where they begin."""
        start = self.at
        if size > len(self.data) - start:
            raise SceneError(f"{self.name} ends at byte {len(self.data)} inside {self.item}: the file is cut "
                             "short or damaged; copy it again")  # fmt: skip
        self.at = start + size
        return start

    def text(self) -> str:
        """Up to the next zero byte. Bytes that are not UTF-8 stay as surrogates, as file names do."""
        end = self.data.find(b"\0", self.at)
        if end < 0:
            self.skip(len(self.data) - self.at + 1)
        start, self.at = self.at, end + 1
        return self.data[start:end].decode("utf-8", "surrogateescape")

    def items(self, what: str, smallest: int) -> Iterator[int]:
        """Number after number of a counted list, whose members take at least `smallest` bytes each."""
        (count,) = self.take("Q")
        if count * smallest > len(self.data) - self.at:
            raise SceneError(f"{self.name} says it holds {count} {what}s, but its {len(self.data)} bytes "
                             "cannot: the file is cut short or damaged; copy it again")  # fmt: skip
        for i in range(count):
            self.item = f"{what} {i + 1} of {count}"
            yield i
        if self.at != len(self.data):
            raise SceneError(f"{self.name} goes on for {len(self.data) - self.at} bytes after its last "
                             f"{what}: it is not a file of that kind, or damaged")  # fmt: skip

    def rigid(self) -> Rigid:
        values = self.take("7d")
        return rigid(values, f"{self.item} in {self.name}")


class Words:
    """The words of one line of a text file."""

    def __init__(self, line: str, place: str):
        self.words, self.place, self.at = line.split(), place, 0

    def word(self) -> str:
        if self.at >= len(self.words):
            raise SceneError(f"{self.place} ends after {len(self.words)} words: values are missing")
        self.at += 1
        return self.words[self.at - 1]

    def whole(self) -> int:
        text = self.word()
        if not re.fullmatch(r"-?[0-9]{1,20}", text):
            raise SceneError(f"{self.place} has {text!r:.40} where a whole number belongs")
        return int(text)

    def real(self) -> float:
        text = self.word()
        try:
            return float(text)
        except ValueError:
            raise SceneError(f"{self.place} has {text!r:.40} where a number belongs") from None

    def rigid(self) -> Rigid:
        return rigid(tuple(self.real() for _ in range(7)), self.place)

    def sensor(self) -> tuple[int, int]:
        word = self.word()
        if word not in SENSORS:
            raise SceneError(f"{self.place} has {word!r:.40} where a sensor ({', '.join(SENSORS)}) belongs")
        return SENSORS[word], self.whole()


def rigid(values: tuple[float, ...], place: str) -> Rigid:
    """A checked transform from seven numbers."""
    if not all(map(math.isfinite, values)):
        raise SceneError(f"the pose of {place} holds a number that is not finite")
    w, x, y, z, *translation = values
    if not 1e-12 < w * w + x * x + y * y + z * z < 1e12:
        raise SceneError(f"the pose of {place} has a quaternion of length zero or far from one")
    return Rigid((w, x, y, z), (translation[0], translation[1], translation[2]))


def lines(data: bytes, name: str) -> list[tuple[str, str]]:
    """(text, place) of every line but comments; empty lines stay, as they may stand for no points."""
    text = data.decode("utf-8", "surrogateescape")
    return [(line, f"line {i} of {name}") for i, line in enumerate(text.splitlines(), start=1)
            if not line.lstrip().startswith("#")]  # fmt: skip


def cameras(data: bytes, name: str, binary: bool) -> dict[int, Camera]:
    found: dict[int, Camera] = {}
    if binary:
        file = Bytes(data, name)
        for _ in file.items("camera", 24):
            number, model, width, height = file.take("IiQQ")
            if not 0 <= model < len(MODELS):
                raise SceneError(f"{file.item} in {name} has the unknown camera model number {model}: known "
                                 f"are 0 to {len(MODELS) - 1}")  # fmt: skip
            word, count = MODELS[model]
            params = file.take(f"{count}d")
            camera = _camera(word, width, height, params, f"{file.item} in {name}")
            _add(found, number, camera, f"camera {number}", name)
        return found
    for line, place in lines(data, name):
        if line.strip():
            words = Words(line, place)
            number, model = words.whole(), words.word()
            width, height = words.whole(), words.whole()
            if model not in PARAMETERS:
                known = ", ".join(PARAMETERS)
                raise SceneError(f"{place} has the unknown camera model {model!r:.40}: known are {known}")
            wanted, given = PARAMETERS[model], len(words.words) - words.at
            if given != wanted:
                raise SceneError(f"{place} gives {given} numbers for a {model} camera, which has {wanted}")
            params = tuple(words.real() for _ in range(wanted))
            _add(found, number, _camera(model, width, height, params, place), f"camera {number}", name)
    return found


def _camera(model: str, width: int, height: int, params: tuple[float, ...], place: str) -> Camera:
    if not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise SceneError(f"{place} is {width} x {height} pixels: a photo has 1 to {LARGEST_SIDE} a side")
    if not all(map(math.isfinite, params)):
        raise SceneError(f"{place} has a parameter that is not finite")
    return Camera(model, width, height, params)


def images(data: bytes, name: str, binary: bool) -> dict[int, Image]:
    found: dict[int, Image] = {}
    if binary:
        file = Bytes(data, name)
        for _ in file.items("image", 73):
            (number,) = file.take("I")
            pose = file.rigid()
            (camera,) = file.take("I")
            image = Image(file.text(), camera, pose)
            file.skip(24 * file.take("Q")[0])  # where points were seen
            _add(found, number, image, f"image {number}", name)
        return found
    rows = iter(lines(data, name))
    for line, place in rows:
        if not line.strip():
            continue
        words = Words(line, place)
        number, pose, camera = words.whole(), words.rigid(), words.whole()
        file_name = line.split(None, 9)[9:]  # may hold spaces
        if not file_name:
            raise SceneError(f"{place} has no file name")
        _add(found, number, Image(file_name[0].rstrip(), camera, pose), f"image {number}", name)
        next(rows, None)  # where points were seen
    return found


def points(data: bytes, name: str, binary: bool) -> np.ndarray:
    """Positions [P, 3] float64 in COLMAP's world."""
    found: list[tuple[float, ...]] = []
    if binary:
        file = Bytes(data, name)
        for _ in file.items("point", 51):
            found.append(file.take("8x3d11x"))
            file.skip(8 * file.take("Q")[0])  # who saw it
    else:
        for line, place in lines(data, name):
            if line.strip():
                words = Words(line, place)
                words.whole()
                found.append((words.real(), words.real(), words.real()))
    positions = np.array(found, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(positions).all():
        raise SceneError(f"{name} holds a point that is not finite")
    return positions


def rigs(data: bytes, name: str, binary: bool) -> Rigs:
    found: Rigs = {}
    if binary:
        file = Bytes(data, name)
        for _ in file.items("rig", 8):
            number, sensors = file.take("II")
            own: dict[int, Rigid | None] = {}
            for j in range(sensors):
                kind, sensor = file.take("iI")
                known = j > 0 and file.take("B")[0]
                pose = file.rigid() if known else None
                if kind == CAMERA:
                    own[sensor] = IDENTITY if j == 0 else pose
            _add(found, number, own, f"rig {number}", name)
        return found
    for line, place in lines(data, name):
        if line.strip():
            words = Words(line, place)
            number, sensors = words.whole(), words.whole()
            own = {}
            for j in range(sensors):
                kind, sensor = words.sensor()
                known = j > 0 and words.whole()
                pose = words.rigid() if known else None
                if kind == CAMERA:
                    own[sensor] = IDENTITY if j == 0 else pose
            _add(found, number, own, f"rig {number}", name)
    return found


def frames(data: bytes, name: str, binary: bool) -> dict[int, Frame]:
    found: dict[int, Frame] = {}
    if binary:
        file = Bytes(data, name)
        for _ in file.items("frame", 68):
            number, rig = file.take("II")
            pose = file.rigid()
            (count,) = file.take("I")
            seen = [file.take("iIQ") for _ in range(count)]
            taken = tuple((sensor, image) for kind, sensor, image in seen if kind == CAMERA)
            _add(found, number, Frame(rig, pose, taken), f"frame {number}", name)
        return found
    for line, place in lines(data, name):
        if line.strip():
            words = Words(line, place)
            number, rig, pose, count = words.whole(), words.whole(), words.rigid(), words.whole()
            listed = [(*words.sensor(), words.whole()) for _ in range(count)]
            taken = tuple((sensor, image) for kind, sensor, image in listed if kind == CAMERA)
            _add(found, number, Frame(rig, pose, taken), f"frame {number}", name)
    return found


def _add(found: dict, number: int, value: object, what: str, name: str) -> None:
    if number in found:
        raise SceneError(f"{name} holds {what} twice")
    found[number] = value
