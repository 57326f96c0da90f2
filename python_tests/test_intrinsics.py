"""Refined lenses: their gradient end to end, who shares them, what is recovered, kept and written."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from raymarch.apps.exporting import export_run
from raymarch.apps.posing import tell_poses
from raymarch.apps.run_page import lens_section
from raymarch.config import ConfigError, override, preset
from raymarch.data.nerfstudio import read_cameras
from raymarch.data.scene import Scene
from raymarch.data.similarity import Similarity
from raymarch.data.synthetic import as_scene, make_scene
from raymarch.model import Model
from raymarch.model.intrinsics import Intrinsics, IntrinsicsConfig, units, words_of
from raymarch.model.rays import generate
from raymarch.nn import HashGrid
from raymarch.ops.rays import rays
from raymarch.train.lenses import lenses_protocol, refined_lenses
from raymarch.train.photos import camera_of
from raymarch.train.runs import OpenRun, resume, start
from raymarch.types import LENSES, Cameras, Pixels

ROOT = Path(__file__).resolve().parents[1]
LONG = (  # arguments of bench.poses, as docs/poses.md has them
    "--noise 0 --modes off --focal 3 --size 192 --views 30 --steps 1500 "
    "--set model.intrinsics.refine=focal --set model.poses.through_proposals=false "
    "--set model.poses.coarse_until=1000 --set train.optim.intrinsics.lr=2e-3 "
    "--set train.optim.intrinsics.lr_final=1e-4 --set train.optim.intrinsics.betas=0.9,0.99 "
    "--set train.optim.intrinsics.delay=100 --set train.optim.intrinsics.warmup=100"
)
EVERYTHING = "focal+centre+k1+k2+k3+k4+p1+p2"


def cameras_of(count=4, lens=0, size=64, dtype=torch.float32):
    """Cameras in a ring, the last of which has a lens of its own."""
    angle = torch.arange(count).double() * 2.4
    eye = torch.stack([angle.cos(), angle.sin(), 0.4 + 0.05 * angle], -1)
    back = torch.nn.functional.normalize(eye, dim=-1)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(torch.tensor([[0.0, 0, 1]]).double().expand_as(back), back), dim=-1
    )
    poses = torch.stack([right, torch.linalg.cross(back, right), back, eye], -1)
    intrinsics = torch.tensor([size * 0.7, size * 0.75, size / 2, size / 2]).repeat(count, 1)
    intrinsics[-1, :2] *= 1.5
    distortion = torch.zeros(count, 12)
    distortion[:, :6] = torch.tensor([0.05, -0.02, 0.004, 0.001, 0.003, -0.002])
    return Cameras(
        poses.to(dtype), intrinsics.to(dtype), distortion.to(dtype),
        torch.full((count,), lens), torch.full((count, 2), size),
    )  # fmt: skip


def small_model(refine, cameras, *extra):
    config = preset("tiny")
    words = [
        f"model.intrinsics.refine={refine}", "model.poses.mode=off", "model.sampler.samples=12,10",
        "model.sampler.jitter=none", "model.fields.radiance.grid.levels=2",
        "model.fields.radiance.grid.base_resolution=4", "model.fields.radiance.grid.max_resolution=8",
        "model.fields.radiance.grid.log2_size=12", "model.fields.radiance.grid.interpolation=smoothstep",
        "model.losses.gradient_scaling=false", "model.fields.radiance.average_init_density=1.0", *extra,
    ]  # fmt: skip
    for word in words:
        config = override(config, word)
    torch.manual_seed(0)
    model = Model(config.model, len(cameras.size))
    for grid in (m for m in model.modules() if isinstance(m, HashGrid)):
        with torch.no_grad():
            grid.table.uniform_(-0.7, 0.7)
    model.intrinsics.measure(cameras)
    return model.double()


def set_lens(trainer, focal, k1):
    """Make all cameras' focal lengths so much longer, as a part of them, and k1 so much more."""
    lenses = trainer.model.intrinsics
    wanted = torch.zeros(16)
    wanted[[0, 1, 4]] = torch.tensor([focal, focal, k1])
    wanted *= units(trainer.source.cameras)[0]
    with torch.no_grad():
        lenses.numbers.copy_(torch.linalg.lstsq(lenses.steps[0], wanted[:, None]).solution[:, 0])
    assert_close(lenses.changes()[-1].detach(), wanted)


