"""Refinement of lenses: a few numbers that change the focal length and distortion that the data set says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from raymarch.model.preconditioner import GRID, whitening
from raymarch.ops.rays import rays_lens_backward
from raymarch.types import LENSES, Cameras


@dataclass(frozen=True)
class IntrinsicsConfig:
    """Which numbers of the cameras' lenses are refined with the map, and who shares them."""

    refine: str = "off"  # off, or joined by +: focal, centre, k1, k2, k3, k4, p1, p2; distortion is k1+k2
    # Cameras that share what is refined are: same, those of one size and lens by the data set; all; none.
    share: str = "same"
    damping: float = 0.1  # of the coupling between a lens's numbers


REFINABLE = ("perspective", "fisheye")
SHARES = ("same", "all", "none")
# Where a word's numbers lie among fx fy cx cy k1 k2 k3 k4 p1 p2. The first four are in units of fx and fy; a
# focal length is one number for both axes.
COLUMNS: dict[str, tuple[tuple[int, ...], ...]] = {
    "focal": ((0, 1),),
    "centre": ((2,), (3,)),
    **{name: ((4 + i,),) for i, name in enumerate(("k1", "k2", "k3", "k4", "p1", "p2"))},
}
WIDTH = 16  # numbers of a lens: intrinsics, then distortion


def words_of(refine: str) -> tuple[str, ...]:
    """What `IntrinsicsConfig.refine` asks for, word by word; () for off. ValueError for another word."""
    if refine == "off":
        return ()
    words = refine.replace("distortion", "k1+k2").split("+")
    for word in words:
        if word not in COLUMNS:
            raise ValueError(
                f"intrinsics: refine is {refine!r}, expected off, or some of {', '.join(COLUMNS)} and "
                "distortion, joined by +"
            )
    return tuple(word for word in COLUMNS if word in words)


def units(cameras: Cameras) -> Tensor:
    """What changes of the 16 numbers of each lens [C, 16] are counted in: focal lengths, or 1."""
    focal = cameras.intrinsics[:, :2]
    return torch.cat([focal, focal, torch.ones_like(cameras.distortion)], 1)


