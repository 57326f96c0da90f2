"""Where the surface point behind a pixel of one training photo lies in other training photos.

The map says where to look: its depth takes a pixel of one photo, the host, to a place in another, and how the
patch around it is seen from there. The patch is then moved until it fits, coarse to fine, to a fraction of a
pixel (Lucas and Kanade 1981, on patches of mean zero and length one, so that exposure does not matter).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from raymarch.model import Model
from raymarch.ops.rays import rays
from raymarch.types import LENSES, Cameras, Pixels

LENSES_MATCHED = ("perspective", "fisheye")
CHUNK = 32768  # patches moved at once
RAYS = 8192  # rendered at once
SLOPE = 0.01  # of the photo's longer side: how far off the map is asked for the surface's slope
STEEPEST = 0.2  # part of its distance by which a surface may rise over that
NEWTON = 8  # rounds of finding the pixel of a direction
WIDEST = 45.0  # degrees between the two rays to a point
LONGEST_STEP = 2.0  # pixels of a level that a patch may move at once


@dataclass(frozen=True)
class MatchConfig:
    points: int = 200  # sought in each photo
    partners: int = 10  # photos in which each is sought
    patch: int = 9  # samples along a patch's side
    sides: tuple[int, ...] = (128, 256, 512, 1024)  # longer side of the photo at each level, coarse to fine
    steps: int = 8  # at each level
    likeness: float = 0.85  # least correlation of two patches, -1 to 1


@dataclass(frozen=True)
class Matches:
    """P points, each behind a pixel of its host, and N places where other photos show them."""

    host: Tensor  # [P] int64 camera
    direction: Tensor  # [P, 3] float64 unit, to the point in the host's axes
    distance: Tensor  # [P] float64 from the host's centre, by the map
    point: Tensor  # [N] int64, which point
    camera: Tensor  # [N] int64, where it was found
    seen: Tensor  # [N, 3] float64 unit, to the place where it was found, in that camera's axes
    sharpness: Tensor  # [N] float64 pixels per radian there, of the finest level

    def kept(self, keep: Tensor) -> Matches:
        """Only the places that `keep` [N] says."""
        return replace(
            self, point=self.point[keep], camera=self.camera[keep], seen=self.seen[keep],
            sharpness=self.sharpness[keep],
        )  # fmt: skip


def check_lenses(cameras: Cameras) -> None:
    """ValueError for lenses that photos are not matched through."""
    wrong = [LENSES[i] for i in cameras.lens.unique().tolist() if LENSES[i] not in LENSES_MATCHED]
    if wrong:
        raise ValueError(
            f"matches: photos are matched through {' and '.join(LENSES_MATCHED)} lenses, not {wrong[0]}: "
            "leave train.bundle.at empty"
        )


def at_origin(cameras: Cameras) -> Cameras:
    """The same lenses, each at the origin with no turn."""
    eye = torch.eye(3, 4, device=cameras.camera_to_worlds.device).expand_as(cameras.camera_to_worlds)
    return replace(cameras, camera_to_worlds=eye.contiguous())


def look_along(cameras: Cameras, which: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions [N, 3] of pixels in world axes, and where the lens could be undone [N]."""
    found = rays(
        which, xy.float().contiguous(), cameras.camera_to_worlds, cameras.intrinsics, cameras.distortion,
        cameras.lens,
    )  # fmt: skip
    return found[1], found[4]


def _without_distortion(local: Tensor, intrinsics: Tensor, lens: Tensor) -> Tensor:
    """Pixels [N, 2] of directions in camera axes, by lenses that bend nothing."""
    x, y, forward = local[:, 0], -local[:, 1], -local[:, 2]
    across = torch.hypot(x, y).clamp_min(1e-9)
    fish = torch.atan2(across, forward) / across
    scale = torch.where(lens == LENSES.index("fisheye"), fish, 1 / forward.clamp_min(1e-3))
    return intrinsics[:, :2] * torch.stack([x, y], -1) * scale[:, None] + intrinsics[:, 2:]


