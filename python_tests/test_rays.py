"""Rays: lens models, distortion and pose gradients."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bench.cases.rays import inputs
from bench.running import backend
from raymarch.ops.pose import pose
from raymarch.ops.rays import rays
from raymarch.types import LENSES

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
FIRST = [500.0, 400, 320, 240]  # fx fy cx cy of the fixture camera, 640 x 480
PIXEL = [50.5, 100.5]
BENT = [0.1, -0.05, 0, 0, 0.01, -0.02]


def close(got, want, rtol=1e-5, atol=1e-6):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert_close(got.detach().cpu().double(), want, rtol=rtol, atol=atol)


def shoot(device, lens, intrinsics, pixel, distortion=(), at=(0, 0, 0), double=False, **options):
    """One ray of one camera that looks along -z: origin, direction, area, norm, converged."""
    poses = torch.eye(3, 4)
    poses[:, 3] = torch.tensor(at)
    kind = torch.float64 if double else torch.float32
    padded = torch.zeros(1, 12, dtype=kind)
    padded[0, : len(distortion)] = torch.tensor(distortion)
    tensors = (
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([pixel], dtype=kind),
        poses[None].to(kind),
        torch.tensor([intrinsics], dtype=kind),
        padded,
        torch.tensor([LENSES.index(lens)]),
    )
    return [x[0] for x in rays(*(t.to(device) for t in tensors), **options)]


def golden(name):
    if not (GOLDEN / name).exists():
        pytest.skip("../shared/golden is absent")
    return np.load(GOLDEN / name)


# --- lenses ---------------------------------------------------------------------------------------------


def test_perspective(device):  # O1
    o, d, area, norm, converged = shoot(device, "perspective", FIRST, PIXEL)
    close(o, [0, 0, 0])
    close(d, [-0.453575, 0.293477, -0.841511])
    close(norm, 1.188338)
    close(area, 3.020697e-6, rtol=2e-4, atol=0)
    assert converged


def test_opencv_distortion_and_the_old_sign(device):  # O2
    _, d, area, norm, _ = shoot(device, "perspective", FIRST, PIXEL, BENT)
    close(d, [-0.434482, 0.288123, -0.853353])
    close(norm, 1.171849)
    close(area, 2.716745e-6, rtol=2e-4, atol=0)
    _, d, area, norm, _ = shoot(device, "perspective", FIRST, PIXEL, BENT, tangential="nerfstudio_0.3")
    close(d, [-0.431695, 0.280180, -0.857402])
    close(norm, 1.166313)
    close(area, 2.649301e-6, rtol=2e-4, atol=0)


def test_a_delta_of_minus_the_distortion_turns_it_off(device):  # O2
    delta = torch.zeros(1, 12, device=device)
    delta[0, : len(BENT)] = -torch.tensor(BENT)
    straight = shoot(device, "perspective", FIRST, PIXEL)
    for got, want in zip(
        shoot(device, "perspective", FIRST, PIXEL, BENT, distortion_delta=delta), straight, strict=True
    ):
        assert_close(got, want)


def test_undistortion_finds_the_point(device):  # O3: seen at (.3, -.2) on the image plane
    distortion = [0.1, -0.05, 0.01, 0.002, 0.01, -0.02]
    _, d, *_ = shoot(device, "perspective", [1.0, 1, 0, 0], [0.3, -0.2], distortion)
    close(d[:2] / -d[2], [0.303800, 0.202088], rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize("seen", [(0.5, 0.5), (1.0, 1.0), (-1.0, 1.0)])
def test_where_the_lens_has_folded_the_flag_says_so(device, seen):  # O3: k1 = -1 reaches 0.385 and no more
    _, d, _, _, converged = shoot(device, "perspective", [1.0, 1, 0, 0], list(seen), [-1.0])
    assert not converged
    close(d[:2] / -d[2], [seen[0], -seen[1]])


@pytest.mark.parametrize("k1", [-0.3, -0.2, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("k2", [-0.05, 0.0, 0.1])
def test_undistortion_undoes_strong_distortion(device, k1, k2):
    x = torch.linspace(-0.65, 0.65, 41, dtype=torch.float64)
    p = torch.cartesian_prod(x, x)
    r = p.square().sum(-1)
    seen = p * (1 + k1 * r + k2 * r * r)[:, None]
    n = len(p)
    tensors = (
        torch.zeros(n, dtype=torch.int64),
        seen.float(),
        torch.eye(3, 4)[None],
        torch.tensor([[1.0, 1, 0, 0]]),
        torch.tensor([[k1, k2, *[0.0] * 10]]),
        torch.zeros(1, dtype=torch.int64),
    )
    _, d, _, _, converged = rays(*(t.to(device) for t in tensors))
    slope = 1 + 3 * k1 * r + 5 * k2 * r * r
    inside = slope > 0.05  # before the fold, where the inverse is well conditioned
    assert converged.cpu()[inside].all()
    want = p * torch.tensor([1.0, -1.0])
    assert_close((d[:, :2] / -d[:, 2:]).cpu().double()[inside], want[inside], atol=2e-5, rtol=2e-5)


def test_fisheye(device):  # O4
    _, d, area, _, _ = shoot(device, "fisheye", FIRST, PIXEL)
    close(d, [-0.502731, 0.325283, -0.800907])
    close(area, 4.672878e-6, rtol=2e-4, atol=0)
    _, d, area, _, _ = shoot(device, "fisheye", FIRST, PIXEL, [0.05, -0.01, 0.002, -0.0005])
    close(d, [-0.494896, 0.320214, -0.807800])
    close(area, 4.365284e-6, rtol=2e-4, atol=0)


@pytest.mark.parametrize("lens", ["fisheye", "fisheye624"])
def test_the_centre_of_a_fisheye_looks_ahead(device, lens):  # O5
    _, d, area, norm, converged = shoot(device, lens, FIRST, [320.0, 240.0], [0.05, 0.01])
    close(d, [0, 0, -1])
    close(norm, 1)
    close(area, 1 / (500 * 400), rtol=1e-3, atol=0)
    assert converged


@pytest.mark.parametrize(
    ("pixel", "want"),
    [
        ([512.0, 256], [0, 0, -1]),
        ([0.5, 0.5], [-0.000009, 0.999995, 0.003068]),
        ([768.5, 128.5], [0.709270, 0.704934, 0.002176]),
    ],
)
def test_equirectangular(device, pixel, want):  # O6
    _, d, area, _, _ = shoot(device, "equirectangular", [512.0, 512, 512, 256], pixel)
    close(d, want, atol=2e-6)
    if pixel[0] == 768.5:
        close(area, 2.670396e-5, rtol=2e-4, atol=0)


def test_stereo_panoramas(device):  # O7
    ods, vr = [4.0, 4, 4, 2], [4.0, 8, 4, 4]
    for lens, camera, origin, direction in (
        ("ods_left", ods, [0.987754, 2, 3.029564], [-0.853553, 0.382683, -0.353553]),
        ("ods_right", ods, [1.012246, 2, 2.970436], [-0.853553, 0.382683, -0.353553]),
        ("vr180_left", vr, [0.968, 2, 3], [-0.308658, 0.831470, -0.461940]),
        ("vr180_right", vr, [1.032, 2, 3], [-0.308658, 0.831470, -0.461940]),
    ):
        o, d, area, _, _ = shoot(device, lens, camera, [2.5, 1.5], at=(1.0, 2, 3))
        close(o, origin)
        close(d, direction)
        assert area > 0


def test_eye_distance_is_a_setting(device):
    o, *_ = shoot(device, "vr180_left", [4.0, 8, 4, 4], [2.5, 1.5], eye_distance=2.0)
    close(o, [-1, 0, 0])


def test_orthophoto(device):  # O8
    o, d, area, _, _ = shoot(device, "orthophoto", [100.0, 100, 32, 24], [20.5, 10.5], at=(1.0, 2, 3))
    close(o, [0.885, 2.135, 3])
    close(d, [0, 0, -1])
    assert area == 0


K624 = [0.05, -0.01, 0.002, -0.0005, 0.0001, -0.00002, 0.001, -0.002, 0.0003, -0.0001, 0.0002, -0.00005]


def test_fisheye624(device):  # O9
    camera = [500.0, 500, 320, 240]
    _, d, _, norm, converged = shoot(device, "fisheye624", camera, PIXEL, K624)
    close(d, [-0.499648, 0.257787, -0.826981])
    close(norm, 1.209217)
    assert converged
    _, d, *_ = shoot(device, "fisheye624", camera, [465.0798, 143.2227], K624)
    close(d[:2] / -d[2], [0.3, 0.2], atol=1e-6)


@pytest.mark.parametrize("degrees", [0.01, 45, 89, 91, 120, 170])
def test_fisheye624_sees_behind_itself(device, degrees):
    theta = math.radians(degrees)
    radius = theta * (1 + sum(k * theta ** (2 + 2 * i) for i, k in enumerate([0.02, -0.002, 1e-4, 0, 0, 0])))
    _, d, _, norm, converged = shoot(
        device, "fisheye624", [1.0, 1, 0, 0], [radius, 0.0], [0.02, -0.002, 1e-4]
    )
    close(d, [math.sin(theta), 0, -math.cos(theta)], atol=2e-6)
    assert converged and norm >= 1 - 1e-6  # sin^2 + cos^2 there, each rounded


def test_fisheye624_ends_straight_behind(device):
    """Nothing lies beyond half a turn: the ray stays there and says so."""
    _, d, *_, converged = shoot(device, "fisheye624", [1.0, 1, 0, 0], [3.3, 0.0])
    close(d, [0.0, 0.0, 1.0], atol=1e-6)
    assert not converged


@pytest.mark.parametrize("pixel", [(0.7695, 0.0), (0.0, 0.7695)])
def test_pixels_on_an_axis_next_to_the_fold_are_found(device, pixel):
    """k1 = -0.25 folds at 1.1547, where 0.7698 is seen: Newton's first steps go beyond and are halved."""
    double = device.type == "cpu"
    _, d, *_, converged = shoot(device, "perspective", [1.0, 1, 0, 0], pixel, [-0.25], double=double)
    x, y = float(-d[0] / d[2]), float(d[1] / d[2])
    assert converged and min(abs(x), abs(y)) == 0
    assert abs((x + y) * (1 - 0.25 * (x + y) ** 2) - 0.7695) < (1e-12 if double else 1e-6)


