"""What was learnt of focal lengths and distortion, lens by lens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raymarch.model.intrinsics import COLUMNS
from raymarch.train.runs import OpenRun
from raymarch.types import LENSES, Cameras

NUMBERS = ("fx", "fy", "cx", "cy", *(word for word in COLUMNS if word not in ("focal", "centre")))


@dataclass(frozen=True)
class RefinedLens:
    """A lens of some training cameras before and after refinement."""

    cameras: tuple[int, ...]  # whose lens it is, as places in the list of training photos
    name: str  # the first one's photo
    kind: str  # perspective or fisheye
    given: dict[str, float]  # fx fy cx cy in pixels, k1 k2 k3 k4 p1 p2
    refined: dict[str, float]

    @property
    def focal_percent(self) -> float:
        """By how many per cent the focal length grew."""
        return 100 * (self.refined["fx"] / self.given["fx"] - 1)

    def row(self) -> dict[str, object]:
        """Ready for JSON."""
        return {
            "cameras": list(self.cameras),
            "name": self.name,
            "lens": self.kind,
            "given": self.given,
            "refined": self.refined,
        }

    def told(self) -> str:
        """One sentence: the numbers that changed, from and to."""
        changed = [
            f"{name} {self.given[name]:.6g} to {self.refined[name]:.6g}"
            for name in NUMBERS
            if self.given[name] != self.refined[name]
        ]
        whose = self.name if len(self.cameras) == 1 else f"{self.name} and {len(self.cameras) - 1} more"
        return (
            f"lens of {whose}: {', '.join(changed) or 'as given'}; focal length {self.focal_percent:+.3g} %"
        )


def refined_lenses(run: OpenRun) -> list[RefinedLens]:
    """Every lens of a run's training cameras; [] where lenses are not refined."""
    if run.model.intrinsics.numbers is None:
        return []
    given, refined = run.train_cameras(refined=False), run.train_cameras()
    before, after = _numbers(given), _numbers(refined)
    sharing: dict[tuple, list[int]] = {}
    for i, row in enumerate(zip(given.lens.tolist(), before.tolist(), after.tolist(), strict=True)):
        sharing.setdefault((row[0], *row[1], *row[2]), []).append(i)
    return [
        RefinedLens(
            tuple(cameras),
            run.names[run.train[cameras[0]]],
            LENSES[int(given.lens[cameras[0]])],
            dict(zip(NUMBERS, before[cameras[0]].tolist(), strict=True)),
            dict(zip(NUMBERS, after[cameras[0]].tolist(), strict=True)),
        )
        for cameras in sharing.values()
    ]


def _numbers(cameras: Cameras) -> Tensor:
    """fx fy cx cy k1 k2 k3 k4 p1 p2 of each camera [C, 10]."""
    return torch.cat([cameras.intrinsics, cameras.distortion[:, :6]], 1).cpu()


def lenses_protocol(run: OpenRun) -> str:
    """What to say of lenses beside a figure; empty where they are as given."""
    words = run.model.intrinsics.words
    return f"; lenses as refined with the training photos ({', '.join(words)})" if words else ""
