"""A trained scene from Python: render it, ask it about points, find what matches a vector."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymarch.features.query import similarity_from_hidden
from raymarch.model import HEADS
from raymarch.model.fields import text_head
from raymarch.model.frames import FrameRenderer
from raymarch.train.localize import Localisation, LocalizeConfig, Localizer
from raymarch.train.refined import RefinedPoses, refined_poses
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

    _localizer: Localizer | None = None  # kept: its captured graphs make the next photo quicker

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

    @cached_property
    def frames(self) -> FrameRenderer:
        """What renders this scene's frames, kept between them."""
        return FrameRenderer(self.model)

    def render(
        self,
        camera: Cameras,
        heads: Iterable[str] = ("rgb", "depth"),
        mode: str = "exact",
        embeddings: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Render one camera (a Cameras of length 1).

        heads: any of rgb, depth, opacity, normals, predicted_normals, feature, similarity. Returns images [h,
        w, ...] by name; `depth` (median) and `expected_depth` [h, w] are distances along the ray in world
        units, normals are in world axes. `feature` holds the channels of all feature heads; where a run has
        several, each can be had by its own name (see `feature_heads`). `similarity` [h, w, K] are the cosines
        of `text_head` with `embeddings` [K, D]. mode "reduced" is several times faster and close to "exact";
        `model.reduced` holds its switches and bounds. Feature images that do not fit on the GPU are returned
        in the host's memory.
        ValueError names heads this run does not have, unknown modes and embeddings of another width.
        """
        heads = frozenset(heads)
        self._check(heads, embeddings)
        own = heads & (self.feature_heads.keys() - {"feature"})
        asked = heads - own | {"rgb"} | ({"feature"} if own else set())
        found = self.frames.render(_on(camera, self.device), 0, asked, mode, embeddings)
        found |= {name: found["feature"][..., self.feature_heads[name]] for name in own}
        if "feature" not in heads:
            found.pop("feature", None)
        for name in ("depth", "expected_depth"):
            if name in found:
                found[name] = found[name] * self.world_from_scene.scale
        for name in ("normals", "predicted_normals"):
            if name in found:
                found[name] = self.world_from_scene.rotate(found[name])
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
        return text_head(self.feature_heads)

    def _check(self, heads: frozenset[str], embeddings: Tensor | None = None) -> None:
        have = {*HEADS, "similarity"} | self.feature_heads.keys()
        if self.model.fields.feature is None:
            have -= {"feature", "similarity"}
        if not self.config.model.fields.radiance.predicted_normals:
            have.discard("predicted_normals")
        if missing := sorted(heads - have):
            raise ValueError(f"this run has no head {missing[0]!r}; it has {', '.join(sorted(have))}")
        if embeddings is None:
            return
        widths = {name: channels.stop - channels.start for name, channels in self.feature_heads.items()}
        width = widths[self.text_head] if widths else 0
        if embeddings.dim() != 2 or embeddings.shape[1] != width:
            raise ValueError(
                f"embeddings have shape {list(embeddings.shape)}, expected [K, {width}], the run's features"
            )

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
        self._check(frozenset({"feature"}))
        heads = frozenset({"rgb", "feature_hidden"})
        hidden = self.frames.render(_on(camera, self.device), 0, heads)["feature_hidden"]
        feature = self.model.fields.feature
        assert feature is not None
        return similarity_from_hidden(hidden, feature.text_layer.detach(), positives, negatives)

    def poses(self) -> RefinedPoses:
        """The training cameras before and after refinement, with corrections in degrees and world units."""
        return refined_poses(self)

    def localize(
        self,
        image: Any,
        camera: Any = None,
        init: Any = None,
        config: LocalizeConfig | None = None,
        overlay: bool = True,
        keep: Tensor | None = None,
    ) -> Localisation:
        """Where a photo was taken from, against the fields as they are.

        image: a path, or [h, w, 3 or 4], uint8 or float in 0..1. camera: a Cameras of length 1 for that size
        (its pose is not read), (fx, fy, cx, cy) in pixels, or None for the lens that all training photos
        share. init: None or "all" (every training view), "train:K", "test:K", or camera-to-world poses in
        world units, [3, 4], [4, 4], [S, 3, 4] or [S, 4, 4] (OpenGL axes). `overlay` also renders the result.
        keep: [h, w] bool, the pixels to use (default: all).

        The search covers `config.spread_degrees` and `config.spread` (of the scene's size) around every
        start. Raises LocalizeError for a photo, camera or start that cannot be used.
        """
        config = config or LocalizeConfig()
        if self._localizer is None or self._localizer.config != config:
            self._localizer = Localizer(self, config)
        return self._localizer(image, camera, init, overlay, keep)


def _on(camera: Cameras, device: torch.device) -> Cameras:
    return subset(camera, (0,), device)


def load(run: str | Path, device: str = "auto") -> TrainedScene:
    """Open a run folder's newest checkpoint. Executes nothing from it. CheckpointError says what is wrong."""
    return TrainedScene(Path(run), device)
