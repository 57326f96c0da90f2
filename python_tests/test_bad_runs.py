"""Bad settings, folders, checkpoints and moments: one sentence, exit status, and nothing saved is lost."""

import errno
import json
import os
import resource
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_apps import photo_scene
from test_train import parameters, run_to

import raymarch as package
from raymarch.apps import cli, demo, terminal, training
from raymarch.apps.images import save_depth, save_exr, save_npz, save_rgb
from raymarch.apps.view import wait_for_run
from raymarch.config import ConfigError, override, preset
from raymarch.data.atomic import write_text
from raymarch.data.scene import load
from raymarch.model.frames import FrameRenderer
from raymarch.train import checkpoint, claim
from raymarch.train.checkpoint import CheckpointError
from raymarch.train.guard import guard
from raymarch.train.interrupt import USUAL
from raymarch.train.runs import OpenRun, photos_of, reload_scene, resume, start
from raymarch.train.trainer import Trainer, TrainingError, log_rows

SHORT = ("--set", "train.trainer.rays=32", "--device", "cpu", "--look-every", "0")


def tiny(steps=4, **knobs):
    values = {"steps": steps, "rays": 32, "log_every": 2, "save_every": 2, **knobs}
    found = preset("tiny")
    for name, value in values.items():
        found = override(found, f"{name if '.' in name else f'train.trainer.{name}'}={value}")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photo_scene(tmp_path_factory.mktemp("scene") / "photos")


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of four steps with checkpoints at 2 and 4."""
    run = tmp_path_factory.mktemp("runs") / "run"
    source = {"path": str(folder), "options": {}}
    start(load(folder), tiny(), run, "cpu", source).train()
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def no_page(monkeypatch):
    monkeypatch.setattr(training, "write_run_page", lambda run, device: run)


def told(capsys, *words, status=1):
    """The one sentence with which a command ends; progress may come before."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == status, said
    last = said[-1]
    assert last.startswith("raymarch: ") and "Traceback" not in "".join(said)
    return last


