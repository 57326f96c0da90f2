"""tiny-cuda-nn's parameter layout once more, in plain torch, from its settings and flat vectors alone.

`package()` is a stand-in for the Python package, with modules that compute this in float32 on any device.
"""

import math
from itertools import pairwise
from types import ModuleType

import torch
import torch.nn.functional as F

PRIMES = (1, 2654435761, 805459861)


def levels_of(settings):
    """Scale, vertices per axis, entries and first entry of each level."""
    found, offset = [], 0
    growth = torch.tensor(settings["per_level_scale"], dtype=torch.float32).log2().item()
    for level in range(settings["n_levels"]):
        power = torch.exp2(torch.tensor(level * growth, dtype=torch.float32))
        scale = (power * settings["base_resolution"] - 1).item()
        vertices = math.ceil(scale) + 1
        entries = min(-(-(vertices**3) // 8) * 8, 1 << settings["log2_hashmap_size"])
        found.append((scale, vertices, entries, offset))
        offset += entries
    return found


def grid_count(settings):
    *_, (_, _, entries, offset) = levels_of(settings)
    return (offset + entries) * settings["n_features_per_level"]


def entry(corner, vertices, entries):
    """Where a corner [P, 3] lies within its level."""
    x, y, z = corner.unbind(-1)
    if vertices**3 <= entries:
        return (x + y * vertices + z * vertices**2) % entries
    mixed = [(c * prime) & 0xFFFFFFFF for c, prime in zip((x, y, z), PRIMES, strict=True)]
    return (mixed[0] ^ mixed[1] ^ mixed[2]) % entries


def grid(params, settings, x):
    """[P, levels * features], level after level."""
    table, columns = params.view(-1, settings["n_features_per_level"]), []
    for scale, vertices, entries, offset in levels_of(settings):
        p = (x.double() * scale + 0.5).float()  # rounded once
        cell = p.detach().floor()
        f = p - cell
        if settings["interpolation"] == "Smoothstep":
            f = f * f * (3 - 2 * f)
        total = 0
        for bits in range(8):
            step = torch.tensor([bits & 1, bits >> 1 & 1, bits >> 2 & 1])
            weight = torch.where(step == 1, f, 1 - f).prod(-1, keepdim=True)
            total = total + weight * table[offset + entry(cell.long() + step, vertices, entries)]
        columns.append(total)
    return torch.cat(columns, -1)


def widths(inputs, outputs, settings):
    hidden = [settings["n_neurons"]] * settings["n_hidden_layers"]
    return [-(-inputs // 16) * 16, *hidden, -(-outputs // 16) * 16]


def network_count(inputs, outputs, settings):
    sizes = widths(inputs, outputs, settings)
    return sum(a * b for a, b in pairwise(sizes))


def network(params, outputs, settings, x, fill):
    """[P, outputs]; inputs that are missing are `fill`."""
    sizes = widths(x.shape[1], outputs, settings)
    h, at = F.pad(x, (0, sizes[0] - x.shape[1]), value=fill), 0
    for i, (columns, rows) in enumerate(pairwise(sizes)):
        h = h @ params[at : at + rows * columns].view(rows, columns).T
        at += rows * columns
        last = i == len(sizes) - 2
        h = {"None": lambda v: v, "ReLU": torch.relu, "Sigmoid": torch.sigmoid}[
            settings["output_activation" if last else "activation"]
        ](h)
    return h[:, :outputs]


def pair(params, outputs, encoding, settings, x):
    """A network behind a hash grid: its parameters come first."""
    features = encoding["n_levels"] * encoding["n_features_per_level"]
    count = network_count(features, outputs, settings)
    return network(params[:count], outputs, settings, grid(params[count:], encoding, x), 0.0)


class Encoding(torch.nn.Module):
    def __init__(self, n_input_dims, encoding_config):
        super().__init__()
        assert n_input_dims == 3
        self.config = encoding_config
        self.params = torch.nn.Parameter(torch.zeros(grid_count(encoding_config)))

    def forward(self, x):
        assert self.params.shape == (grid_count(self.config),)
        return grid(self.params, self.config, x)


class Network(torch.nn.Module):
    def __init__(self, n_input_dims, n_output_dims, network_config):
        super().__init__()
        fused = network_config["otype"] == "FullyFusedMLP"
        assert not fused or network_config["n_neurons"] in (16, 32, 64, 128)
        self.inputs, self.outputs, self.config = n_input_dims, n_output_dims, network_config
        self.params = torch.nn.Parameter(
            torch.zeros(network_count(n_input_dims, n_output_dims, network_config))
        )

    def forward(self, x):
        assert x.shape[1] == self.inputs
        return network(self.params, self.outputs, self.config, x, 1.0)


class NetworkWithInputEncoding(torch.nn.Module):
    def __init__(self, n_input_dims, n_output_dims, encoding_config, network_config):
        super().__init__()
        assert n_input_dims == 3
        self.outputs, self.encoding, self.config = n_output_dims, encoding_config, network_config
        features = encoding_config["n_levels"] * encoding_config["n_features_per_level"]
        count = network_count(features, n_output_dims, network_config) + grid_count(encoding_config)
        self.params = torch.nn.Parameter(torch.zeros(count))

    def forward(self, x):
        return pair(self.params, self.outputs, self.encoding, self.config, x)


def package():
    found = ModuleType("tinycudann")
    for kind in (Encoding, Network, NetworkWithInputEncoding):
        setattr(found, kind.__name__, kind)
    return found
