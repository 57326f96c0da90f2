"""tiny-cuda-nn as a backend: our parameters in its layout and back, and its modules in place of ours.

The library itself needs a GPU and is not needed here: `tcnn_reference` computes what its layout means.
"""

import copy
import sys

import numpy as np
import pytest
import tcnn_reference as reference
import torch

from bench import tcnn as bench
from raymarch.config import override, preset
from raymarch.data.pixels import PixelSource
from raymarch.data.synthetic import as_scene, feature_maps, make_scene
from raymarch.model import Model
from raymarch.model.fields import Fields
from raymarch.model.fused import unsupported
from raymarch.nn import MLP, HashGrid, TcnnError, bricks, tcnn
from raymarch.nn import tcnn_layout as layout
from raymarch.ops import table_layout
from raymarch.train.runs import OpenRun, resume, start
from raymarch.types import Sight

# Spec 6.1: levels, base, max, log2 size; resolutions, dense levels, entries; features.
NERFACTO = (16, 16, 2048, 19)
GRIDS = {
    "nerfacto": (
        NERFACTO, [16, 23, 31, 43, 59, 81, 112, 154, 213, 295, 407, 562, 777, 1073, 1483, 2048], 5, 6098120, 2
    ),
    "feature": ((12, 16, 128, 19), [16, 20, 24, 29, 35, 42, 50, 61, 73, 88, 106, 129], 9, 2481152, 8),
    "proposal 0": ((5, 16, 128, 17), [16, 27, 46, 77, 128], 3, 383264, 2),
    "proposal 1": ((5, 16, 256, 17), [16, 32, 64, 128, 256], 2, 430080, 2),
}  # fmt: skip
SMALL = [  # levels dense and hashed, every number of features, both interpolations
    ((5, 16, 128, 12, 2), "linear"),
    ((3, 4, 37, 10, 1), "smoothstep"),
    ((4, 8, 64, 11, 8), "linear"),
    ((1, 16, 16, 19, 4), "linear"),
]
# inputs, outputs, hidden, layers, activation, padding: nerfacto's and F3RM's networks, and odd ones.
NETWORKS = [
    (32, 16, 64, 1, "none", 0.0),
    (63, 3, 64, 2, "sigmoid", 1.0),
    (27, 64, 64, 2, "none", 1.0),
    (10, 1, 16, 1, "none", 1.0),
    (132, 64, 64, 1, "relu", 1.0),
    (20, 16, 32, 1, "none", 0.0),
    (7, 5, 48, 3, "none", 0.0),
]


def close(got, want, tolerance=2e-6):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def small_grid(settings, interpolation):
    grid = HashGrid(*settings, interpolation=interpolation)
    with torch.no_grad():
        grid.table.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    return grid


def points(count=300):
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(1))


# ---- the layout ----


