"""The first fused stage: poses, rays and every level of samples, forward and backward by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from raymarch.model import Model
from raymarch.model.exact import density_in_one
from raymarch.model.fields import ProposalField
from raymarch.model.gradients import Gradients, sum_for
from raymarch.model.rays import box_on
from raymarch.ops.contract import norm_code
from raymarch.ops.pose import MODES
from raymarch.ops.rays import COMPOSES, flip_tangential, rays_backward, rays_lens_backward
from raymarch.ops.rays_to_samples import (
    cast_rays,
    proposal_backward,
    ray_gradients,
    refine,
    refine_backward,
    resample,
)
from raymarch.types import Cameras, Pixels


@dataclass
class Level:
    """Samples of one level and what the proposal field says there; the last level has no field.

    The way back lets go of what it has used: activations are most of a step's memory.
    """

    s: Tensor
    t: Tensor
    y: Tensor  # [R, S, 3] unit positions; empty where nobody needs them
    encoded: Tensor | None = None
    h: Tensor | None = None
    w: Tensor | None = None


@dataclass(frozen=True)
class RaySamples:
    origins: Tensor
    directions: Tensor
    levels: tuple[Level, ...]
    xi: Tensor | None  # [C, 6], what the adjustments are made of
    adjustment: Tensor | None  # [C, 3, 4]
    penalty: Tensor | None  # [1]
    intrinsics: Tensor  # of the lenses, as rays were cast
    distortion: Tensor
    move: bool  # whether poses or lenses are refined, which need the rays' gradients

    @property
    def last(self) -> Level:
        return self.levels[-1]


class RaysToSamples:
    """Pixels to samples; `encoded` is the dtype of what networks read, None for float32.

    Where proposals are not trained, all that is asked of them is density: on CUDA one op finds it.
    """

    def __init__(self, model: Model, cameras: Cameras, encoded: torch.dtype | None):
        self.model, self.cameras, self.config = model, cameras, model.config
        self._encoded = encoded
        densities = [density_in_one(field) for field in self._proposals()]
        in_one = cameras.camera_to_worlds.is_cuda and all(x is not None for x in densities)
        self._densities = [x for x in densities if x is not None] if in_one else None

    def _proposals(self) -> list[ProposalField]:
        return [cast(ProposalField, field) for field in self.model.fields.proposals]

    def __call__(
        self,
        pixels: Pixels,
        counter: Tensor | None,
        anneal: Tensor | None,
        jitter: str | None = None,
        update: bool = True,
        move: bool = True,
    ) -> RaySamples:
        """Poses, rays and every level of samples of pixels [R].

        `update` says that proposals are trained, `move` that what is refined of cameras is.
        """
        config = self.config
        adjustment = penalty = None
        xi = self._six_numbers()
        if xi is not None:
            adjustment, penalty = refine(xi, **self._refinement())
        cameras, sampler, stretch = self.model.intrinsics(self.cameras), config.sampler, config.rays
        distortion = cameras.distortion
        if stretch.tangential == "nerfstudio_0.3":
            distortion = flip_tangential(distortion, cameras.lens)
        jitter = sampler.jitter if jitter is None else jitter
        densities = None if update else self._densities
        last = len(self._proposals())
        rayed = cast_rays(
            pixels.camera, pixels.xy, cameras.camera_to_worlds, cameras.intrinsics, distortion, cameras.lens,
            adjustment, config.poses.compose, stretch.near, stretch.far, sampler.samples[0], sampler.spacing,
            jitter, counter, 1, config.fields.norm,
            None if stretch.box is None else box_on(stretch.box, pixels.xy.device), stretch.eye_distance,
            densities is None or last == 0,
        )  # fmt: skip
        levels, level = [], Level(rayed.s, rayed.t, rayed.y)
        for i, proposal in enumerate(self._proposals()):
            y = encoded = None
            if densities is None:
                y = level.y.view(-1, 3)
                encoded = proposal.grid.look_up(y, dtype=self._encoded)
                h = proposal.mlp.run(encoded)
            else:
                h = densities[i](rayed.origins, rayed.directions, level.t).view(-1, 1)
            density = proposal.config.average_init_density
            w, s, t, y_new = resample(
                h, y, density, level.s, level.t, rayed.near, rayed.far, rayed.origins, rayed.directions,
                sampler.samples[i + 1], sampler.spacing, jitter, counter, i + 2, anneal,
                sampler.padding, config.fields.norm, densities is None or i + 1 == last,
            )  # fmt: skip
            kept = (encoded, h) if update else (None, None)
            levels.append(Level(level.s, level.t, level.y, kept[0], kept[1], w))
            level = Level(s, t, y_new)
        samples, lenses = (*levels, level), (cameras.intrinsics, distortion, self.model.refines and move)
        return RaySamples(rayed.origins, rayed.directions, samples, xi, adjustment, penalty, *lenses)

    def _six_numbers(self) -> Tensor | None:
        """Translations and rotation vectors [C, 6], out of the coordinates they are refined in."""
        numbers = self.model.poses.adjustment
        return None if numbers is None else self.model.poses.linear(numbers)

    def _refinement(self) -> dict:
        poses, config = self.model.poses, self.config.poses
        return {
            "mode": config.mode,
            "small_angle": config.small_angle,
            "centred": poses.free is None and config.gauge == "mean",
            "free": poses.free,
            "translation": config.translation_penalty,
            "rotation": config.rotation_penalty,
        }

    def proposals_backward(
        self, rays: RaySamples, w_fine: Tensor, interlevel: Tensor, found: Gradients
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of proposals; edges and gradients of unit positions of their levels, if rays are to move.

        interlevel [1] is the gradient of each ray's loss.
        """
        t, grads_y = [], []
        for proposal, level in zip(self._proposals(), rays.levels, strict=False):
            assert level.h is not None and level.encoded is not None and level.w is not None
            y = level.y.view(-1, 3)
            density, fine = proposal.config.average_init_density, (rays.last.s, w_fine)
            grad_h = proposal_backward(level.h, y, density, level.s, level.t, level.w, *fine, interlevel)
            grad_encoded, found.of[proposal.mlp.params] = proposal.mlp.gradients(
                level.encoded, level.h, grad_h
            )
            proposal.grid.add_gradient(y, grad_encoded, sum_for(proposal.grid.table, found))
            if rays.move and self.config.poses.through_proposals:
                t.append(level.t)
                grads_y.append(proposal.grid.slope(y, grad_encoded).view(level.y.shape))
            level.encoded = level.h = None
        return t, grads_y

    def backward(
        self,
        pixels: Pixels,
        rays: RaySamples,
        t: list[Tensor],
        grads_y: list[Tensor],
        more_origins: Tensor | None,
        more_directions: Tensor | None,
        grad_penalty: Tensor | None,
        found: Gradients,
    ) -> None:
        """Gradients of cameras from those of unit positions, grads_y at edges t, and of rays, more_*."""
        if not rays.move:
            return
        norm = norm_code(self.config.fields.norm, "rays_to_samples")
        to_rays = ray_gradients(
            rays.origins, rays.directions, t, grads_y, norm, more_origins, more_directions
        )
        self._lenses_backward(pixels, rays, to_rays[1], found)
        numbers, xi = self.model.poses.adjustment, rays.xi
        if numbers is None or xi is None:
            return
        same = torch.are_deterministic_algorithms_enabled()
        _, grad_pose = rays_backward(
            *self._views(pixels, rays), self.config.rays.eye_distance, *to_rays, False, True, same
        )
        how = self._refinement()
        grad_xi = refine_backward(
            xi, how["free"], how["centred"], MODES[how["mode"]], how["small_angle"] == "nerfstudio",
            how["translation"], how["rotation"], grad_pose, grad_penalty,
        )  # fmt: skip
        found.of[numbers] = self.model.poses.linear_backward(grad_xi)

    def _views(self, pixels: Pixels, rays: RaySamples) -> tuple:
        """Where rays came from, as the native ops take it."""
        lenses = (rays.intrinsics, rays.distortion, self.cameras.lens)
        how = COMPOSES[self.config.poses.compose]
        return (self.cameras.camera_to_worlds, pixels.camera, pixels.xy, *lenses, rays.adjustment, how)

    def _lenses_backward(
        self, pixels: Pixels, rays: RaySamples, to_directions: Tensor, found: Gradients
    ) -> None:
        numbers = self.model.intrinsics.numbers
        if numbers is None:
            return
        same = torch.are_deterministic_algorithms_enabled()
        grad = rays_lens_backward(*self._views(pixels, rays), to_directions, same)
        if self.config.rays.tangential == "nerfstudio_0.3":
            grad = torch.cat([grad[:, :4], flip_tangential(grad[:, 4:], self.cameras.lens)], 1)
        found.of[numbers] = self.model.intrinsics.changes_backward(grad)