# --- words and settings ---


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.trainer.steps=0", "train.trainer.steps is 0, expected at least 1"),
        ("train.trainer.steps=-3", "train.trainer.steps is -3"),
        ("train.trainer.rays=0", "train.trainer.rays is 0"),
        ("train.trainer.log_every=0", "train.trainer.log_every is 0"),
        ("train.trainer.keep=0", "train.trainer.keep is 0"),
        ("train.trainer.seed=99999999999999999999", "64 bits"),
        ("train.optim.fields.lr=-1", "train.optim.fields.lr is -1.0, expected a positive"),
        ("train.optim.fields.lr=1e400", "train.optim.fields.lr is inf"),
        ("model.sampler.samples=8", "model.sampler.samples is (8,), expected 2 counts"),
        ("model.sampler.samples=0,8", "expected 2 counts of at least 1"),
        ("model.sampler.spacing=foo", "expected one of uniform"),
        ("model.sampler.sampels=8,8", "did you mean"),
        ("model.rays.near=2000", "expected near < far"),
        ("model.rays.box=0,0,0,0,0,0", "model.rays.box"),
        ("model.rays.box=50,50,50,51,51,51", "sees nothing"),
        ("model.renderer.background=pink", "model.renderer.background is 'pink'"),
        ("model.fields.radiance.hidden=33", "hidden is 33, expected a multiple of 16"),
        ("model.fields.radiance.grid.log2_size=40", "log2_size"),
        ("model.poses.mode=SE4", "model.poses: mode is 'SE4'"),
        ("model.poses.frozen=9", "frozen names camera 9, expected 0 to 4"),
        ("model.poses.frozen=(0,1,2,3,4)", "all 5 cameras are frozen"),
        (
            "model.poses.frozen=(0,) model.poses.trainable=(0,)",
            "camera 0 is named by both frozen and trainable",
        ),
        ("model.poses.frozen=0 model.poses.trainable=0", "camera 0 is named by both frozen and trainable"),
        ("model.poses.precondition=true model.poses.precondition_spread=0", "expected more than 1"),
        ("model.poses.precondition=true model.poses.precondition_damping=-2", "at least 0"),
        (
            "model.poses.coarse_resolution=16 model.poses.coarse_until=5 model.poses.finest_resolution=0",
            "finest_resolution is 0, expected more than 0",
        ),
        ("train.optim.poses.delay=-1", "train.optim.poses.delay is -1, expected at least 0"),
        ("train.bundle.at=2 model.poses.gauge=mean", "train.bundle.at moves cameras together"),
    ],
)
def test_settings_that_nothing_can_be_trained_with(folder, tmp_path, capsys, setting, words):
    settings = [word for one in setting.split(" ") for word in ("--set", one)]
    words_given = ("train", folder, "--preset", "tiny", *SHORT, *settings)
    assert words in told(capsys, *words_given, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_would_be_done_after_the_last_step_is_not_done_and_said(folder):
    """The guard had failed there, and poses moved without a map that follows them."""
    free = {"model.poses.gauge": "free"}
    for name in ("train.trainer.guard_at", "train.bundle.at"):
        for step in (4, 9):
            trainer = start(load(folder), tiny(**{name: step}, **free), device="cpu")
            trainer.train()
            words = f"{name} names step {step}, which training of 4 steps does not go beyond"
            assert trainer.notes == [f"{words}: nothing is done there"]


def test_when_no_checkpoint_can_be_read_none_is_offered(run):
    for file in checkpoint.saved(run):
        file.write_bytes(file.read_bytes()[:99])
    with pytest.raises(CheckpointError, match="; none of the run's 2 can be read: put back a copy") as told:
        checkpoint.newest(run)
    assert "earlier" not in str(told.value)


def test_nobody_waits_for_a_folder_that_is_no_run(folder, capsys):
    wait_for_run(folder, True)
    assert capsys.readouterr().out == ""


def test_the_version_is_told(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"raymarch {package.__version__}\n"


def test_a_single_camera_has_nothing_to_be_refined_against(folder, tmp_path, capsys):
    one = shutil.copytree(folder, tmp_path / "one")
    meta = json.loads((one / "transforms.json").read_text())
    (one / "transforms.json").write_text(json.dumps(meta | {"frames": meta["frames"][:1]}))
    words = ("train", one, "--preset", "tiny", *SHORT, "--split", "none", "--out", tmp_path / "run")
    assert "give at least 2 photos, or set model.poses.mode=off" in told(capsys, *words)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("trane",), ("no command 'trane'", "did you mean 'train'")),
        (
            ("train", "x", "--presett", "tiny"),
            ("--presett", "did you mean --preset?", "raymarch train --help"),
        ),
        (("train", "x", "--steps", "many"), ("--steps: expected int, got 'many'", "raymarch train --help")),
        (("train", "x", "--path", "orbit"), ("--path", "raymarch train --help")),
        (("train", "x", "--device", "gpu"), ("--device: expected one of auto, cpu, cuda, got 'gpu'",)),
        (("render", "x", "--path", "circle"), ("--path: expected one of interpolate, orbit, spiral, got",)),
        (("query", "x", "mug", "--temperature", "hot"), ("--temperature: expected float, got 'hot'",)),
        (("train",), ("missing", "raymarch train --help")),
        ((), ("expected one of", "localize")),
    ],
)
def test_words_that_are_none_of_ours(capsys, words, parts):
    said = told(capsys, *words, status=2)
    for part in parts:
        assert part in said.lower(), said


def test_help_does_not_say_none_of_what_it_explains(capsys):
    """`(default: the preset's). (default: None)` told the same thing twice, one of them wrong."""
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    assert "None" not in said and "default: nerfacto" in said and "--steps INT" in said


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("render", "--side", 0), "--side is 0, expected at least 1"),
        (("render", "--fps", -5), "--fps is -5, expected more than 0"),
        (("render", "--frames", 0, "--path", "orbit"), "--frames is 0"),
        (("export", "--what", "points", "--views", 0), "--views is 0"),
        (("export", "--what", "mesh", "--resolution", -3), "--resolution is -3"),
        (("export", "--what", "points", "--box", "1,2,3"), "--box is for meshes"),
        (("view", "--port", 99999), "--port is 99999"),
        (("resume", "--steps", 2), "at step 4 already"),
        (("resume", "--set", "model.sampler.samples=8,8"), "below train. only"),
        (("resume", "--set", "train.trainer.rays=0"), "train.trainer.rays is 0"),
    ],
)
def test_numbers_that_mean_nothing(trained, capsys, words, part):
    assert part in told(capsys, words[0], trained, *words[1:])