# --- the gradient -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lens", ["perspective", "fisheye"])
@pytest.mark.parametrize("share", ["same", "none"])
def test_the_gradient_of_lenses_is_that_of_the_rendered_image(lens, share):
    """Undistortion, rays, contraction, grid, networks, weights and compositing, by central differences."""
    size, number = 8, LENSES.index(lens)
    model = small_model(EVERYTHING, cameras_of(3, number, size), f"model.intrinsics.share={share}")
    cameras = cameras_of(3, number, size, torch.float64)
    xy = torch.rand(30, 2, generator=torch.Generator().manual_seed(2)).double() * size
    pixels = Pixels(torch.arange(30) % 3, xy)
    weights = torch.linspace(-1, 1, 90).double().view(30, 3)
    numbers = model.intrinsics.numbers
    with torch.no_grad():
        numbers.copy_(0.03 * torch.randn(3, 9, generator=torch.Generator().manual_seed(3)))
    edges = []  # resampled edges carry no gradient: hold them where they are

    def image():
        seen = generate(pixels, model.intrinsics(cameras), None, model.config.rays, True)
        assert seen.converged.all()
        if not edges:
            with torch.no_grad():
                edges.append(model.sampler(seen, list(model.fields.proposals), train=True))
        samples, proposals = edges[0]
        field = model.fields(seen, samples, frozenset({"rgb"}), True)
        return model.renderer(seen, samples, field, proposals, True, False).rgb

    (image() * weights).sum().backward()
    got, want = numbers.grad.clone(), torch.zeros(3, 9).double()
    with torch.no_grad():
        for i in range(27):
            for sign in (1, -1):
                numbers.view(-1)[i] += sign * 1e-6
                want.view(-1)[i] += sign * (image() * weights).sum() / 2e-6
                numbers.view(-1)[i] -= sign * 1e-6
    assert (want.norm(dim=1) > 0.01).tolist() == [True, share == "none", True]
    assert_close(got, want, rtol=1e-5, atol=1e-6 * float(want.abs().max()))


def test_the_gradient_by_hand_is_autograds():
    cameras = cameras_of()
    model = Intrinsics(IntrinsicsConfig(EVERYTHING), 4)
    model.measure(cameras)
    upstream = torch.randn(4, 16)
    (model.changes() * upstream).sum().backward()
    assert_close(model.changes_backward(upstream).detach(), model.numbers.grad)


# --- what a number means ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lens", [0, 1])
def test_every_number_moves_the_picture_by_as_much(lens):
    """A step of 1e-3 in any coordinate turns rays by a milliradian, root mean square, each way of its own."""
    cameras = cameras_of(1, lens)
    model = Intrinsics(IntrinsicsConfig("focal+centre+distortion", damping=0.0), 1)
    model.measure(cameras)
    at = (torch.arange(12) + 0.5) / 12 * 64  # the lattice that it was measured on
    xy = torch.cartesian_prod(at, at)
    which = torch.zeros(len(xy), dtype=torch.int64)

    def seen():
        now = model(cameras)
        lenses = (now.intrinsics.double(), now.distortion.double(), now.lens)
        return rays(which, xy.double(), now.camera_to_worlds.double(), *lenses)[1]

    moved = []
    with torch.no_grad():
        for i in range(5):
            model.numbers[0, i] = 1e-3
            moved.append(seen())
            model.numbers[0, i] = -1e-3
            moved[-1] = (moved[-1] - seen()) / 2e-3
            model.numbers.zero_()
    J = torch.stack(moved, -1)
    assert_close((J.transpose(1, 2) @ J).mean(0), torch.eye(5).double(), atol=0.03, rtol=0)


def test_off_is_nothing_at_all():
    model = Intrinsics(IntrinsicsConfig(), 4)
    cameras = cameras_of()
    assert not list(model.parameters()) and not model.state_dict()
    assert model(cameras) is cameras and model.of_others(cameras, cameras) is cameras


@pytest.mark.parametrize(
    ("share", "owners"), [("same", [0, 0, 0, 3]), ("all", [0] * 4), ("none", [0, 1, 2, 3])]
)
def test_cameras_share_what_is_asked_for(share, owners):
    cameras = cameras_of()
    model = Intrinsics(IntrinsicsConfig("focal+k1", share, damping=0.0), 4)
    model.measure(cameras)
    assert model.owner.tolist() == owners
    with torch.no_grad():
        model.numbers.copy_(0.01 * torch.randn(4, 2))
    relative = model.changes() / units(cameras)
    for camera, owner in enumerate(owners):
        assert_close(relative[camera], relative[owner])
        assert (relative[camera, [0, 1, 4]] != 0).all()
        assert_close(relative[camera, 0], relative[camera, 1])
        assert (relative[camera, 5:] == 0).all() and (relative[camera, 2:4] == 0).all()
    assert len({round(r[0], 6) for r in relative.tolist()}) == len(set(owners))


