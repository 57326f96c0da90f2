"""A trained scene from Python: render it, ask it about points, find what matches a vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raymarch.features.pca import Pca
from raymarch.features.query import against, check, prepare
from raymarch.features.words import STORED, Words, read_embeddings
from raymarch.model import HEADS
from raymarch.model.fields import text_head
from raymarch.model.frames import FrameRenderer
from raymarch.train.colours import stored_pca
from raymarch.train.localize import Localisation, LocalizeConfig, Localizer
from raymarch.train.refined import RefinedPoses, refined_poses
from raymarch.train.runs import OpenRun, subset
from raymarch.types import Cameras

Texts = str | Sequence[str] | Tensor  # words, or their embeddings [D] or [n, D]


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

    @property
    def text_channels(self) -> slice:
        """Which channels of a feature are compared with text."""
        return self.feature_heads[self.text_head]

    @cached_property
    def words(self) -> Words:
        """What gives texts their embeddings: those in the run's folder, and the encoder it names."""
        stored = self.path / STORED
        heads = self.meta["scene"].get("features") or []
        named = {head["name"]: head for head in heads} if len(self.feature_heads) > 1 else {}
        head = named.get(self.text_head) if named else (heads or [None])[0]
        recipe = (head or {}).get("info") or {}
        return Words(read_embeddings(stored) if stored.exists() else {}, recipe, None, self.device)

    def embed(self, texts: Texts) -> Tensor:
        """Embeddings [n, D] of words, or of what is one already. WordsError, ValueError."""
        width = self._text_width()
        found = (
            texts if isinstance(texts, Tensor) else self.words([texts] if isinstance(texts, str) else texts)
        )
        found = found.float().reshape(-1, found.shape[-1])
        if found.shape[1] != width:
            raise ValueError(
                f"the embeddings have {found.shape[1]} channels, the features of {self.path} have {width}: "
                "they come from another encoder"
            )
        return found

    def pca(self) -> Pca:
        """Feature -> colour, the same for every frame: kept in the run's folder."""
        return stored_pca(self)

    def _text_width(self) -> int:
        if self.model.fields.feature is None:
            raise ValueError(f"{self.path} has no feature field: train with --preset f3rm and feature maps")
        return self.text_channels.stop - self.text_channels.start

    def render(
        self,
        camera: Cameras,
        heads: str | Iterable[str] = ("rgb", "depth"),
        mode: str = "exact",
        embeddings: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Render one camera (a Cameras of length 1).

        heads: one or several of rgb, depth, opacity, normals, predicted_normals, feature, similarity. Returns
        images [h, w, ...] by name; `depth` (median) and `expected_depth` [h, w] are distances along the ray
        in world units, normals are in world axes. `feature` holds the channels of all feature heads; where a
        run has several, each can be had by its own name (see `feature_heads`). `similarity` [h, w, K] are the
        cosines of `text_head` with `embeddings` [K, D]. mode "reduced" is several times faster and close to
        "exact"; `model.reduced` holds its switches and bounds. Feature images that do not fit on the GPU are
        returned in the host's memory.
        ValueError names heads this run does not have, unknown modes, embeddings of another width, and more
        cameras than one.
        """
        heads = frozenset([heads] if isinstance(heads, str) else heads)
        if len(camera.size) != 1:
            raise ValueError(f"render: camera holds {len(camera.size)} cameras, expected one")
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
        width = self._text_width()
        if embeddings.dim() != 2 or embeddings.shape[1] != width:
            raise ValueError(
                f"embeddings have shape {list(embeddings.shape)}, expected [K, {width}], the run's features"
            )

    @torch.no_grad()
    def query(
        self,
        points: Tensor,
        texts: Sequence[Texts] | None = None,
        negatives: Texts | None = None,
        score: str = "paired",
        temperature: float = 0.1,
        chunk: int = 1 << 18,
    ) -> dict[str, Tensor]:
        """Density [P] per world unit and, given a feature field, feature [P, D] at world points [P, 3].

        Far from the world's origin, as in maps' coordinates, give the points in float64.

        With Q texts (or embeddings), also `similarity` [P, Q]: how well each point matches each of them.
        """
        check(score, temperature, "score")
        points = torch.as_tensor(points).cpu().double()  # worlds may lie far from their origin
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"query: points has shape {tuple(points.shape)}, expected [P, 3]")
        inside = self.world_from_scene.invert().apply(points).float().to(self.device)
        parts = [self.model.fields.at(part) for part in inside.split(chunk)]
        found = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
        found["density"] = found["density"] / self.world_from_scene.scale
        if texts is not None:
            wanted, others = self._embedded(texts, negatives)
            unit = torch.nn.functional.normalize(found["feature"][:, self.text_channels], dim=-1)
            cosines = unit @ torch.cat([wanted, others]).to(unit).T
            found["similarity"] = _scored(cosines, len(wanted), score, temperature)
        return found

    def similarity(
        self,
        camera: Cameras,
        positives: Texts,
        negatives: Texts | None = None,
        score: str = "paired",
        temperature: float = 0.1,
        mode: str = "exact",
    ) -> Tensor:
        """How well each pixel of a camera matches words or embeddings: [h, w].

        positives: a text, several texts for one thing, or embeddings [K, D] (their mean is looked for).
        negatives: what it is not. In 0..1 with negatives (0.5: as like as the likest of them), else a cosine.
        score: see `raymarch.features.query.similarity`. Raises WordsError for texts without an embedding.
        """
        found = self.look(camera, [positives], negatives, ("rgb",), score, temperature, mode)
        return found["similarity"][..., 0]

    def look(
        self,
        camera: Cameras,
        queries: Sequence[Texts],
        negatives: Texts | None = None,
        heads: str | Iterable[str] = ("rgb", "depth"),
        score: str = "paired",
        temperature: float = 0.1,
        mode: str = "exact",
    ) -> dict[str, Tensor]:
        """`render` with Q queries at once: what it returns, and `similarity` [h, w, Q] of each."""
        check(score, temperature, "score")
        wanted, others = self._embedded(queries, negatives)
        asked = {heads} if isinstance(heads, str) else set(heads)
        found = self.render(camera, asked | {"similarity"}, mode, torch.cat([wanted, others]).to(self.device))
        found["similarity"] = _scored(found["similarity"], len(wanted), score, temperature)
        return found

    def _embedded(self, queries: Sequence[Texts], negatives: Texts | None) -> tuple[Tensor, Tensor]:
        """One unit row per query, and one per negative."""
        if isinstance(queries, (str, Tensor)):
            raise ValueError("expected a list of queries, each a text, texts or embeddings; got a single one")
        wanted = torch.stack([prepare(self.embed(query)).positive for query in queries])
        if negatives is None or len(negatives) == 0:
            return wanted, wanted[:0]
        return wanted, torch.nn.functional.normalize(self.embed(negatives).to(wanted), dim=-1)

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


def _scored(cosines: Tensor, queries: int, score: str, temperature: float) -> Tensor:
    """Cosines [..., Q + m] with queries and negatives -> scores [..., Q]."""
    return against(cosines[..., :queries], cosines[..., queries:], score, temperature)


def _on(camera: Cameras, device: torch.device) -> Cameras:
    return subset(camera, (0,), device)


def load(run: str | Path, device: str = "auto") -> TrainedScene:
    """Open a run folder's newest checkpoint. Executes nothing from it. CheckpointError says what is wrong."""
    return TrainedScene(Path(run), device)