# --- folders ---


def test_only_an_empty_folder_becomes_a_run(folder, trained, tmp_path, capsys):
    def refused(out, part):
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} if out.is_dir() else None
        said = told(capsys, "train", folder, "--preset", "tiny", *SHORT, "--out", out)
        assert part in said and "--out" in said
        if before is not None:
            assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    refused(trained, "already holds a run")
    refused(folder, "holds other files (00.png and more)")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "is a file")
    said = told(capsys, "train", folder, "--preset", "tiny", *SHORT, "--out", tmp_path / "file" / "run")
    assert "a part of this path is a file" in said


def test_the_demo_keeps_off_runs_that_are_not_its_own(run, folder, tmp_path):
    with pytest.raises(ConfigError, match="a run of your own"):
        demo.run(run, 8, "cpu")
    (tmp_path / "out").mkdir()
    shutil.move(run, tmp_path / "out" / "run")
    with pytest.raises(ConfigError, match="a run of your own"):
        demo.run(tmp_path / "out", 8, "cpu")
    assert len(checkpoint.saved(tmp_path / "out" / "run")) == 2
    start(load(folder), tiny(), tmp_path / "arrays" / "run", "cpu").train()  # without a source, as the demo's
    with pytest.raises(ConfigError, match="a run of your own"):
        demo.run(tmp_path / "arrays", 8, "cpu")


def test_an_earlier_demo_stays_until_the_next_is_whole(tmp_path, capsys, monkeypatch):
    out, run = tmp_path / "demo", tmp_path / "demo" / "run"
    demo.run(out, 3, "cpu")
    (run / "renders").mkdir()
    assert [p.name for p in checkpoint.saved(run)] == ["step-000000003.safetensors"]
    if not torch.cuda.is_available():
        assert "use --device cpu" in told(capsys, "demo", "--out", out, "--device", "cuda")
    assert len(checkpoint.saved(run)) == 1

    def stop(trainer, *_, **__):
        trainer.save()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train", stop)
        said = told(capsys, "demo", "--out", out, "--device", "cpu", "--steps", 2, status=130)
    assert said.startswith("raymarch: stopped; the demo begins anew") and "is the run of before" in said
    assert checkpoint.newest(run)[1]["step"] == 3
    demo.run(out, 2, "cpu")
    assert [p.name for p in checkpoint.saved(run)] == ["step-000000002.safetensors"]
    assert (run / "renders").is_dir() and not (out / demo.DRAFT).exists()


