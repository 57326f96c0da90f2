"""The second fused stage: what the fields hold at the last level's samples, forward and backward by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from raymarch.model import Model
from raymarch.model.fields import FeatureField
from raymarch.model.gradients import Gradients, sum_for
from raymarch.model.rays_to_samples import RaySamples
from raymarch.model.side_stream import SideStream
from raymarch.ops.harmonics import LAYOUTS, SIGNS, fourier_backward, fourier_forward
from raymarch.ops.samples_to_field import (
    add_radiance_gradients,
    normal_head_forward,
    normal_head_gradients,
    normal_inputs_backward,
    normal_inputs_forward,
    radiance_inputs_backward,
    radiance_inputs_forward,
    slope_normals,
)
from raymarch.types import Pixels


@dataclass
class SampledField:
    """What the fields hold, and what their networks read; the way back lets go of what it has used."""

    encoded: Tensor | None
    h: Tensor
    sigma: Tensor  # [P]
    inputs: Tensor | None
    rgb: Tensor  # [P, 3]
    code: Tensor  # [R] int64, each ray's row of appearance codes
    features: Tensor | None = None  # what the feature network reads
    hidden: Tensor | None = None  # [P, H]
    normals: Tensor | None = None  # [R, S, 3]
    normal_inputs: Tensor | None = None
    z: Tensor | None = None
    predicted: Tensor | None = None  # [P, 3]


class SamplesToField:
    """Samples to fields; `encoded` is the dtype of what networks read, None for float32.

    The feature field has nothing to do with the radiance field but the samples: it runs beside it.
    """

    def __init__(self, model: Model, encoded: torch.dtype | None, device: torch.device):
        self.model, self.config = model, model.config
        self._side = SideStream(device)
        self._encoded, self._halves = encoded, encoded is not None
        self._seeds: dict[int, Tensor] = {}
        self._shares: dict[int, Tensor] = {}

    def _feature(self) -> FeatureField:
        assert self.model.fields.feature is not None
        return self.model.fields.feature

    def __call__(self, pixels: Pixels, rays: RaySamples) -> SampledField:
        """What the fields hold at the last level's samples."""
        radiance, feature = self.model.fields.radiance, self.model.fields.feature
        y, config = rays.last.y.view(-1, 3), radiance.config
        features = hidden = None
        if feature is not None:
            with self._side.begun():
                features = self._feature_inputs(y)
                hidden = feature.trunk.run(features)
        encoded = radiance.grid.look_up(y, dtype=self._encoded)
        h = radiance.mlp.run(encoded)
        row, codes = self._codes(pixels) if config.appearance else (pixels.camera, None)
        signs = SIGNS.index(config.harmonics)
        sigma, inputs = radiance_inputs_forward(
            h, y, config.average_init_density, rays.directions, signs, row, codes, self._halves
        )
        rgb = radiance.colour.run(inputs)
        found = SampledField(encoded, h, sigma, inputs, rgb, row, features, hidden)
        if config.predicted_normals:
            found = self._with_normals(rays, y, found)
        self._side.join()
        return found

    def _codes(self, pixels: Pixels) -> tuple[Tensor, Tensor]:
        """Each ray's row [R] of codes [C + 1, A]: its camera's own, or the last, which rays share."""
        radiance = self.model.fields.radiance
        codes = torch.cat([radiance.appearance, radiance.shared_code()[None]])
        cameras, rays = len(radiance.appearance), pixels.camera.shape[0]
        if rays not in self._shares:
            shares = torch.arange(rays, device=pixels.camera.device) < radiance.sharing(rays)
            self._shares[rays] = cameras * shares.long()
        return torch.maximum(pixels.camera, self._shares[rays]), codes

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
        known = (at.encoded, at.h, at.sigma, at.inputs, at.rgb, at.code, at.features, at.hidden)
        return SampledField(*known, normals, inputs, z, predicted)

    def _seed(self, y: Tensor, width: int) -> Tensor:
        """The gradient of density before its activation: 1 in column 0; made once per size."""
        if y.shape[0] not in self._seeds:
            seed = torch.zeros(y.shape[0], width, device=y.device, dtype=y.dtype)
            seed[:, 0] = 1
            self._seeds[y.shape[0]] = seed
        return self._seeds[y.shape[0]]

    def backward(
        self,
        rays: RaySamples,
        at: SampledField,
        w: Tensor,
        grad_sigma: Tensor,
        grad_rgb: Tensor,
        grad_hidden: Tensor | None,
        grad_predicted: Tensor | None,
        more_directions: Tensor | None,
        found: Gradients,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of fields; returns those of unit positions [P, 3], origins and directions [R, 3].

        w [R, S]: the samples' weights.
        """
        radiance, feature = self.model.fields.radiance, self.model.fields.feature
        y, config = rays.last.y.view(-1, 3), radiance.config
        refines = rays.move
        assert at.inputs is not None and at.encoded is not None
        more_y = None
        if feature is not None:
            assert grad_hidden is not None
            with self._side.begun():
                more_y = self._feature_backward(y, at, grad_hidden, w, refines, found)
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
        known = (at.h, y, config.average_init_density, rays.directions, signs, at.code)
        given = (grad_sigma.view(-1), grad_inputs, more_h, column, more_directions)
        if config.appearance:
            codes = grad_inputs.new_zeros(len(radiance.appearance) + 1, config.appearance, dtype=y.dtype)
            grad_h, to_directions = add_radiance_gradients(*known, *given, codes)
            found.of[radiance.appearance] = codes[:-1]
        else:
            grad_h, to_directions, _ = radiance_inputs_backward(*known, 0, *given)
        del grad_inputs, more_h, given
        grad_encoded, found.of[radiance.mlp.params] = radiance.mlp.gradients(at.encoded, at.h, grad_h)
        at.encoded = None
        grad_y = None
        if refines:
            with self._side.begun():
                grad_y = radiance.grid.slope(y, grad_encoded)
                if more_y is not None:
                    grad_y += more_y
        radiance.grid.add_gradient(y, grad_encoded, sum_for(radiance.grid.table, found))
        self._side.join()
        del grad_encoded
        turns = self.config.poses.through_directions
        return grad_y, to_origins, to_directions if turns else more_directions

    def _feature_backward(
        self, y: Tensor, at: SampledField, grad_hidden: Tensor, w: Tensor, refines: bool, found: Gradients
    ) -> Tensor | None:
        feature = self._feature()
        to_positions = refines and not feature.config.detach_positions
        assert at.features is not None and at.hidden is not None
        grid_columns = feature.grid.outputs if feature.grid is not None else 0
        columns = None if to_positions else grid_columns  # of waves only positions want to know
        flat = grad_hidden.view(-1, grad_hidden.shape[-1])
        share = w.view(-1) if feature.config.detach_weights else None
        grad, found.of[feature.trunk.params] = feature.trunk.gradients(
            at.features, at.hidden, flat, columns, share=share
        )
        if feature.grid is not None:
            feature.grid.add_gradient(y, grad, sum_for(feature.grid.table, found))
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
        if not rays.move:
            return grad, None, more_directions
        waves = (radiance.fourier.frequencies, LAYOUTS.index(radiance.fourier.layout))
        where = (rays.origins, rays.directions, rays.last.t)
        return grad, *normal_inputs_backward(*where, *waves, grad, more_directions)
