"""Where a photo was taken from, found against a trained scene whose fields stay as they are.

First a search: many poses around every start are rendered as small, blurred pictures and compared with the
photo; the best breed the next round, closer around them. Then the best few are moved by Levenberg-Marquardt
on analytic derivatives, on ever finer grids (photometric.py). All poses of a stage are one batch of rays.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raymarch.data.alignment import nearest_rotation
from raymarch.model.poses import compose
from raymarch.ops.pose import pose
from raymarch.train.evaluate import render_image
from raymarch.train.photometric import Aligner, frozen
from raymarch.train.photos import (
    LocalizeError,
    View,
    camera_of,
    kept_pixels,
    make_view,
    read_image,
    shrunk,
    starts_of,
)
from raymarch.train.runs import OpenRun
from raymarch.types import Cameras

OVERLAY_SIDE = 640  # pixels of the longer side of an overlay
LEAST_EXPLAINED = 0.7  # of the photo's variance, for a pose to count as found
STILL = 0.25  # degrees, and per cent of the scene's size: what a last step may still want
LEAST_CELLS = 50  # of the photo, that were compared
LARGEST_STD = 2.0  # degrees, and per cent of the scene's size


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
        Level(48, 48, 1.5, 8, 12),
        Level(96, 96, 1.0, 4, 10),
        Level(192, 768, 0.7, 1, 16),
        Level(256, 1024, 0.5, 1, 10),
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
    explained: float  # share of the photo's variance that the rendering explains, 0 to 1
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
        self._pool = torch.cuda.graph_pool_handle() if run.device.type == "cuda" else None

    def __call__(
        self,
        image: Any,
        camera: Any = None,
        init: Any = None,
        overlay: bool = True,
        keep: Tensor | None = None,
    ) -> Localisation:
        """As `TrainedScene.localize`."""
        began = time.perf_counter()
        run = self.run
        photo = read_image(image, run.background).to(run.device)
        lens = camera_of(run, camera, (photo.shape[1], photo.shape[0]))
        poses = starts_of(run, init).to(run.device)
        keep = kept_pixels(keep, photo)
        with frozen(run.model):
            poses = self._search(photo, keep, lens, poses)
            for level in self.config.levels:
                aligner, poses = self._align(
                    make_view(photo, level.side, level.photo_side, keep), lens, poses, level
                )
            covariance = aligner.sandwich()
        best = int(aligner.cost.argmin())
        rigid = _rigid(aligner.poses[best])
        placed = replace(lens, camera_to_worlds=rigid[None].float().to(run.device))
        why = self._doubt(aligner, best, covariance[best])
        picture = overlay_of(run, placed, photo) if overlay else None
        return Localisation(
            camera_to_world=run.world_from_scene.apply_poses(rigid),
            camera=placed,
            covariance=_in_world(run, covariance[best].cpu()),
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
            settings = blur, config.robust, self.size, run.device, config.graph, self._pool
            self._aligners[key] = Aligner(run.model, key[:2], poses, *settings)
        return self._aligners[key]

    def _search(self, photo: Tensor, keep: Tensor | None, lens: Cameras, starts: Tensor) -> Tensor:
        """The most promising poses around the starts, as many as the first level moves; best first."""
        config, first = self.config, self.config.levels[0].starts
        if config.rounds == 0 and len(starts) <= first:
            return starts
        view = make_view(photo, config.search.side, config.search.photo_side, keep)
        aligner = self._aligner(view, 1, config.search.blur)
        aligner.look_at(view)

        def costs(poses: Tensor) -> Tensor:
            return aligner.judge(aligner.seen(lens, poses, view)).cost

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

    def _align(self, view: View, lens: Cameras, poses: Tensor, level: Level) -> tuple[Aligner, Tensor]:
        """Move the first poses on one grid; all of them come back, best first."""
        poses = poses[: level.starts]
        aligner = self._aligner(view, len(poses), level.blur)
        aligner.load(lens, view, poses)
        aligner.run(level.steps)
        return aligner, aligner.poses[aligner.cost.argsort()]

    def _doubt(self, aligner: Aligner, best: int, covariance: Tensor) -> str:
        """What speaks against the pose that was found, or nothing."""
        if not math.isfinite(float(aligner.cost[best])):
            return "the rendering is not finite at any pose tried"
        if (cells := int(aligner.keep.sum())) < LEAST_CELLS:
            return (
                f"only {cells} cells of the photo could be compared, at least {LEAST_CELLS} are needed: "
                "the photo is too small, or its mask keeps too little"
            )
        explained = float(aligner.explained[best])
        if explained < LEAST_EXPLAINED:
            return (
                f"the rendering explains {explained:.0%} of the photo's variance, less than "
                f"{LEAST_EXPLAINED:.0%}: the pose is likely wrong, or the photo shows something else"
            )
        moved, turned = self._in_parts(aligner.newton_step(torch.zeros_like(aligner.damping).double())[best])
        if not (moved <= STILL and turned <= STILL):  # nor where they are no numbers
            return f"it was still moving, by {turned:.2g} degrees and {moved:.2g} % of the scene's size"
        moved, turned = self._in_parts(covariance.diagonal().clamp_min(0).sqrt())
        if not (moved <= LARGEST_STD and turned <= LARGEST_STD):
            return f"the photo leaves it open by {turned:.2g} degrees and {moved:.2g} % of the scene's size"
        return ""

    def _in_parts(self, xi: Tensor) -> tuple[float, float]:
        """Lengths of (v, w): per cent of the scene's size, and degrees."""
        return 100 * float(xi[:3].norm()) / self.size, math.degrees(float(xi[3:].norm()))


def scene_size(camera_to_worlds: Tensor) -> float:
    """The largest distance of a camera's centre from the mean of all; 1 for a single place."""
    centres = camera_to_worlds[..., 3].double()
    size = float((centres - centres.mean(0)).norm(dim=-1).max())
    return size if size > 1e-6 else 1.0


def _rigid(camera_to_world: Tensor) -> Tensor:
    """[3, 4] float64 on the CPU, its axes made orthonormal again."""
    found = camera_to_world.detach().cpu().double()
    return torch.cat([nearest_rotation(found[:, :3]), found[:, 3:]], -1)


def _in_world(run: OpenRun, covariance: Tensor) -> Tensor:
    """A covariance of (centre, rotation vector) in scene units and axes, in world units and axes."""
    turn = torch.block_diag(
        run.world_from_scene.scale * run.world_from_scene.rotation, run.world_from_scene.rotation
    )
    found = turn @ covariance @ turn.T
    return (found + found.T) / 2


def overlay_of(run: OpenRun, camera: Cameras, photo: Tensor) -> Tensor:
    """Photo and rendering, half each, [h, w, 3], at most OVERLAY_SIDE pixels on the longer side."""
    small, camera = shrunk(photo, camera, OVERLAY_SIDE)
    return 0.5 * small + 0.5 * render_image(run.model, camera, 0, frozenset({"rgb"}))["rgb"]


def _check(config: LocalizeConfig) -> None:
    if not config.levels or min(level.starts for level in config.levels) < 1:
        raise LocalizeError("localize: levels must hold at least one level, and each at least one start")
    if config.rounds < 0 or (config.rounds and min(config.particles, config.elites) < 1):
        raise LocalizeError(
            f"localize: rounds, particles and elites are {config.rounds}, {config.particles} and "
            f"{config.elites}, expected at least 0, 1 and 1"
        )
