"""Pose refinement: its gradient end to end, its schedule, its coordinates, and noise to measure it with."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from raymarch.config import override, preset
from raymarch.data.alignment import align, align_most, perturb, rotation_angle
from raymarch.data.perturb import PoseNoise, disturb, disturbed, scene_size
from raymarch.data.pixels import PixelSource
from raymarch.data.scene import Scene
from raymarch.data.synthetic import make_scene
from raymarch.model import Model
from raymarch.model.poses import FINEST, Poses, PosesConfig, compose, detail_at
from raymarch.model.preconditioner import coupling, focus, preconditioner, seen_points, whitening
from raymarch.model.trust import Trust
from raymarch.nn import HashGrid
from raymarch.ops.pose import pose
from raymarch.train.guard import guard
from raymarch.train.optim import GroupConfig, learning_rate
from raymarch.train.runs import start
from raymarch.types import Cameras, Pixels, Sight


def looking_inwards(count=6, seed=0, dtype=torch.float32):
    """Poses on a ring about the origin, looking near it."""
    angle = torch.arange(count).double() * 2.4 + seed
    eye = torch.stack([angle.cos(), angle.sin(), 0.4 + 0.05 * torch.arange(count)], -1)
    target = 0.05 * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)).double()
    back = torch.nn.functional.normalize(eye - target, dim=-1)
    up = torch.tensor([0.0, 0, 1]).to(back).expand_as(back)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, back), dim=-1)
    return torch.stack([right, torch.linalg.cross(back, right), back, eye], -1).to(dtype)


def cameras_at(poses, lens=0, size=64):
    count = len(poses)
    return Cameras(
        poses,
        torch.tensor([60.0, 60, size / 2, size / 2]).expand(count, 4).contiguous(),
        torch.zeros(count, 12),
        torch.full((count,), lens),
        torch.full((count, 2), size),
    )


# --- noise ------------------------------------------------------------------------------------------------


def test_noise_is_exactly_what_was_asked_for_and_the_same_again():
    poses = looking_inwards(9, dtype=torch.float64)
    moved, wild = disturb(poses, PoseNoise(3.0, 0.04, seed=5))
    turned = rotation_angle(moved[..., :3] @ poses[..., :3].transpose(-1, -2))
    assert_close(turned, torch.full_like(turned, math.radians(3)), atol=1e-9, rtol=0)
    assert_close((moved - poses)[..., 3].norm(dim=-1), torch.full((9,), 0.04 * scene_size(poses)).double())
    assert wild == () and torch.equal(moved, disturb(poses, PoseNoise(3.0, 0.04, seed=5))[0])
    assert not torch.equal(moved, disturb(poses, PoseNoise(3.0, 0.04, seed=6))[0])


def test_outliers_are_named_and_the_others_keep_their_noise():
    poses = looking_inwards(50, dtype=torch.float64)
    plain, _ = disturb(poses, PoseNoise(2.0, 0.02))
    moved, wild = disturb(poses, PoseNoise(2.0, 0.02, outliers=2))
    others = [i for i in range(50) if i not in wild]
    assert len(wild) == 2 and torch.equal(moved[others], plain[others])
    turned = rotation_angle(moved[list(wild), :, :3] @ poses[list(wild), :, :3].transpose(-1, -2))
    assert_close(turned, torch.full_like(turned, math.radians(40)), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "noise", [PoseNoise(-1), PoseNoise(part_of_scene=float("nan")), PoseNoise(outliers=7)]
)
def test_noise_that_makes_no_sense_is_refused(noise):
    with pytest.raises(ValueError, match=r"disturb: .* expected"):
        disturb(looking_inwards(6), noise)


def test_the_size_of_a_scene_does_not_depend_on_its_frame():
    poses = looking_inwards(7)
    shifted = poses.clone()
    shifted[..., 3] += 100
    assert scene_size(shifted) == pytest.approx(scene_size(poses), rel=1e-5)
    assert scene_size(poses[:1]) == 1.0


# --- the gradient -----------------------------------------------------------------------------------------


def small_model(compose="camera", mode="SO3xR3", extra=()):
    config = preset("tiny")
    words = [
        f"model.poses.compose={compose}", f"model.poses.mode={mode}", "model.poses.gauge=free",
        "model.sampler.samples=12,10", "model.sampler.jitter=none",
        "model.fields.radiance.grid.levels=2", "model.fields.radiance.grid.base_resolution=4",
        "model.fields.radiance.grid.max_resolution=8", "model.fields.radiance.grid.log2_size=12",
        "model.fields.radiance.grid.interpolation=smoothstep", "model.losses.gradient_scaling=false",
        "model.fields.radiance.average_init_density=1.0", *extra,
    ]  # fmt: skip
    for word in words:
        config = override(config, word)
    torch.manual_seed(0)
    model = Model(config.model, 2)
    for grid in (m for m in model.modules() if isinstance(m, HashGrid)):
        with torch.no_grad():
            grid.table.uniform_(-0.7, 0.7)
    return model.double()


@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
@pytest.mark.parametrize("how", ["camera", "world"])
@pytest.mark.parametrize("precondition", [False, True])
def test_the_gradient_of_poses_is_that_of_the_rendered_image(how, mode, precondition):
    """Rays, contraction, grid, network, harmonics, weights and compositing, against central differences."""
    model = small_model(how, mode, [f"model.poses.precondition={precondition}"])
    cameras = cameras_at(looking_inwards(2), size=8)
    model.poses.precondition(cameras)
    doubled = replace(
        cameras,
        camera_to_worlds=cameras.camera_to_worlds.double(),
        intrinsics=cameras.intrinsics.double() / 8,
        distortion=cameras.distortion.double(),
    )
    xy = torch.rand(24, 2, generator=torch.Generator().manual_seed(2)).double() * 8
    pixels = Pixels(torch.arange(24) % 2, xy)
    weights = torch.linspace(-1, 1, 72).double().view(24, 3)
    assert model.poses.adjustment is not None
    with torch.no_grad():
        model.poses.adjustment.copy_(0.05 * torch.randn(2, 6, generator=torch.Generator().manual_seed(3)))

    edges = []  # resampled edges carry no gradient: hold them where they are

    def image():
        rays = model_rays(model, pixels, doubled)
        if not edges:
            with torch.no_grad():
                edges.append(model.sampler(rays, list(model.fields.proposals), train=True))
        samples, proposals = edges[0]
        field = model.fields(rays, samples, frozenset({"rgb"}), True)
        return model.renderer(rays, samples, field, proposals, True, False).rgb

    (image() * weights).sum().backward()
    got, want = model.poses.adjustment.grad.clone(), torch.zeros(2, 6).double()
    step = 1e-6
    with torch.no_grad():
        for i in range(12):
            for sign in (1, -1):
                model.poses.adjustment.view(-1)[i] += sign * step
                want.view(-1)[i] += sign * (image() * weights).sum() / (2 * step)
                model.poses.adjustment.view(-1)[i] -= sign * step
    assert want.norm() > 0.01
    assert_close(got, want, rtol=1e-5, atol=1e-6 * float(want.abs().max()))


def model_rays(model, pixels, cameras):
    from raymarch.model.rays import generate

    return generate(pixels, cameras, model.poses(), model.config.rays, True, model.config.poses.compose)


def grid_and_points():
    grid = HashGrid(3, 4, 16, 10, 2)
    with torch.no_grad():
        grid.table.uniform_(-1, 1)
    return grid, torch.rand(40, 3, generator=torch.Generator().manual_seed(0))


def slopes(grid, x, sight, upstream):
    x, grid.table.grad = x.clone().requires_grad_(), None
    y = grid(x, sight)
    (y * upstream).sum().backward()
    return y.detach(), x.grad, grid.table.grad


def test_coarse_levels_lead_positions_while_the_map_sees_everything():
    grid, x = grid_and_points()  # resolutions 4, 8, 16
    upstream = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    plain = slopes(grid, x, None, upstream)
    coarse = slopes(grid, x, Sight(torch.tensor([2.0])), upstream)
    masked = slopes(grid, x, None, upstream * torch.tensor([1.0, 1, 0, 0, 0, 0]))
    assert_close(coarse[0], plain[0]) and assert_close(coarse[2], plain[2])
    assert_close(coarse[1], masked[1])
    assert (coarse[1] - plain[1]).norm() > 0.1 * plain[1].norm()
    everything = slopes(grid, x, Sight(torch.tensor([FINEST])), upstream)
    for got, want in zip(everything, plain, strict=True):
        assert_close(got, want)


def test_a_blurred_map_hides_fine_levels_from_lookups_and_table():
    grid, x = grid_and_points()
    upstream = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    y, slope, table = slopes(grid, x, Sight(torch.tensor([2.0]), blurs_map=True), upstream)
    masked = slopes(grid, x, None, upstream * torch.tensor([1.0, 1, 0, 0, 0, 0]))
    assert (y[:, 2:] == 0).all() and (y[:, :2] != 0).any()
    assert_close(slope, masked[1]) and assert_close(table, masked[2])


def test_a_smooth_slope_leaves_the_lookup_linear():
    grid, x = grid_and_points()
    upstream = torch.ones(40, 6)
    y, slope, table = slopes(grid, x, Sight(torch.tensor([FINEST]), smooth=True), upstream)
    plain = slopes(grid, x, None, upstream)
    grid.interpolation = "smoothstep"
    smooth = slopes(grid, x, None, upstream)
    assert_close(y, plain[0]) and assert_close(table, plain[2])
    assert_close(slope, smooth[1])


def test_proposals_and_directions_can_be_kept_from_moving_poses():
    for word in ("through_proposals", "through_directions"):
        found = []
        for value in ("true", "false"):
            model = small_model(extra=[f"model.poses.{word}={value}"])
            cameras = cameras_at(looking_inwards(2), size=8)
            model.float()
            pixels = Pixels(
                torch.arange(24) % 2, torch.rand(24, 2, generator=torch.Generator().manual_seed(2))
            )
            rendering = model(pixels, cameras, train=True, counter=torch.zeros(2, dtype=torch.int64),
                              anneal=torch.ones(1))  # fmt: skip
            total = rendering.rgb.sum() + sum(p.weights[:, 3].sum() for p in rendering.proposals)
            total.backward()
            found.append(model.poses.adjustment.grad.clone())
        assert (found[0] - found[1]).norm() > 1e-4 * found[0].norm(), word
        assert found[1].norm() > 0, word


# --- the schedule -----------------------------------------------------------------------------------------


def test_detail_grows_from_the_coarse_resolution_to_everything():
    config = PosesConfig(coarse_resolution=16, coarse_hold=100, coarse_until=300, finest_resolution=256)
    assert detail_at(0, config) == detail_at(100, config) == 4
    assert detail_at(200, config) == pytest.approx((4 + 9) / 2)
    assert detail_at(300, config) == FINEST
    steps = [detail_at(s, config) for s in range(301)]
    assert steps == sorted(steps)
    assert detail_at(0, PosesConfig()) == FINEST


def test_a_delayed_group_waits_then_warms_up_then_decays():
    config = GroupConfig(lr=1e-2, lr_final=1e-4, decay_steps=1000, delay=100, warmup=100)
    rate = learning_rate(config, torch.tensor([0, 99, 150, 200, 600, 1000, 2000]))
    assert rate[:2].tolist() == [0, 0]
    assert float(rate[2]) == pytest.approx(1e-2 * math.sin(math.pi / 4), rel=1e-4)
    assert rate[3:].tolist() == pytest.approx([1e-2, 1e-3, 1e-4, 1e-4], rel=1e-6)


# --- the coordinates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
@pytest.mark.parametrize("how", ["camera", "world"])
def test_the_coupling_is_that_of_directions_to_points(how, mode):
    poses = looking_inwards(4)
    points = seen_points(cameras_at(poses), 2.0).double()
    poses = poses.double()
    found = coupling(points, poses, how)

    def directions(xi):
        moved = compose(poses, pose(xi, mode), how)
        seen = (points + poses[:, None, :, 3] - moved[:, None, :, 3]) @ moved[:, :, :3]
        return seen / seen.norm(dim=-1, keepdim=True)

    step = 1e-5 * torch.eye(6).double()[:, None].expand(6, 4, 6)
    J = torch.stack([(directions(e) - directions(-e)) / 2e-5 for e in step], -1)
    assert_close(found, (J.transpose(-1, -2) @ J).mean(1), rtol=1e-5, atol=1e-5)


def test_whitened_coordinates_all_move_the_picture_equally():
    sigma = coupling(
        seen_points(cameras_at(looking_inwards(4)), 2.0).double(), looking_inwards(4).double(), "camera"
    )
    P = whitening(sigma, 0.0)
    assert_close(P @ sigma @ P, torch.eye(6).double().expand(4, 6, 6), atol=1e-8, rtol=0)
    spread = torch.linalg.cond(sigma)
    damped = whitening(sigma, 0.3)
    assert (torch.linalg.cond(damped @ sigma @ damped) < spread).all()
    assert (torch.linalg.cond(damped) < torch.linalg.cond(P)).all()


@pytest.mark.parametrize("lens", [0, 1, 2])
def test_every_lens_has_a_preconditioner(lens):
    found = preconditioner(cameras_at(looking_inwards(3), lens), "camera", 0.1, 2.0)
    assert found.isfinite().all() and (torch.linalg.eigvalsh(found) > 0).all()


def test_parallel_axes_and_a_single_camera_have_a_focus():
    poses = torch.eye(3, 4).expand(3, 3, 4).clone()
    poses[:, 0, 3] = torch.arange(3.0)
    assert focus(poses).isfinite().all()
    assert preconditioner(cameras_at(poses[:1]), "world", 0.1, 2.0).isfinite().all()


def test_six_numbers_are_those_before_the_coordinates_changed():
    model = Poses(PosesConfig(precondition=True, compose="camera"), 3)
    start = looking_inwards(3)
    model.precondition(cameras_at(start))
    with torch.no_grad():
        model.adjustment.normal_(0, 0.01)
        xi = torch.einsum("cij,cj->ci", model.whitening, model.adjustment)
    assert_close(model.six_numbers(), xi)
    assert_close(model.optimized_camera_to_worlds(start), compose(start, pose(xi), "camera"))
    again = Poses(model.config, 3)
    again.load_state_dict(model.state_dict())
    assert_close(again(), model())


# --- what refinement cannot use, cameras that are wrong, and refinement that does not help -----------------


@pytest.fixture(scope="module")
def truth():
    return make_scene(views=6, test_views=2, size=24, seed=0)


def scene_of(truth, poses=None, masks=None, split=None):
    return Scene.from_arrays(
        truth.images, truth.intrinsics, truth.camera_to_worlds if poses is None else poses, masks=masks,
        split=split or (truth.train, truth.test), orientation="none", center="none", scale=1.0,
    )  # fmt: skip


def training(scene, *words, steps=20):
    config = preset("tiny")
    for word in (
        f"train.trainer.steps={steps}",
        "train.trainer.rays=64",
        "train.trainer.log_every=5",
        *words,
    ):
        config = override(config, word)
    return start(scene, config, device="cpu")


def test_one_photo_cannot_be_refined(truth):
    scene = scene_of(truth, split=((2,), (0, 1)))
    with pytest.raises(ValueError, match=r"only training photo \(image 2\).*at least 2 photos.*mode=off"):
        training(scene)
    training(scene, "model.poses.mode=off")


def test_a_camera_that_sees_nothing_is_named_unless_it_is_frozen(truth):
    masks = [None] * 8
    masks[3] = torch.zeros(24, 24).numpy()
    with pytest.raises(ValueError, match=r"camera 3 \(image 3\) sees nothing: its mask"):
        training(scene_of(truth, masks=masks))
    training(scene_of(truth, masks=masks), "model.poses.frozen=(3,)", "model.poses.gauge=free")
    away = truth.camera_to_worlds.clone()
    away[1, :, 3] += 50
    box = "model.rays.box=(-1.5,-1.5,-1.5,1.5,1.5,1.5)"
    with pytest.raises(ValueError, match=r"camera 1 \(image 1\) sees nothing: none of its rays"):
        training(scene_of(truth, away), box)
    training(scene_of(truth), box)


def test_one_wild_camera_has_no_say_in_an_alignment(truth):
    """By least squares it had turned forty-nine that never moved by half a degree."""
    given = perturb(truth.camera_to_worlds[:1].expand(50, 3, 4), 20.0, 0.5, seed=1).double()
    off = given.clone()
    off[:1] = perturb(given[:1], 40.0, 0.4)
    plain, found = align(off, given), align_most(off, given)
    assert float(plain.rotation_error_deg[1:].max()) > 0.2
    assert (
        float(found.rotation_error_deg[1:].max()) < 1e-5 and float(found.translation_error[1:].max()) < 1e-9
    )
    assert float(found.rotation_error_deg[0]) == pytest.approx(40, abs=1e-4)
    assert float(found.translation_error[0]) == pytest.approx(0.4, abs=1e-6)
    noisy = perturb(given, 1.0, 0.01, seed=2)  # where nobody stands out it is the same fit
    for a, b in zip(align(noisy, given), align_most(noisy, given), strict=True):
        assert a == b if isinstance(a, float) else torch.equal(a, b)
    two = align_most(off[:2], given[:2])
    assert torch.equal(two.aligned, align(off[:2], given[:2]).aligned)


def test_a_singular_start_is_refused(truth):
    scene = scene_of(truth)
    poses = scene.cameras.camera_to_worlds.clone()
    poses[4, :, 0] = poses[4, :, 1]
    broken = replace(scene, cameras=replace(scene.cameras, camera_to_worlds=poses))
    with pytest.raises(
        ValueError, match=r"camera 4 \(image 4\) starts from a pose that is not rigid .*angles by 1"
    ):
        training(broken)
    poses[4, :, 0] = torch.linalg.cross(poses[4, :, 2], poses[4, :, 1])
    with pytest.raises(ValueError, match="determinant -1, expected 1"):
        training(replace(scene, cameras=replace(scene.cameras, camera_to_worlds=poses)))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.poses.frozen=(0,1,2,3,4,5)"], "all 6 cameras are frozen"),
        (["model.poses.frozen=(1,)", "model.poses.trainable=(1,2)"], "camera 1 is named by both"),
        (["model.poses.frozen=(6,)"], "names camera 6, expected 0 to 5"),
        (["model.poses.outlier_factor=0.5"], "outlier_factor: expected 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(truth, words, sentence):
    with pytest.raises(ValueError, match=sentence):
        training(scene_of(truth), *words)


def test_trust_falls_for_the_camera_that_fits_worse():
    trust = Trust(5, 3.0)
    assert_close(trust.weights(), torch.ones(5))
    camera = torch.arange(5).repeat(8)
    error = torch.tensor([1.0, 1.1, 0.9, 12.0, 1.0]).repeat(8) * 0.01
    for _ in range(50):
        trust.observe(camera[:32], error[:32])
    assert_close(trust.weights(), torch.tensor([1.0, 1, 1, (3 / 12) ** 4, 1]), rtol=1e-4, atol=1e-6)
    assert [i for i, _ in trust.suspects()] == [3]
    assert trust.suspects()[0][1] == pytest.approx(12, rel=1e-4)


def test_a_camera_must_stand_out_from_errors_that_differ_anyway():
    trust, errors = Trust(7, 1.5), torch.tensor([0.5, 0.8, 1.0, 1.3, 2.0, 2.5, 60.0])
    for _ in range(50):
        trust.observe(torch.arange(7), errors)
    away = sorted(abs(math.log(e / 1.3)) for e in errors.tolist())
    limit = math.exp(4 * 1.4826 * away[3])
    assert limit > 1.5 and 2.5 / 1.3 < limit < 60 / 1.3
    assert [i for i, _ in trust.suspects()] == [6]
    want = torch.ones(7)
    want[6] = (limit * 1.3 / 60) ** 4
    assert_close(trust.weights(), want, rtol=1e-4, atol=1e-6)


def test_a_camera_that_was_not_drawn_keeps_what_is_known_of_it():
    trust = Trust(3, 3.0)
    trust.observe(torch.tensor([0, 0, 1]), torch.tensor([1.0, 3.0, 2.0]))
    assert_close(trust.ratio(), torch.tensor([1.0, 1.0, 1.0]))
    trust.observe(torch.tensor([0]), torch.tensor([2.0]))
    assert_close(trust.error[2], torch.tensor(0.0)) and assert_close(
        trust.error[1] / trust.seen[1], torch.tensor(2.0)
    )


def test_refinement_that_harms_is_rolled_back_and_says_so(truth):
    trainer = training(
        scene_of(truth), "train.optim.poses.lr=0.2", "train.optim.poses.lr_final=0.2",
        "train.trainer.guard_at=20", "train.trainer.guard_steps=40", steps=80,
    )  # fmt: skip
    trainer.train()
    assert trainer.step == 80 and float(trainer.brake) == 0
    assert_close(trainer.model.poses.adjustment, torch.zeros(6, 6), atol=0, rtol=0)
    assert len(trainer.notes) == 1 and "rolled back, and poses stay as given" in trainer.notes[0]


def test_refinement_that_helps_is_kept_and_says_so(truth):
    noisy, _ = disturbed(scene_of(truth), PoseNoise(0.0, 0.0))
    trainer = training(noisy, "train.trainer.guard_at=10", "train.trainer.guard_steps=10", steps=30)
    verdicts = iter([30.0, 20.0])  # what each continuation scores
    trainer.judge = lambda: guard(trainer, PixelSource(noisy, noisy.test), 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raymarch.train.guard.score", lambda *_: next(verdicts))
        trainer.train()
    plain = training(noisy, steps=30)
    plain.train()
    assert float(trainer.brake) == 1 and "refinement kept" in trainer.notes[0]
    for name, tensor in plain.state().items():  # as if nobody had asked
        assert torch.equal(tensor, trainer.state()[name]), name


def test_a_guard_needs_held_out_photos(truth):
    with pytest.raises(ValueError, match="guard_at compares poses on held-out photos"):
        training(scene_of(truth, split=(tuple(range(8)), ())), "train.trainer.guard_at=10")