def test_doubles_on_a_gpu_are_refused(device):
    if device.type == "cpu":
        pytest.skip("the CPU takes doubles")
    with pytest.raises(RuntimeError, match="rays_forward: float64 is computed on the CPU alone"):
        shoot(device, "perspective", [1.0, 1, 0, 0], PIXEL, double=True)


def test_cameras_of_one_batch_keep_their_own_numbers(device):
    """Every ray of a mixed batch equals the ray that its camera alone would cast."""
    camera, xy, poses, intrinsics, distortion, lens, adjustment, how = (
        x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs(200, "camera")
    )
    together = rays(camera, xy, poses, intrinsics, distortion, lens, adjustment, how)
    for c in range(len(lens)):
        own = camera == c
        only = slice(c, c + 1)
        first = torch.zeros(int(own.sum()), dtype=torch.int64, device=device)
        tables = (x[only] for x in (poses, intrinsics, distortion, lens, adjustment))
        for got, want in zip(together, rays(first, xy[own], *tables, how), strict=True):
            assert_close(got[own], want, atol=0, rtol=1e-6)


def test_directions_are_unit_and_everything_is_finite(device):
    args = [x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs(5000, "world")]
    o, d, area, norm, converged = rays(*args)
    assert all(x.isfinite().all() for x in (o, d, area, norm)) and converged.all()
    assert_close(d.norm(dim=-1), torch.ones(5000, device=device), atol=2e-6, rtol=0)


