"""Weights of nerfstudio and F3RM: the fields that they describe, whichever version named them."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import tcnn_reference as reference
import torch
from safetensors.torch import save_file

from raymarch.config import override, preset
from raymarch.data.synthetic import as_scene, make_scene
from raymarch.model import Model
from raymarch.nn import tcnn_layout as layout
from raymarch.ops import fourier, harmonics
from raymarch.train.checkpoint import CheckpointError
from raymarch.train.nerfstudio_weights import load_nerfstudio, read_weights
from raymarch.train.runs import OpenRun, start

SETTINGS = (
    "model.fields.feature.width=20",
    "model.fields.feature.encoding=grid",
    "model.fields.radiance.predicted_normals=true",
    "model.fields.radiance.appearance=32",
    "model.fields.radiance.grid.levels=16",  # 32 inputs, as nerfacto's: none is made up
)
CAMERAS = 3


def model(*settings):
    config = preset("tiny")
    for setting in (*SETTINGS, *settings):
        config = override(config, setting)
    torch.manual_seed(1)
    return Model(config.model, CAMERAS)


def draw(count, seed=[0]):  # noqa: B006
    seed[0] += 1
    return torch.randn(count, generator=torch.Generator().manual_seed(seed[0])) / 4


def described(of):
    """Random weights for the fields of a model, as nerfstudio 1.1 names them."""
    proposal, radiance, feature = of.fields.proposals[0], of.fields.radiance, of.fields.feature
    count = {
        "_model.proposal_networks.0.mlp_base.0.tcnn_encoding.params": proposal.grid.table.numel(),
        "_model.proposal_networks.0.mlp_base.1.tcnn_encoding.params": 512,
        "_model.field.mlp_base.model.params": radiance.mlp.params.numel() + radiance.grid.table.numel(),
        "_model.field.mlp_head.tcnn_encoding.params": radiance.colour.params.numel(),
        "_model.field.mlp_pred_normals.tcnn_encoding.params": radiance.normals.params.numel(),
        "_model.feature_field.field.params": 32 * 16 + 32 * 32 + 32 * 32 + feature.grid.table.numel(),
    }
    found = {name: draw(n) for name, n in count.items()}
    found["_model.field.embedding_appearance.embedding.weight"] = draw(CAMERAS * 32).view(CAMERAS, 32)
    found["_model.field.field_head_pred_normals.net.weight"] = draw(3 * 64).view(3, 64)
    found["_model.field.field_head_pred_normals.net.bias"] = draw(3)
    found["_model.camera_optimizer.pose_adjustment"] = torch.zeros(CAMERAS, 6)
    return found


def near(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("signs", ["nerfstudio", "tcnn"])
@torch.no_grad()
def test_fields_are_those_that_the_weights_describe(signs):
    of = model(f"model.fields.radiance.harmonics={signs}")
    theirs = described(of)
    assert load_nerfstudio(of, theirs) == ("camera_optimizer.pose_adjustment",)
    proposal, radiance, feature = of.fields.proposals[0], of.fields.radiance, of.fields.feature
    y, d = torch.rand(50, 3), torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)

    grid = layout.grid_settings(proposal.grid)
    network = {"activation": "ReLU", "output_activation": "None", "n_neurons": 16, "n_hidden_layers": 1}
    encoded = reference.grid(theirs["_model.proposal_networks.0.mlp_base.0.tcnn_encoding.params"], grid, y)
    flat = theirs["_model.proposal_networks.0.mlp_base.1.tcnn_encoding.params"]
    near(proposal.mlp(proposal.grid(y)), reference.network(flat, 1, network, encoded, 1.0))

    network = network | {"n_neurons": 32}
    flat = theirs["_model.field.mlp_base.model.params"]
    h = reference.pair(flat, 16, layout.grid_settings(radiance.grid), network, y)
    near(radiance.mlp(radiance.grid(y)), h)

    code = theirs["_model.field.embedding_appearance.embedding.weight"][1].expand(50, -1)
    inputs = torch.cat([harmonics(d, "tcnn"), h[:, 1:], code], -1)
    network = network | {"output_activation": "Sigmoid", "n_hidden_layers": 2}
    rgb = reference.network(theirs["_model.field.mlp_head.tcnn_encoding.params"], 3, network, inputs, 1.0)
    near(
        radiance.colour(torch.cat([radiance.harmonics(d), h[:, 1:], radiance.appearance[[1] * 50]], -1)), rgb
    )

    inputs = torch.cat([fourier(y, 2), h[:, 1:]], -1)
    network = {"activation": "ReLU", "output_activation": "None", "n_neurons": 64, "n_hidden_layers": 2}
    flat = theirs["_model.field.mlp_pred_normals.tcnn_encoding.params"]
    n = reference.network(flat, 64, network, inputs, 1.0)
    n = n @ theirs["_model.field.field_head_pred_normals.net.weight"].T
    n = torch.tanh(n + theirs["_model.field.field_head_pred_normals.net.bias"])
    near(radiance.predicted_at(y, h), torch.nn.functional.normalize(n, dim=-1))

    network = {"activation": "ReLU", "output_activation": "None", "n_neurons": 32, "n_hidden_layers": 2}
    flat = theirs["_model.feature_field.field.params"]
    features = reference.pair(flat, 20, layout.grid_settings(feature.grid), network, y)
    near(feature.hidden(y) @ feature.layer.T, features)


NO_FACTOR = tuple(f"model.fields.{name}.average_init_density=1" for name in ("proposals.0", "radiance"))


def test_older_names_and_one_vector_for_a_proposal_work_too():
    of, other = model(), model(*NO_FACTOR)
    theirs = described(of)
    load_nerfstudio(of, theirs)
    count = of.fields.radiance.mlp.params.numel()
    base = theirs.pop("_model.field.mlp_base.model.params")
    theirs["_model.field.mlp_base_mlp.tcnn_encoding.params"] = base[:count]
    theirs["_model.field.mlp_base_grid.tcnn_encoding.params"] = base[count:]
    network = theirs.pop("_model.proposal_networks.0.mlp_base.1.tcnn_encoding.params")
    table = theirs.pop("_model.proposal_networks.0.mlp_base.0.tcnn_encoding.params")
    theirs["_model.proposal_networks.0.mlp_base.params"] = torch.cat([network, table])
    load_nerfstudio(other, theirs)
    for name, value in of.fields.state_dict().items():
        if name == "proposals.0.mlp.params":  # behind a grid, inputs are completed with 0: no bias
            wide = value.view(-1)[:256].view(16, 16)
            assert wide[:, 10:].any() and not other.fields.proposals[0].mlp.weight(0)[:, 10:].any()
        else:
            assert torch.equal(other.fields.state_dict()[name], value), name


@pytest.mark.parametrize("settings", [(), NO_FACTOR[:1], NO_FACTOR[1:]])
def test_older_densities_had_no_factor(settings):
    """Else everything would be a hundred times too thin, and nothing would say so."""
    of = model(*settings)
    before = {name: value.clone() for name, value in of.state_dict().items()}
    theirs = described(of)
    base, count = theirs.pop("_model.field.mlp_base.model.params"), of.fields.radiance.mlp.params.numel()
    theirs["_model.field.mlp_base_mlp.tcnn_encoding.params"] = base[:count]
    theirs["_model.field.mlp_base_grid.tcnn_encoding.params"] = base[count:]
    missing = " and ".join(name for name in NO_FACTOR if name not in settings)
    with pytest.raises(CheckpointError, match=f"no factor: make the run with {missing}$"):
        load_nerfstudio(of, theirs)
    assert all(torch.equal(value, before[name]) for name, value in of.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("_model.field.mlp_head.tcnn_encoding.params"), "lack _model.field.mlp_head"),
        (lambda t: t.update({"_model.field.mlp_base.model.params": torch.zeros(7)}), "has 7 parameters"),
        (lambda t: t.update({"_model.feature_field.field.params": torch.zeros(9)}), "feature field has 9"),
        (
            lambda t: t.update({"_model.field.embedding_appearance.embedding.weight": torch.zeros(5, 32)}),
            r"shape \[5, 32\], expected \[3, 32\]",
        ),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, words):
    of = model()
    before = {name: value.clone() for name, value in of.state_dict().items()}
    theirs = described(of)
    change(theirs)
    with pytest.raises(CheckpointError, match=words):
        load_nerfstudio(of, theirs)
    assert all(torch.equal(value, before[name]) for name, value in of.state_dict().items())


def test_a_run_can_be_made_of_weights_alone(tmp_path):
    scene = as_scene(make_scene(views=CAMERAS, test_views=1, size=16, seed=0))
    config = model("model.fields.feature.width=0").config
    trainer = start(scene, replace(preset("tiny"), model=config), tmp_path, device="cpu")
    theirs = described(model())
    del theirs["_model.feature_field.field.params"]
    load_nerfstudio(trainer.model, theirs)
    trainer.save()
    codes = OpenRun(tmp_path, "cpu").model.fields.radiance.appearance
    assert torch.equal(codes, theirs["_model.field.embedding_appearance.embedding.weight"])


def test_files_are_read_and_pickles_are_not(tmp_path):
    tensors = {"_model.field.a": torch.arange(3.0), "_model.field.b": torch.ones(2, 2, dtype=torch.float16)}
    save_file(tensors, tmp_path / "weights.safetensors")
    np.savez(tmp_path / "weights.npz", **{name: t.numpy() for name, t in tensors.items()})
    for name in ("weights.safetensors", "weights.npz"):
        found = read_weights(tmp_path / name)
        assert found.keys() == tensors.keys() and all(torch.equal(found[n], t) for n, t in tensors.items())
    (tmp_path / "step.ckpt").write_bytes(pickle.dumps({"a": 1}))
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for name, words in (
        ("step.ckpt", "a pickle runs what it holds"),
        ("objects.npz", "cannot be read as weights"),
        ("cut.safetensors", "cannot be read as weights"),
        ("none.npz", "there are no weights at"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read_weights(tmp_path / name)
