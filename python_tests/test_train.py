"""Training: the step, the schedules, checkpoints and what happens when things go wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raymarch.config import PRESETS, ConfigError, from_dict, override, preset, to_dict
from raymarch.data.synthetic import as_scene, feature_maps, make_scene
from raymarch.ops.adam import adam
from raymarch.train import checkpoint
from raymarch.train.bundle import releases
from raymarch.train.checkpoint import CheckpointError
from raymarch.train.optim import GroupConfig, learning_rate
from raymarch.train.runs import OpenRun, resume, start
from raymarch.train.settings import check_settings
from raymarch.train.trainer import TrainingError


@pytest.fixture(scope="module")
def scene():
    truth = make_scene(views=6, test_views=2, size=24, seed=0)
    return as_scene(truth, features=list(feature_maps(truth)))


def config(steps=20, **knobs):
    found = preset("tiny")
    values = {
        "train.trainer.steps": steps,
        "train.trainer.rays": 64,
        "train.trainer.log_every": 5,
        "model.fields.feature.width": 32,
        "model.poses.mode": "SO3xR3",
        **knobs,
    }
    for name, value in values.items():
        found = override(found, f"{name}={value}")
    return found


def parameters(trainer):
    return {k: v.clone() for k, v in trainer.state().items()}


def run_to(trainer, step):
    for _ in trainer.iterate(step):
        pass
    return trainer


def test_resuming_equals_never_stopping_bit_for_bit(scene, tmp_path):
    whole = parameters(run_to(start(scene, config(), device="cpu"), 20))
    first = start(scene, config(), tmp_path / "run", device="cpu")
    run_to(first, 10).save()
    second = resume(tmp_path / "run", "cpu", scene=scene)
    assert second.step == 10
    halves = parameters(run_to(second, 20))
    assert whole.keys() == halves.keys()
    for name, value in whole.items():
        assert torch.equal(value, halves[name]), name


def test_resuming_on_the_gpu_goes_on_from_the_same_state(scene, tmp_path, device):
    trainer = start(scene, config(), tmp_path / "run", device=device)
    run_to(trainer, 10).save()
    second = resume(tmp_path / "run", device.type, scene=scene)
    for name, value in parameters(trainer).items():
        assert torch.equal(value.cpu(), second.state()[name].cpu()), name
    run_to(second, 20)
    assert second.step == 20 and int(second.counter[1]) == 20


def test_training_lowers_the_loss(scene, device):
    trainer = start(scene, config(steps=150), device=device)
    seen = list(trainer.iterate())
    assert seen[-1].psnr > seen[0].psnr + 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_step_equals_an_eager_one(scene):
    graph = run_to(start(scene, config(), device="cuda"), 20)
    eager = run_to(start(scene, config(**{"train.trainer.graph": "false"}), device="cuda"), 20)
    for name, value in parameters(graph).items():
        torch.testing.assert_close(value, eager.state()[name], rtol=2e-2, atol=2e-3, msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_never_waits_for_the_device(scene):
    trainer = run_to(start(scene, config(steps=200), device="cuda"), 60)  # both graphs exist
    with torch.cuda.stream(trainer._stream):
        torch.cuda._sleep(400_000_000)
        for _ in range(5):
            trainer._advance()
        busy = not trainer._stream.query()
    torch.cuda.synchronize()
    assert busy


def test_starting_leaves_the_callers_random_numbers_alone(scene):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    first = parameters(start(scene, config(), device="cpu"))
    assert torch.equal(torch.rand(3), want)
    second = parameters(start(scene, config(), device="cpu"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_non_finite_loss_stops_names_the_op_and_saves_the_good_state(scene, tmp_path):
    trainer = start(scene, config(), tmp_path / "run", device="cpu")
    run_to(trainer, 5)
    with torch.no_grad():
        trainer.model.fields.radiance.colour.params[:16] = float("nan")
    with pytest.raises(TrainingError, match=r"step 5.*mlp_forward \(y\)"):
        run_to(trainer, 20)
    tensors, meta = checkpoint.newest(tmp_path / "run")
    assert meta["step"] == 5
    assert tensors["model.fields.radiance.grid.table"].isfinite().all()


def test_a_non_finite_gradient_of_a_finite_loss_is_called_that_and_the_step_taken_once(scene, tmp_path):
    trainer = start(scene, config(**{"train.trainer.fused": "false"}), tmp_path / "run", device="cpu")
    run_to(trainer, 5)
    trainer.model.fields.radiance.colour.params.register_hook(lambda g: g * float("nan"))
    with pytest.raises(TrainingError, match="a gradient became non-finite at step 5"):
        run_to(trainer, 20)
    tensors, meta = checkpoint.newest(tmp_path / "run")
    assert meta["step"] == 5 and tensors["optim.fields.steps"].item() == 6
    assert all(t.isfinite().all() for t in tensors.values())


def test_a_non_finite_gradient_is_never_applied(device):
    p, m, v = (torch.ones(37, device=device) for _ in range(3))
    g = torch.ones(37, device=device)
    g[36] = float("inf")
    healthy = torch.ones(1, dtype=torch.bool, device=device)
    steps = torch.ones(1, dtype=torch.int64, device=device)
    adam(p, g, m, v, torch.full((1,), 0.1, device=device), steps, healthy)
    assert p.isfinite().all() and not bool(healthy)
    before = p.clone()
    adam(p, torch.ones_like(g), m, v, torch.full((1,), 0.1, device=device), steps, healthy)
    assert torch.equal(p, before)


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("size", [1, 3, 1000, 4099])
def test_adam_is_torch_adam(device, decay, size):
    start_at = torch.randn(size)
    ours = start_at.to(device).clone()
    theirs = torch.nn.Parameter(start_at.double())
    reference = torch.optim.Adam([theirs], lr=1e-2, eps=1e-15, weight_decay=decay)
    m, v = torch.zeros_like(ours), torch.zeros_like(ours)
    healthy = torch.ones(1, dtype=torch.bool, device=device)
    rate = torch.full((1,), 1e-2, device=device)
    for t in range(1, 21):
        g = torch.randn(size) * torch.rand(size)
        theirs.grad = g.double()
        reference.step()
        step = torch.full((1,), t, dtype=torch.int64, device=device)
        adam(ours, g.to(device), m, v, rate, step, healthy, epsilon=1e-15, weight_decay=decay)
    torch.testing.assert_close(ours.cpu().double(), theirs.data, rtol=1e-5, atol=2e-6)


def test_learning_rates_are_nerfstudios():  # oracle O74
    at = learning_rate(GroupConfig(1e-2, 1e-4, 200_000), torch.tensor([1000, 15000, 30000]))
    torch.testing.assert_close(
        at, torch.tensor([0.00977237, 0.00707946, 0.00501187]).double(), rtol=1e-5, atol=0
    )
    at = learning_rate(GroupConfig(1e-3, 1e-4, 5000), torch.tensor([1000, 2500]))
    torch.testing.assert_close(at, torch.tensor([6.309573e-4, 3.162278e-4]).double(), rtol=1e-5, atol=0)
    at = learning_rate(GroupConfig(1e-2, 1e-2, 1000, warmup=100), torch.tensor([25, 50]))
    torch.testing.assert_close(at, torch.tensor([0.00382684, 0.00707107]).double(), rtol=1e-5, atol=0)
    constant = learning_rate(GroupConfig(6e-4, 6e-4), torch.tensor([0, 30_000]))
    torch.testing.assert_close(constant, torch.full((2,), 6e-4).double())


def saved_run(scene, folder):
    trainer = start(scene, config(), folder, device="cpu")
    run_to(trainer, 5).save()
    run_to(trainer, 10).save()
    return checkpoint.saved(folder)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(scene, tmp_path):
    newest, older = saved_run(scene, tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:1000])
    assert OpenRun(tmp_path / "run", "cpu").step == 5
    older.write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        OpenRun(tmp_path / "run", "cpu")


def test_checkpoints_that_are_not_ours_or_newer_are_named(scene, tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, str(file))
    with pytest.raises(CheckpointError, match="not a raymarch checkpoint"):
        checkpoint.read(file)
    save_file({"x": torch.zeros(1)}, str(file), {"raymarch": json.dumps({"format": 99})})
    with pytest.raises(CheckpointError, match=r"format 99.*upgrade"):
        checkpoint.read(file)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        checkpoint.read(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no run"):
        checkpoint.newest(tmp_path / "nowhere")


def test_opening_a_run_needs_no_images(scene, tmp_path):
    saved_run(scene, tmp_path / "run")
    run = OpenRun(tmp_path / "run", "cpu")
    assert len(run.train) == 6 and len(run.test) == 2
    assert run.test_cameras().camera_to_worlds.shape == (2, 3, 4)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_train import as_scene, config, feature_maps, make_scene, start
truth = make_scene(views=6, test_views=2, size=24, seed=0)
scene = as_scene(truth, features=list(feature_maps(truth)))
from pathlib import Path
often = {{"train.trainer.save_every": 1, "train.trainer.log_every": 1}}
trainer = start(scene, config(steps=100000, **often), Path({run!r}), device="cpu")
trainer.train()
"""


