"""Where a photo was taken from, found against a trained scene whose fields stay as they are.

First a search: many poses around every start are rendered as small, blurred pictures and compared with the
photo; the best breed the next round, closer around them. Then the best few are moved by Levenberg-Marquardt on
analytic derivatives, on ever finer grids (photometric.py). All poses of a stage are one batch of rays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymarch.data.alignment import nearest_rotation
from raymarch.data.images import read_photo
from raymarch.data.similarity import rotation_fault
from raymarch.model.poses import compose
from raymarch.ops.pose import pose
from raymarch.train.evaluate import over_background, render_image
from raymarch.train.photometric import Aligner, View, compare, frozen, grid_size, make_view
from raymarch.train.runs import OpenRun, subset
from raymarch.types import Cameras

OVERLAY_SIDE = 640  # pixels of the longer side of an overlay
LEAST_EXPLAINED = 0.5  # of the photo's variance, for a pose to count as found


class LocalizeError(ValueError):
    """A photo, camera or start that cannot be used; the message says which and what would."""


@dataclass(frozen=True)
class Level:
    """One stage of the alignment, coarse or fine."""

    side: int  # cells along the longer side of the grid
    photo_side: int  # the photo is averaged down to so many pixels before cells read it
    blur: float  # cells: sigma of the blur of rendering and photo
    starts: int  # poses moved at once
    steps: int


@dataclass(frozen=True)
class LocalizeConfig:
    particles: int = 256  # poses per round of the search
    rounds: int = 4  # 0: the starts are used as they are
    elites: int = 24  # poses that breed the next round
    spread_degrees: float = 10.0  # how far off a start may be: of rotation
    spread: float = 0.10  # and of position, in parts of the scene's size
    narrowing: float = 0.5  # of the spread, from round to round
    search: Level = Level(32, 32, 1.5, 0, 0)
    levels: tuple[Level, ...] = (
        Level(48, 48, 1.5, 8, 10),
        Level(96, 96, 1.0, 4, 8),
        Level(192, 768, 0.7, 1, 8),
    )
    robust: float = 0.1  # colour difference beyond which a residual counts linearly only
    seed: int = 0
    graph: bool = True  # on CUDA, capture the iteration


@dataclass(frozen=True)
class Localisation:
    """Where a photo was taken from, and how sure that is."""

    camera_to_world: Tensor  # [3, 4] float64 on the CPU, world units, OpenGL axes
    camera: Cameras  # the same as a camera to render (scene units), on the scene's device
    covariance: Tensor  # [6, 6] float64 of (centre in world units, rotation vector in radians), world axes
    converged: bool
    why: str  # where not converged, what speaks against it; else empty
    residual: float  # root mean square colour difference on the finest grid, 0..1, after exposure
    explained: float  # share of the photo's variance that the rendering explains, at most 1
    seconds: float
    overlay: Tensor | None  # [h, w, 3] photo and rendering, half each

    @property
    def position_std(self) -> float:
        """Standard deviation of the centre, world units: the root of the trace of its covariance."""
        return float(self.covariance[:3, :3].trace().clamp_min(0).sqrt())

    @property
    def rotation_std_deg(self) -> float:
        return math.degrees(float(self.covariance[3:, 3:].trace().clamp_min(0).sqrt()))


class Localizer:
    """Finds photos in one scene. Keeps buffers and captured graphs, so that the second photo is quicker."""

    def __init__(self, run: OpenRun, config: LocalizeConfig | None = None):
        self.run, self.config = run, config or LocalizeConfig()
        _check(self.config)
        self.size = scene_size(run.train_cameras().camera_to_worlds)
        self._aligners: dict[tuple, Aligner] = {}

    def __call__(
        self, image: Any, camera: Any = None, init: Any = None, overlay: bool = True
    ) -> Localisation:
        """As `TrainedScene.localize`."""
        began = time.perf_counter()
        run = self.run
        photo = read_image(image, run.background).to(run.device)
        lens = camera_of(run, camera, (photo.shape[1], photo.shape[0]))
        poses = starts_of(run, init).to(run.device)
        with frozen(run.model):
            poses = self._search(photo, lens, poses)
            for level in self.config.levels:
                aligner, poses = self._align(photo, lens, poses, level)
            covariance = aligner.sandwich()
        best = int(aligner.cost.argmin())
        rigid = _rigid(aligner.poses[best])
        placed = replace(lens, camera_to_worlds=rigid[None].float().to(run.device))
        covariance = _in_world(run, covariance[best].cpu())
        why = self._doubt(aligner, best)
        picture = overlay_of(run, placed, photo) if overlay else None
        return Localisation(
            camera_to_world=run.world_from_scene.apply_poses(rigid),
            camera=placed,
            covariance=covariance,
            converged=not why,
            why=why,
            residual=float(aligner.spread[best]),
            explained=float(aligner.explained[best]),
            seconds=time.perf_counter() - began,
            overlay=picture,
        )

    def _aligner(self, view: View, poses: int, blur: float) -> Aligner:
        key = view.rows, view.columns, poses, blur
        if key not in self._aligners:
            run, config = self.run, self.config
            self._aligners[key] = Aligner(
                run.model, key[:2], poses, blur, config.robust, self.size, run.device, config.graph
            )
        return self._aligners[key]

    def _search(self, photo: Tensor, lens: Cameras, starts: Tensor) -> Tensor:
        """The most promising poses around the starts, as many as the first level moves; best first."""
        config, first = self.config, self.config.levels[0].starts
        if config.rounds == 0 and len(starts) <= first:
            return starts
        view = make_view(photo, config.search.side, config.search.photo_side)
        aligner = self._aligner(view, 1, config.search.blur)
        target = aligner.blurred(view.target.view(1, -1, 3))[0]

        def costs(poses: Tensor) -> Tensor:
            return compare(aligner.seen(lens, poses, view), target, config.robust).cost

        random = torch.Generator().manual_seed(config.seed)
        known, cost, spread = starts, costs(starts), 1.0
        for _ in range(config.rounds):
            parents = known[cost.topk(min(config.elites, len(known)), largest=False).indices]
            times = -(-config.particles // len(parents))
            children = self._around(parents.repeat(times, 1, 1)[: config.particles], spread, random)
            known, cost = torch.cat([known, children]), torch.cat([cost, costs(children)])
            spread *= config.narrowing
        return known[cost.topk(min(first, len(known)), largest=False).indices]

    def _around(self, poses: Tensor, spread: float, random: torch.Generator) -> Tensor:
        """Every pose moved at random; lengths are about those the config names, times `spread`."""
        config = self.config
        draws = torch.randn(len(poses), 6, generator=random) * (spread / math.sqrt(3))
        draws[:, :3] *= config.spread * self.size
        draws[:, 3:] *= math.radians(config.spread_degrees)
        return compose(poses, pose(draws.to(poses)), "world")

    def _align(self, photo: Tensor, lens: Cameras, poses: Tensor, level: Level) -> tuple[Aligner, Tensor]:
        """Move the first poses on one grid; all of them come back, best first."""
        view = make_view(photo, level.side, level.photo_side)
        poses = poses[: level.starts]
        aligner = self._aligner(view, len(poses), level.blur)
        aligner.load(lens, view, poses)
        aligner.run(level.steps)
        return aligner, aligner.poses[aligner.cost.argsort()]

    def _doubt(self, aligner: Aligner, best: int) -> str:
        """What speaks against the pose that was found, or nothing."""
        cost, explained = float(aligner.cost[best]), float(aligner.explained[best])
        if not math.isfinite(cost):
            return "the rendering is not finite at any pose tried"
        if explained < LEAST_EXPLAINED:
            return (
                f"the rendering explains {max(explained, 0.0):.0%} of the photo, less than "
                f"{LEAST_EXPLAINED:.0%}: the pose is likely wrong, or the photo shows something else"
            )
        return ""


def scene_size(camera_to_worlds: Tensor) -> float:
    """The largest distance of a camera's centre from the mean of all; 1 for a single place."""
    centres = camera_to_worlds[..., 3].double()
    size = float((centres - centres.mean(0)).norm(dim=-1).max())
    return size if size > 1e-6 else 1.0


