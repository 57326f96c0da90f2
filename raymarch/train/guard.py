"""Whether refining poses helped, tried and not assumed: two short continuations, one kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raymarch.data.alignment import align_most
from raymarch.data.pixels import Source
from raymarch.train.trainer import Trainer, TrainingError

RAYS = 16384  # of held-out photos, the same for both
CHUNK = 4096
STREAM = 96  # of the random numbers that pick them
MARGIN = 0.02  # dB by which unrefined poses must win


@dataclass(frozen=True)
class Verdict:
    """PSNR on held-out pixels after the same number of steps, with poses refined and with poses as given."""

    step: int
    refined_psnr: float
    given_psnr: float

    @property
    def kept(self) -> bool:
        return self.refined_psnr >= self.given_psnr - MARGIN

    def __str__(self) -> str:
        what = "kept" if self.kept else "rolled back, and poses stay as given"
        return (
            f"pose refinement {what}: at step {self.step} held-out pixels reach {self.refined_psnr:.2f} dB "
            f"with refined poses and {self.given_psnr:.2f} dB with poses as given"
        )


def guard(trainer: Trainer, held_out: Source, steps: int) -> Verdict:
    """Go on for `steps` with and without pose refinement, from where the trainer is; keep what does better.

    Without: every adjustment is set to the identity, every lens to what was given, and they stay there while
    the fields learn on. Both are judged on the same pixels of `held_out`, its cameras moved as the training
    cameras went together. Where poses as given win, the trainer's poses and lenses are braked for good
    (`Trainer.brake`), else the refined continuation is what stays. Neither is logged. Whatever interrupts
    this leaves the trainer where it began. ValueError for a model that refines no poses, or where fewer than
    `steps` are left.
    """
    if trainer.model.poses.adjustment is None:
        raise ValueError("guard: the model refines no poses (model.poses.mode is off), nothing to compare")
    end = trainer.step + steps
    if steps < 1 or end > trainer.config.steps:
        raise ValueError(
            f"guard: steps is {steps}, expected 1 to the {trainer.config.steps - trainer.step} that are left"
        )
    begin, was, run, trainer.run = _copy(trainer), trainer.step, trainer.run, None
    try:
        _go(trainer, end)
        refined, after = score(trainer, held_out), _copy(trainer)
        _put(trainer, begin, was)
        with torch.no_grad():
            trainer.model.poses.adjustment.zero_()
            if trainer.model.intrinsics.numbers is not None:
                trainer.model.intrinsics.numbers.zero_()
        trainer.brake.zero_()
        _go(trainer, end)
        verdict = Verdict(end, refined, score(trainer, held_out))
    except BaseException as error:  # what was tried is no state to save: back to where it began
        _put(trainer, begin, was)
        trainer.run = run
        if isinstance(error, TrainingError):
            trainer.save()
        raise
    trainer.run = run
    if verdict.kept:
        _put(trainer, after, end)
    return verdict


def suspicions(trainer: Trainer) -> list[str]:
    """A sentence on each camera that does not fit what the others agree on."""
    trust = trainer.model.trust
    return [
        f"camera {i} ({trainer.source.names[i]}) fits {ratio:.1f} times worse than the median camera: "
        "its pose or its photo is wrong, and its weight was lowered"
        for i, ratio in (trust.suspects() if trust is not None else [])
    ]


@torch.no_grad()
def score(trainer: Trainer, held_out: Source) -> float:
    """PSNR on a fixed draw of held-out pixels, cameras aligned with where the training cameras went."""
    given = trainer.source.cameras.camera_to_worlds
    went = align_most(given, trainer.model.poses.optimized_camera_to_worlds(given))
    lenses = trainer.model.intrinsics.of_others(trainer.source.cameras, held_out.cameras)
    cameras = replace(lenses, camera_to_worlds=went.take_along(lenses.camera_to_worlds))
    counter = torch.zeros(2, dtype=torch.int64, device=trainer.device)
    pixels = held_out.draw(counter, RAYS, STREAM)
    trainer.model.eval()
    total = 0.0
    for begin in range(0, RAYS, CHUNK):
        part = slice(begin, begin + CHUNK)
        some = replace(
            pixels, camera=pixels.camera[part], xy=pixels.xy[part], rgb=None, feature=None, depth=None
        )
        found = trainer.model(some, cameras, heads=frozenset({"rgb"})).rgb
        assert pixels.rgb is not None
        truth = pixels.rgb[part]
        if truth.shape[-1] == 4:
            behind = 1.0 if held_out.background == "white" else 0.0
            truth = truth[:, :3] * truth[:, 3:] + behind * (1 - truth[:, 3:])
        total += float((found - truth).square().mean(-1).sum())
    trainer.model.train()
    return -10 * math.log10(max(total / RAYS, 1e-12))


def _go(trainer: Trainer, end: int) -> None:
    for _ in trainer.iterate(end):
        pass


def _copy(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.state().items()}


@torch.no_grad()
def _put(trainer: Trainer, state: dict[str, Tensor], step: int) -> None:
    """Back to a copied state, into the same memory, which captured graphs read."""
    for name, tensor in trainer.state().items():
        tensor.copy_(state[name])
    trainer.continue_at(step)