def project(cameras: Cameras, which: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [N, 2] at which cameras `which` [N] see points [N, 3], and whether they do [N].

    The lens is inverted by repetition: the pixel moves by what a lens without distortion makes of the error.
    """
    pose = cameras.camera_to_worlds[which]
    local = ((points - pose[:, :, 3])[:, None] @ pose[:, :, :3])[:, 0]
    local = local / local.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    intrinsics, lens, size = cameras.intrinsics[which], cameras.lens[which], cameras.size[which]
    front = local[:, 2] < -0.05
    lenses = at_origin(cameras)
    wanted = _without_distortion(local, intrinsics, lens)
    xy, off = wanted, wanted * 0
    fine = front
    for _ in range(NEWTON):
        inside = torch.minimum(xy.clamp_min(0.0), size.to(xy))
        direction, fine = look_along(lenses, which, inside)
        off = wanted - _without_distortion(direction, intrinsics, lens)
        xy = inside + off
    within = ((xy > 0) & (xy < size)).all(-1)
    return xy, front & fine & within & (off.norm(dim=-1) < 0.05)


class Pictures:
    """Grey pictures of all photos at one level, in one array, to read anywhere."""

    def __init__(self, photos: Sequence[Tensor], side: int, device: torch.device):
        shrunk = []
        for photo in photos:  # [h, w, c] uint8
            grey = photo[..., :3].to(device).float().mean(-1)[None, None] / 255
            if photo.shape[-1] == 4:
                grey = grey * photo[..., 3].to(device).float()[None, None] / 255
            height, width = grey.shape[-2:]
            factor = min(1.0, side / max(height, width))
            size = max(1, round(height * factor)), max(1, round(width * factor))
            shrunk.append(functional.interpolate(grey, size, mode="area")[0, 0] if factor < 1 else grey[0, 0])
        self.size = torch.tensor([[x.shape[1], x.shape[0]] for x in shrunk], device=device)
        self.scale = torch.tensor([[p.shape[1], p.shape[0]] for p in photos], device=device) / self.size
        height, width = (max(x.shape[k] for x in shrunk) for k in (0, 1))
        self.values = torch.zeros(len(photos), height, width, device=device)
        for i, x in enumerate(shrunk):
            self.values[i, : x.shape[0], : x.shape[1]] = x
        self.dx, self.dy = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.dx[:, :, 1:-1] = (self.values[:, :, 2:] - self.values[:, :, :-2]) / 2
        self.dy[:, 1:-1] = (self.values[:, 2:] - self.values[:, :-2]) / 2

    def read(self, which: Tensor, xy: Tensor, slopes: bool = False) -> list[Tensor]:
        """Values [N, K], between the four nearest centres; with `slopes` also those along x and y.

        which [N], xy [N, K, 2] pixels of this level.
        """
        height, width = self.values.shape[1:]
        limit = (self.size[which] - 1)[:, None].to(xy)
        at = torch.minimum((xy - 0.5).clamp_min(0), limit)
        low = torch.minimum(at.floor(), (limit - 1).clamp_min(0))
        part = at - low
        low = low.long()
        index = which[:, None] * (height * width) + low[..., 1] * width + low[..., 0]
        right, down = (low[..., 0] + 1 < width).long(), (low[..., 1] + 1 < height).long() * width
        a, b = part.unbind(-1)
        shares = (
            ((1 - a) * (1 - b), 0 * right),
            (a * (1 - b), right),
            ((1 - a) * b, down),
            (a * b, right + down),
        )
        planes = (self.values, self.dx, self.dy) if slopes else (self.values,)
        found = []
        for plane in planes:
            flat = plane.view(-1)
            found.append(sum(share * flat[index + step] for share, step in shares))
        return found  # type: ignore[return-value]


def corners(pictures: Pictures, masks: Sequence[Tensor | None], count: int) -> tuple[Tensor, Tensor]:
    """About `count` pixels of each photo whose surroundings fix a patch both ways: (camera [P], xy [P, 2]).

    The best of every cell of a grid by the smaller eigenvalue of the structure tensor (Shi and Tomasi 1994).
    """
    xx, xy, yy = (
        functional.avg_pool2d(v[:, None], 7, 1, 3)[:, 0]
        for v in (pictures.dx.square(), pictures.dx * pictures.dy, pictures.dy.square())
    )
    least = (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()
    where, pixels = [], []
    for i, score in enumerate(least):
        width, height = pictures.size[i].tolist()
        score = score[:height, :width].clone()
        mask = masks[i]
        if mask is not None:
            kept = functional.interpolate(mask[None, None].float().to(score.device), score.shape, mode="area")
            score[kept[0, 0] < 1] = 0
        border = min(6, width // 4, height // 4)
        inner = torch.zeros_like(score)
        inner[border : height - border, border : width - border] = 1
        cell = max(2, int((width * height / count) ** 0.5))
        best, index = functional.max_pool2d(
            (score * inner)[None], cell, cell, return_indices=True, ceil_mode=True
        )
        good = best.flatten() > 1e-6
        index = index.flatten()[good]
        at = torch.stack([index % width, index // width], -1) + 0.5
        pixels.append(at * pictures.scale[i])
        where.append(torch.full((len(index),), i, device=score.device))
    return torch.cat(where), torch.cat(pixels)


@torch.no_grad()
def distances(model: Model, cameras: Cameras, which: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """The map's depth along the rays of pixels [N], and its opacity [N]."""
    depth, opacity = [], []
    for camera, at in zip(which.split(RAYS), xy.float().split(RAYS), strict=True):
        seen = model(Pixels(camera, at.contiguous()), cameras, heads=frozenset({"depth", "opacity"}))
        depth.append(seen.depth)
        opacity.append(seen.opacity)
    return torch.cat(depth), torch.cat(opacity)


def _surfaces(model: Model, cameras: Cameras, which: Tensor, xy: Tensor, reach: Tensor) -> tuple[Tensor, ...]:
    """Points [P, 3], their slopes by the pixel [P, 3, 2], distances [P], and which are there [P]."""
    offsets = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], device=xy.device)
    around = xy[:, None] + offsets * reach[:, None, None]
    flat = around.reshape(-1, 2)
    five = which.repeat_interleave(5)
    depth, opacity = (x.view(-1, 5) for x in distances(model, cameras, five, flat))
    direction, fine = look_along(cameras, five, flat)
    direction = direction.view(-1, 5, 3)
    centre = depth[:, :1]
    flatly = centre / (direction * direction[:, :1]).sum(-1).clamp_min(0.1)  # a plane across the ray
    near = (depth - flatly).abs() < STEEPEST * centre
    smooth = near.all(-1)
    depth = torch.where(smooth[:, None], depth, flatly)
    points = cameras.camera_to_worlds[which][:, None, :, 3] + depth[..., None] * direction
    slopes = torch.stack([points[:, 1] - points[:, 2], points[:, 3] - points[:, 4]], -1)
    good = (opacity[:, 0] > 0.5) & centre[:, 0].isfinite() & (centre[:, 0] > 0) & fine.view(-1, 5).all(-1)
    return points[:, 0], slopes / (2 * reach[:, None, None]), centre[:, 0], good