def read_image(image: Any, background: str = "none") -> Tensor:
    """A photo [h, w, 3] float in 0..1 from a path, or from [h, w, 3 or 4] uint8 or float 0..1."""
    if isinstance(image, (str, Path)):
        image = read_photo(Path(image)).pixels
    image = torch.as_tensor(np.asarray(image) if not isinstance(image, Tensor) else image)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or 0 in image.shape:
        raise LocalizeError(f"localize: image has shape {list(image.shape)}, expected [h, w, 3 or 4]")
    if image.dtype == torch.uint8:
        return over_background(image, background)
    if not image.is_floating_point():
        raise LocalizeError(f"localize: image holds {image.dtype}, expected uint8, or floats in 0..1")
    if not bool(image.isfinite().all()) or float(image.min()) < 0 or float(image.max()) > 1:
        raise LocalizeError("localize: image holds numbers outside 0..1 or not finite; scale it to 0..1")
    return over_background(image.float() * 255, background)


def camera_of(run: OpenRun, camera: Any, size: tuple[int, int]) -> Cameras:
    """One camera for a photo of `size` = (width, height): a Cameras, fx fy cx cy, or the run's own lens."""
    if camera is None:
        return _own_lens(run, size)
    if isinstance(camera, Cameras):
        if len(camera.size) != 1:
            raise LocalizeError(f"localize: camera holds {len(camera.size)} cameras, expected one")
        stated = tuple(int(v) for v in camera.size[0])
        if stated != size:
            raise LocalizeError(
                f"localize: the photo has {size[0]} x {size[1]} pixels, but its camera is for "
                f"{stated[0]} x {stated[1]}; scale the intrinsics, or give the photo at that size"
            )
        return subset(camera, (0,), run.device)
    numbers = _floats(camera, "intrinsics")
    if numbers.shape != (4,) or not (numbers[:2] > 0).all():
        raise LocalizeError(
            f"localize: intrinsics are {numbers.tolist()}, expected fx, fy, cx, cy in pixels, fx and fy positive"
        )
    if not (0 < numbers[2] < size[0] and 0 < numbers[3] < size[1]):
        raise LocalizeError(
            f"localize: the intrinsics' centre ({numbers[2]:g}, {numbers[3]:g}) lies outside the photo of "
            f"{size[0]} x {size[1]} pixels; they must be for this photo's size"
        )
    return Cameras(
        camera_to_worlds=torch.zeros(1, 3, 4, device=run.device),
        intrinsics=numbers.float()[None].to(run.device),
        distortion=torch.zeros(1, 12, device=run.device),
        lens=torch.zeros(1, dtype=torch.int64, device=run.device),
        size=torch.tensor([size], device=run.device),
    )