class Intrinsics(nn.Module):
    """What is refined of the lenses of `cameras` training cameras. Off, it is empty and costs nothing.

    A lens is linear in `numbers` [C, n], in coordinates that all move the picture equally (radians, root mean
    square over the photo): those of the camera that owns them are the ones that count.
    """

    numbers: nn.Parameter | None
    owner: Tensor  # [C] int64: the first camera with the same lens
    steps: Tensor  # [C, 16, n]: what a unit of each number adds to fx fy cx cy and distortion

    def __init__(self, config: IntrinsicsConfig, cameras: int):
        super().__init__()
        if config.share not in SHARES:
            raise ValueError(f"intrinsics: share is {config.share!r}, expected one of {', '.join(SHARES)}")
        if not config.damping >= 0:
            raise ValueError(f"intrinsics: damping is {config.damping}, expected at least 0")
        self.config, self.cameras = config, cameras
        self.words = words_of(config.refine)
        columns = [column for word in self.words for column in COLUMNS[word]]
        self.numbers = nn.Parameter(torch.zeros(cameras, len(columns))) if columns else None
        if not columns:
            return
        self._pattern = torch.zeros(WIDTH, len(columns), dtype=torch.float64)
        for number, column in enumerate(columns):
            self._pattern[list(column), number] = 1
        self.register_buffer("owner", torch.arange(cameras))
        self.register_buffer("steps", torch.zeros(cameras, WIDTH, len(columns)))

    @torch.no_grad()
    def measure(self, cameras: Cameras, names: Sequence[str] | None = None) -> None:
        """Find out who shares a lens and how its numbers move the picture, before training.

        ValueError for a lens that cannot be refined; `names` are the photos', for that sentence.
        """
        if self.numbers is None:
            return
        for i, number in enumerate(cameras.lens.tolist()):
            if LENSES[number] not in REFINABLE:
                photo = f" ({names[i]})" if names is not None else ""
                raise ValueError(
                    f"intrinsics: camera {i}{photo} has a lens of kind {LENSES[number]}, expected "
                    f"{' or '.join(REFINABLE)} where lenses are refined; set model.intrinsics.refine=off"
                )
        on_cpu = Cameras(*(x.detach().cpu() for x in _parts(cameras)))
        owner, each = self._owners(on_cpu), self._pattern * units(on_cpu).double()[:, :, None]
        for first in owner.unique().tolist():
            mine = (owner == first).nonzero()[:, 0].tolist()
            lenses = sorted({_lens(on_cpu, i): i for i in mine}.values())
            sigma = torch.stack([_coupling(on_cpu, i, each[i]) for i in lenses]).mean(0, keepdim=True)
            each[mine] = each[mine] @ whitening(sigma, self.config.damping)
        self.owner.copy_(owner)
        self.steps.copy_(each)

    def _owners(self, cameras: Cameras) -> Tensor:
        if self.config.share != "same":
            every = torch.arange(self.cameras)
            return every if self.config.share == "none" else torch.zeros_like(every)
        firsts: dict[tuple, int] = {}
        return torch.tensor([firsts.setdefault(_lens(cameras, i), i) for i in range(self.cameras)])

    def changes(self) -> Tensor:
        """What is added to the lenses' numbers [C, 16]: fx fy cx cy and distortion."""
        assert self.numbers is not None
        # Sums and not matrix products, which autocast and TF32 may round.
        return (self.steps * self.numbers.index_select(0, self.owner)[:, None, :]).sum(-1)

    def changes_backward(self, grad: Tensor) -> Tensor:
        """The gradient of `numbers` [C, n] from that of `changes`."""
        assert self.numbers is not None
        each = (self.steps * grad[:, :, None]).sum(1)
        return torch.zeros_like(self.numbers).index_add_(0, self.owner, each)

    def forward(self, cameras: Cameras) -> Cameras:
        """The training cameras, with their lenses refined; the same object where nothing is."""
        return cameras if self.numbers is None else _changed(cameras, self.changes())

    @torch.no_grad()
    def of_others(self, given: Cameras, others: Cameras) -> Cameras:
        """Other cameras, with what was learnt of their lens; `given` are the training cameras as given.

        A camera takes over what the training cameras of the same size and lens learnt, on average where these
        did not share it; where there are none its lens stays as given, unless all cameras share.
        """
        if self.numbers is None:
            return others
        learnt = self.changes() / units(given)
        if self.config.share == "all":
            return _changed(others, learnt[:1] * units(others))
        known = [_lens(given, i) for i in range(self.cameras)]
        same = [[lens == _lens(others, i) for lens in known] for i in range(len(others.size))]
        weights = torch.tensor(same, device=learnt.device).reshape(len(same), self.cameras).to(learnt)
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
        return _changed(others, (weights[:, :, None] * learnt).sum(1) * units(others))


def _changed(cameras: Cameras, by: Tensor) -> Cameras:
    lens = {"intrinsics": cameras.intrinsics + by[:, :4], "distortion": cameras.distortion + by[:, 4:]}
    return replace(cameras, **lens)


def _parts(cameras: Cameras) -> tuple[Tensor, ...]:
    return cameras.camera_to_worlds, cameras.intrinsics, cameras.distortion, cameras.lens, cameras.size


def _lens(cameras: Cameras, i: int) -> tuple[float, ...]:
    """All that is known of camera i but its pose."""
    return tuple(number for part in _parts(cameras)[1:] for number in part[i].reshape(-1).tolist())


def _coupling(cameras: Cameras, i: int, steps: Tensor) -> Tensor:
    """Mean over the photo of J^T J [n, n], J how a ray's direction moves with a lens's numbers.

    steps [16, n]. Every pixel of a lattice is a camera of its own, so that sums over cameras are of one ray.
    """
    at = (torch.arange(GRID) + 0.5) / GRID
    y, x = torch.meshgrid(at, at, indexing="ij")
    xy = (torch.stack([x, y], -1).view(-1, 2) * cameras.size[i]).float()
    count = len(xy)
    lens = [part[i : i + 1].expand(count, *part.shape[1:]).contiguous() for part in _parts(cameras)[1:4]]
    views = (torch.eye(3, 4).repeat(count, 1, 1), torch.arange(count), xy, *lens, None, 0)
    along = [rays_lens_backward(*views, axis.expand(count, 3).contiguous(), True) for axis in torch.eye(3)]
    J = torch.stack(along, 1).double() @ steps
    return (J.transpose(-1, -2) @ J).mean(0)
