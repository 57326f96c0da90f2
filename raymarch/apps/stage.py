"""What the viewer shows, without the viewer: a run, an eye, and pictures that get finer at rest."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from raymarch.apps.pictures import Look
from raymarch.data.paths import cameras_of
from raymarch.train.runs import subset
from raymarch.trained import TrainedScene
from raymarch.types import LENSES, Cameras

HEADS = ("rgb", "depth", "normals", "pca", "similarity")
MOVING = 0.12  # seconds that a picture may take while the eye moves
STEP = 4.0  # each picture has so many times the pixels of the one before
LEAST = 32  # pixels of the longer side, at least
SHARE = 0.04  # of the machine that following a training may take: what trains goes first
PATIENCE = 30.0  # seconds after which news is taken over whatever has been drawn meanwhile
OPENGL = np.diag([1.0, -1.0, -1.0])  # from OpenCV's camera axes, and back


@dataclass(frozen=True)
class Eye:
    """Where someone looks from: scene units, OpenGL axes."""

    camera_to_world: np.ndarray  # [3, 4]
    fov: float  # vertical, radians
    aspect: float  # width / height


@dataclass(frozen=True)
class Wish:
    """What someone wants to see."""

    head: str = "rgb"
    positives: str = ""  # texts between commas: all of them describe one thing
    negatives: str = ""
    reduced: bool = True  # the faster mode, where it is one


@dataclass(frozen=True)
class Shown:
    """A finished picture."""

    picture: np.ndarray  # [h, w, 3] uint8
    z: np.ndarray  # [h, w] float32, distance along the viewing axis, scene units
    seconds: float
    note: str = ""  # what could not be done, in a sentence


def eye_of(position: np.ndarray, rotation: np.ndarray, fov: float, aspect: float) -> Eye:
    """An eye from a camera with OpenCV's axes: position [3], rotation [3, 3]."""
    return Eye(np.concatenate([rotation @ OPENGL, np.reshape(position, (3, 1))], 1), fov, aspect)


def camera_at(eye: Eye, pixels: float, device: torch.device) -> Cameras:
    """A pinhole camera of about so many pixels."""
    height = max(1, round(math.sqrt(pixels / eye.aspect)))
    width = max(1, round(height * eye.aspect))
    focal = 0.5 * height / math.tan(0.5 * eye.fov)
    pose = torch.from_numpy(np.asarray(eye.camera_to_world, np.float32))[None]
    numbers = torch.tensor([[focal, focal, width / 2, height / 2]])
    return subset(cameras_of(pose, numbers, width, height), (0,), device)


def words_in(text: str) -> list[str]:
    """`red ball, ball` as its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


@dataclass
class Stage:
    """One run, opened to be looked at. Use it from one thread."""

    scene: TrainedScene
    side: int  # pixels of the longer side of the finest picture
    rate: float = 20_000.0  # rays a second, as measured so far
    worked: float = 0.0  # seconds that pictures and news have kept from a training beside
    _looks: dict[Wish, Look] = field(default_factory=dict)
    _news: tuple[float, float] = (-math.inf, 0.0)  # when the last news came, and `worked` before it

    @property
    def heads(self) -> list[str]:
        """What this run can show."""
        features = self.scene.model.fields.feature is not None
        return [h for h in HEADS if features or h not in ("pca", "similarity")]

    def finer(self, eye: Eye, moving: bool) -> Iterator[float]:
        """Pixel counts of the pictures to draw, coarse to fine; the first alone while the eye moves."""
        most = self.side**2 / max(eye.aspect, 1 / eye.aspect)
        least = LEAST**2 / max(eye.aspect, 1 / eye.aspect)
        pixels = min(most, max(least, self.rate * MOVING))
        yield pixels
        while not moving and pixels < most:
            pixels = most if pixels * STEP * 1.5 > most else pixels * STEP
            yield pixels

    def draw(self, eye: Eye, wish: Wish, pixels: float) -> Shown:
        """One picture. Words without an embedding leave the plain picture and a note."""
        camera = camera_at(eye, pixels, self.scene.device)
        began, effort = time.perf_counter(), self._effort()
        note = ""
        if wish.head == "similarity" and not words_in(wish.positives):
            wish, note = replace(wish, head="rgb"), "Write what to look for."
        try:
            frame, picture = self._drawn(camera, wish)
        except ValueError as error:  # words without an embedding, a head that the run lacks
            note = str(error)
            frame, picture = self._drawn(camera, replace(wish, head="rgb"))
        z = z_depth(frame["depth"], camera) / self.scene.world_from_scene.scale
        seconds = time.perf_counter() - began
        self.worked += self._effort() - effort
        self.rate = 0.5 * self.rate + 0.5 * picture.shape[0] * picture.shape[1] / max(seconds, 1e-4)
        return Shown(picture, z, seconds, note)

    def _drawn(self, camera: Cameras, wish: Wish) -> tuple[dict[str, Tensor], np.ndarray]:
        look = self._looks.get(wish)
        if look is None:
            mode = "reduced" if wish.reduced and self.scene.device.type == "cuda" else "exact"
            looks_for = [words_in(wish.positives)] if wish.head == "similarity" else []
            heads = ("rgb", "depth") if wish.head in ("rgb", "depth") else ("rgb", "depth", wish.head)
            look = Look(self.scene, heads, looks_for, words_in(wish.negatives), mode=mode)
            look.near_far = next((x.near_far for x in self._looks.values() if x.near_far), None)
            if len(self._looks) > 64:
                self._looks.clear()
            self._looks[wish] = look
        frame = look.frame(camera)
        return frame, look.picture(wish.head, frame)

    def refresh(self) -> bool:
        """Take the run's newest checkpoint over, if there is a newer one; whether there was.

        News waits while what was read and drawn since the last has taken more than SHARE of the time since.
        """
        now, effort = time.monotonic(), self._effort()
        since, worked = self._news
        if self.worked - worked > SHARE * (now - since) and now - since < PATIENCE:
            return False
        before = self.worked
        found = self.scene.refresh()
        self.worked += self._effort() - effort
        if found:
            self._news = now, before
            self._looks.clear()  # depths and similarities have another range now
        return found

    def _effort(self) -> float:
        """Seconds kept from a training so far: of any core, for its threads wait for one another; beside a
        GPU, which tells nothing, of the clock."""
        return time.process_time() if self.scene.device.type == "cpu" else time.perf_counter()


def z_depth(distance: Tensor, camera: Cameras) -> np.ndarray:
    """Distances along rays [h, w] of a pinhole camera as distances along its axis."""
    fx, fy, cx, cy = camera.intrinsics[0].tolist()
    height, width = distance.shape
    x = (np.arange(width) + 0.5 - cx) / fx
    y = (np.arange(height) + 0.5 - cy) / fy
    length = np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2)
    return (distance.cpu().numpy() / length).astype(np.float32)


def frustum_of(cameras: Cameras, i: int) -> tuple[float, float]:
    """Vertical field of view (radians) and aspect that camera i's frustum is drawn with."""
    width, height = cameras.size[i].tolist()
    if LENSES[int(cameras.lens[i])] == "equirectangular":
        return math.pi / 2, width / height
    return 2 * math.atan(0.5 * height / float(cameras.intrinsics[i, 1])), width / height