# --- golden ---------------------------------------------------------------------------------------------


def golden_rays(device, lens, K, distortion, uv, pose34):
    padded = torch.zeros(1, 12)
    padded[0, : len(distortion)] = torch.tensor(distortion)
    tensors = (
        torch.zeros(len(uv), dtype=torch.int64),
        torch.from_numpy(uv).float(),
        torch.as_tensor(pose34).float()[None],
        torch.tensor([K], dtype=torch.float32),
        padded,
        torch.tensor([LENSES.index(lens)]),
    )
    return rays(*(t.to(device) for t in tensors))


def matrix_numbers(K):
    return [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]


def test_golden_perspective(device):
    g = golden("cameras.npz")
    k1, k2, p1, p2 = g["persp_k1k2p1p2"]
    K = matrix_numbers(g["persp_K"])
    o, d, area, _, converged = golden_rays(
        device, "perspective", K, [k1, k2, 0, 0, p1, p2], g["persp_uv"], g["c2w_opengl"]
    )
    close(d, g["persp_dir_opencv"], rtol=0, atol=2e-6)
    close(area[:, None], g["persp_pixel_area_nerfstudio"].astype(float), rtol=3e-3, atol=0)
    assert converged.all()
    close(o, np.broadcast_to(g["c2w_opengl"][:, 3], (len(d), 3)).copy())


def test_golden_fisheye(device):
    g = golden("cameras.npz")
    K = matrix_numbers(g["fish_K"])
    _, d, *_ = golden_rays(device, "fisheye", K, list(g["fish_k1234"]), g["fish_uv"], g["c2w_opengl"])
    close(d, g["fish_dir_true"], rtol=0, atol=2e-6)