def test_kill_minus_nine_leaves_a_checkpoint_that_opens(scene, tmp_path):
    run = tmp_path / "run"
    code = KILLED.format(tests=str(Path(__file__).parent), run=str(run))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    deadline = time.time() + 120
    while len(checkpoint.saved(run)) < 2 and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.saved(run), process.stderr.read().decode()[-2000:]
    before = OpenRun(run, "cpu").step
    continued = resume(run, "cpu", scene=scene, steps=before + 2)
    assert run_to(continued, before + 2).step == before + 2


def test_interrupting_saves_the_step_reached(scene, tmp_path):
    trainer = start(scene, config(), tmp_path / "run", device="cpu")

    def stop(progress):
        if progress.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(on_progress=stop)
    assert OpenRun(tmp_path / "run", "cpu").step == 10


def test_a_run_is_never_written_over(scene, tmp_path):
    saved_run(scene, tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run"):
        start(scene, config(), tmp_path / "run", device="cpu")


def test_config_survives_json():
    for name in PRESETS:
        found = preset(name)
        assert from_dict(json.loads(json.dumps(to_dict(found)))) == found
        check_settings(found)


@pytest.mark.parametrize("name", ["nerfacto", "f3rm"])
def test_a_rough_preset_differs_in_how_poses_are_found_and_in_nothing_else(name):
    usual, rough = preset(name), preset(f"{name}_rough")
    assert rough.model == usual.model
    assert rough.train.optim.poses.lr > 100 * usual.train.optim.poses.lr and rough.train.bundle.at
    assert rough.train.trainer.steps > max(releases(rough.train.bundle))
    optim = replace(rough.train.optim, poses=usual.train.optim.poses)
    assert optim == usual.train.optim


def test_overrides_name_the_file_that_reads_them():
    found = override(preset("nerfacto"), "model.sampler.samples=64,32,16")
    assert found.model.sampler.samples == (64, 32, 16)
    found = override(found, "model.fields.proposals.0.hidden=32")
    assert found.model.fields.proposals[0].hidden == 32
    with pytest.raises(ConfigError, match=r"model\.sampler\.sampels.*did you mean.*samples"):
        override(found, "model.sampler.sampels=3")
    with pytest.raises(ConfigError, match="expected int"):
        override(found, "train.trainer.rays=many")
    with pytest.raises(ConfigError, match="did you mean 'nerfacto'"):
        preset("nerfcato")


def test_a_feature_preset_without_features_says_what_to_do(scene):
    bare = replace(scene, features=None)
    with pytest.raises(ConfigError, match="scene has none"):
        start(bare, config(), device="cpu")
