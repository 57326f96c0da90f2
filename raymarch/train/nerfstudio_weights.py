"""Weights that nerfstudio's nerfacto or F3RM trained with tiny-cuda-nn, into a model of ours.

Names are those of a pipeline's state dict, of nerfstudio 0.2 to 1.1. Only fields are taken over: poses belong
to the frame that nerfstudio put the scene into. docs/tcnn.md shows how to write the file; pickles, which run
whatever they hold, are not opened.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raymarch.data.archive import open_npz
from raymarch.model import Model
from raymarch.model.fields import FeatureField, ProposalField, RadianceField
from raymarch.nn import MLP, HashGrid
from raymarch.nn.tcnn_layout import grid_from_tcnn, network_from_tcnn, pair_from_tcnn
from raymarch.train.checkpoint import CheckpointError

PREFIX = "_model."
ODD_HARMONICS = slice(1, 16, 2)  # tiny-cuda-nn negates them
EARLIER = "field.mlp_base_grid.tcnn_encoding.params"  # a name of nerfstudio 0.3, and so of F3RM


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or .npz file. CheckpointError for others and damaged ones."""
    file = Path(path)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if file.suffix == ".npz":
            with open_npz(file) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except FileNotFoundError:
        raise CheckpointError(f"there are no weights at {file}") from None
    except (SafetensorError, BadZipFile, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read as weights ({error}): write it again") from None
    raise CheckpointError(
        f"{file} is not opened: expected .safetensors or .npz, since a pickle runs what it holds; "
        "docs/tcnn.md says how to convert one"
    )


class Weights:
    """A state dict and which of its names were used."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
        self.used: set[str] = set()

    def find(self, *names: str) -> Tensor | None:
        """The first of the names that is there; every spelling of it counts as used."""
        self.used |= set(names)
        return next((self.tensors[name] for name in names if name in self.tensors), None)

    def take(self, *names: str) -> Tensor:
        found = self.find(*names)
        if found is None:
            spelled = " or ".join(PREFIX + name for name in names)
            raise CheckpointError(
                f"the weights lack {spelled}: expected the state dict of a pipeline that tiny-cuda-nn trained"
            )
        return found


def load_nerfstudio(model: Model, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Take the fields' weights over, in place; returns the names that nothing of the model has a place for.

    `model.fields` must have the settings that the weights were trained with. CheckpointError where a part is
    missing or has another size, or where weights from before `average_init_density` meet a model that has it;
    the model is then as it was.
    """
    weights, fields = Weights(tensors), copy.deepcopy(model.fields)
    _check_factors(weights, model)
    try:
        for i, proposal in enumerate(fields.proposals):
            _proposal(weights, f"proposal_networks.{i}.", proposal)  # type: ignore[arg-type]
        _radiance(weights, "field.", fields.radiance)
        if fields.feature is not None:
            _feature(weights, "feature_field.", fields.feature)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"the weights do not fit model.fields: {error}") from None
    model.fields.load_state_dict(fields.state_dict())
    return tuple(sorted(set(weights.tensors) - weights.used))


def _check_factors(weights: Weights, model: Model) -> None:
    """Densities were exp(z) in F3RM and nerfstudio 0.3, and are 0.01 exp(z) since; no weight tells."""
    config = model.config.fields
    factors = {f"proposals.{i}": p.average_init_density for i, p in enumerate(config.proposals)}
    factors["radiance"] = config.radiance.average_init_density
    wrong = [f"model.fields.{name}.average_init_density=1" for name, factor in factors.items() if factor != 1]
    if wrong and EARLIER in weights.tensors:
        raise CheckpointError(
            "the weights have names of F3RM or nerfstudio 0.3, whose densities had no factor: "
            f"make the run with {' and '.join(wrong)}"
        )


def _grid_and_network(
    weights: Weights, together: tuple[str, ...], grid: tuple[str, ...], network: tuple[str, ...],
    to_grid: HashGrid, to_network: MLP,
) -> None:  # fmt: skip
    """Both from one vector, or from one each."""
    if (both := weights.find(*together)) is not None:
        return pair_from_tcnn(to_grid, to_network, both)
    grid_from_tcnn(to_grid, weights.take(*grid))
    network_from_tcnn(to_network, weights.take(*network))


def _proposal(weights: Weights, at: str, field: ProposalField) -> None:
    _grid_and_network(
        weights,
        (f"{at}mlp_base.params",),
        (f"{at}mlp_base.0.tcnn_encoding.params", f"{at}encoding.tcnn_encoding.params"),
        (f"{at}mlp_base.1.tcnn_encoding.params",),
        field.grid,
        field.mlp,
    )


def _radiance(weights: Weights, at: str, field: RadianceField) -> None:
    config = field.config
    _grid_and_network(
        weights,
        (f"{at}mlp_base.model.params", f"{at}mlp_base.params"),
        (f"{at}mlp_base_grid.tcnn_encoding.params",),
        (f"{at}mlp_base_mlp.tcnn_encoding.params",),
        field.grid,
        field.mlp,
    )
    network_from_tcnn(
        field.colour, weights.take(f"{at}mlp_head.tcnn_encoding.params", f"{at}mlp_head.params")
    )
    if config.harmonics == "nerfstudio":
        with torch.no_grad():
            field.colour.weight(0)[:, ODD_HARMONICS].neg_()
    elif config.harmonics != "tcnn":
        raise ValueError(f"harmonics {config.harmonics!r} are not tiny-cuda-nn's: use nerfstudio or tcnn")
    if config.appearance:
        _copy(
            field.appearance, weights.take(f"{at}embedding_appearance.embedding.weight"), "appearance codes"
        )
    if config.predicted_normals:
        network_from_tcnn(field.normals, weights.take(f"{at}mlp_pred_normals.tcnn_encoding.params"))
        for name, part in field.normals_layer.named_parameters():
            _copy(part, weights.take(f"{at}field_head_pred_normals.net.{name}"), "layer of predicted normals")


def _feature(weights: Weights, at: str, field: FeatureField) -> None:
    """F3RM's field is one vector: trunk, last layer with its outputs rounded up, grid."""
    flat = weights.take(f"{at}field.params").reshape(-1)
    trunk, width = field.trunk.params.numel(), field.layer.shape[0]
    layer = -(-width // 16) * 16 * field.config.hidden
    entries = field.grid.table.numel() if field.grid is not None else 0
    if flat.numel() != trunk + layer + entries:
        raise ValueError(
            f"the feature field has {flat.numel()} parameters, expected {trunk + layer + entries} for "
            f"encoding {field.config.encoding} and width {width}"
        )
    network_from_tcnn(field.trunk, flat[:trunk], field.trunk.padding)
    _copy(field.layer, flat[trunk : trunk + layer].view(-1, field.config.hidden)[:width], "feature layer")
    if field.grid is not None:
        grid_from_tcnn(field.grid, flat[trunk + layer :])


@torch.no_grad()
def _copy(parameter: nn.Parameter | Tensor, values: Tensor, what: str) -> None:
    if parameter.shape != values.shape:
        raise ValueError(f"the {what} have shape {list(values.shape)}, expected {list(parameter.shape)}")
    parameter.copy_(values)
