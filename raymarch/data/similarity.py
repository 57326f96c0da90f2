"""Similarity transforms with named steps: how the frame of a scene relates to the user's world.

    y = scale * rotation @ x + translation

A rotation is proper (no mirror) and the scale positive, so every similarity has an inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from raymarch.data.error import SceneError

RIGID_TOLERANCE = 1e-3  # largest entry of R^T R - I that still counts as rounding in a file


@dataclass(frozen=True, eq=False)
class Similarity:
    """Float64 on the CPU. `steps` are the named parts in the order in which they are applied."""

    scale: float = 1.0
    rotation: Tensor = field(default_factory=lambda: torch.eye(3, dtype=torch.float64))  # [3, 3]
    translation: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))  # [3]
    steps: tuple[tuple[str, Similarity], ...] = ()

    def apply(self, points: Tensor) -> Tensor:
        """Map points [..., 3]; dtype and device are kept."""
        rotation, translation = self.rotation.to(points), self.translation.to(points)
        return self.scale * (points @ rotation.T) + translation

    def rotate(self, directions: Tensor) -> Tensor:
        """Map directions or normals [..., 3]: rotation only, so unit vectors stay unit."""
        return directions @ self.rotation.to(directions).T

    def apply_poses(self, camera_to_worlds: Tensor) -> Tensor:
        """Map poses [..., 3, 4]: axes are rotated, positions mapped; the axes keep unit length."""
        axes = self.rotation.to(camera_to_worlds) @ camera_to_worlds[..., :3]
        return torch.cat([axes, self.apply(camera_to_worlds[..., 3])[..., None]], dim=-1)

    def invert(self) -> Similarity:
        """The way back, with the same step names in reverse order."""
        rotation = self.rotation.T.contiguous()
        translation = -(rotation @ self.translation) / self.scale
        steps = tuple((name, step.invert()) for name, step in reversed(self.steps))
        return Similarity(1 / self.scale, rotation, translation, steps)

    def then(self, name: str, step: Similarity) -> Similarity:
        """This, followed by one more step under a name of its own."""
        scale = step.scale * self.scale
        rotation = step.rotation @ self.rotation
        return Similarity(scale, rotation, step.apply(self.translation), (*self.steps, (name, step)))

    def matrix(self) -> Tensor:
        """The same as one [4, 4] matrix."""
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = self.scale * self.rotation
        matrix[:3, 3] = self.translation
        return matrix

    def to_dict(self) -> dict:
        """Plain numbers and lists, for JSON; `from_dict` reads them back bit for bit."""
        rotation, translation = self.rotation.tolist(), self.translation.tolist()
        whole = {"scale": self.scale, "rotation": rotation, "translation": translation}
        steps = [{"name": name, **step.to_dict()} for name, step in self.steps]
        return {**whole, "steps": steps} if steps else whole

    @staticmethod
    def from_dict(values: dict) -> Similarity:
        """Read what `to_dict` wrote. Raises SceneError where that is not a similarity."""
        try:
            steps = tuple((str(x["name"]), Similarity.from_dict(x)) for x in values.get("steps", ()))
            return similarity(values["scale"], values["rotation"], values["translation"], steps)
        except (KeyError, TypeError, AttributeError) as error:
            raise SceneError(f"a similarity needs scale, rotation and translation: {error!r}") from None


def similarity(scale=1.0, rotation=None, translation=None, steps=()) -> Similarity:
    """A checked Similarity from numbers, lists or arrays."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise SceneError(f"the scale of a similarity must be a positive number, not {scale!r}")
    rotation = _float64(np.eye(3) if rotation is None else rotation, (3, 3), "rotation")
    translation = _float64(np.zeros(3) if translation is None else translation, (3,), "translation")
    if fault := rotation_fault(rotation.numpy()):
        raise SceneError(f"the rotation of a similarity {fault}")
    return Similarity(float(scale), rotation, translation, tuple(steps))


def rotation_fault(matrix: np.ndarray) -> str | None:
    """What keeps a finite [3, 3] matrix from being a rotation, as the end of a sentence, or None."""
    with np.errstate(over="ignore", invalid="ignore"):
        gram = matrix.T @ matrix
        size = float(np.trace(gram) / 3)
        off = np.abs(gram - np.eye(3)).max()
        shape = np.abs(gram / size - np.eye(3)).max() if size > 0 else np.inf
    if not off <= RIGID_TOLERANCE:
        if shape <= RIGID_TOLERANCE:
            return f"carries a uniform scale of {math.sqrt(size):.6g}: divide its nine numbers by that"
        return f"is not rigid: R^T R differs from the identity by {off:.3g}, more than {RIGID_TOLERANCE:g}"
    if np.linalg.det(matrix) < 0:
        return "mirrors space (its determinant is -1): the axes are left-handed"
    return None


def _float64(value, shape: tuple[int, ...], name: str) -> Tensor:
    try:
        array = np.array(value.tolist() if isinstance(value, Tensor) else value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise SceneError(f"the {name} of a similarity must be numbers of shape {list(shape)}") from None
    if array.shape != shape or not np.isfinite(array).all():
        raise SceneError(f"the {name} of a similarity must be finite numbers of shape {list(shape)}")
    return torch.from_numpy(array)