def test_a_run_belongs_to_one_process(run, folder, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with open(run / claim.LOCK, "w") as other:
        other.write("12345\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)  # as another process holds it
        with pytest.raises(ConfigError, match=r"another process \(id 12345\)"):
            resume(run, "cpu", steps=6)
    assert resume(run, "cpu", steps=6).step == 4


def test_a_place_that_cannot_be_written(run, capsys, monkeypatch):
    def denied(path, text):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("raymarch.apps.posing.write_text", denied)
    assert "poses.json: permission denied: allow" in told(capsys, "poses", run, "--device", "cpu")


def test_text_files_are_whole_and_keep_odd_names(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "caf\udcc3\udca9")
    assert (tmp_path / "a").read_text("utf-8") == "café"

    def full(self, text, *how):
        open(self, "w").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="/a'"):
        write_text(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("write", [save_rgb, save_depth, save_exr, lambda p, x: save_npz(p, {"x": x})])
def test_pictures_are_whole_or_absent(tmp_path, write):
    """A full disk had left the beginning of an archive under the name of the archive."""
    path, picture = tmp_path / "frame.bin", np.random.default_rng(0).random((40, 40)).astype(np.float32)
    picture = np.stack([picture] * 3, -1) if write is save_rgb else picture
    write(path, picture)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
        with pytest.raises(OSError, match=r"frame\.bin"):
            write(path, picture)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [p.name for p in tmp_path.iterdir()] == ["frame.bin"] and path.read_bytes() == before


# --- checkpoints ---


def test_a_checkpoint_cut_at_any_byte_is_refused(tmp_path):
    file = tmp_path / "step.safetensors"
    meta = {"step": 1, "cameras": 1, "config": {}, "scene": {}}
    checkpoint.write(file, {"x": torch.zeros(5)}, meta)
    whole = file.read_bytes()
    assert checkpoint.read(file)[1]["step"] == 1
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged") as caught:
            checkpoint.read(file)
        assert "\n" not in str(caught.value)
    for other in (b"", os.urandom(3000), b"\x80\x04K\x01."):
        file.write_bytes(other)
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            checkpoint.read(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        checkpoint.read(file)


def test_a_header_nested_without_end_is_damage(tmp_path):
    file = tmp_path / "step.safetensors"
    save_file({"x": torch.zeros(1)}, file, {"raymarch": "[" * 100_000})
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(file)


def rewritten(run, change):
    """The newest checkpoint with its header or tensors changed; the one before is gone."""
    newest, older = checkpoint.saved(run)
    tensors, meta = checkpoint.read(newest)
    change(meta, tensors)
    meta = {k: v for k, v in meta.items() if k != "format"} | {"format": meta.get("format")}
    checkpoint.write(newest, tensors, meta)
    older.unlink()
    return run


@pytest.mark.parametrize(
    "change",
    [
        lambda meta, _: meta.pop("step"),
        lambda meta, _: meta.update(step="4"),
        lambda meta, _: meta.update(format="1"),
        lambda meta, _: meta.pop("scene"),
        lambda meta, _: meta.update(config=[]),
        lambda meta, _: meta.update(cameras=3),
        lambda meta, _: meta["scene"].pop("names"),
        lambda meta, _: meta["scene"].update(train=[99]),
        lambda meta, _: meta["scene"].update(world_from_scene=3),
        lambda meta, _: meta["scene"].update(source={"path": 3, "options": {}}),
        lambda meta, _: meta["scene"].update(source=[]),
        lambda meta, _: meta["scene"].update(source=[0] * 3),
        lambda meta, _: meta["config"]["model"]["sampler"].update(samples=[0, 0]),
        lambda meta, _: meta["config"]["model"].update(of_another_version=1),
        lambda _, tensors: tensors["scene.camera_to_worlds"].fill_(float("nan")),
        lambda _, tensors: tensors["scene.size"].fill_(1 << 40),
        lambda _, tensors: tensors["scene.size"].zero_(),
        lambda _, tensors: tensors.pop("scene.lens"),
        lambda _, tensors: tensors.pop("model.fields.radiance.mlp.params"),
        lambda _, tensors: tensors.update({"scene.lens": torch.zeros(2, dtype=torch.int64)}),
    ],
)
def test_a_header_that_lacks_something(run, capsys, change):
    told(capsys, "render", rewritten(run, change), "--view", "train:0", "--device", "cpu")
    assert not (run / "renders").exists()


def test_a_checkpoint_of_another_version_says_so(run, capsys):
    rewritten(run, lambda meta, _: meta["config"]["model"]["poses"].update(gone=1))
    said = told(capsys, "eval", run, "--device", "cpu")
    assert f"{run} was trained by another version of raymarch" in said and "model.poses.gone" in said


def test_options_of_another_version_are_refused_by_name(run, capsys):
    rewritten(run, lambda meta, _: meta["scene"]["source"]["options"].update(progress=1))
    assert "loads scenes with 'progress'" in told(capsys, "eval", run, "--device", "cpu")


def test_a_checkpoint_names_no_folder_to_write_to(run, tmp_path, monkeypatch):
    """A cache folder that somebody else's file names is used only where decoded photos were kept before."""
    monkeypatch.setenv("RAYMARCH_CACHE", str(tmp_path / "own"))
    named = tmp_path / "named"
    change = {"cache": str(named), "memory": "disk"}
    rewritten(run, lambda meta, _: meta["scene"]["source"]["options"].update(change))
    meta = checkpoint.newest(run)[1]
    reload_scene(meta, run)
    assert not named.exists() and any((tmp_path / "own").iterdir())
    load(meta["scene"]["source"]["path"], memory="disk", cache=named)
    kept = {file.name: file.stat().st_mtime_ns for file in named.iterdir()}
    reload_scene(meta, run)
    assert kept.keys() == {file.name for file in named.iterdir()}
    assert any(file.stat().st_mtime_ns > kept[file.name] for file in named.iterdir())  # it was asked


def test_a_checkpoint_without_moments_renders_but_does_not_train(run):
    rewritten(run, lambda _, tensors: tensors.pop("optim.fields.0.first"))
    assert OpenRun(run, "cpu").step == 4
    with pytest.raises(CheckpointError, match="it can still be rendered"):
        resume(run, "cpu", steps=6)


def test_going_back_behind_a_damaged_checkpoint_is_told_and_keeps_what_follows(run):
    damaged = checkpoint.saved(run)[0]
    damaged.write_bytes(damaged.read_bytes()[:999])
    trainer = resume(run, "cpu", steps=5, settings=["train.trainer.keep=1"])
    assert trainer.step == 2 and "step-000000002.safetensors is used" in trainer.notes[0]
    run_to(trainer, 3).save()
    assert damaged.exists() and OpenRun(run, "cpu").step == 3
    assert [row["step"] for row in log_rows(run / "log.jsonl")] == [2, 3]


def test_a_full_disk_leaves_the_checkpoint_before(run, capsys, monkeypatch, no_page):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = told(capsys, "resume", run, "--steps", 8, "--device", "cpu")
    assert "step-000000006.safetensors: no space left on device: free some space" in said
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["step-000000002.safetensors", "step-000000004.safetensors"]


# --- what happens while training ---


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes"),
    ],
)
def test_running_out_of_memory_in_a_step(run, capsys, monkeypatch, no_page, error):
    real, calls = Trainer._one_step, []

    def step(self, update):
        calls.append(update)
        if len(calls) == 4:
            raise error
        real(self, update)

    monkeypatch.setattr(Trainer, "_one_step", step)
    kept = checkpoint.saved(run)[0].read_bytes()
    said = told(
        capsys, "resume", run, "--steps", 9, "--device", "cpu", "--set", "train.trainer.save_every=50"
    )
    assert "after step 7: lower train.trainer.rays (now 32)" in said
    assert f"`raymarch resume {run} --set train.trainer.rays=16`" in said
    assert checkpoint.saved(run)[0].read_bytes() == kept
    assert resume(run, "cpu", steps=6, settings=["train.trainer.rays=16"]).config.rays == 16


def test_running_out_of_memory_in_a_frame(run, capsys, monkeypatch):
    sizes = []

    def frame(self, cameras, camera, heads, mode, embeddings, rays):
        sizes.append(rays)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FrameRenderer, "_frame", frame)
    said = told(capsys, "render", run, "--view", "test:0", "--device", "cpu")
    assert "render fewer heads or a smaller image" in said and sizes[1] == sizes[0] // 4
    said = told(capsys, "resume", run, "--steps", 6, "--device", "cpu")
    assert "step 6 is saved, but the page" in said and f"`raymarch report {run}`" in said