@pytest.mark.parametrize("share", ["same", "all", "none"])
def test_held_out_cameras_take_over_what_their_lens_learnt(share):
    cameras = cameras_of()
    model = Intrinsics(IntrinsicsConfig("focal+k1", share), 4)
    model.measure(cameras)
    with torch.no_grad():
        model.numbers.copy_(0.01 * torch.randn(4, 2))
    refined = model(cameras)
    unknown = replace(cameras, intrinsics=cameras.intrinsics * 2)
    others = Cameras(*(torch.cat([getattr(c, f)[-2:] for c in (cameras, unknown)]) for f in
                       ("camera_to_worlds", "intrinsics", "distortion", "lens", "size")))  # fmt: skip
    found = model.of_others(cameras, others)
    shared = refined.intrinsics[:3].mean(0) if share == "none" else refined.intrinsics[2]
    assert_close(found.intrinsics[:2], torch.stack([shared, refined.intrinsics[3]]))
    assert_close(found.distortion[1], refined.distortion[3])
    if share == "all":
        assert_close(found.intrinsics[2:, 0], 2 * found.intrinsics[:2, 0])
    else:
        assert torch.equal(found.intrinsics[2:], others.intrinsics[2:])


# --- recovery ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("focal", "k1"), [(0.03, 0.1), (-0.03, -0.1)])
def test_a_wrong_lens_is_found_against_a_map_that_goes_on_learning(focal, k1):
    """Map and lens learn together after the map had a while with the right lens; poses are as given."""
    config, alone, steps = preset("tiny"), 100, 160
    for word in (
        "model.intrinsics.refine=focal+k1", "model.poses.mode=off", "model.losses.distortion=0.0",
        "model.losses.gradient_scaling=false", f"train.trainer.steps={steps}", "train.trainer.rays=512",
        f"train.optim.intrinsics.delay={alone}", "train.optim.intrinsics.lr=2e-3",
        "train.optim.intrinsics.lr_final=2e-4", "train.optim.intrinsics.betas=0.9,0.99",
        *[f"train.optim.{group}.decay_steps={steps}" for group in ("fields", "proposals", "intrinsics")],
    ):  # fmt: skip
        config = override(config, word)
    trainer = start(as_scene(make_scene(views=16, test_views=0, size=48)), config, device="cpu")
    trainer.train(alone)
    assert not trainer.model.intrinsics.numbers.any()
    set_lens(trainer, focal, k1)
    trainer.train()
    given = trainer.source.cameras
    found = trainer.model.intrinsics(given)
    assert float((found.intrinsics / given.intrinsics - 1).abs().max()) < 0.012
    assert float(found.distortion.abs().max()) < 0.05


@pytest.mark.nightly
def test_a_lens_that_was_wrong_from_the_start_is_found(tmp_path):
    """The run of docs/poses.md."""
    command = "python -m bench.poses synthetic " + LONG
    subprocess.run([sys.executable, *command.split()[1:], "--out", str(tmp_path)], cwd=ROOT, check=True)
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text())["result"]
    assert abs(found["focal_percent"]) < 1.0


# --- kept, reported, exported ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth():
    return make_scene(views=6, test_views=2, size=24, seed=0)


def scene_of(truth, **options):
    return Scene.from_arrays(
        truth.images, truth.intrinsics, truth.camera_to_worlds, split=(truth.train, truth.test),
        orientation="none", center="none", scale=1.0, **options,
    )  # fmt: skip


def training(scene, *words, steps=4, run=None):
    config = preset("tiny")
    for word in (f"train.trainer.steps={steps}", "train.trainer.rays=64", *words):
        config = override(config, word)
    return start(scene, config, run, device="cpu")


@pytest.fixture(scope="module")
def run(truth, tmp_path_factory):
    """A run whose focal lengths were then set to 2 % more and k1 to 0.05."""
    folder = tmp_path_factory.mktemp("lenses") / "run"
    trainer = training(
        scene_of(truth), "model.intrinsics.refine=focal+k1", "model.intrinsics.damping=0.0", run=folder
    )
    trainer.train()
    set_lens(trainer, 0.02, 0.05)
    trainer.save()
    return folder