@pytest.mark.parametrize("name", GRIDS)
def test_levels_lie_where_tiny_cuda_nn_has_them(name):
    settings, resolutions, dense, entries, features = GRIDS[name]
    rows = table_layout(*settings)
    sizes = [min(-(-(n**3) // 8) * 8, 1 << settings[3]) for n in resolutions]
    assert [row.resolution for row in rows] == resolutions
    assert [row.entries for row in rows] == sizes and sum(sizes) == entries
    assert [row.offset for row in rows] == [0, *np.cumsum(sizes)[:-1].tolist()]
    assert sum(row.resolution**3 <= row.entries for row in rows) == dense
    grid = HashGrid(*settings, 1)
    found = reference.levels_of(layout.grid_settings(grid) | {"n_features_per_level": features})
    assert [(v, n, o) for _, v, n, o in found] == [(r.resolution, r.entries, r.offset) for r in rows]
    np.testing.assert_allclose([s for s, *_ in found], [r.scale for r in rows], rtol=1e-6)


def test_an_entry_stands_where_its_level_begins_and_features_are_innermost():
    grid = HashGrid(5, 16, 128, 17, 2)  # levels begin at 0, 4096, 4096 + 19688, ...
    with torch.no_grad():
        grid.table.zero_()
        grid.table[4096 + 19688 + 7, 1] = 3.5
    flat = layout.grid_to_tcnn(grid)
    assert flat.shape == (766528,) and flat.nonzero().tolist() == [[2 * (4096 + 19688 + 7) + 1]]


def test_matrices_are_row_major_first_to_last_with_padded_widths():
    mlp = MLP(63, 3, 64, 2, padding=1.0)
    with torch.no_grad():
        mlp.params.copy_(torch.arange(9216))  # 64 x 64, 64 x 64, 16 x 64
    flat = layout.network_to_tcnn(mlp)
    assert flat.shape == (64 * 64 + 64 * 64 + 16 * 64,) and flat.tolist() == list(range(9216))
    assert mlp.weight(0)[2, 5] == 2 * 64 + 5 and mlp.weight(1)[1, 0] == 4096 + 64
    assert mlp.weight(-1).shape == (16, 64) and mlp.weight(2)[0, 0] == 8192


def test_f3rms_networks_have_the_counts_that_tiny_cuda_nn_gives_them():
    counts = {(32, 16, 64, 1): 3072, (63, 3, 64, 2): 9216, (27, 64, 64, 2): 10240, (10, 1, 16, 1): 512}
    for sizes, count in counts.items():
        assert layout.network_to_tcnn(MLP(*sizes)).numel() == count


# ---- conversion ----


@pytest.mark.parametrize(("settings", "interpolation"), SMALL)
def test_a_converted_grid_means_the_same(settings, interpolation):
    grid, x = small_grid(settings, interpolation), points()
    close(reference.grid(layout.grid_to_tcnn(grid), layout.grid_settings(grid), x), grid(x).detach())


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("sizes", NETWORKS)
def test_a_converted_network_means_the_same_whatever_completes_its_inputs(sizes, fill):
    torch.manual_seed(0)
    mlp, x = MLP(*sizes), torch.randn(100, sizes[0])
    has_bias = sizes[0] % 16 and sizes[5] == 1
    if has_bias and fill == 0:
        with pytest.raises(ValueError, match="has a bias, in weights of inputs that are always 1"):
            layout.network_to_tcnn(mlp, fill)
        return
    flat = layout.network_to_tcnn(mlp, fill)
    close(reference.network(flat, sizes[1], layout.network_settings(mlp), x, fill), mlp(x).detach(), 1e-5)


@pytest.mark.parametrize("levels", [16, 10])  # the second leaves 12 of 32 inputs open
def test_a_converted_pair_means_the_same(levels):
    grid = small_grid((levels, 4, 64, 11, 2), "linear")
    mlp, x = MLP(grid.outputs, 16, 64, 1), points()
    flat = layout.pair_to_tcnn(grid, mlp)
    assert torch.equal(flat[: mlp.params.numel()].view(-1)[-16 * 64 :], mlp.weight(-1).detach().reshape(-1))
    want = mlp(grid(x)).detach()
    settings = layout.grid_settings(grid), layout.network_settings(mlp)
    close(reference.pair(flat, 16, *settings, x), want, 1e-5)
    other_grid, other = HashGrid(levels, 4, 64, 11, 2), MLP(grid.outputs, 16, 64, 1)
    layout.pair_from_tcnn(other_grid, other, flat)
    assert torch.equal(other_grid.table, grid.table) and torch.equal(other(other_grid(x)), mlp(grid(x)))


@pytest.mark.parametrize("sizes", NETWORKS)
def test_networks_come_back_as_they_were(sizes):
    torch.manual_seed(0)
    mlp, back = MLP(*sizes), MLP(*sizes)
    layout.network_from_tcnn(back, layout.network_to_tcnn(mlp, mlp.padding), mlp.padding)
    assert torch.equal(back.params, mlp.params)
    theirs = layout.network_to_tcnn(mlp)
    layout.network_from_tcnn(back, theirs)
    assert torch.equal(layout.network_to_tcnn(back), theirs)


def test_the_master_is_float32_and_half_is_a_copy_of_it():
    grid, mlp = small_grid(*SMALL[0]), MLP(*NETWORKS[0])
    for made in (layout.grid_to_tcnn(grid, torch.float16), layout.network_to_tcnn(mlp, dtype=torch.float16)):
        assert made.dtype == torch.float16
    layout.grid_from_tcnn(grid, layout.grid_to_tcnn(grid, torch.float16))
    assert grid.table.dtype == torch.float32 and torch.equal(grid.table, grid.table.half().float())
    layout.grid_to_tcnn(grid).zero_(), layout.network_to_tcnn(mlp).zero_()
    assert grid.table.any() and mlp.params.any()


def test_what_does_not_fit_is_refused_in_a_sentence():
    grid, mlp = small_grid(*SMALL[0]), MLP(10, 1, 16, 1)
    with pytest.raises(ValueError, match=r"hash grid has 8 parameters \(torch.float32\), expected"):
        layout.grid_from_tcnn(grid, torch.zeros(8))
    with pytest.raises(ValueError, match="expected 512 floats for 10 -> 16 -> 1"):
        layout.network_from_tcnn(mlp, torch.zeros(512, dtype=torch.int64))
    with pytest.raises(ValueError, match="'nerfstudio' has no equal in tiny-cuda-nn"):
        layout.grid_to_tcnn(HashGrid(2, 4, 8, 6, 2, layout="nerfstudio"))
    before = mlp.params.clone()
    with pytest.raises(ValueError, match="has a bias"):
        layout.network_from_tcnn(MLP(10, 1, 16, 1), torch.ones(512), 1.0)
    assert torch.equal(mlp.params, before)


# ---- the backend ----


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", reference.package())
    monkeypatch.setattr(tcnn, "require_gpu", lambda x: None)


def configured(backend, *settings):
    config = preset("tiny")
    for setting in (
        "model.fields.feature.width=32",
        "model.fields.radiance.predicted_normals=true",
        "model.fields.radiance.appearance=8",
        f"model.fields.backend={backend}",
        *settings,
    ):
        config = override(config, setting)
    return config


def test_a_model_of_tiny_cuda_nns_modules_is_the_same_model(installed):
    truth = make_scene(views=4, test_views=1, size=16, seed=0)
    source = PixelSource(as_scene(truth, features=list(feature_maps(truth))), truth.train)
    counter = torch.tensor([0, 3])
    pixels, found = source.draw(counter, 64), {}
    for backend in ("native", "tcnn"):
        torch.manual_seed(0)
        model = Model(configured(backend).model, len(source.cameras.lens))
        model.train()
        with torch.no_grad():
            model.fields.radiance.grid.table.mul_(1e3)
        losses = model.losses(model(pixels, source.cameras, train=True, counter=counter), pixels, counter)
        sum(losses.values()).backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[backend] = losses, grads, model
    (losses, grads, model), (other, others, foreign) = found.values()
    assert losses.keys() == other.keys() and grads.keys() == others.keys() and len(grads) > 8
    for name, value in losses.items():
        close(other[name], value, 1e-4)
    for name, grad in grads.items():
        assert (others[name] - grad).norm() <= 1e-3 * grad.norm() + 1e-9, name
    assert model.state_dict().keys() == foreign.state_dict().keys()
    model.load_state_dict(foreign.state_dict())
    assert model.native and not foreign.native
    assert unsupported(model) is None and "model.fields.backend" in unsupported(foreign)


@pytest.mark.parametrize("sizes", NETWORKS)
def test_a_network_of_tiny_cuda_nn_is_ours(installed, sizes):
    ours = MLP(*sizes, seed=3)
    theirs = bricks("tcnn").mlp(*sizes, seed=3)
    x = torch.randn(4, 5, sizes[0], requires_grad=True)
    assert torch.equal(ours.params, theirs.params)
    wanted = torch.autograd.grad(ours(x).square().sum(), (x, ours.params))
    for got, want in zip(
        torch.autograd.grad(theirs(x).square().sum(), (x, theirs.params)), wanted, strict=True
    ):
        close(got, want, 1e-4)
    assert theirs(x[:0]).shape == (0, 5, sizes[1])


def test_a_grid_of_tiny_cuda_nn_is_ours(installed):
    ours, theirs = (bricks(b).grid(5, 16, 128, 12, 2, seed=5) for b in ("native", "tcnn"))
    x = points().requires_grad_()
    assert torch.equal(ours.table, theirs.table) and [*theirs.state_dict()] == ["table"]
    wanted = torch.autograd.grad(ours(x).sum(), (x, ours.table))
    for got, want in zip(torch.autograd.grad(theirs(x).sum(), (x, theirs.table)), wanted, strict=True):
        close(got, want, 1e-4)
    assert theirs.encode(x, torch.float16).dtype == torch.float16
    theirs.refresh()
    assert theirs.stored is None  # tiny-cuda-nn makes its own copy


@pytest.mark.parametrize("blurs_map", [False, True])
def test_poses_see_the_same_slopes_coarse_to_fine(installed, blurs_map):
    sight = Sight(torch.tensor([4.7]), True, blurs_map)
    ours, theirs = (bricks(b).grid(5, 4, 64, 12, 2, seed=5) for b in ("native", "tcnn"))
    x = points().requires_grad_()
    close(theirs(x, sight), ours(x, sight), 1e-5)
    wanted = torch.autograd.grad(ours(x, sight).sum(), (x, ours.table))
    for got, want in zip(torch.autograd.grad(theirs(x, sight).sum(), (x, theirs.table)), wanted, strict=True):
        close(got, want, 1e-4)


def test_one_module_lives_on_each_device_and_holds_nothing(installed):
    grid = bricks("tcnn").grid(2, 4, 8, 6, 2)
    grid(points()), grid(points())
    (module,) = grid._encoding.modules.values()
    assert module.params.numel() == 0 and [*grid.state_dict()] == ["table"]
    twin = copy.deepcopy(grid)
    assert not twin._encoding.modules and torch.equal(twin(points()), grid(points()))


def test_without_the_library_one_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(TcnnError, match=r"model\.fields\.backend=native") as caught:
        Model(configured("tcnn").model, 2)
    assert "\n" not in str(caught.value) and "pip install" in str(caught.value)
    with pytest.raises(ValueError, match="'torch', expected one of native, tcnn"):
        Model(configured("torch").model, 2)


def test_on_the_cpu_one_sentence_says_where_it_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", reference.package())
    with pytest.raises(TcnnError, match="inputs on cpu, it runs on CUDA alone"):
        bricks("tcnn").grid(2, 4, 8, 6, 2)(points())


def test_a_run_of_either_backend_opens_under_the_other(installed, monkeypatch, tmp_path):
    scene = as_scene(make_scene(views=4, test_views=1, size=16, seed=0))
    config = configured("tcnn", "model.fields.feature.width=0", "train.trainer.rays=32")
    trainer = start(scene, config, tmp_path, device="cpu")
    trainer.train(2)
    assert trainer._fused is None and trainer.step == 2
    theirs = resume(tmp_path, "cpu", scene)
    assert not theirs.model.native
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(TcnnError):
        resume(tmp_path, "cpu", scene)
    ours = resume(tmp_path, "cpu", scene, backend="native")
    assert ours.model.native and ours._fused is not None
    opened = OpenRun(tmp_path, "cpu")
    assert opened.model.native and opened.config.model.fields.backend == "tcnn"
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value), name
        assert torch.equal(opened.model.state_dict()[name], value), name


# ---- what a GPU will measure ----


def test_the_comparison_finds_what_is_equal_and_what_is_not(installed):
    fields = Fields(configured("native").model.fields, 2)
    found = {}
    for name, row in bench.rows(fields):
        x = bench.points(64, row.inputs, "cpu")
        found[name] = bench.compared(row, x)
        assert found[name]["ok"] and found[name]["output"] < 1e-4, name
        assert found[name]["grad_parameters"] < 1e-3 and found[name]["grad_inputs"] < 1e-3, name
    wanted = {"proposal_0.grid", "proposal_0.mlp", "radiance.colour", "radiance.normals", "feature.trunk"}
    assert wanted | {"radiance.joined", "feature.grid"} <= found.keys()
    with torch.no_grad():
        row.theirs.params[:100] += 1
    broken = bench.compared(row, x)
    assert not broken["ok"] and broken["grad_inputs"] > 1e-2


def test_the_comparison_says_in_one_sentence_what_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    monkeypatch.setattr(sys, "argv", ["bench.tcnn"])
    assert bench.main() == 1
    said = capsys.readouterr().out
    assert said.startswith("nothing compared: the backend tcnn needs") and said.count("\n") == 1