@pytest.fixture
def foreground():
    """Signals as a terminal's process has them: what a shell starts in the background ignores SIGINT."""
    before = {number: signal.signal(number, handler) for number, handler in USUAL.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_interrupted_within_a_step_it_ends_it_and_goes_on_bit_for_bit(
    folder, tmp_path, monkeypatch, foreground
):
    scene = load(folder)
    whole = parameters(run_to(start(scene, tiny(9), device="cpu"), 9))
    trainer = start(scene, tiny(9), tmp_path / "run", "cpu")
    real = trainer.optim.apply

    def step(*args):
        if trainer.step == 4:
            os.kill(os.getpid(), signal.SIGINT)  # noticed here, between two halves of a step
        real(*args)

    monkeypatch.setattr(trainer.optim, "apply", step)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert checkpoint.newest(tmp_path / "run")[1]["step"] == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    second = parameters(run_to(resume(tmp_path / "run", "cpu", scene=scene), 9))
    assert all(torch.equal(value, second[name]) for name, value in whole.items())


def test_interrupted_twice_it_stops_at_once_and_saves_nothing(folder, tmp_path, monkeypatch, foreground):
    trainer = start(load(folder), tiny(9), tmp_path / "run", "cpu")

    def step(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer.optim, "apply", step)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not checkpoint.saved(tmp_path / "run")
    assert "nothing had been saved" in training.stopped(trainer)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainingError])
