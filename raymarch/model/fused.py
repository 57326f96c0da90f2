"""A training step's pipeline in fused stages, forward and backward by hand: few launches and no autograd.

    rays_to_samples -> samples_to_field -> field_to_pixels      and, back, the same in reverse: rays_to_pixels

Each stage equals its composition in `raymarch.model` (python_tests/test_fused.py): the same numbers from
the same counter, the same losses, the same gradients. What the fused ops do not cover stays composed;
`unsupported` says why. Shapes: R rays, P = R * S points of the last level, ray after ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from raymarch.model import Model
from raymarch.model.fields import FeatureField, ProposalField
from raymarch.model.losses import COLOUR_STREAM
from raymarch.model.rays import box_on
from raymarch.ops.contract import norm_code
from raymarch.ops.fused import (
    BACKGROUNDS,
    add_radiance_gradients,
    add_rows,
    cast_rays,
    feature_loss_into,
    feature_parts,
    field_to_pixels_backward,
    field_to_pixels_into,
    normal_head_forward,
    normal_head_gradients,
    normal_inputs_backward,
    normal_inputs_forward,
    proposal_backward,
    radiance_inputs_backward,
    radiance_inputs_forward,
    ray_gradients,
    refine,
    refine_backward,
    resample,
    slope_normals,
)
from raymarch.ops.harmonics import LAYOUTS, SIGNS, fourier_backward, fourier_forward
from raymarch.ops.pose import MODES
from raymarch.ops.rays import COMPOSES, flip_tangential, rays_backward
from raymarch.types import Cameras, Pixels

TERMS = ("rgb", "interlevel", "distortion", "feature", "orientation", "predicted_normals", "poses")


def unsupported(model: Model) -> str | None:
    """Why a model cannot train in fused stages, or None where it can."""
    config = model.config
    if config.losses.depth > 0:
        return "the depth loss is composed only (model.losses.depth)"
    if model.fields.feature is not None and len(model.fields.feature.heads) > 1:
        return "the losses of several feature heads are composed only (model.fields.feature.heads)"
    poses = config.poses
    if model.trust is not None:
        return "cameras are distrusted by the composed losses only (model.poses.outlier_factor)"
    if poses.mode != "off" and (poses.coarse_resolution > 0 or poses.smooth_slope):
        return "coarse and smooth slopes are composed only (model.poses.coarse_resolution, smooth_slope)"
    if config.renderer.feature_path != "deferred":
        return "features are composited hidden only (model.renderer.feature_path)"
    return None


@dataclass
class Level:
    """Samples of one level and what the proposal field says there; the last level has no field.

    The way back lets go of what it has used: activations are most of a step's memory.
    """

    s: Tensor
    t: Tensor
    y: Tensor  # [R, S, 3] unit positions
    encoded: Tensor | None = None
    h: Tensor | None = None
    w: Tensor | None = None


@dataclass(frozen=True)
class RaySamples:
    origins: Tensor
    directions: Tensor
    levels: tuple[Level, ...]
    adjustment: Tensor | None  # [C, 3, 4]
    penalty: Tensor | None  # [1]
    distortion: Tensor  # of the lenses, as rays were cast

    @property
    def last(self) -> Level:
        return self.levels[-1]


@dataclass
class SampledField:
    """What the fields hold, and what their networks read; the way back lets go of what it has used."""

    encoded: Tensor | None
    h: Tensor
    sigma: Tensor  # [P]
    inputs: Tensor | None
    rgb: Tensor  # [P, 3]
    features: Tensor | None = None  # what the feature network reads
    hidden: Tensor | None = None  # [P, H]
    normals: Tensor | None = None  # [R, S, 3]
    normal_inputs: Tensor | None = None
    z: Tensor | None = None
    predicted: Tensor | None = None  # [P, 3]


@dataclass(frozen=True)
class Seen:
    """What rays see and the losses of it: rows of losses [rows, R], not yet weighted."""

    w: Tensor
    colour: Tensor
    opacity: Tensor
    hidden: Tensor | None
    losses: Tensor
    grad_hidden: Tensor | None = None
    grad_layer: Tensor | None = None


@dataclass(frozen=True)
class Weighing:
    """How rows of losses become terms: row k times scales[k], summed over rays, belongs to term owner[k]."""

    names: tuple[str, ...]
    scales: Tensor  # [rows]
    owner: Tensor  # [rows] int64
    pixel_rows: int


@dataclass
class Gradients:
    """Gradients by parameter; those `summed` are added to, and must be zero again before the next step."""

    of: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    summed: set[nn.Parameter] = field(default_factory=set)


class FusedPipeline:
    """A model's training step. Owns nothing but room for sums of gradients and constants on the device."""

    def __init__(self, model: Model, cameras: Cameras):
        if (why := unsupported(model)) is not None:
            raise ValueError(f"fused stages cannot train this model: {why}; use train.trainer.fused=false")
        self.model, self.cameras, self.config = model, cameras, model.config
        # What networks read on tensor cores is rounded anyway.
        self._halves = cameras.camera_to_worlds.is_cuda
        self._encoded = torch.float16 if self._halves else None
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._weighings: dict[tuple, Weighing] = {}
        self._seeds: dict[int, Tensor] = {}

    def _proposals(self) -> list[ProposalField]:
        return [cast(ProposalField, field) for field in self.model.fields.proposals]

    def _feature(self) -> FeatureField:
        assert self.model.fields.feature is not None
        return self.model.fields.feature

    # ---- rays_to_samples ----

    def rays_to_samples(
        self, pixels: Pixels, counter: Tensor | None, anneal: Tensor | None, jitter: str | None = None
    ) -> RaySamples:
        """Poses, rays and every level of samples of pixels [R]."""
        config = self.config
        adjustment = penalty = None
        xi = self._six_numbers()
        if xi is not None:
            adjustment, penalty = refine(xi, **self._refinement())
        cameras, sampler, stretch = self.cameras, config.sampler, config.rays
        distortion = cameras.distortion
        if stretch.tangential == "nerfstudio_0.3":
            distortion = flip_tangential(distortion, cameras.lens)
        jitter = sampler.jitter if jitter is None else jitter
        rayed = cast_rays(
            pixels.camera, pixels.xy, cameras.camera_to_worlds, cameras.intrinsics, distortion, cameras.lens,
            adjustment, config.poses.compose, stretch.near, stretch.far, sampler.samples[0], sampler.spacing,
            jitter, counter, 1, config.fields.norm,
            None if stretch.box is None else box_on(stretch.box, pixels.xy.device), stretch.eye_distance,
        )  # fmt: skip
        levels, level = [], Level(rayed.s, rayed.t, rayed.y)
        for i, proposal in enumerate(self._proposals()):
            y = level.y.view(-1, 3)
            encoded = proposal.grid.look_up(y, dtype=self._encoded)
            h = proposal.mlp.run(encoded)
            density = proposal.config.average_init_density
            w, s, t, y_new = resample(
                h, y, density, level.s, level.t, rayed.near, rayed.far, rayed.origins, rayed.directions,
                sampler.samples[i + 1], sampler.spacing, jitter, counter, i + 2, anneal,
                sampler.padding, config.fields.norm,
            )  # fmt: skip
            levels.append(Level(level.s, level.t, level.y, encoded, h, w))
            level = Level(s, t, y_new)
        return RaySamples(rayed.origins, rayed.directions, (*levels, level), adjustment, penalty, distortion)

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
        """Gradients of proposals; edges and gradients of unit positions of their levels, if poses want them.

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
            proposal.grid.add_gradient(y, grad_encoded, self._sum_for(proposal.grid.table, found))
            if rays.adjustment is not None and self.config.poses.through_proposals:
                t.append(level.t)
                grads_y.append(proposal.grid.slope(y, grad_encoded).view(level.y.shape))
            level.encoded = level.h = None
        return t, grads_y

    def rays_to_samples_backward(
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
        """Gradients of poses from those of unit positions, grads_y at edges t, and of rays, more_* [R, 3]."""
        numbers, xi = self.model.poses.adjustment, self._six_numbers()
        if numbers is None or xi is None or rays.adjustment is None:
            return
        norm = norm_code(self.config.fields.norm, "rays_to_samples")
        to_rays = ray_gradients(
            rays.origins, rays.directions, t, grads_y, norm, more_origins, more_directions
        )
        cameras, config = self.cameras, self.config
        same = torch.are_deterministic_algorithms_enabled()
        _, grad_pose = rays_backward(
            cameras.camera_to_worlds, pixels.camera, pixels.xy, cameras.intrinsics, rays.distortion,
            cameras.lens, rays.adjustment, COMPOSES[config.poses.compose], config.rays.eye_distance, *to_rays,
            False, True, same,
        )  # fmt: skip
        how = self._refinement()
        grad_xi = refine_backward(
            xi, how["free"], how["centred"], MODES[how["mode"]], how["small_angle"] == "nerfstudio",
            how["translation"], how["rotation"], grad_pose, grad_penalty,
        )  # fmt: skip
        found.of[numbers] = self.model.poses.linear_backward(grad_xi)

    # ---- samples_to_field ----

    def samples_to_field(self, pixels: Pixels, rays: RaySamples) -> SampledField:
        """What the fields hold at the last level's samples."""
        radiance, feature = self.model.fields.radiance, self.model.fields.feature
        y, config = rays.last.y.view(-1, 3), radiance.config
        encoded = radiance.grid.look_up(y, dtype=self._encoded)
        h = radiance.mlp.run(encoded)
        codes = radiance.appearance if config.appearance else None
        signs = SIGNS.index(config.harmonics)
        sigma, inputs = radiance_inputs_forward(
            h, y, config.average_init_density, rays.directions, signs, pixels.camera, codes, self._halves
        )
        rgb = radiance.colour.run(inputs)
        features = hidden = None
        if feature is not None:
            features = self._feature_inputs(y)
            hidden = feature.trunk.run(features)
        found = SampledField(encoded, h, sigma, inputs, rgb, features, hidden)
        return self._with_normals(rays, y, found) if config.predicted_normals else found

    def _feature_inputs(self, y: Tensor) -> Tensor:
        feature = self._feature()
        if feature.grid is not None:
            return feature.grid.look_up(y, feature.fourier, self._encoded)
        assert feature.fourier is not None
        return fourier_forward(y, feature.fourier.frequencies, LAYOUTS.index(feature.fourier.layout))

    def _with_normals(self, rays: RaySamples, y: Tensor, at: SampledField) -> SampledField:
        radiance, t = self.model.fields.radiance, rays.last.t
        seed = self._seed(y, at.h.shape[1])
        assert at.encoded is not None
        grad_encoded, _ = radiance.mlp.gradients(at.encoded, at.h, seed, need_params=False)
        slope = radiance.grid.slope(y, grad_encoded).view(rays.last.y.shape)
        contracted = radiance.config.normals_space != "world"
        norm = self.config.fields.norm
        normals = slope_normals(rays.origins, rays.directions, t, slope, norm, contracted)
        waves = (radiance.fourier.frequencies, LAYOUTS.index(radiance.fourier.layout))
        inputs = normal_inputs_forward(rays.origins, rays.directions, t, at.h, *waves, self._halves)
        z = radiance.normals.run(inputs)
        layer = radiance.normals_layer
        predicted = normal_head_forward(z, layer.weight, layer.bias)
        known = (at.encoded, at.h, at.sigma, at.inputs, at.rgb, at.features, at.hidden)
        return SampledField(*known, normals, inputs, z, predicted)

    def _seed(self, y: Tensor, width: int) -> Tensor:
        """The gradient of density before its activation: 1 in column 0; made once per size."""
        if y.shape[0] not in self._seeds:
            seed = torch.zeros(y.shape[0], width, device=y.device, dtype=y.dtype)
            seed[:, 0] = 1
            self._seeds[y.shape[0]] = seed
        return self._seeds[y.shape[0]]

    def samples_to_field_backward(
        self,
        pixels: Pixels,
        rays: RaySamples,
        at: SampledField,
        grad_sigma: Tensor,
        grad_rgb: Tensor,
        grad_hidden: Tensor | None,
        grad_predicted: Tensor | None,
        more_directions: Tensor | None,
        found: Gradients,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of fields; returns those of unit positions [P, 3], origins and directions [R, 3]."""
        radiance, feature = self.model.fields.radiance, self.model.fields.feature
        y, config = rays.last.y.view(-1, 3), radiance.config
        refines = rays.adjustment is not None
        assert at.inputs is not None and at.encoded is not None
        grad_inputs, found.of[radiance.colour.params] = radiance.colour.gradients(
            at.inputs, at.rgb, grad_rgb.view(-1, 3)
        )
        at.inputs = None
        more_h, column, to_origins = None, 0, None
        if grad_predicted is not None:
            more_h, to_origins, more_directions = self._normals_backward(
                rays, at, grad_predicted, more_directions, found
            )
            column = radiance.fourier.outputs
        signs = SIGNS.index(config.harmonics)
        known = (at.h, y, config.average_init_density, rays.directions, signs, pixels.camera)
        given = (grad_sigma.view(-1), grad_inputs, more_h, column, more_directions)
        if config.appearance:
            codes = self._sum_for(radiance.appearance, found)
            grad_h, to_directions = add_radiance_gradients(*known, *given, codes)
        else:
            grad_h, to_directions, _ = radiance_inputs_backward(*known, 0, *given)
        del grad_inputs, more_h, given
        grad_encoded, found.of[radiance.mlp.params] = radiance.mlp.gradients(at.encoded, at.h, grad_h)
        at.encoded = None
        radiance.grid.add_gradient(y, grad_encoded, self._sum_for(radiance.grid.table, found))
        grad_y = radiance.grid.slope(y, grad_encoded) if refines else None
        del grad_encoded
        if feature is not None:
            assert grad_hidden is not None
            more_y = self._feature_backward(y, at, grad_hidden, refines, found)
            if grad_y is not None and more_y is not None:
                grad_y += more_y
        turns = self.config.poses.through_directions
        return grad_y, to_origins, to_directions if turns else more_directions

    def _feature_backward(
        self, y: Tensor, at: SampledField, grad_hidden: Tensor, refines: bool, found: Gradients
    ) -> Tensor | None:
        feature = self._feature()
        to_positions = refines and not feature.config.detach_positions
        assert at.features is not None and at.hidden is not None
        grid_columns = feature.grid.outputs if feature.grid is not None else 0
        columns = None if to_positions else grid_columns  # of waves only positions want to know
        flat = grad_hidden.view(-1, grad_hidden.shape[-1])
        grad, found.of[feature.trunk.params] = feature.trunk.gradients(at.features, at.hidden, flat, columns)
        if feature.grid is not None:
            feature.grid.add_gradient(y, grad, self._sum_for(feature.grid.table, found))
        if not to_positions:
            return None
        grads = [feature.grid.slope(y, grad)] if feature.grid is not None else []
        if feature.fourier is not None:
            column = feature.grid.outputs if feature.grid is not None else 0
            waves = (feature.fourier.frequencies, LAYOUTS.index(feature.fourier.layout))
            grads.append(fourier_backward(y, *waves, column, grad))
        return grads[0] if len(grads) == 1 else grads[0] + grads[1]

    def _normals_backward(
        self,
        rays: RaySamples,
        at: SampledField,
        grad_predicted: Tensor,
        more_directions: Tensor | None,
        found: Gradients,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of the normal network's inputs, of origins and of directions."""
        radiance = self.model.fields.radiance
        layer = radiance.normals_layer
        weight, bias = cast(nn.Parameter, layer.weight), cast(nn.Parameter, layer.bias)
        assert at.z is not None and at.normal_inputs is not None
        grad_z, found.of[weight], found.of[bias] = normal_head_gradients(
            at.z, layer.weight, layer.bias, grad_predicted.view(-1, 3)
        )
        grad, found.of[radiance.normals.params] = radiance.normals.gradients(at.normal_inputs, at.z, grad_z)
        if rays.adjustment is None:
            return grad, None, more_directions
        waves = (radiance.fourier.frequencies, LAYOUTS.index(radiance.fourier.layout))
        where = (rays.origins, rays.directions, rays.last.t)
        return grad, *normal_inputs_backward(*where, *waves, grad, more_directions)

    # ---- field_to_pixels ----

    def field_to_pixels(
        self, pixels: Pixels, rays: RaySamples, at: SampledField, counter: Tensor | None
    ) -> Seen:
        """Weights, heads and per-ray losses; with features, the gradients of their loss already."""
        last = rays.last
        count, samples = last.t.shape[0], last.t.shape[1] - 1
        assert pixels.rgb is not None
        hidden = None if at.hidden is None else at.hidden.view(count, samples, at.hidden.shape[-1])
        predicted = None if at.predicted is None else at.predicted.view(count, samples, 3)
        directions = None if at.normals is None else rays.directions
        levels = [x for x in rays.levels[:-1] if x.w is not None]
        feature = self.model.fields.feature
        kinds = 3 + (at.normals is not None) + (predicted is not None)
        parts = 0 if feature is None or hidden is None else feature_parts(hidden, feature.layer)
        losses = at.sigma.new_empty(kinds + parts, count)
        w, colour, opacity, summed = field_to_pixels_into(
            losses[:kinds], at.sigma.view(count, samples), last.s, last.t,
            at.rgb.view(count, samples, 3), hidden, at.normals, predicted, directions, pixels.rgb,
            counter, [x.s for x in levels], [x.w for x in levels if x.w is not None],
            self._background(pixels), COLOUR_STREAM,
        )  # fmt: skip
        if hidden is None:
            return Seen(w, colour, opacity, None, losses)
        assert pixels.feature is not None and feature is not None
        grads = feature_loss_into(losses[kinds:], summed, feature.layer.detach(), pixels.feature)
        return Seen(w, colour, opacity, summed, losses, *grads)

    def _background(self, pixels: Pixels) -> int:
        return BACKGROUNDS[self.config.renderer.background]

    def weighing(self, pixels: Pixels, seen: Seen) -> Weighing:
        """Constant on the device; made in the first steps, which no graph captures."""
        rays, rows = seen.losses.shape[1], seen.losses.shape[0]
        width = 0 if pixels.feature is None else pixels.feature.shape[1]
        key = (rays, rows, width)
        if key not in self._weighings:
            self._weighings[key] = self._weigh(rays, rows, width, seen.losses.device)
        return self._weighings[key]

    def _weigh(self, rays: int, rows: int, width: int, device: torch.device) -> Weighing:
        config, fields = self.config.losses, self.config.fields
        per_ray = 1 / max(rays, 1)
        names = ["rgb", "interlevel", "distortion"]
        weights = [config.rgb * per_ray / 3, config.interlevel * per_ray, config.distortion * per_ray]
        if fields.radiance.predicted_normals:
            names += ["orientation", "predicted_normals"]
            weights += [config.orientation * per_ray, config.predicted_normals * per_ray]
        pixel_rows = len(names)
        if rows > pixel_rows:
            names += ["feature"] * (rows - pixel_rows)
            weights += [config.feature * per_ray / max(width, 1)] * (rows - pixel_rows)
        present = set(names) - (set() if self.model.fields.proposals else {"interlevel"})
        poses = self.config.poses
        if self.model.poses.adjustment is not None and (poses.translation_penalty or poses.rotation_penalty):
            present.add("poses")
        terms = tuple(term for term in TERMS if term in present)
        owner = [terms.index(name) if name in terms else 0 for name in names]
        if not self.model.fields.proposals:
            weights[1] = 0.0
        scales = torch.tensor(weights, dtype=torch.float32, device=device)
        return Weighing(terms, scales, torch.tensor(owner, device=device), pixel_rows)

    def field_to_pixels_backward(
        self,
        pixels: Pixels,
        rays: RaySamples,
        at: SampledField,
        seen: Seen,
        weighing: Weighing,
        counter: Tensor | None,
        found: Gradients,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of density, colours, hidden vectors, predicted normals and directions."""
        last = rays.last
        count, samples = last.t.shape[0], last.t.shape[1] - 1
        hidden = None if at.hidden is None else at.hidden.view(count, samples, at.hidden.shape[-1])
        rows, scales = weighing.pixel_rows, weighing.scales
        hidden_scale = None
        if seen.grad_layer is not None:
            hidden_scale = scales[rows : rows + 1]
            layer = self._feature().layer
            found.of[layer] = add_rows(seen.grad_layer.flatten(1), hidden_scale).view(layer.shape)
        to_predicted = at.predicted is not None
        to_directions = at.normals is not None and rays.adjustment is not None
        directions = rays.directions if to_directions else None
        assert pixels.rgb is not None
        grad_sigma, grad_rgb, grad_hidden, grad_predicted, grad_directions = field_to_pixels_backward(
            at.sigma.view(count, samples), last.s, last.t, at.rgb.view(count, samples, 3), hidden, at.normals,
            directions, pixels.rgb, counter, self._background(pixels), COLOUR_STREAM,
            self.config.losses.gradient_scaling, self.config.fields.feature.detach_weights, seen.w,
            seen.colour, seen.opacity, scales[:rows], seen.grad_hidden, hidden_scale, to_predicted,
            to_directions,
        )  # fmt: skip
        return (
            grad_sigma,
            grad_rgb,
            grad_hidden if hidden is not None else None,
            grad_predicted if to_predicted else None,
            grad_directions if to_directions else None,
        )

    # ---- all of it ----

    @torch.no_grad()
    def rays_to_pixels(
        self,
        pixels: Pixels,
        counter: Tensor | None = None,
        anneal: Tensor | None = None,
        update: bool = True,
        jitter: str | None = None,
    ) -> tuple[Seen, Weighing, Tensor | None, Gradients]:
        """Losses of pixels and their gradients: what is seen, how to weigh it, the poses' penalty, gradients.

        Arguments as `Model.forward` while training; gradients are those of the weighted losses' sum. Adds to
        the gradients of tables and codes: whoever uses them sets them to zero again.
        """
        found = Gradients()
        rays = self.rays_to_samples(pixels, counter, anneal, jitter)
        if not update:
            for level in rays.levels:
                level.encoded = level.h = None
        at = self.samples_to_field(pixels, rays)
        seen = self.field_to_pixels(pixels, rays, at, counter)
        weighing = self.weighing(pixels, seen)
        t: list[Tensor] = []
        grads_y: list[Tensor] = []
        if update:  # first, because their activations are large
            t, grads_y = self.proposals_backward(rays, seen.w, weighing.scales[1:2], found)
        back = self.field_to_pixels_backward(pixels, rays, at, seen, weighing, counter, found)
        grad_y, *to_rays = self.samples_to_field_backward(pixels, rays, at, *back, found)
        if grad_y is not None:
            t.append(rays.last.t)
            grads_y.append(grad_y.view(rays.last.y.shape))
        penalised = "poses" in weighing.names
        one = self._one(pixels.xy) if penalised else None
        self.rays_to_samples_backward(pixels, rays, t, grads_y, to_rays[0], to_rays[1], one, found)
        return seen, weighing, rays.penalty if penalised else None, found

    def _one(self, like: Tensor) -> Tensor:
        if -1 not in self._seeds:
            self._seeds[-1] = torch.ones(1, device=like.device)
        return self._seeds[-1]

    def _sum_for(self, parameter: nn.Parameter, found: Gradients) -> Tensor:
        """Room for a sum of gradients, all zeros whenever a step begins."""
        if parameter not in self._sums:
            self._sums[parameter] = torch.zeros_like(parameter)
        found.of[parameter] = self._sums[parameter]
        found.summed.add(parameter)
        return self._sums[parameter]

    def forget(self) -> None:
        """Set all sums of gradients to zero."""
        for total in self._sums.values():
            total.zero_()