def _own_lens(run: OpenRun, size: tuple[int, int]) -> Cameras:
    """The first training camera's lens, scaled to the photo, where all training cameras share it."""
    own = run.train_cameras(refined=False)
    per_width = own.intrinsics / own.size[:, :1]
    if not bool(((per_width - per_width[0]).abs() < 0.01).all()) or bool((own.lens != own.lens[0]).any()):
        raise LocalizeError(
            "localize: the training cameras have different lenses; give the photo's own with "
            "--intrinsics fx,fy,cx,cy"
        )
    width, height = (int(v) for v in own.size[0])
    if abs(size[0] * height - size[1] * width) > max(width, height):
        raise LocalizeError(
            f"localize: the photo has {size[0]} x {size[1]} pixels, the run's photos {width} x {height}, which "
            "is not the same picture scaled; give --intrinsics fx,fy,cx,cy"
        )
    one = subset(own, (0,), run.device)
    scale = torch.tensor([size[0] / width, size[1] / height] * 2, device=run.device)
    return replace(one, intrinsics=one.intrinsics * scale, size=torch.tensor([size], device=run.device))


def starts_of(run: OpenRun, init: Any) -> Tensor:
    """Poses [S, 3, 4] in scene units to start from.

    init: None or "all" (every training view), "train:K" or "test:K" (that view's pose), or poses in world
    units, [3, 4], [4, 4], [S, 3, 4] or [S, 4, 4].
    """
    if init is None or (isinstance(init, str) and init == "all"):
        return run.train_cameras().camera_to_worlds
    if isinstance(init, str):
        which, _, index = init.removeprefix("near ").partition(":")
        if which not in ("train", "test") or not index.isdigit():
            raise LocalizeError(f"localize: init is {init!r}, expected all, train:K, test:K or a pose")
        poses = (run.train_cameras() if which == "train" else run.test_cameras()).camera_to_worlds
        if int(index) >= len(poses):
            raise LocalizeError(f"localize: init is {init!r}, but the run has {len(poses)} {which} cameras")
        return poses[int(index)][None]
    poses = _floats(init, "init")
    poses = poses[None] if poses.ndim == 2 else poses
    if poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)) or len(poses) == 0:
        raise LocalizeError(
            f"localize: init has shape {list(poses.shape)}, expected a camera-to-world pose [3, 4] or [4, 4]"
        )
    for matrix in poses[:, :3, :3].numpy():
        if fault := rotation_fault(matrix):
            raise LocalizeError(f"localize: the rotation of init {fault}")
    return run.world_from_scene.invert().apply_poses(poses[:, :3]).float()