def _partners(cameras: Cameras, host: Tensor, points: Tensor, partners: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a point and another camera that should see it: (point [N], camera [N], xy [N, 2]).

    At most `partners` a point, spread evenly over the angles between its two rays.
    """
    count, total = len(cameras.lens), len(points)
    pairs_point, pairs_camera, pairs_xy, pairs_angle = [], [], [], []
    centres = cameras.camera_to_worlds[:, :, 3]
    to_host = functional.normalize(points - centres[host], dim=-1)
    reach = (points - centres[host]).norm(dim=-1)
    for c in range(count):
        away = points - centres[c]
        cosine = (functional.normalize(away, dim=-1) * to_host).sum(-1)
        ratio = away.norm(dim=-1) / reach
        fits = (
            (host != c)
            & (cosine > torch.cos(torch.deg2rad(torch.tensor(WIDEST))))
            & (ratio > 0.5)
            & (ratio < 2)
        )
        index = fits.nonzero()[:, 0]
        xy, visible = project(cameras, torch.full_like(index, c), points[index])
        pairs_point.append(index[visible])
        pairs_camera.append(torch.full_like(index[visible], c))
        pairs_xy.append(xy[visible])
        pairs_angle.append(cosine[index[visible]].clamp(-1, 1).acos())
    point, camera = torch.cat(pairs_point), torch.cat(pairs_camera)
    xy, angle = torch.cat(pairs_xy), torch.cat(pairs_angle)
    order = angle.argsort(stable=True)
    order = order[point[order].argsort(stable=True)]
    point, camera, xy = point[order], camera[order], xy[order]
    which = torch.arange(total, device=point.device)
    first = torch.searchsorted(point, which)
    each = torch.searchsorted(point, which, right=True) - first
    rank = torch.arange(len(point), device=point.device) - first[point]
    have = each[point].clamp_min(1)
    # The ranks floor((k + 1/2) have / partners), k = 0 .. partners - 1, or all where there are no more.
    k = ((rank + 1) * partners / have - 0.5).ceil() - 1
    chosen = (have <= partners) | (((k + 0.5) * have / partners).floor() == rank) & (k >= 0) & (k < partners)
    return point[chosen], camera[chosen], xy[chosen]


def _normalised(values: Tensor) -> tuple[Tensor, Tensor]:
    centred = values - values.mean(-1, keepdim=True)
    length = centred.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return centred / length, length


def _move(
    pictures: Pictures, truth: Tensor, camera: Tensor, xy: Tensor, around: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Patches moved until they fit `truth` [N, K]: their centres [N, 2] in pixels of the level, likeness [N].

    around [N, K, 2]: where their samples lie about the centre.
    """
    eye = torch.eye(2, device=xy.device)
    for step in range(steps + 1):
        value, dx, dy = pictures.read(camera, xy[:, None] + around, slopes=True)
        found, length = _normalised(value)
        like = (found * truth).sum(-1)
        if step == steps:
            return xy, like
        slope = torch.stack([dx, dy], -1)
        slope = (slope - slope.mean(1, keepdim=True)) / length[..., None]
        slope = slope - found[..., None] * (found[..., None] * slope).sum(1, keepdim=True)
        normal = slope.transpose(1, 2) @ slope
        right = (slope * (truth - found)[..., None]).sum(1)
        trace = normal.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
        move = torch.linalg.solve(normal + (1e-3 * trace + 1e-9) * eye, right)
        length = move.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        xy = xy + move * (LONGEST_STEP / length).clamp_max(1.0)
    raise AssertionError


@torch.no_grad()
def find_matches(
    model: Model,
    cameras: Cameras,
    photos: Sequence[Tensor],
    masks: Sequence[Tensor | None] | None = None,
    config: MatchConfig | None = None,
) -> Matches:
    """Matches among photos [h, w, c] uint8 of `cameras`, whose poses and the model's map say where to look.

    ValueError for lenses other than perspective and fisheye.
    """
    config = config or MatchConfig()
    check_lenses(cameras)
    device = cameras.camera_to_worlds.device
    longest = int(cameras.size.max())
    sides = sorted({min(side, longest) for side in config.sides})
    levels = [Pictures(photos, side, device) for side in sides]
    host, xy = corners(levels[-1], masks or [None] * len(photos), config.points)
    reach = SLOPE * cameras.size[host].amax(-1).float()
    points, slopes, distance, good = _surfaces(model, cameras, host, xy, reach)
    host, xy, points, slopes, distance = (x[good] for x in (host, xy, points, slopes, distance))
    point, camera, start = _partners(cameras, host, points, config.partners)

    # How a step in the host's picture moves the place in the other: a 2 x 2 matrix.
    step = reach[good][point]
    columns = []
    for axis in range(2):
        moved = points[point] + slopes[point, :, axis] * step[:, None]
        columns.append((project(cameras, camera, moved)[0] - start) / step[:, None])
    bend = torch.stack(columns, -1)

    half = (config.patch - 1) / 2
    line = torch.arange(config.patch, device=device) - half
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(-1, 2)
    place, like = start.clone(), torch.zeros(len(start), device=device)
    for part in torch.arange(len(start), device=device).split(CHUNK):
        at, of, to, B = place[part], host[point[part]], camera[part], bend[part]
        for level in levels:
            mine, others = level.scale[of], level.scale[to]
            spacing = grid * mine[:, None]  # photo pixels of the host
            truth = _normalised(level.read(of, (xy[point[part]][:, None] + spacing) / mine[:, None])[0])[0]
            around = (B[:, None] @ spacing[..., None])[..., 0] / others[:, None]
            at, found = _move(level, truth, to, at / others, around, config.steps)
            at = at * others
        place[part], like[part] = at, found
    size = cameras.size[camera]
    turns = bend.det()
    kept = (like > config.likeness) & ((place > 0) & (place < size)).all(-1) & (turns > 0.1) & (turns < 10)
    lenses = at_origin(cameras)
    seen, fine = look_along(lenses, camera, place)
    towards, fine_too = look_along(lenses, host, xy)
    kept &= fine & fine_too[point]
    finest = levels[-1].scale[camera].mean(-1)
    sharpness = cameras.intrinsics[camera, :2].mean(-1) / finest
    parts = (
        host,
        functional.normalize(towards.double(), dim=-1),
        distance.double(),
        point[kept],
        camera[kept],
    )
    rest = (functional.normalize(seen[kept].double(), dim=-1), sharpness[kept].double())
    return Matches(*(x.cpu() for x in (*parts, *rest)))