def test_what_was_learnt_is_what_everything_looks_through(run, truth):
    opened = OpenRun(run, "cpu")
    fx = float(truth.intrinsics[0])
    for cameras in (opened.train_cameras(), opened.test_cameras(), camera_of(opened, None, (24, 24))):
        assert_close(cameras.intrinsics[:, :2], torch.full((len(cameras.size), 2), 1.02 * fx))
        assert_close(cameras.distortion[:, 0], torch.full((len(cameras.size),), 0.05))
    assert torch.equal(opened.train_cameras(refined=False).intrinsics[0], truth.intrinsics)
    (lens,) = refined_lenses(opened)
    assert lens.cameras == tuple(range(6)) and lens.focal_percent == pytest.approx(2, rel=1e-4)
    assert lens.given["k1"] == 0 and lens.refined["k1"] == pytest.approx(0.05, rel=1e-4)
    assert "and 5 more" in lens.told() and "focal length +2 %" in lens.told() and json.dumps(lens.row())
    section = lens_section([lens], "focal+k1")
    assert section.head == ("camera", "focal length", "fx", "fy", "k1") and "→ 0.05" in section.rows[0][4]


def test_exports_hold_refined_lenses(run, truth, tmp_path):
    fx = 1.02 * float(truth.intrinsics[0])
    (file,) = export_run(run, tmp_path / "a", "transforms", True, "cpu")
    _, cameras = read_cameras(file, Similarity())
    assert_close(cameras.intrinsics[:, 0], torch.full((8,), fx))
    assert_close(cameras.distortion[:, 0], torch.full((8,), 0.05))
    list(export_run(run, tmp_path / "b", "colmap", False, "cpu"))
    (line,) = [x for x in (tmp_path / "b" / "cameras.txt").read_text().splitlines() if x[0] != "#"]
    assert line.split()[1] == "OPENCV" and float(line.split()[4]) == pytest.approx(fx)
    assert float(line.split()[8]) == pytest.approx(0.05)


def test_reports_name_refined_lenses(run, tmp_path):
    told = list(tell_poses(run, tmp_path / "poses.json", "cpu"))
    assert any("focal length +2 %" in line for line in told)
    (stored,) = json.loads((tmp_path / "poses.json").read_text())["lenses"]
    assert stored["cameras"] == list(range(6)) and stored["refined"]["k1"] == pytest.approx(0.05)


def test_a_resumed_run_goes_on_from_its_lenses(truth, tmp_path):
    scene, words = scene_of(truth), ("model.intrinsics.refine=focal+k1",)
    straight = training(scene, *words, steps=6)
    straight.train()
    assert straight.model.intrinsics.numbers.any()
    training(scene, *words, steps=6, run=tmp_path / "run").train(3)
    again = resume(tmp_path / "run", "cpu", scene=scene)
    again.train()
    for name, tensor in straight.state().items():
        assert torch.equal(tensor, again.state()[name]), name


def test_evaluation_says_that_lenses_were_refined(run, truth):
    assert lenses_protocol(OpenRun(run, "cpu")) == "; lenses as refined with the training photos (focal, k1)"


def test_a_guard_rolls_lenses_back_with_poses(truth):
    words = ("model.intrinsics.refine=focal", "train.trainer.guard_at=3", "train.trainer.guard_steps=3")
    trainer = training(scene_of(truth), *words, steps=9)
    verdicts = iter([20.0, 30.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raymarch.train.guard.score", lambda *_: next(verdicts))
        trainer.train()
    assert float(trainer.brake) == 0 and not trainer.model.intrinsics.numbers.any()


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["refine=focus"],
            r"model.intrinsics: refine is 'focus', expected off, or some of focal, centre, k1",
        ),
        (["refine=focal", "share=some"], "share is 'some', expected one of same, all, none"),
        (["refine=focal", "damping=-1.0"], "damping is -1.0, expected at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(truth, words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        training(scene_of(truth), *[f"model.intrinsics.{word}" for word in words])


def test_lenses_that_cannot_be_refined_are_refused(truth):
    scene = scene_of(truth)
    kinds = scene.cameras.lens.clone()
    kinds[4] = LENSES.index("equirectangular")
    mixed = replace(scene, cameras=replace(scene.cameras, lens=kinds))
    with pytest.raises(
        ConfigError, match=r"camera 4 \(image 4\) has a lens of kind equirectangular, expected"
    ):
        training(mixed, "model.intrinsics.refine=focal")
    training(mixed, "model.intrinsics.refine=off")


def test_one_photo_says_nothing_of_its_lens(truth):
    scene = replace(scene_of(truth), train=(2,), test=(0, 1))
    with pytest.raises(ConfigError, match=r"the only training photo \(image 2\).*at least 2 photos"):
        training(scene, "model.intrinsics.refine=focal", "model.poses.mode=off")


def test_words_are_put_in_order_and_distortion_is_two_of_them():
    assert words_of("distortion+focal") == ("focal", "k1", "k2")
    assert words_of("p1+focal+p1") == ("focal", "p1") and words_of("off") == ()