def test_what_stops_the_guard_leaves_the_run_where_it_began(folder, tmp_path, monkeypatch, error):
    scene = load(folder)
    trainer = run_to(start(scene, tiny(9), tmp_path / "run", "cpu"), 4)
    before = parameters(trainer)

    def score(*_):
        raise error("stop")

    monkeypatch.setattr("raymarch.train.guard.score", score)
    with pytest.raises(error):
        guard(trainer, photos_of(scene, trainer.full_config, trainer.device, scene.test), 3)
    assert trainer.step == 4 and trainer.run == tmp_path / "run"
    assert all(torch.equal(value, before[name]) for name, value in parameters(trainer).items())
    assert len(checkpoint.saved(tmp_path / "run")) == 2 - (error is KeyboardInterrupt)


def test_a_scene_that_moved_or_changed(folder, trained, run, tmp_path, capsys, no_page):
    moved = shutil.copytree(folder, tmp_path / "a new place")
    file = checkpoint.saved(run)[0]
    tensors, meta = checkpoint.read(file)
    meta["scene"]["source"]["path"] = str(tmp_path / "the old place")
    checkpoint.write(file, tensors, {k: v for k, v in meta.items() if k != "format"})
    words = ("resume", run, "--steps", 6, "--device", "cpu", "--look-every", 0)
    assert "the old place, which does not exist any more: say where it is now with --data" in told(
        capsys, *words
    )
    scene = json.loads((moved / "transforms.json").read_text())
    fewer = scene | {"frames": scene["frames"][:-1]}
    (moved / "transforms.json").write_text(json.dumps(fewer))
    assert "trained on 5 photos, the scene has 4" in told(capsys, *words, "--data", moved)
    scene["fl_x"] += 1
    (moved / "transforms.json").write_text(json.dumps(scene))
    assert "with other lenses" in told(capsys, *words, "--data", moved)
    shutil.copy(folder / "transforms.json", moved)
    cli.main([str(word) for word in (*words, "--data", moved)])
    assert checkpoint.newest(run)[1]["scene"]["source"]["path"] == str(moved)


def test_whoever_stops_reading_stops_nothing(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        done = []
        terminal.tell(done.append(i) or i for i in range(3))
        assert len(done) == 3


def test_a_demo_of_no_steps(tmp_path, capsys):
    assert "--steps is 0" in told(capsys, "demo", "--steps", 0, "--out", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
    assert demo.STEPS > 0


def test_a_run_that_blew_up_keeps_the_checkpoint_from_before(run):
    trainer = resume(run, "cpu", steps=9, settings=["train.trainer.keep=1", "train.optim.fields.lr=1e30"])
    assert [p.name[5:14] for p in checkpoint.saved(run)] == ["000000004", "000000002"]
    trainer.continue_at(4)
    with pytest.raises(TrainingError, match=r"remove .*step-00000000\d\.safetensors to go back"):
        trainer.train()
    steps = [int(p.name[5:14]) for p in checkpoint.saved(run)]
    assert len(steps) == 2 and steps[1] == 4 and OpenRun(run, "cpu").step == steps[0] > 4
