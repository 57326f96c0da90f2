"""Camera poses adjusted to one another through points that several photos show (bundle adjustment).

What gradient descent leaves for last is a smooth bend of the whole rig, along which the map bends too: poses
and map are coupled, and steps that treat cameras one by one crawl. Here the coupling is solved for. Points of
the map are found again in other photos (matches.py), and poses and the points' distances are moved together
by Levenberg-Marquardt, distances eliminated (Triggs, McLauchlan, Hartley, Fitzgibbon 2000, section 6.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raymarch.data.alignment import align_most, nearest_rotation, rotation_angle
from raymarch.data.scene import Scene
from raymarch.train.matches import Matches, find_matches

if TYPE_CHECKING:
    from raymarch.train.trainer import Trainer

HUBER = 0.5  # pixels of the finest level, beyond which a residual counts linearly
FAR_OFF = 4.0  # times the median residual, and at least MOST_OFF: a match beyond is left out
MOST_OFF = 1.5  # pixels
LEAST_FIT = 3.0  # pixels of the median residual at the end, or the poses stay: nothing was found to agree on
LEAST_MATCHES = 50  # for a camera to be moved
LEAST_CAMERAS = 0.5  # part of those that may move that must have as many, or all stay
POINTS = 4096  # eliminated at once


@dataclass(frozen=True)
class BundleConfig:
    at: tuple[int, ...] = ()  # steps of training at which poses are adjusted; none: never
    hold: int = 1000  # steps for which poses then stay, until the map has moved to where they are now
    brake: float = 0.0  # on the learning rate of poses and lenses afterwards; 0: they stay for good
    rounds: int = 3  # of adjusting and leaving matches out that do not fit
    steps: int = 12  # in each


@dataclass(frozen=True)
class Adjusted:
    """Poses that agree with the matches, in the frame of those that came in."""

    camera_to_worlds: Tensor  # [C, 3, 4] float64
    matches: int
    before: float  # median residual, pixels of the finest level
    after: float
    kept: tuple[int, ...]  # cameras with too few matches to be moved


def releases(config: BundleConfig) -> tuple[int, ...]:
    """Steps at which poses that were adjusted move again."""
    steps = sorted(config.at)
    return tuple(
        at + config.hold
        for i, at in enumerate(steps)
        if i + 1 == len(steps) or at + config.hold < steps[i + 1]
    )


class _Problem:
    """Residuals of matches and their slopes, float64 on the CPU."""

    def __init__(self, matches: Matches, poses: Tensor):
        self.matches = matches
        self.R, self.c = poses[:, :, :3].clone(), poses[:, :, 3].clone()
        self.inverse = 1 / matches.distance.clamp_min(1e-6)  # one number a point
        least = matches.seen.abs().argmin(-1)
        axis = torch.nn.functional.one_hot(least, 3).double()
        one = torch.nn.functional.normalize(torch.linalg.cross(matches.seen, axis), dim=-1)
        self.across = torch.stack([one, torch.linalg.cross(matches.seen, one)], 1)  # [N, 2, 3]

    def residuals(self, R: Tensor, c: Tensor, inverse: Tensor) -> Tensor:
        """[N, 2] pixels; far away where a point is behind the camera."""
        m = self.matches
        host = m.host[m.point]
        ray = (R[host] @ m.direction[m.point][..., None])[..., 0]
        # A point at distance 1 / inverse, times inverse: no division where points are far.
        q = inverse[m.point][:, None] * (c[host] - c[m.camera]) + ray
        local = (R[m.camera].transpose(1, 2) @ q[..., None])[..., 0]
        unit = torch.nn.functional.normalize(local, dim=-1)
        found = (self.across @ unit[..., None])[..., 0] * m.sharpness[:, None]
        behind = (unit * m.seen).sum(-1) <= 0
        return torch.where(behind[:, None], 1e3, found)

    def slopes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes of residuals: host's and camera's [N, 2, 6] (v, w in its own axes), point's [N, 2]."""
        m, R, c = self.matches, self.R, self.c
        host, to = m.host[m.point], m.camera
        rho, d = self.inverse[m.point], m.direction[m.point]
        back = R[to].transpose(1, 2)
        turn = back @ R[host]
        q = (turn @ d[..., None])[..., 0] + rho[:, None] * (back @ (c[host] - c[to])[..., None])[..., 0]
        length = q.norm(dim=-1)[:, None, None]
        unit = q / length[:, 0]
        onto = self.across - (self.across @ unit[..., None]) * unit[:, None]
        onto = onto / length * m.sharpness[:, None, None]  # [N, 2, 3]
        of_host = torch.cat([rho[:, None, None] * turn, -turn @ _cross(d)], -1)
        of_camera = torch.cat([-rho[:, None, None] * torch.eye(3).double().expand_as(turn), _cross(q)], -1)
        of_point = (onto @ (back @ (c[host] - c[to])[..., None]))[..., 0]
        return onto @ of_host, onto @ of_camera, of_point

    def moved(self, step: Tensor, along: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        R = self.R @ _turned(step[:, 3:])
        c = self.c + (self.R @ step[:, :3, None])[..., 0]
        return R, c, (self.inverse + along).clamp_min(1e-6)


def _cross(v: Tensor) -> Tensor:
    """[..., 3, 3] with M x = v x x."""
    eye = torch.eye(3, dtype=v.dtype).expand(*v.shape, 3)
    return torch.linalg.cross(v[..., None, :].expand_as(eye), eye, dim=-1).transpose(-1, -2)


def _turned(w: Tensor) -> Tensor:
    return torch.linalg.matrix_exp(_cross(w))


def _weights(r: Tensor) -> Tensor:
    return (HUBER / r.norm(dim=-1).clamp_min(HUBER))[:, None]


def _cost(r: Tensor) -> float:
    size = r.norm(dim=-1)
    return float(torch.where(size < HUBER, size.square() / 2, HUBER * (size - HUBER / 2)).sum())


def _step(problem: _Problem, r: Tensor, free: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The damped Gauss-Newton step of poses [C, 6] and points [P]."""
    m, count = problem.matches, len(problem.c)
    of_host, of_camera, of_point = problem.slopes()
    weight = _weights(r).sqrt()
    host = m.host[m.point]
    of_host, of_camera = (
        x * weight[..., None] * free[i][:, None, None] for x, i in ((of_host, host), (of_camera, m.camera))
    )
    of_point, r = of_point * weight, r * weight
    blocks = torch.zeros(count * count, 6, 6, dtype=torch.float64)
    right = torch.zeros(count, 6, dtype=torch.float64)
    for i, a in ((host, of_host), (m.camera, of_camera)):
        right.index_add_(0, i, (a.transpose(1, 2) @ r[..., None])[..., 0])
        for j, b in ((host, of_host), (m.camera, of_camera)):
            blocks.index_add_(0, i * count + j, a.transpose(1, 2) @ b)
    H = blocks.view(count, count, 6, 6).transpose(1, 2).reshape(6 * count, 6 * count)
    points = len(problem.inverse)
    own = torch.zeros(points, dtype=torch.float64).index_add_(0, m.point, of_point.square().sum(-1))
    pull = torch.zeros(points, dtype=torch.float64).index_add_(0, m.point, (of_point * r).sum(-1))
    own = own * (1 + damping) + 1e-9
    H = H + torch.diag(damping * H.diagonal())
    right = right.view(-1)
    order = m.point.argsort(stable=True)
    sorted_point = m.point[order]
    bounds = torch.searchsorted(
        sorted_point, torch.arange(0, points + POINTS, POINTS).clamp_max(points)
    ).tolist()
    couplings = []
    for k, begin in enumerate(range(0, points, POINTS)):
        rows = order[bounds[k] : bounds[k + 1]]
        size = min(POINTS, points - begin)
        E = torch.zeros(size * count, 6, dtype=torch.float64)
        for i, a in ((host, of_host), (m.camera, of_camera)):
            E.index_add_(
                0,
                (m.point[rows] - begin) * count + i[rows],
                (a[rows].transpose(1, 2) @ of_point[rows][..., None])[..., 0],
            )
        E = E.view(size, -1)
        scaled = E / own[begin : begin + size, None]
        H = H - E.T @ scaled
        right = right - scaled.T @ pull[begin : begin + size]
        couplings.append((begin, size, E))
    fixed = (~free).repeat_interleave(6)
    H[fixed, :] = 0
    H[:, fixed] = 0
    H += torch.diag(fixed.double() + 1e-9)
    right = torch.where(fixed, 0.0, right)
    step = torch.linalg.solve(H, -right)
    along = torch.zeros(points, dtype=torch.float64)
    for begin, size, E in couplings:
        part = slice(begin, begin + size)
        along[part] = -(pull[part] + E @ step) / own[part]
    return step.view(count, 6), along


def _solve(problem: _Problem, free: Tensor, steps: int) -> Tensor:
    """Levenberg-Marquardt in place; the residuals [N, 2] it ends with."""
    damping = 1e-3
    r = problem.residuals(problem.R, problem.c, problem.inverse)
    for _ in range(steps):
        step, along = _step(problem, r, free, damping)
        R, c, inverse = problem.moved(step, along)
        after = problem.residuals(R, c, inverse)
        if _cost(after) < _cost(r):
            done = _cost(r) - _cost(after) < 1e-5 * _cost(r)
            problem.R, problem.c, problem.inverse, r = R, c, inverse, after
            damping = max(damping / 5, 1e-9)
            if done:
                break
        else:
            damping = min(damping * 10, 1e6)
    return r


def _enough(problem: _Problem, given: Tensor, allowed: Tensor) -> Tensor:
    """Cameras [C] with enough matches to be moved. Others go back to where they came in, without matches."""
    count = len(given)
    moving = allowed
    while True:
        m = problem.matches
        host = m.host[m.point]
        each = torch.bincount(m.camera, minlength=count) + torch.bincount(host, minlength=count)
        moving = moving & (each >= LEAST_MATCHES)
        out = allowed & ~moving
        problem.R[out], problem.c[out] = given[out, :, :3], given[out, :, 3]
        stays = ~(out[m.camera] | out[host])
        if bool(stays.all()):
            return moving
        problem.matches, problem.across = m.kept(stays), problem.across[stays]


def adjust(
    matches: Matches, poses: Tensor, free: Tensor | None = None, config: BundleConfig | None = None
) -> Adjusted:
    """Move camera-to-world poses [C, 3, 4] and the points of `matches` until they agree best.

    free [C] bool: cameras that may move (default: all). A camera whose matches are too few, or turn out not
    to fit, keeps the pose that came in, and its matches count for no other. Pictures fix no similarity, so
    the cameras that moved are aligned with the poses they came in with; not where cameras are held, which
    fix it.
    """
    config = config or BundleConfig()
    given = poses.detach().cpu().double()
    count = len(given)
    allowed = torch.ones(count, dtype=torch.bool) if free is None else free.cpu()
    problem = _Problem(matches, given)
    before = (
        float(problem.residuals(problem.R, problem.c, problem.inverse).norm(dim=-1).median())
        if len(matches.point)
        else 0.0
    )
    size, moving = before, allowed
    for _ in range(config.rounds):
        moving = _enough(problem, given, allowed)
        m = problem.matches
        places = torch.bincount(m.point, minlength=len(m.host))
        if int(moving.sum()) < max(1.0, LEAST_CAMERAS * int(allowed.sum())):
            return Adjusted(given, 0, before, before, tuple(allowed.nonzero()[:, 0].tolist()))
        r = _solve(problem, moving, config.steps).norm(dim=-1)
        size = float(r.median())
        fits = r < max(MOST_OFF, FAR_OFF * size)
        fits &= places[m.point] > 1
        kept = m.kept(fits)
        problem.matches, problem.across = kept, problem.across[fits]
    if size > LEAST_FIT:
        return Adjusted(given, 0, before, size, tuple(allowed.nonzero()[:, 0].tolist()))
    found = torch.cat([problem.R, problem.c[..., None]], -1)
    for i in allowed.nonzero()[:, 0].tolist():
        found[i, :, :3] = nearest_rotation(found[i, :, :3])
    if bool(allowed.all()):
        found[moving] = align_most(found[moving], given[moving]).aligned
    found[~moving] = given[~moving]
    stayed = tuple((allowed & ~moving).nonzero()[:, 0].tolist())
    return Adjusted(found, len(problem.matches.point), before, size, stayed)


@dataclass(frozen=True)
class Bundled:
    """What a bundle adjustment in the middle of training did."""

    step: int
    adjusted: Adjusted
    turned: float  # median over cameras, degrees
    moved: float  # and per cent of the scene's size, once the common motion is taken out
    names: tuple[str, ...]  # of photos with too few matches

    def __str__(self) -> str:
        found = self.adjusted
        if not found.matches:
            return (
                f"bundle adjustment at step {self.step} moved nothing: photos show too little of the same, "
                "or the map is too poor yet to say where "
                f"({found.before:.1f} pixels off): try train.bundle.at later"
            )
        words = (
            f"bundle adjustment at step {self.step}: {found.matches} matches, off by {found.before:.2f} "
            f"pixels before and {found.after:.2f} after (median); poses turned by {self.turned:.3f} degrees "
            f"and moved by {self.moved:.3f} % of the scene's size (median)"
        )
        if self.names:
            words += f"; too few matches, so left as they were: {', '.join(self.names)}"
        return words


@torch.no_grad()
def bundle(trainer: Trainer, scene: Scene) -> Bundled:
    """Adjust the training cameras' poses to one another, where the trainer is, and hold them from there on.

    Cameras that the config freezes stay. ValueError for lenses that photos are not matched through.
    """
    poses, source, config = trainer.model.poses, trainer.source, trainer.full_config.train
    assert poses.adjustment is not None
    given = source.cameras.camera_to_worlds
    refined = poses.optimized_camera_to_worlds(given)
    cameras = replace(trainer.model.intrinsics(source.cameras), camera_to_worlds=refined)
    photos = [scene.images[i] for i in source.indices]
    masks = None if scene.masks is None else [scene.masks[i] for i in source.indices]
    trainer.model.eval()
    matches = find_matches(trainer.model, cameras, photos, masks, config.matches)
    trainer.model.train()
    free = None if poses.free is None else poses.free[:, 0]
    found = adjust(matches, refined, free, config.bundle)
    if found.matches:
        poses.go_to(given, found.camera_to_worlds)
        for moments in trainer.optim.first["poses"]:
            moments.zero_()
        trainer.brake.zero_()
    before = refined.cpu().double()
    turned = rotation_angle(before[:, :, :3].transpose(1, 2) @ found.camera_to_worlds[:, :, :3]).rad2deg()
    moved = (before[:, :, 3] - found.camera_to_worlds[:, :, 3]).norm(dim=-1)
    centres = before[:, :, 3]
    size = float((centres - centres.mean(0)).norm(dim=-1).max()) or 1.0
    names = tuple(source.names[i] for i in found.kept)
    return Bundled(trainer.step, found, float(turned.median()), 100 * float(moved.median()) / size, names)
