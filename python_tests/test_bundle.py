"""Matches between photos and the poses that fit them: projection, slopes, solver, and training with it."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from raymarch.config import override, preset
from raymarch.data.alignment import align, perturb
from raymarch.data.perturb import PoseNoise, disturbed, scene_size
from raymarch.data.scene import Scene
from raymarch.data.synthetic import make_scene
from raymarch.model import Model
from raymarch.model.poses import Poses, PosesConfig, compose
from raymarch.ops.pose import pose
from raymarch.train.bundle import BundleConfig, _Problem, adjust, releases
from raymarch.train.matches import (
    Matches,
    Pictures,
    _move,
    _normalised,
    _partners,
    find_matches,
    look_along,
    project,
)
from raymarch.train.runs import resume, start
from raymarch.types import LENSES, Cameras


def ring(count, lens="perspective", distortion=()):
    """Cameras on a ring of radius 2 that look at the origin, 100 x 80 pixels."""
    poses = []
    for k in range(count):
        angle = 0.35 * k
        centre = torch.tensor([2 * math.sin(angle), 0.3 * math.cos(2.1 * k), 2 * math.cos(angle)])
        back = centre / centre.norm()
        right = torch.linalg.cross(torch.tensor([0.0, 1, 0]), back)
        right = right / right.norm()
        poses.append(torch.stack([right, torch.linalg.cross(back, right), back, centre], -1))
    bent = torch.zeros(count, 12)
    bent[:, : len(distortion)] = torch.tensor(distortion)
    return Cameras(
        torch.stack(poses), torch.tensor([90.0, 85, 52, 39]).expand(count, 4).contiguous(), bent,
        torch.full((count,), LENSES.index(lens)), torch.tensor([100, 80]).expand(count, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lens", "distortion"),
    [("perspective", ()), ("perspective", (0.1, -0.05, 0, 0, 0.01, -0.02)), ("fisheye", (0.05, 0.01))],
)
def test_projecting_undoes_casting(lens, distortion):
    cameras = ring(3, lens, distortion)
    random = torch.Generator().manual_seed(0)
    which = torch.arange(3).repeat_interleave(50)
    xy = torch.rand(150, 2, generator=random) * torch.tensor([98.0, 78]) + 1
    direction, fine = look_along(cameras, which, xy)
    assert bool(fine.all())
    far = 0.5 + 3 * torch.rand(150, 1, generator=random)
    points = cameras.camera_to_worlds[which][:, :, 3] + far * direction
    found, seen = project(cameras, which, points)
    assert bool(seen.all())
    assert_close(found, xy, atol=0.02, rtol=0)


def test_what_is_behind_or_beside_the_picture_is_not_seen():
    cameras = ring(1)
    points = torch.tensor([[0.0, 0, 0], [0, 0, 5], [4, 0, 0]])
    _, seen = project(cameras, torch.zeros(3, dtype=torch.int64), points)
    assert seen.tolist() == [True, False, False]


def matches_of(cameras, points=300, seed=1, noise=0.0):
    """Exact matches of random points near the origin, in all cameras of the ring."""
    random = torch.Generator().manual_seed(seed)
    at = torch.randn(points, 3, generator=random).double() * 0.4
    R, c = cameras.camera_to_worlds[:, :, :3].double(), cameras.camera_to_worlds[:, :, 3].double()
    count = len(R)
    host = torch.randint(count, (points,), generator=random)
    q = (at - c[host])[:, None] @ R[host]
    distance = q[:, 0].norm(dim=-1)
    pairs = [(p, k) for p in range(points) for k in range(count) if k != int(host[p])]
    point, camera = (torch.tensor(x) for x in zip(*pairs, strict=True))
    seen = ((at[point] - c[camera])[:, None] @ R[camera])[:, 0]
    seen = torch.nn.functional.normalize(seen, dim=-1)
    seen = torch.nn.functional.normalize(
        seen + noise * torch.randn(seen.shape, generator=random).double(), dim=-1
    )
    sharpness = torch.full((len(point),), 90.0, dtype=torch.float64)
    return Matches(host, q[:, 0] / distance[:, None], distance, point, camera, seen, sharpness)


def test_slopes_of_residuals_are_those_of_differences():
    cameras = ring(4)
    problem = _Problem(matches_of(cameras, 10), perturb(cameras.camera_to_worlds.double(), 2.0, 0.05))
    of_host, of_camera, of_point = problem.slopes()
    m, h = problem.matches, 1e-6
    nothing = torch.zeros(4, 6).double(), torch.zeros(10).double()
    for k in range(6):
        for c in range(4):
            step = nothing[0].clone()
            step[c, k] = h
            after = problem.residuals(*problem.moved(step, nothing[1]))
            before = problem.residuals(*problem.moved(-step, nothing[1]))
            want = torch.where((m.host[m.point] == c)[:, None], of_host[:, :, k], 0.0)
            want = want + torch.where((m.camera == c)[:, None], of_camera[:, :, k], 0.0)
            assert_close((after - before) / (2 * h), want, atol=1e-5, rtol=1e-6)
    after, before = (
        problem.residuals(*problem.moved(nothing[0], torch.full((10,), s * h).double())) for s in (1, -1)
    )
    assert_close((after - before) / (2 * h), of_point, atol=1e-5, rtol=1e-6)


def test_poses_are_found_again_from_exact_matches():
    cameras = ring(7)
    truth = cameras.camera_to_worlds.double()
    off = perturb(truth, 2.0, 0.05)
    matches = matches_of(cameras)
    wrong = replace(matches, distance=matches.distance * (0.8 + 0.4 * torch.rand(300).double()))
    found = adjust(wrong, off, config=BundleConfig(steps=40))
    left = align(found.camera_to_worlds, truth)
    assert float(left.rotation_error_deg.max()) < 1e-4 and float(left.translation_error.max()) < 1e-5
    assert found.before > 1 and found.after < 1e-4 and found.kept == ()
    again = align(found.camera_to_worlds, off)  # aligned with what came in
    assert again.scale == pytest.approx(1, abs=1e-9) and float(again.translation.norm()) < 1e-9


def test_matches_that_are_wrong_are_left_out():
    cameras = ring(7)
    truth = cameras.camera_to_worlds.double()
    matches = matches_of(cameras, noise=1e-3)  # a tenth of a pixel
    random = torch.Generator().manual_seed(5)
    wild = torch.rand(len(matches.point), generator=random) < 0.2
    elsewhere = torch.nn.functional.normalize(
        matches.seen + 0.2 * torch.randn(matches.seen.shape, generator=random), dim=-1
    )
    spoilt = replace(matches, seen=torch.where(wild[:, None], elsewhere, matches.seen))
    off = perturb(truth, 2.0, 0.05)
    found, clean = adjust(spoilt, off), adjust(matches.kept(~wild), off)
    left, least = (align(x.camera_to_worlds, truth) for x in (found, clean))
    assert float(left.rotation_error_deg.max()) < 1.5 * float(least.rotation_error_deg.max()) < 0.1
    assert found.matches < 0.9 * len(matches.point)


def test_frozen_cameras_and_cameras_without_matches_stay():
    cameras = ring(7)
    truth = cameras.camera_to_worlds.double()
    off = perturb(truth, 1.0, 0.02)
    off[:2] = truth[:2]
    matches = matches_of(cameras)
    found = adjust(matches, off, torch.tensor([False, False, True, True, True, True, True]))
    assert torch.equal(found.camera_to_worlds[:2], off[:2])
    assert_close(found.camera_to_worlds, truth, atol=1e-5, rtol=0)
    alone = matches.kept((matches.camera != 6) & (matches.host[matches.point] != 6))
    found = adjust(alone, off)
    assert found.kept == (6,) and torch.equal(found.camera_to_worlds[6], off[6])
    nothing = adjust(matches.kept(torch.zeros(len(matches.point), dtype=torch.bool)), off)
    assert nothing.matches == 0 and nothing.kept == tuple(range(7))
    assert_close(nothing.camera_to_worlds, off, atol=1e-6, rtol=0)


def test_a_camera_whose_matches_are_all_wrong_goes_back_and_bends_no_other():
    cameras = ring(7)
    truth = cameras.camera_to_worlds.double()
    off = perturb(truth, 1.0, 0.02)
    matches = matches_of(cameras, noise=1e-3)
    sixth = matches.camera == 6
    random = torch.Generator().manual_seed(3)
    elsewhere = torch.nn.functional.normalize(
        torch.randn(matches.seen.shape, generator=random, dtype=torch.float64), dim=-1
    )
    hosted = matches.host[matches.point] == 6
    wrong = replace(matches, seen=torch.where(sixth[:, None], elsewhere, matches.seen)).kept(~hosted)
    found = adjust(wrong, off)
    assert found.kept == (6,) and torch.equal(found.camera_to_worlds[6], off[6])
    left = align(found.camera_to_worlds[:6], truth[:6])
    clean = adjust(matches.kept(~sixth & ~hosted), off)
    least = align(clean.camera_to_worlds[:6], truth[:6])
    assert float(left.rotation_error_deg.max()) < 1.5 * float(least.rotation_error_deg.max()) < 0.1
    moved = align(found.camera_to_worlds[:6], off[:6])  # aligned with what came in
    assert moved.scale == pytest.approx(1, abs=1e-9) and float(moved.translation.norm()) < 1e-9


@pytest.mark.parametrize(("mode", "how"), [(m, h) for m in ("SO3xR3", "SE3") for h in ("camera", "world")])
@pytest.mark.parametrize("precondition", [False, True])
def test_adjustments_can_be_set_to_what_poses_should_be(mode, how, precondition):
    cameras = ring(5)
    given = cameras.camera_to_worlds
    poses = Poses(PosesConfig(mode=mode, compose=how, precondition=precondition, frozen=(3,)), 5)
    poses.precondition(cameras)
    wanted = compose(
        given, pose(torch.randn(5, 6, generator=torch.Generator().manual_seed(2)) * 0.3, mode), how
    )
    wanted[0] = given[0]
    poses.go_to(given, wanted)
    found = poses.optimized_camera_to_worlds(given)
    assert_close(found[[0, 1, 2, 4]], wanted[[0, 1, 2, 4]], atol=2e-5, rtol=0)
    assert torch.equal(found[3], given[3])


def test_a_gauge_takes_the_common_motion_out_of_what_is_set():
    cameras = ring(6)
    poses = Poses(PosesConfig(compose="camera", gauge="similarity"), 6)
    poses.precondition(cameras)
    given = cameras.camera_to_worlds
    wanted = perturb(given, 0.5, 0.01, seed=4)
    poses.go_to(given, wanted)
    left = align(poses.optimized_camera_to_worlds(given), wanted)
    assert float(left.rotation_error_deg.max()) < 0.01


def test_a_patch_is_found_to_a_fraction_of_a_pixel():
    random = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 1, 20, 24, generator=random)
    photo = torch.nn.functional.interpolate(coarse, (160, 192), mode="bicubic", align_corners=True)[0, 0]
    photo = (photo.clamp(0, 1) * 255).byte()[..., None].expand(-1, -1, 3)
    brighter = (photo.float() * 0.5 + 60).byte()
    pictures = Pictures([photo, brighter], 192, torch.device("cpu"))
    line = torch.arange(9.0) - 4
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(1, -1, 2)
    xy = torch.tensor([[60.5, 70.25], [100.0, 50.75]])
    first = torch.zeros(2, dtype=torch.int64)
    truth = _normalised(pictures.read(first, xy[:, None] + grid)[0])[0]
    start_at = xy + torch.tensor([[1.7, -2.1], [-2.4, 1.2]])
    found, like = _move(pictures, truth, first + 1, start_at, grid, 12)
    assert_close(found, xy, atol=0.05, rtol=0)
    assert float(like.min()) > 0.99


def test_partners_are_spread_over_angles():
    cameras = ring(12)
    points = torch.zeros(1, 3)
    point, camera, xy = _partners(cameras, torch.tensor([0]), points, 2)
    assert len(point) == 2 and 0 not in camera.tolist() and len(set(camera.tolist())) == 2
    assert bool(((xy > 0) & (xy < cameras.size[0])).all())
    every, *_ = _partners(cameras, torch.tensor([0]), points, 50)
    assert len(every) == 2  # those within WIDEST


SETTINGS = (
    "train.trainer.rays=512", "train.trainer.log_every=50", "model.losses.distortion=0.0",
    "model.losses.gradient_scaling=false", "model.poses.compose=camera", "model.poses.gauge=similarity",
    "model.poses.precondition=true", "model.poses.through_proposals=false", "train.optim.poses.lr=2e-3",
    "model.poses.translation_penalty=0.0", "model.poses.rotation_penalty=0.0", "train.matches.points=300",
    "train.optim.poses.delay=60", "train.optim.poses.warmup=60",
)  # fmt: skip


def scene_of(size=96, views=24):
    truth = make_scene(views, 2, size)
    return Scene.from_arrays(
        truth.images, truth.intrinsics, truth.camera_to_worlds, split=(truth.train, truth.test),
        orientation="none", center="none", scale=1.0,
    )  # fmt: skip


def trainer_of(scene, *words, run=None):
    config = preset("tiny")
    for word in (*SETTINGS, *words):
        config = override(config, word)
    return start(scene, config, run, device="cpu")


def off_by(trainer, scene, noisy):
    truth = scene.cameras.camera_to_worlds[list(scene.train)]
    given = noisy.cameras.camera_to_worlds[list(scene.train)]
    with torch.no_grad():
        left = align(trainer.model.poses.optimized_camera_to_worlds(given), truth)
    return float(left.rotation_error_deg.median()), float(left.translation_error.median()) / scene_size(truth)


def test_training_with_bundle_adjustment_recovers_poses(tmp_path):
    scene = scene_of()
    noisy, _ = disturbed(scene, PoseNoise(1.0, 0.01))
    words = "train.trainer.steps=400", "train.bundle.at=(300,)"
    trainer = trainer_of(noisy, *words, run=tmp_path / "run")
    trainer.train(299)
    plain = off_by(trainer, scene, noisy)
    trainer.train(300)  # the adjustment is part of it
    found = off_by(trainer, scene, noisy)
    assert found[0] < 0.6 * plain[0] and found[1] < 0.6 * plain[1], (found, plain)
    assert float(trainer.brake) == 0 and int(trainer.adjusted) == 300
    assert len(trainer.notes) == 1 and "bundle adjustment at step 300: " in trainer.notes[0]
    trainer.train()
    assert off_by(trainer, scene, noisy) == found  # held
    whole = trainer_of(noisy, *words)
    whole.train()
    trainer.claim = None
    for name, tensor in resume(tmp_path / "run", "cpu", scene=noisy).state().items():
        assert torch.equal(tensor, whole.state()[name]), name


def moved_by_hand(trainer):
    """In place of an adjustment, poses are moved by something known."""

    @torch.no_grad()
    def adjust_poses():
        trainer.model.poses.adjustment.add_(0.01)
        trainer.brake.zero_()
        return "moved by hand"

    trainer.adjust = adjust_poses
    return trainer


def test_resuming_at_the_step_of_an_adjustment_does_not_repeat_it(tmp_path):
    noisy, _ = disturbed(scene_of(32, 8), PoseNoise(1.0, 0.01))
    words = "train.trainer.steps=30", "train.bundle.at=(20,)", "train.bundle.hold=5", "train.bundle.brake=0.5"
    words += "train.optim.poses.delay=0", "train.optim.poses.warmup=0"
    first = moved_by_hand(trainer_of(noisy, *words, run=tmp_path / "run"))
    first.train(20)
    first.claim = None
    second = resume(tmp_path / "run", "cpu", scene=noisy)
    second.adjust = lambda: pytest.fail("adjusted twice")
    held = second.model.poses.adjustment.detach().clone()
    second.train(25)
    assert float(second.brake) == 0.5 and torch.equal(second.model.poses.adjustment, held)
    second.train()
    assert not torch.equal(second.model.poses.adjustment, held)
    whole = moved_by_hand(trainer_of(noisy, *words))
    whole.train()
    assert whole.notes == ["moved by hand"]
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_poses_are_held_until_the_last_of_adjustments_that_overlap():
    assert releases(BundleConfig(at=(100, 500, 800), hold=400)) == (1200,)
    assert releases(BundleConfig(at=(800, 100), hold=400)) == (500, 1200)
    assert releases(BundleConfig()) == ()


def test_photos_without_texture_move_nothing_and_say_so():
    truth = make_scene(8, 1, 32)
    grey = tuple(torch.full_like(torch.as_tensor(x), 128) for x in truth.images)
    scene = Scene.from_arrays(
        grey, truth.intrinsics, truth.camera_to_worlds, split=(truth.train, truth.test), orientation="none",
        center="none", scale=1.0,
    )  # fmt: skip
    trainer = trainer_of(scene, "train.trainer.steps=4", "train.bundle.at=(2,)")
    trainer.train()
    assert "moved nothing" in trainer.notes[0] and trainer.step == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train.bundle.at=(10,)", "model.poses.mode=off"), "model.poses.mode is off"),
        (("train.bundle.at=(0,)",), "steps of at least 1"),
        (("train.bundle.at=(10,)", "train.matches.sides=()"), "sides"),
        (("train.bundle.at=(10,)", "train.trainer.guard_at=20"), "at least 1010"),
    ],
)
def test_settings_that_cannot_be(words, told):
    with pytest.raises(ValueError, match=told):
        trainer_of(scene_of(16, 4), *words)


def test_panoramas_are_refused():
    cameras = ring(2)
    cameras = replace(cameras, lens=torch.full((2,), LENSES.index("equirectangular")))
    with pytest.raises(ValueError, match="perspective and fisheye lenses, not equirectangular"):
        find_matches(Model(preset("tiny").model, 2), cameras, [])
