"""A rendered frame -> one picture per head, in colours that stay the same from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymarch.apps import palette
from raymarch.config import ConfigError
from raymarch.export.surface import chosen_views, view_of
from raymarch.features.pca import apply
from raymarch.trained import Texts, TrainedScene
from raymarch.types import Cameras

HEADS = ("rgb", "depth", "opacity", "normals", "predicted_normals", "pca", "feature", "similarity")
GLANCES, GLANCE_SIDE = 6, 48  # small views that the range of depths is taken from


@dataclass
class Look:
    """What to show of a scene and how: heads, and the words that similarity is about."""

    scene: TrainedScene
    heads: Sequence[str]
    texts: Sequence[Texts] = ()  # each a text, several for one thing, or embeddings
    negatives: Sequence[str] = ()
    score: str = "paired"
    temperature: float = 0.1
    mode: str = "exact"
    near_far: tuple[float, float] | None = None  # of the depth colours; found at the first need
    warm: tuple[float, float] | None = None  # of the similarity colours; found at the first need

    def __post_init__(self) -> None:
        for head in self.heads:
            if head not in HEADS:
                raise ConfigError(f"--heads: there is no {head!r}; expected some of {', '.join(HEADS)}")
        if "similarity" in self.heads and not self.texts:
            raise ConfigError(
                "--heads similarity needs a text to look for: give --text, or --embeddings FILE.npy"
            )

    def frame(self, camera: Cameras) -> dict[str, Tensor]:
        """Numbers: heads by name, on the scene's device. ConfigError names heads that the run lacks."""
        wanted = {"feature" if h == "pca" else h for h in self.heads} - {"similarity"} | {"rgb"}
        try:
            if "similarity" not in self.heads:
                return self.scene.render(camera, wanted, self.mode)
            negatives = list(self.negatives) or None
            rule = self.score, self.temperature, self.mode
            return self.scene.look(camera, list(self.texts), negatives, wanted, *rule)
        except ValueError as error:
            raise ConfigError(f"--heads: {error}") from None

    def pictures(self, frame: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """uint8 [h, w, 3] by head; with several texts, one similarity per text, named after its number."""
        found = {}
        for head in self.heads:
            if head == "similarity" and len(self.texts) > 1:
                for i in range(len(self.texts)):
                    found[f"similarity_{i}"] = self.picture(head, frame, i)
            else:
                found[head] = self.picture(head, frame)
        return found

    def picture(self, head: str, frame: dict[str, Tensor], text: int = 0) -> np.ndarray:
        """One head of a frame as uint8 [h, w, 3]."""
        if head in ("pca", "feature"):
            return palette.rgb(apply(frame["feature"], self.scene.pca()))
        if head == "depth":
            return palette.depth(frame["depth"], *self.depth_range())
        if head in ("normals", "predicted_normals"):
            return palette.normals(frame[head])
        if head == "opacity":
            return palette.grey(frame["opacity"])
        if head == "similarity":
            return palette.heat(frame["similarity"][..., text], frame["rgb"], *self.warmth(frame))
        return palette.rgb(frame["rgb"])

    def depth_range(self) -> tuple[float, float]:
        """Near and far of the depth colours, from a few small training views."""
        if self.near_far is None:
            seen = [
                self.scene.render(view_of(self.scene, i, GLANCE_SIDE), ("depth",))["depth"].flatten().cpu()
                for i in chosen_views(self.scene, GLANCES)
            ]
            self.near_far = palette.depth_range(torch.cat(seen))
        return self.near_far

    def warmth(self, frame: dict[str, Tensor]) -> tuple[float, float]:
        """0..1 for what softmax gives, else from the first frame's median to its best."""
        if self.negatives and self.score == "paired":
            return 0.0, 1.0
        if self.warm is None:
            values = frame["similarity"]
            low, high = float(values.median()), float(values.max())
            self.warm = low, max(high, low + 1e-6)
        return self.warm