def test_golden_equirectangular(device):
    g = golden("cameras.npz")
    w, h = (float(x) for x in g["equi_wh"])
    K = [w / 2, h, w / 2, h / 2]
    _, d, *_ = golden_rays(device, "equirectangular", K, [], g["equi_uv"], g["c2w_opengl"])
    close(d, g["equi_dir_nerfstudio_f32"].astype(float), rtol=0, atol=3e-6)


# --- poses ----------------------------------------------------------------------------------------------


def test_camera_adjustment_is_applied_on_the_right(device):  # O10
    poses = torch.tensor([[[0.0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3]]], device=device)
    turn = torch.tensor([[[0.0, -1, 0, 0.1], [1, 0, 0, 0.2], [0, 0, 1, 0.3]]], device=device)
    tables = (torch.tensor([FIRST]), torch.zeros(1, 12), torch.zeros(1, dtype=torch.int64))
    first, xy = torch.zeros(1, dtype=torch.int64, device=device), torch.tensor([PIXEL], device=device)
    o, d, *_ = rays(first, xy, poses, *(t.to(device) for t in tables), turn)
    close(o[0], [1.3, 2.2, 2.9])
    close(d[0], [-0.841511, -0.453575, 0.293477])


def test_world_adjustment_is_applied_on_the_left(device):  # O20
    xi = torch.tensor([[0.1, -0.2, 0.3, 0.4, 0.5, -0.6]], device=device)
    tables = (torch.tensor([[1.0, 1, 0, 0]]), torch.zeros(1, 12), torch.zeros(1, dtype=torch.int64))
    start = torch.eye(3, 4, device=device)[None].clone()
    start[0, :, 3] = torch.tensor([1.0, 2, 3])
    first, xy = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(1, 2, device=device)
    o, d, *_ = rays(first, xy, start, *(t.to(device) for t in tables), pose(xi), "world")
    close(o[0], [1.1, 1.8, 3.3])
    close(d[0], [-0.325764, 0.491226, -0.807821])


def adjustment_gradient(device, count=4099, one_camera=False, **options):
    camera, xy, poses, intrinsics, distortion, lens, adjustment, how = (
        x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs(count, "camera")
    )
    if one_camera:
        camera = torch.full_like(camera, 4)
    adjustment.requires_grad_()
    o, d, *_ = rays(camera, xy, poses, intrinsics, distortion, lens, adjustment, how)
    weights = torch.sin(torch.arange(2 * 3 * count, device=device, dtype=torch.float32)).view(2, count, 3)
    ((o * weights[0]).sum() + (d * weights[1]).sum()).backward()
    return adjustment.grad


@pytest.mark.parametrize("one_camera", [False, True])
def test_the_camera_sum_is_the_same_with_and_without_atomics(device, one_camera):
    torch.manual_seed(3)
    same = adjustment_gradient(device, one_camera=one_camera)
    torch.manual_seed(3)
    again = adjustment_gradient(device, one_camera=one_camera)
    assert torch.equal(same, again)
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(3)
    atomics = adjustment_gradient(device, one_camera=one_camera)
    assert_close(atomics, same, rtol=1e-4, atol=1e-4)


def test_only_the_gradient_asked_for_is_computed(device):
    args = [x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs(50, "camera")]
    args[2] = args[2].clone().requires_grad_()
    _, d, area, norm, converged = rays(*args)
    assert not (area.requires_grad or norm.requires_grad or converged.requires_grad)
    d[:, 0].sum().backward()
    assert args[2].grad.shape == (18, 3, 4) and args[6].grad is None
    assert (args[2].grad[..., 3] == 0).all()  # directions say nothing about the centre


def test_gradients_to_panoramas_and_pixels_are_refused(device):
    """The CPU refuses a lens that has no such gradient; CUDA, which cannot look, marks its camera."""
    args = [x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs(50, "camera")]
    args[3] = args[3].clone().requires_grad_()
    total = rays(*args)[1].sum()
    if backend(device) == "cpu":
        with pytest.raises(ValueError, match="perspective and fisheye lenses, not panoramas"):
            total.backward()
    else:
        total.backward()
        refined, seen = args[5] < 2, torch.zeros_like(args[5], dtype=torch.bool)
        seen[args[0]] = True
        assert args[3].grad[refined].isfinite().all() and args[3].grad[seen & ~refined].isnan().all()
    args[1], args[3] = args[1].clone().requires_grad_(), args[3].detach()
    with pytest.raises(RuntimeError, match="reach cameras, not pixels"):
        rays(*args)[1].sum().backward()