def _floats(values: Any, name: str) -> Tensor:
    """Finite float64 numbers on the CPU."""
    try:
        found = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError):
        raise LocalizeError(f"localize: {name} is {values!r:.80}, expected numbers") from None
    if not bool(found.isfinite().all()):
        raise LocalizeError(f"localize: {name} holds numbers that are not finite")
    return found


def _rigid(camera_to_world: Tensor) -> Tensor:
    """[3, 4] float64 on the CPU, its axes made orthonormal again."""
    found = camera_to_world.detach().cpu().double()
    return torch.cat([nearest_rotation(found[:, :3]), found[:, 3:]], -1)


def _in_world(run: OpenRun, covariance: Tensor) -> Tensor:
    """A covariance of (centre, rotation vector) in scene units and axes, in world units and axes."""
    turn = torch.block_diag(
        run.world_from_scene.scale * run.world_from_scene.rotation, run.world_from_scene.rotation
    )
    return turn @ covariance @ turn.T


def overlay_of(run: OpenRun, camera: Cameras, photo: Tensor) -> Tensor:
    """Photo and rendering, half each, [h, w, 3], at most OVERLAY_SIDE pixels on the longer side."""
    small, camera = shrunk(photo, camera, OVERLAY_SIDE)
    return 0.5 * small + 0.5 * render_image(run.model, camera, 0, frozenset({"rgb"}))["rgb"]


def shrunk(photo: Tensor, camera: Cameras, side: int) -> tuple[Tensor, Cameras]:
    """A photo [h, w, 3] and its camera with at most `side` pixels on the longer side."""
    columns, rows = grid_size(photo.shape[1], photo.shape[0], side)
    if (rows, columns) == photo.shape[:2]:
        return photo, camera
    small = F.adaptive_avg_pool2d(photo.permute(2, 0, 1)[None], (rows, columns))[0].permute(1, 2, 0)
    scale = torch.tensor([columns / photo.shape[1], rows / photo.shape[0]] * 2, device=photo.device)
    size = torch.tensor([[columns, rows]], device=photo.device)
    return small, replace(camera, intrinsics=camera.intrinsics * scale, size=size)


def _check(config: LocalizeConfig) -> None:
    if not config.levels or min(level.starts for level in config.levels) < 1:
        raise LocalizeError("localize: levels must hold at least one level, and each at least one start")
    if config.rounds < 0 or (config.rounds and min(config.particles, config.elites) < 1):
        raise LocalizeError(
            f"localize: rounds, particles and elites are {config.rounds}, {config.particles} and "
            f"{config.elites}, expected at least 0, 1 and 1"
        )
