"""Photos found against a scene trained for the purpose, from starts ten degrees and ten per cent off."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from raymarch.apps.demo import demo_config
from raymarch.data.alignment import perturb, rotation_angle
from raymarch.data.scene import Scene
from raymarch.data.similarity import similarity
from raymarch.data.synthetic import make_scene
from raymarch.model.poses import compose
from raymarch.model.rays import generate
from raymarch.ops.pose import pose
from raymarch.train.localize import Level, LocalizeConfig, Localizer, scene_size
from raymarch.train.photometric import Aligner, frozen
from raymarch.train.photos import LocalizeError, make_view
from raymarch.train.residuals import blur_matrix, compare, project, solve
from raymarch.train.runs import start
from raymarch.trained import load, perspective

SIZE, VIEWS, STEPS = 64, 36, 600
WORLD = similarity(
    3.0, [[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], [5.0, -2, 1]
)  # world units are not the scene's here
QUICK = LocalizeConfig(
    particles=48,
    rounds=3,
    elites=8,
    search=Level(20, 20, 1.5, 0, 0),
    levels=(Level(20, 20, 1.2, 4, 7), Level(40, 64, 0.8, 2, 6), Level(64, 64, 0.7, 1, 10)),
)


@pytest.fixture(scope="module")
def truth():
    return make_scene(VIEWS, 4, SIZE)


@pytest.fixture(scope="module")
def scene(truth, tmp_path_factory):
    """A run whose world is turned, moved and three times as large as the frame it trained in."""
    run = tmp_path_factory.mktemp("localize") / "run"
    data = Scene.from_arrays(
        truth.images, truth.intrinsics, truth.camera_to_worlds, split=(truth.train, truth.test),
        orientation="none", center="none", scale=1.0, file_from_world=WORLD.invert(),
    )  # fmt: skip
    config = demo_config(STEPS, 0)
    off = replace(config.model.poses, mode="off")
    config = replace(config, model=replace(config.model, poses=off))
    trainer = start(data, config, run, "cpu")
    trainer.train()
    return load(run, "cpu")


def errors(found, true_pose, size):
    """Degrees, and per cent of the scene's size in world units."""
    true = WORLD.apply_poses(true_pose.double())
    degrees = math.degrees(float(rotation_angle(found[:, :3].T @ true[:, :3])))
    return degrees, 100 * float((found[:, 3] - true[:, 3]).norm()) / (size * WORLD.scale)


@pytest.fixture(scope="module")
def size(scene):
    return scene_size(scene.train_cameras().camera_to_worlds)


@pytest.fixture(scope="module")
def starts(truth, size):
    """Every pose turned by 10 degrees and moved by 10 % of the scene's size, world units."""
    return WORLD.apply_poses(perturb(truth.camera_to_worlds, 10.0, 0.1 * size, seed=3).double())


def test_held_out_photos_are_found_from_ten_degrees_and_ten_per_cent_off(scene, truth, size, starts):
    """The field is a rough one, of 600 small steps: its own errors move the best pose by a few tenths."""
    all_errors = []
    for i, index in enumerate(truth.test):
        found = scene.localize(truth.images[index], scene.camera("test", i), starts[index], QUICK)
        all_errors.append(errors(found.camera_to_world, truth.camera_to_worlds[index], size))
        assert found.converged and found.why == ""
        assert found.overlay.shape == (SIZE, SIZE, 3)
        assert found.explained > 0.9 and found.residual < 0.06
    degrees, per_cent = np.array(all_errors).T
    assert np.median(degrees) < 0.5 and np.median(per_cent) < 0.5, all_errors
    assert degrees.max() < 1 and per_cent.max() < 1, all_errors


@pytest.mark.parametrize("gain, offset", [(1.0, 0.0), (0.8, 0.05)])
def test_what_the_field_itself_shows_is_found_exactly(scene, truth, size, starts, gain, offset):
    """Exposure that differs from the training photos' changes nothing."""
    for i, index in enumerate(truth.test[:2]):
        camera = scene.camera("test", i)
        photo = scene.render(camera, ("rgb",))["rgb"] * gain + offset
        found = scene.localize(photo.clamp(0, 1), camera, starts[index], QUICK, overlay=False)
        degrees, per_cent = errors(found.camera_to_world, truth.camera_to_worlds[index], size)
        assert degrees < 0.05 and per_cent < 0.05, (degrees, per_cent)
        assert found.position_std < 0.002 * size * WORLD.scale and found.rotation_std_deg < 0.1
        assert torch.equal(found.covariance, found.covariance.T)
        assert (torch.linalg.eigvalsh(found.covariance) >= -1e-15).all()