def test_a_ray_that_ignores_its_distortion_says_nothing_of_the_lens(device):
    """k1 = -1 folds at a radius of 0.385: of two rays the one beyond has no gradient."""

    def gradients(pixels):
        tensors = (
            torch.zeros(len(pixels), dtype=torch.int64),
            torch.tensor(pixels),
            torch.eye(3, 4)[None],
            torch.tensor([[1.0, 1, 0, 0]]),
            torch.tensor([[-1.0, *[0.0] * 11]]),
            torch.zeros(1, dtype=torch.int64),
        )
        camera, xy, poses, intrinsics, distortion, lens = (t.to(device) for t in tensors)
        intrinsics.requires_grad_(), distortion.requires_grad_()
        _, d, _, _, converged = rays(camera, xy, poses, intrinsics, distortion, lens)
        d[:, 0].sum().backward()
        return converged.tolist(), intrinsics.grad, distortion.grad

    converged, focal, bent = gradients([[0.2, 0.1], [0.9, 0.1]])
    assert converged == [True, False] and focal.abs().max() > 0.01 and bent.abs().max() > 0.01
    _, focal_alone, bent_alone = gradients([[0.2, 0.1]])
    assert torch.equal(focal, focal_alone) and torch.equal(bent, bent_alone)


@pytest.mark.parametrize("lens", ["perspective", "fisheye"])
@pytest.mark.parametrize("degrees", [0.0, 5.0, 17.9, 18.3, 60.0, 130.0])
def test_the_gradient_of_a_lens_at_every_angle(device, lens, degrees):
    """Near the axis too, where a fisheye's formulas are series, and at k = 0, where nothing is undone."""
    if lens == "perspective" and degrees > 80:
        pytest.skip("a perspective lens does not see behind itself")
    reach = math.radians(degrees) if lens == "fisheye" else math.tan(math.radians(degrees))
    pixel = [320 + 500 * reach * 0.6, 240 + 400 * reach * 0.8]
    towards = torch.tensor([0.3, -0.5, 0.7])

    def seen(numbers):
        camera = (lens, numbers[:4].tolist(), pixel, [*numbers[4:].tolist()])
        return (shoot("cpu", *camera, double=True)[1] * towards.double()).sum()

    start = torch.tensor([*FIRST, *[0.0] * 6], dtype=torch.float64)
    wide = max(1.0, reach * reach)  # what k1 is multiplied with; k2 with its square
    powers = [1, 2, 3, 4, 1, 1]
    steps = torch.tensor([1e-2] * 4 + [1e-4 / wide**n for n in powers], dtype=torch.float64).diag()
    if degrees == 0:
        start[4:] = 0.01
    slopes = [float((seen(start + e) - seen(start - e)) / (2 * e.sum())) for e in steps]
    intrinsics, distortion = start[:4].float(), torch.zeros(12)
    distortion[:6] = start[4:]
    one = torch.zeros(1, dtype=torch.int64, device=device)
    lenses = [x.to(device)[None].clone().requires_grad_() for x in (intrinsics, distortion)]
    places = (torch.tensor([pixel], device=device), torch.eye(3, 4, device=device)[None])
    _, d, *_ = rays(one, *places, *lenses, one + LENSES.index(lens))
    (d[0] * towards.to(device)).sum().backward()
    found = torch.cat([lenses[0].grad[0], lenses[1].grad[0, :6]])
    scale = torch.tensor(slopes).abs().clamp_min(1e-9)
    close(found / scale.to(device), torch.tensor(slopes) / scale, rtol=0, atol=2e-4)


def test_unknown_words_are_refused():
    args = list(inputs(3, "camera"))
    with pytest.raises(ValueError, match="compose is 'left', expected one of camera, world"):
        rays(*args[:7], "left")
    with pytest.raises(ValueError, match="tangential is 'old', expected one of opencv, nerfstudio"):
        rays(*args, tangential="old")
    with pytest.raises(ValueError, match="rays_forward: intrinsics has 17 cameras, expected 18"):
        rays(*args[:3], args[3][:17], *args[4:])


def test_cameras_that_do_not_exist(device):
    """The CPU refuses; CUDA, which cannot look without waiting, marks the rays."""
    args = [x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs(3, "camera")]
    args[0] = torch.tensor([0, 18, -1], device=device)
    if backend(device) == "cpu":
        with pytest.raises(ValueError, match="camera has an index that no camera has"):
            rays(*args)
        args[0], args[5] = torch.tensor([0, 1, 2]), torch.full_like(args[5], 9)
        with pytest.raises(ValueError, match=r"lens has a number outside 0\.\.8"):
            rays(*args)
        return
    o, d, _, _, converged = rays(*args)
    assert o[0].isfinite().all() and o[1:].isnan().all() and d[1:].isnan().all()
    assert converged.tolist() == [True, False, False]
