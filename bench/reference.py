"""A second renderer, slow and in float64, from a pixel to its composited heads, for golden frames.

It shares nothing with the engine but a trained model's numbers: no op, no kernel, no module. The formulas are
those that the pipeline's papers and peers state, written down once more in plain torch: pinhole rays,
nerfstudio's piecewise spacing and PDF sampling, mip-NeRF 360's contraction, tiny-cuda-nn's hash grid (Mueller
et al. 2022) and networks, real spherical harmonics, alpha compositing, normals by automatic differentiation,
and features composited sample by sample, the last layer included.

What it knows: perspective cameras without distortion, evaluation (no jitter, poses as given, the mean
appearance code), linear interpolation. Anything else raises ValueError.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)
HISTOGRAM_PADDING = 0.01


@dataclass(frozen=True)
class Reference:
    """The numbers of a model: its config (raymarch.model.ModelConfig) and its parameters by name, float64."""

    config: Any
    numbers: dict[str, Tensor]

    @staticmethod
    def of(model: Any) -> Reference:
        """Take over the numbers of a raymarch.model.Model. ValueError for what is not known here."""
        config = model.config
        if config.fields.norm != "linf" or config.sampler.spacing != "piecewise" or config.rays.box:
            raise ValueError("reference: knows norm linf, spacing piecewise and no box alone")
        return Reference(config, {k: v.detach().cpu().double() for k, v in model.state_dict().items()})

    # ---- rays ----

    def rays(
        self, pose: Tensor, intrinsics: Tensor, width: int, height: int, every: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Origins and unit directions [h * w, 3] through pixel centres (OpenGL axes), row by row."""
        fx, fy, cx, cy = intrinsics.double().tolist()
        row, column = torch.meshgrid(
            torch.arange(0, height, every, dtype=torch.float64),
            torch.arange(0, width, every, dtype=torch.float64),
            indexing="ij",
        )
        u, v = (column.flatten() + 0.5 - cx) / fx, (row.flatten() + 0.5 - cy) / fy
        seen = torch.stack([u, -v, -torch.ones_like(u)], -1) @ pose[:, :3].double().T
        return pose[:, 3].double().expand_as(seen), seen / seen.norm(dim=-1, keepdim=True)

    # ---- where to look ----

    def distances(self, s: Tensor) -> Tensor:
        """Normalised distances -> distances: even up to 1, then even in disparity."""
        rays = self.config.rays
        near = rays.near if rays.eval_near is None else rays.eval_near
        ends = [t / 2 if t < 1 else 1 - 1 / (2 * t) for t in (near, rays.far)]
        g = s * ends[1] + (1 - s) * ends[0]
        return torch.where(g < 0.5, 2 * g, 1 / (2 - 2 * g))

    def samples(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Edges t [R, S + 1] of the final level, after every proposal level."""
        counts = self.config.sampler.samples
        s = torch.linspace(0, 1, counts[0] + 1, dtype=torch.float64).expand(len(origins), -1)
        for level, count in enumerate(counts[1:]):
            t = self.distances(s)
            y = unit(middles(origins, directions, t))
            sigma = self.proposal(level, y).view(len(origins), -1)
            s = resampled(s, weights(sigma, t), count, self.config.sampler.padding)
        return self.distances(s)

    def proposal(self, level: int, y: Tensor) -> Tensor:
        """Density [P] of a proposal field."""
        config, name = self.config.fields.proposals[level], f"fields.proposals.{level}"
        encoded = self.grid(f"{name}.grid", config.grid, y)
        z = self.network(f"{name}.mlp", encoded, config.hidden, config.layers, 1, padding=1.0)
        return config.average_init_density * torch.exp(z[:, 0]) * inside(y)

    # ---- fields ----

    def grid(self, name: str, config: Any, y: Tensor) -> Tensor:
        """A hash grid's features [P, levels * F] of unit positions."""
        if config.interpolation != "linear":
            raise ValueError("reference: knows linear interpolation alone")
        table, found, offset = self.numbers[f"{name}.table"], [], 0
        octaves = math.log(config.max_resolution) - math.log(config.base_resolution)
        growth = np.float32(math.exp(octaves / (config.levels - 1)))
        for level in range(config.levels):
            power = np.exp2(np.float64(np.float32(level) * np.float32(np.log2(np.float64(growth)))))
            scale = float(np.float32(np.float64(np.float32(power)) * config.base_resolution) - np.float32(1))
            resolution = math.ceil(scale) + 1
            entries = min(-(-(resolution**3) // 8) * 8, 1 << config.log2_size)
            p = y * scale + 0.5
            cell = p.detach().floor()
            part, cell = p - cell, cell.long()
            total = torch.zeros(len(y), table.shape[1], dtype=torch.float64)
            for corner in range(8):
                step = [corner >> axis & 1 for axis in range(3)]
                x = [cell[:, axis] + step[axis] for axis in range(3)]
                if resolution**3 <= entries:
                    at = x[0] + x[1] * resolution + x[2] * resolution**2
                else:
                    at = (
                        (x[0] * PRIMES[0]) ^ (x[1] * PRIMES[1] & 0xFFFFFFFF) ^ (x[2] * PRIMES[2] & 0xFFFFFFFF)
                    )
                share = [part[:, axis] if step[axis] else 1 - part[:, axis] for axis in range(3)]
                total = total + (share[0] * share[1] * share[2])[:, None] * table[offset + at % entries]
            found.append(total)
            offset += entries
        return torch.cat(found, -1)

    def network(
        self, name: str, x: Tensor, hidden: int, layers: int, outputs: int, padding: float = 0.0
    ) -> Tensor:
        """A network without biases and with relu, of tiny-cuda-nn's flat parameters: [P, outputs]."""
        params, at = self.numbers[f"{name}.params"], 0
        ends = -(-x.shape[1] // 16) * 16, -(-outputs // 16) * 16
        widths = [ends[0], *[hidden] * layers, ends[1]]
        x = torch.cat([x, x.new_full((len(x), ends[0] - x.shape[1]), padding)], -1)
        for i in range(len(widths) - 1):
            matrix = params[at : at + widths[i] * widths[i + 1]].view(widths[i + 1], widths[i])
            at += matrix.numel()
            x = x @ matrix.T
            x = x.clamp_min(0) if i < len(widths) - 2 else x
        return x[:, :outputs]

    def base(self, y: Tensor) -> Tensor:
        """The radiance field's first network [P, 1 + G]: log density and geometry features."""
        config, name = self.config.fields.radiance, "fields.radiance"
        encoded = self.grid(f"{name}.grid", config.grid, y)
        return self.network(
            f"{name}.mlp", encoded, config.hidden, config.layers, 1 + config.geometry_features
        )

    def colours(self, directions: Tensor, h: Tensor) -> Tensor:
        """Colours [P, 3] from unit directions [P, 3] and the base network's output."""
        config = self.config.fields.radiance
        parts = [harmonics(directions, config.harmonics), h[:, 1:]]
        if config.appearance:
            codes = self.numbers["fields.radiance.appearance"]
            code = codes.mean(0) if config.eval_appearance == "mean" else codes[0] * 0
            parts.append(code.expand(len(h), -1))
        x = torch.cat(parts, -1)
        z = self.network("fields.radiance.colour", x, config.colour_hidden, config.colour_layers, 3, 1.0)
        return 1 / (1 + torch.exp(-z))

    def normals(self, x: Tensor) -> Tensor:
        """Unit vectors [P, 3] against the gradient of log density, by automatic differentiation."""
        if self.config.fields.radiance.normals_space != "world":
            raise ValueError("reference: knows normals in world space alone")
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.base(unit(x))[:, 0].sum(), x)
        return -normalised(slope)

    def predicted_normals(self, x: Tensor, h: Tensor) -> Tensor:
        """Unit vectors [P, 3] of their own network."""
        inputs = torch.cat([waves(x, 2), h[:, 1:]], -1)
        name = "fields.radiance.normals"
        wide = self.network(name, inputs, 64, 2, 64, 1.0)
        z = wide @ self.numbers[f"{name}_layer.weight"].T + self.numbers[f"{name}_layer.bias"]
        return normalised(torch.tanh(z))

    def features(self, y: Tensor) -> Tensor:
        """Feature vectors [P, D], the last layer applied to every sample."""
        config, name = self.config.fields.feature, "fields.feature"
        parts = []
        if "grid" in config.encoding:
            parts.append(self.grid(f"{name}.grid", config.grid, y))
        if "pe" in config.encoding:
            parts.append(waves(y, config.frequencies))
        padding = 1.0 if "pe" in config.encoding else 0.0
        x = torch.cat(parts, -1)
        hidden = self.network(f"{name}.trunk", x, config.hidden, config.layers - 1, config.hidden, padding)
        return hidden.clamp_min(0) @ self.numbers[f"{name}.layer"].T

    # ---- pictures ----

    @torch.no_grad()
    def composite(self, origins: Tensor, directions: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Every head of rays [R, 3] whose samples have edges t [R, S + 1]."""
        count = t.shape[1] - 1
        x = middles(origins, directions, t)
        y = unit(x)
        h = self.base(y)
        radiance = self.config.fields.radiance
        sigma = radiance.average_init_density * torch.exp(h[:, 0]) * inside(y)
        w = weights(sigma.view(-1, count), t)
        middle = (t[:, 1:] + t[:, :-1]) / 2
        opacity = w.sum(-1)

        def summed(values: Tensor) -> Tensor:
            return (w[..., None] * values.view(-1, count, values.shape[-1])).sum(1)

        rgb = self.colours(directions.repeat_interleave(count, 0), h)
        behind: dict[str, Any] = {"black": 0.0, "white": 1.0, "last_sample": rgb.view(-1, count, 3)[:, -1]}
        background = behind[self.config.renderer.background]
        reached = (w.cumsum(-1) < 0.5).sum(-1).clamp_max(count - 1)
        found = {
            "rgb": (summed(rgb) + background * (1 - opacity)[:, None]).clamp(0, 1),
            "opacity": opacity,
            "depth": middle.gather(1, reached[:, None])[:, 0],
            "expected_depth": ((w * middle).sum(-1) / (opacity + 1e-10)).clamp(middle[:, 0], middle[:, -1]),
            "normals": normalised(summed(self.normals(x))),
        }
        if radiance.predicted_normals:
            found["predicted_normals"] = normalised(summed(self.predicted_normals(x, h)))
        if self.config.fields.feature.width:
            found["feature"] = summed(self.features(y))
        return found

    @torch.no_grad()
    def render(
        self, pose: Tensor, intrinsics: Tensor, width: int, height: int, chunk: int = 1024
    ) -> dict[str, Tensor]:
        """Every head of a picture [h, w, ...], samples included. pose [3, 4], intrinsics [4] in pixels."""
        origins, directions = self.rays(pose, intrinsics, width, height)
        parts = []
        for first in range(0, len(origins), chunk):
            some = slice(first, first + chunk)
            t = self.samples(origins[some], directions[some])
            parts.append(self.composite(origins[some], directions[some], t))
        names = parts[0]
        return {
            k: torch.cat([part[k] for part in parts]).view(height, width, *names[k].shape[1:]) for k in names
        }


def middles(origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """Midpoints of intervals, [R * S, 3]."""
    middle = (t[:, 1:] + t[:, :-1]) / 2
    return (origins[:, None] + middle[..., None] * directions[:, None]).flatten(0, 1)


def unit(x: Tensor) -> Tensor:
    """Contracted by the largest component (mip-NeRF 360 with the maximum norm), then scaled to 0..1."""
    m = x.abs().amax(-1, keepdim=True).clamp_min(1)
    return ((2 - 1 / m) * (x / m) + 2) / 4


def inside(y: Tensor) -> Tensor:
    """1 where a unit position is strictly inside the cube, else 0."""
    return ((y > 0) & (y < 1)).all(-1).double()


def weights(sigma: Tensor, t: Tensor) -> Tensor:
    """What each interval adds to its ray: alpha_i times the light that reaches it, [R, S]."""
    alpha = 1 - torch.exp(-sigma * t.diff())
    reaching = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], -1), -1)
    return alpha * reaching


def resampled(s: Tensor, w: Tensor, count: int, padding: float) -> Tensor:
    """Edges [R, count + 1] at the middles of equal shares of a histogram with edges s and masses w."""
    mass = w + padding
    cdf = torch.cat([torch.zeros_like(mass[:, :1]), mass.cumsum(-1)], -1) / mass.sum(-1, keepdim=True)
    u = (torch.arange(count + 1, dtype=torch.float64) + 0.5) / (count + 1)
    u = u.expand(len(s), -1).contiguous()
    high = (cdf[:, None, :] <= u[..., None]).sum(-1).clamp(1, w.shape[1])
    c0, c1, s0, s1 = (x.gather(1, at) for x in (cdf, s) for at in (high - 1, high))
    return s0 + ((u - c0) / (c1 - c0)).clamp(0, 1) * (s1 - s0)


def waves(x: Tensor, frequencies: int) -> Tensor:
    """sin and cos of pi 2^k x_d, ordered by axis, octave, (sin, cos): [P, 6 * frequencies]."""
    angles = x[..., None] * (math.pi * 2.0 ** torch.arange(frequencies, dtype=torch.float64))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def harmonics(d: Tensor, signs: str) -> Tensor:
    """Real spherical harmonics of degrees 0 to 3 as associated Legendre functions say: [P, 16]."""
    x, y, z = d.unbind(-1)
    found = []
    for degree in range(4):
        for order in range(-degree, degree + 1):
            m = abs(order)
            size = (2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) / math.factorial(degree + m)
            around = ((x + 1j * y) ** m).real if order >= 0 else ((x + 1j * y) ** m).imag
            value = math.sqrt(size * (2 if m else 1)) * around * legendre(degree, m, z)
            found.append(-value if signs == "tcnn" and m % 2 else value)
    return torch.stack(found, -1)


def legendre(degree: int, order: int, z: Tensor) -> Tensor:
    """The order-th derivative of the Legendre polynomial of a degree, at z (no Condon-Shortley sign)."""
    polynomial = np.polynomial.Legendre.basis(degree).convert(kind=np.polynomial.Polynomial).deriv(order)
    return torch.stack([float(c) * z**k for k, c in enumerate(polynomial.coef)]).sum(0)


def normalised(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp_min(1e-10)