def test_pixels_that_are_left_out_have_no_say(scene, truth, size, starts):
    """A third of the photo is painted over."""
    camera = scene.camera("test", 0)
    photo = scene.render(camera, ("rgb",))["rgb"]
    photo[:, : SIZE // 3] = torch.rand(SIZE, SIZE // 3, 3)
    keep = torch.ones(SIZE, SIZE, dtype=torch.bool)
    keep[:, : SIZE // 3] = False
    found = scene.localize(photo, camera, starts[truth.test[0]], QUICK, overlay=False, keep=keep)
    degrees, per_cent = errors(found.camera_to_world, truth.camera_to_worlds[truth.test[0]], size)
    assert found.converged and found.explained > 0.99 and degrees < 0.05 and per_cent < 0.05
    with pytest.raises(LocalizeError, match="leaves out every pixel"):
        scene.localize(photo, camera, "all", QUICK, keep=~keep & keep)
    with pytest.raises(LocalizeError, match="expected bool of the photo's"):
        scene.localize(photo, camera, "all", QUICK, keep=keep[1:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_captured_steps_find_what_others_find_on_cuda(scene, truth, size, starts):
    there = load(scene.path, "cuda")
    for i, index in enumerate(truth.test[:2]):
        photo = scene.render(scene.camera("test", i), ("rgb",))["rgb"]
        for graph in (True, False, True):
            config = replace(QUICK, graph=graph)
            found = there.localize(photo, there.camera("test", i), starts[index], config, overlay=False)
            degrees, per_cent = errors(found.camera_to_world, truth.camera_to_worlds[index], size)
            assert degrees < 0.05 and per_cent < 0.05, (graph, degrees, per_cent)


def test_without_a_start_every_training_view_is_one(scene, truth, size):
    wide = replace(QUICK, particles=96)
    found = scene.localize(truth.images[truth.test[0]], None, None, wide, overlay=False)
    degrees, per_cent = errors(found.camera_to_world, truth.camera_to_worlds[truth.test[0]], size)
    assert found.converged and degrees < 1 and per_cent < 1, (degrees, per_cent)


def test_a_pose_that_hardly_anything_was_compared_for_is_not_found(scene, truth, starts):
    """Nothing to compare is explained in full, with no error left."""
    camera = scene.camera("test", 0)
    photo = scene.render(camera, ("rgb",))["rgb"]
    keep = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    keep[40:44, 40:44] = True
    found = scene.localize(photo, camera, starts[truth.test[0]], QUICK, overlay=False, keep=keep)
    assert not found.converged and "cells of the photo could be compared" in found.why
    flat = torch.full((SIZE, SIZE, 3), 0.5)
    found = scene.localize(flat, camera, starts[truth.test[0]], QUICK, overlay=False)
    assert not found.converged and "explains 0%" in found.why


def test_a_photo_of_something_else_is_not_found(scene):
    noise = torch.randint(0, 255, (SIZE, SIZE, 3), dtype=torch.uint8)
    found = scene.localize(noise, None, "train:0", replace(QUICK, rounds=0), overlay=False)
    assert not found.converged and "explains" in found.why


def test_the_found_camera_renders_what_the_photo_shows(scene, truth, starts):
    index = truth.test[1]
    found = scene.localize(truth.images[index], scene.camera("test", 1), starts[index], QUICK, overlay=False)
    again = scene.render(found.camera, ("rgb",))["rgb"]
    assert (again - truth.images[index].float() / 255).square().mean() < 0.005
    rotation = found.camera_to_world[:, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_parameters_ask_for_gradients_again_afterwards(scene):
    wanted = [p.requires_grad for p in scene.model.parameters()]
    assert any(wanted)
    with frozen(scene.model):
        assert not any(p.requires_grad for p in scene.model.parameters())
    assert [p.requires_grad for p in scene.model.parameters()] == wanted


def aligner_at(scene, truth, side=24):
    camera = scene.camera("test", 0)
    view = make_view(truth.images[truth.test[0]].float() / 255, side, side)
    aligner = Aligner(scene.model, (side, side), 1, 1.5, 0.1, 1.0, torch.device("cpu"), False)
    aligner.load(camera, view, camera.camera_to_worlds)
    return aligner, camera, view


def test_the_jacobian_is_the_slope_of_the_rendering(scene, truth):
    """Against central differences of the blurred rendering, at the same samples: those carry no gradient."""
    aligner, camera, _ = aligner_at(scene, truth)
    model = scene.model

    def rays_at(xi):
        moved = compose(camera.camera_to_worlds, pose(xi[None]), "world")
        cameras = replace(aligner.cameras, camera_to_worlds=moved)
        return generate(aligner.pixels, cameras, None, model.config.rays, False)

    with frozen(model):
        _, jacobian = aligner.linearise()
        with torch.no_grad():
            samples, _ = model.sampler(rays_at(torch.zeros(6)), list(model.fields.proposals), update=False)

            def seen_at(xi):
                rays = rays_at(xi)
                field = model.fields(rays, samples, frozenset({"rgb"}), False)
                return aligner.blurred(model.renderer(rays, samples, field).rgb[None])

            for i in range(6):
                xi = 2e-4 * torch.eye(6)[i]
                slope, found = (seen_at(xi) - seen_at(-xi)) / 4e-4, jacobian[..., i]
                cosine = float((slope * found).sum() / slope.norm() / found.norm())
                assert cosine > 0.97, (i, cosine)
                assert 0.9 < float(found.norm() / slope.norm()) < 1.1


def test_steps_never_make_a_pose_worse(scene, truth):
    aligner, camera, view = aligner_at(scene, truth)
    start_at = perturb(camera.camera_to_worlds, 3.0, 0.03, seed=1)
    with frozen(scene.model):
        aligner.load(camera, view, start_at)
        costs = []
        for _ in range(8):
            aligner.step()
            costs.append(float(aligner.cost[0]))
    assert costs == sorted(costs, reverse=True) and costs[-1] < 0.5 * costs[0]


def test_gain_and_offset_are_projected_out():
    seen = torch.rand(2, 50, 3)
    fit = compare(seen, 0.9 * seen[0] + 0.05, torch.ones(50), 0.1)
    assert fit.cost[0] < 1e-4 < fit.cost[1] and fit.explained[0] > 0.98
    flat = torch.ones(2, 50, 3, 1)
    blind = torch.cat([flat, 2 * seen[..., None], torch.rand(2, 50, 3, 4)], -1)
    left = project(blind, fit)
    assert left[..., :2].abs().max() < 1e-4 < left[..., 2:].abs().max()


def test_small_systems_are_solved():
    a = torch.randn(5, 6, 9, dtype=torch.float64)
    matrix, right = a @ a.transpose(1, 2), torch.randn(5, 6, 2, dtype=torch.float64)
    assert torch.allclose(solve(matrix, right), torch.linalg.solve(matrix, right), rtol=1e-8, atol=1e-8)


def test_a_blur_keeps_constants_and_nothing_blurs_nothing():
    blur = blur_matrix(17, 2.0, torch.device("cpu"))
    assert torch.allclose(blur.sum(1), torch.ones(17)) and blur[8, 8] < 0.3
    assert torch.equal(blur_matrix(4, 0.0, torch.device("cpu")), torch.eye(4))


def test_cells_lie_where_the_photo_has_them():
    photo = torch.zeros(30, 60, 3)
    photo[:, 30:] = 1
    view = make_view(photo, 12, 12)
    assert (view.columns, view.rows) == (12, 6)
    assert view.xy[0].tolist() == [2.5, 2.5] and view.xy[-1].tolist() == [57.5, 27.5]
    assert view.target[:, :6].max() == 0 and view.target[:, 6:].min() == 1
    assert make_view(photo, 1000, 1000).columns == 60


@pytest.mark.parametrize(
    "image, camera, init, words",
    [
        (torch.zeros(8, 8), None, None, "expected \\[h, w, 3 or 4\\]"),
        (torch.full((SIZE, SIZE, 3), 2.0), None, None, "outside 0..1"),
        (torch.zeros(SIZE, SIZE, 3, dtype=torch.int32), None, None, "expected uint8"),
        ("photo", perspective(torch.eye(4), 50.0, SIZE, SIZE + 1), None, "but its camera is for"),
        ("photo", (50.0, 50.0, 400.0, 30.0), None, "lies outside the photo"),
        ("photo", (50.0, -50.0, 32.0, 32.0), None, "the first two positive"),
        ("photo", (50.0, 50.0, 32.0), None, "expected fx, fy, cx, cy"),
        (torch.zeros(SIZE, SIZE // 2, 3, dtype=torch.uint8), None, None, "not the same picture scaled"),
        ("photo", None, "somewhere", "expected all, train:K"),
        ("photo", None, "train:99", "the run has 36 train cameras"),
        ("photo", None, torch.full((3, 4), float("nan")), "not finite"),
        ("photo", None, torch.zeros(3, 4), "is not rigid"),
        ("photo", None, torch.eye(5), "camera-to-world pose"),
        ("photo", None, [["a"]], "expected numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_gets_one_sentence(scene, image, camera, init, words):
    photo = torch.zeros(SIZE, SIZE, 3, dtype=torch.uint8) if isinstance(image, str) else image
    with pytest.raises(LocalizeError, match=words) as told:
        scene.localize(photo, camera, init, replace(QUICK, rounds=0), overlay=False)
    assert "\n" not in str(told.value)


def test_settings_that_cannot_work_are_refused(scene):
    with pytest.raises(LocalizeError, match="at least one level"):
        Localizer(scene, replace(QUICK, levels=()))
    with pytest.raises(LocalizeError, match="expected at least 0, 1 and 1"):
        Localizer(scene, replace(QUICK, particles=0))


def test_the_size_of_a_scene_is_how_far_cameras_reach():
    poses = torch.eye(4)[:3].repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([-1.0, 0.0, 4.0])
    assert scene_size(poses) == pytest.approx(3.0)
    assert scene_size(poses[:1]) == 1.0
