"""A trained scene from Python: render it, ask it about points, find what matches a vector."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from raymarch.features.query import similarity
from raymarch.model import HEADS
from raymarch.train.evaluate import render_image
from raymarch.train.runs import OpenRun, subset
from raymarch.types import Cameras


def perspective(
    camera_to_world: Tensor, focal: float, width: int, height: int, device: str = "cpu"
) -> Cameras:
    """One pinhole camera: camera_to_world [3, 4] (OpenGL axes, scene units), focal length in pixels."""
    pose = torch.as_tensor(camera_to_world, dtype=torch.float32, device=device)[:3, :4].reshape(1, 3, 4)
    return Cameras(
        camera_to_worlds=pose,
        intrinsics=torch.tensor([[focal, focal, width / 2, height / 2]], device=device),
        distortion=torch.zeros(1, 12, device=device),
        lens=torch.zeros(1, dtype=torch.int64, device=device),
        size=torch.tensor([[width, height]], device=device),
    )


class TrainedScene(OpenRun):
    """What `raymarch.load` returns."""

    def camera(self, which: str, index: int) -> Cameras:
        """A `train` (refined pose) or `test` (pose as given) camera by its place in that split."""
        cameras = self.train_cameras() if which == "train" else self.test_cameras()
        count = len(cameras.size)
        if which not in ("train", "test") or not 0 <= index < count:
            raise IndexError(
                f"camera({which!r}, {index}): there are {len(self.train)} train cameras "
                f"and {len(self.test)} test cameras"
            )
        return subset(cameras, (index,), self.device)

    def render(self, camera: Cameras, heads: Iterable[str] = ("rgb", "depth")) -> dict[str, Tensor]:
        """Render one camera (a Cameras of length 1).

        heads: any of rgb, depth, opacity, normals, predicted_normals, feature. Returns images [h, w, ...] by
        name. `feature` holds the channels of all feature heads; where a run has several, each can be had by
        its own name (see `feature_heads`). `depth` (median) and `expected_depth` [h, w] are distances along
        the ray in world units.
        ValueError names heads this run does not have.
        """
        heads = frozenset(heads)
        self._check(heads)
        own = {name: self.feature_heads[name] for name in heads & self.feature_heads.keys()}
        asked = (heads - own.keys()) | ({"feature"} if own else set())
        found = render_image(self.model, _on(camera, self.device), 0, asked | {"rgb"})
        found |= {name: found["feature"][..., channels] for name, channels in own.items()}
        for name in ("depth", "expected_depth"):
            if name in found:
                found[name] = found[name] * self.world_from_scene.scale
        return found

    @property
    def feature_heads(self) -> dict[str, slice]:
        """Which channels of a feature belong to which head; empty without a feature field."""
        return self.model.fields.feature.heads if self.model.fields.feature is not None else {}

    @property
    def text_head(self) -> str:
        """The head that text is compared with: `clip` among several, else the only one.

        ValueError where there is none.
        """
        names = list(self.feature_heads)
        if len(names) == 1:
            return names[0]
        if "clip" not in names:
            raise ValueError(
                f"no feature head is compared with text; this run has {', '.join(names) or 'none'}"
            )
        return "clip"

    def _check(self, heads: frozenset[str]) -> None:
        have = set(HEADS) | self.feature_heads.keys()
        if self.model.fields.feature is None:
            have.discard("feature")
        if not self.config.model.fields.radiance.predicted_normals:
            have.discard("predicted_normals")
        if missing := sorted(heads - have):
            raise ValueError(f"this run has no head {missing[0]!r}; it has {', '.join(sorted(have))}")

    @torch.no_grad()
    def query(self, points: Tensor, chunk: int = 1 << 20) -> dict[str, Tensor]:
        """Density [P] per world unit and, given a feature field, feature [P, D] at world points [P, 3]."""
        points = torch.as_tensor(points, dtype=torch.float32)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"query: points has shape {tuple(points.shape)}, expected [P, 3]")
        inside = self.world_from_scene.invert().apply(points).to(self.device)
        parts = [self.model.fields.at(part) for part in inside.split(chunk)]
        found = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
        found["density"] = found["density"] / self.world_from_scene.scale
        return found

    def similarity(self, camera: Cameras, positives: Tensor, negatives: Tensor | None = None) -> Tensor:
        """How well each pixel of a camera matches embeddings: [h, w] in 0..1 with negatives, else cosine.

        positives [K, D] and negatives [M, D] have the width of `text_head`, as from a text encoder.
        """
        features = self.render(camera, ("rgb", "feature"))["feature"]
        return similarity(features[..., self.feature_heads[self.text_head]], positives, negatives)


def _on(camera: Cameras, device: torch.device) -> Cameras:
    return subset(camera, (0,), device)


def load(run: str | Path, device: str = "auto") -> TrainedScene:
    """Open a run folder's newest checkpoint. Executes nothing from it. CheckpointError says what is wrong."""
    return TrainedScene(Path(run), device)
