"""What is true of the losses: numbers from peers, constants that stay constant, truth over a background."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raymarch.model.losses import LossesConfig, losses
from raymarch.ops.losses import (
    depth_ds_nerf,
    depth_urf,
    distortion,
    interlevel,
    interlevel_zipnerf,
    orientation,
    predicted_normals,
    random_colour,
    scale_gradients,
)
from raymarch.types import Field, Pixels, Proposal, Rays, Rendering, Samples

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


def golden(name, device):
    if not (GOLDEN / name).exists():
        pytest.skip("../shared/golden is absent")
    arrays = np.load(GOLDEN / name)
    return lambda key: torch.from_numpy(arrays[key]).float().to(device)


def near(got, want, tolerance=1e-5):
    torch.testing.assert_close(
        got, torch.as_tensor(want, dtype=got.dtype, device=got.device), rtol=tolerance, atol=tolerance / 10
    )


@pytest.fixture
def ray(device):
    """One ray of four samples: t edges, s edges, weights."""
    t = torch.tensor([[1, 1.1, 1.3, 1.6, 2]], device=device)
    s = torch.tensor([[0, 0.2, 0.4, 0.7, 1]], device=device)
    tau = torch.tensor([[1.0, 2, 3, 0.5]], device=device) * t.diff(dim=1)
    return t, s, torch.exp(tau - tau.cumsum(1)) * -torch.expm1(-tau)


@pytest.fixture
def proposal(device):
    s = torch.tensor([[0, 0.25, 0.5, 1]], device=device)
    return s, torch.tensor([[0.1, 0.2, 0.1]], device=device, requires_grad=True)


def test_interlevel(ray, proposal):
    _, s, w = ray
    loss = interlevel(s, w, *proposal)
    loss.sum().backward()
    near(loss, [0.00249494])
    near(proposal[1].grad, [[0, -0.0832566, -0.0832566]])


def test_interlevel_equals_peers(device):
    load = golden("resampling_losses.npz", device)
    w = load("weights").requires_grad_()
    fine_s, fine_w = load("t_fine"), load("w_fine")
    loss = interlevel(fine_s, fine_w, load("bins"), w)
    loss.mean().backward()
    near(loss, load("outer_loss_nerfstudio").mean(1), 1e-4)
    near(w.grad, load("grad_mean_outer_wrt_w_prop"), 1e-4)


def test_interlevel_is_zero_where_the_proposal_is_the_level_itself(ray):
    _, s, w = ray
    assert float(interlevel(s, w, s, w)) == 0


def test_an_aligned_end_counts_the_next_bin_too(device):
    s, s_proposal = (torch.tensor([x], device=device) for x in ([0.0, 0.5], [0.0, 0.5, 1.0]))
    w = torch.tensor([[0.6]], device=device)
    wide = interlevel(s, w, s_proposal, torch.tensor([[0.1, 0.5]], device=device))
    assert float(wide) == pytest.approx(0, abs=1e-12)


def test_interlevel_sees_small_bounds_behind_large_ones(device):
    """The bound of a faint bin behind an opaque one is not lost in the rounding of a running sum."""
    s = torch.linspace(0, 1, 65, device=device)[None]
    w = torch.full((1, 64), 1e-9, device=device)
    w[0, 3] = 1
    wp = (2 * w).requires_grad_()
    loss = interlevel(s, w, s, wp)
    loss.sum().backward()
    assert not loss.any() and not wp.grad.any()


def test_interlevel_zipnerf(ray, proposal):
    _, s, w = ray
    loss = interlevel_zipnerf(s, w, *proposal, radius=0.03)
    near(loss, [0.161289])
    loss.sum().backward()
    assert (proposal[1].grad < 0).all()
    with pytest.raises(ValueError, match="radius is 0"):
        interlevel_zipnerf(s, w, *proposal, radius=0)


def test_distortion(ray):
    _, s, w = ray
    w.requires_grad_()
    loss = distortion(s, w)
    loss.sum().backward()
    near(loss, [0.1462607])
    near(w.grad, [[0.523002, 0.306977, 0.333607, 0.695782]])


def test_distortion_equals_peers(device):
    load = golden("resampling_losses.npz", device)
    w = load("w_fine").requires_grad_()
    loss = distortion(load("t_fine"), w)
    loss.sum().backward()
    near(loss, load("distortion_nerfstudio"))
    near(w.grad, load("grad_sum_distortion_wrt_w"))


def test_distortion_of_a_sharp_surface_keeps_its_digits(device):
    """Weights within 1e-4 of each other, far from s = 0: differences of moments would lose this."""
    s = (0.5 + torch.linspace(0, 1e-4, 101, dtype=torch.float64))[None].float()
    w = torch.full((1, 100), 0.01)
    wide, u = s.double(), (s[:, 1:] + s[:, :-1]).double() / 2
    want = ((u[..., None] - u[:, None]).abs().sum() + wide.diff().sum() / 3) * 1e-4
    assert float(distortion(s.to(device), w.to(device))) == pytest.approx(float(want), rel=1e-3)


def test_distortion_of_many_samples(device):
    """Linear in samples, and right beyond one warp's width."""
    s = torch.rand(2, 1001, dtype=torch.float64).sort(1).values
    w = torch.rand(2, 1000, dtype=torch.float64)
    u = (s[:, 1:] + s[:, :-1]) / 2
    want = (
        torch.einsum("ri,rij,rj->r", w, (u[..., None] - u[:, None]).abs(), w) + (w**2 * s.diff()).sum(1) / 3
    )
    near(distortion(s.float().to(device), w.float().to(device)), want.float(), 1e-4)


NORMALS = [[(0.0, 0, 1), (0, 0, -1), (0.6, 0, 0.8), (0, 1, 0)]]
PREDICTED = [[(0.0, 0, 1), (0, 0, 1), (0, 0, 1), (0, 0.6, 0.8)]]


def test_orientation_and_predicted_normals(ray, device):
    w, n = ray[2], torch.tensor(NORMALS, device=device)
    near(orientation(w, n, torch.tensor([[0.0, 0, -1]], device=device)), [0.2983066])
    near(predicted_normals(w, n, torch.tensor(PREDICTED, device=device)), [0.686480])


def test_normal_losses_equal_peers(device):
    load = golden("rendering.npz", device)
    w, n = load("weights_multinerf"), load("normals")
    near(orientation(w, n, load("viewdirs")), load("orientation_loss"))
    near(predicted_normals(w, n, load("pred_normals")), load("pred_normal_loss"))


def test_a_broken_normal_does_not_break_orientation(ray, device):
    w, n = ray[2].requires_grad_(), torch.tensor(NORMALS, device=device)
    n[0, 0] = float("nan")
    d = torch.tensor([[0.0, 0, -1]], device=device, requires_grad=True)
    loss = orientation(w, n, d)
    loss.sum().backward()
    near(loss, [0.2983066])
    assert w.grad.isfinite().all() and d.grad.isfinite().all() and d.grad.any()


def test_shapes_that_would_be_stretched_are_refused():
    w, t, depth = torch.rand(3, 4), torch.rand(3, 5), torch.rand(3)
    for loss in (depth_ds_nerf, lambda w, t, d: depth_urf(w, t, d, depth, 0.2)):
        with pytest.raises(ValueError, match=r"depth is \[3, 1\], expected \[3\]"):
            loss(w, t, depth[:, None])
        with pytest.raises(ValueError, match=r"t is \[1, 5\], expected \[R, S \+ 1\]"):
            loss(w, t[:1], depth)
    with pytest.raises(ValueError, match=r"expected is \[1\], expected \[3\]"):
        depth_urf(w, t, depth, depth[:1], 0.2)
    with pytest.raises(ValueError, match=r"scale_gradients: t is \[1, 5\]"):
        scale_gradients(w, t[:1])
    with pytest.raises(ValueError, match=r"scale_gradients: x is \[3\]"):
        scale_gradients(depth, t)


def test_depth(ray, device):
    t, _, w = ray
    depth = torch.tensor([1.35], device=device)
    near(depth_ds_nerf(w, t, depth), [0.267137])
    near(depth_ds_nerf(w, t, 1.1 * depth), [0.301231])
    near(depth_urf(w, t, depth, torch.tensor([1.4], device=device), sigma=0.2), [2.548514])
    for unknown in (depth_ds_nerf(w, t, 0 * depth), depth_urf(w, t, 0 * depth, depth, 0.2)):
        assert float(unknown) == 0


def test_gradient_scaling(device):
    t = torch.tensor([[0.1, 0.3, 0.7, 1.5, 3]], device=device)
    for shape in ((1, 4), (1, 4, 3)):
        x = torch.rand(shape, device=device, requires_grad=True)
        y = scale_gradients(x, t)
        y.sum().backward()
        assert torch.equal(y, x)
        near(x.grad.view(4, -1)[:, 0], [0.04, 0.25, 1, 1])


def test_random_colour_depends_on_the_counter_alone(device):
    a, b, c = (random_colour(torch.tensor(k, device=device), 1000, 5) for k in ([3, 4], [3, 4], [3, 5]))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == (1000, 3) and a.min() >= 0 and a.max() < 1
    near(a.mean(0), [0.5, 0.5, 0.5], 0.1)
    want = random_colour(torch.tensor([3, 4]), 1000, 5)
    assert torch.equal(a.cpu(), want)


# From here on: the dict that training minimises.


def rendered(device, rays=6, samples=5, feature=4):
    def edges(n):
        return torch.linspace(0, 1, n + 1, device=device).repeat(rays, 1)

    def leaf(*shape):
        return torch.rand(*shape, device=device).requires_grad_()

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, 3, device=device), dim=-1)

    ones = torch.ones(rays, device=device)
    camera = torch.zeros(rays, dtype=torch.int64, device=device)
    directions = unit(rays).requires_grad_()
    field = Field(leaf(rays, samples), normals=unit(rays, samples), predicted_normals=unit(rays, samples))
    field.predicted_normals.requires_grad_()
    return Rendering(
        rgb=leaf(rays, 3),
        opacity=leaf(rays),
        expected_depth=1 + leaf(rays),
        feature=leaf(rays, feature),
        weights=leaf(rays, samples),
        samples=Samples(edges(samples), 1 + 2 * edges(samples)),
        field=field,
        rays=Rays(directions, directions, ones, ones, ones, ones, camera),
        proposals=tuple(
            Proposal(Samples(edges(n), 1 + 2 * edges(n)), (0.1 * torch.rand(rays, n, device=device)))
            for n in (9, 7)
        ),
    )


def seen(device, rays=6, channels=3, **truth):
    rgb = torch.rand(rays, channels, device=device)
    camera = torch.zeros(rays, dtype=torch.int64, device=device)
    return Pixels(camera, torch.rand(rays, 2, device=device), rgb, **truth)


def test_every_loss_has_a_name_and_its_weight(device):
    view = rendered(device)
    pixels = seen(device, feature=torch.rand(6, 4, device=device), depth=2 * torch.rand(6, device=device))
    found = losses(view, pixels, LossesConfig(depth=1e-3), torch.tensor(0.5, device=device))
    s, w, d = view.samples.s, view.weights, view.rays.directions
    n, p = view.field.normals, view.field.predicted_normals
    depths = [depth_ds_nerf(x.weights, x.samples.t, pixels.depth).mean() for x in (*view.proposals, view)]
    want = {
        "rgb": (view.rgb - pixels.rgb).square().mean(),
        "interlevel": sum(interlevel(s, w, x.samples.s, x.weights).mean() for x in view.proposals),
        "distortion": 0.002 * distortion(s, w).mean(),
        "feature": 1e-3 * (view.feature - pixels.feature).square().mean(),
        "orientation": 1e-4 * orientation(w, n, d).mean(),
        "predicted_normals": 1e-3 * predicted_normals(w, n, p).mean(),
        "depth": 1e-3 * sum(depths) / 3,
        "poses": torch.tensor(0.5),
    }
    assert list(found) == list(want)
    for name in want:
        assert found[name].shape == ()
        near(found[name].detach(), float(want[name].detach()))


def test_losses_without_their_inputs_are_absent(device):
    view, pixels = rendered(device), seen(device)
    assert set(losses(view, pixels, LossesConfig())) == {
        "rgb", "interlevel", "distortion", "orientation", "predicted_normals",
    }  # fmt: skip
    assert set(losses(Rendering(rgb=view.rgb), pixels, LossesConfig())) == {"rgb"}


def test_what_each_loss_may_move(device):
    def moved(name):
        view = rendered(device)
        for p in view.proposals:
            p.weights.requires_grad_()
        truth = seen(device, feature=torch.rand(6, 4, device=device))
        losses(view, truth, LossesConfig())[name].backward()
        leaves = {
            "rgb": view.rgb,
            "weights": view.weights,
            "feature": view.feature,
            "directions": view.rays.directions,
            "predicted": view.field.predicted_normals,
            "proposal 0": view.proposals[0].weights,
            "proposal 1": view.proposals[1].weights,
        }
        return {key for key, leaf in leaves.items() if leaf.grad is not None and leaf.grad.any()}

    assert moved("rgb") == {"rgb"}
    assert moved("interlevel") == {"proposal 0", "proposal 1"}
    assert moved("distortion") == {"weights"}
    assert moved("feature") == {"feature"}
    assert moved("orientation") == {"directions"}
    assert moved("predicted_normals") == {"predicted"}


def test_interlevel_is_reported_on_steps_that_leave_the_proposals_alone(device):
    found = losses(rendered(device), seen(device), LossesConfig())
    assert float(found["interlevel"]) > 0 and not found["interlevel"].requires_grad
    sum(found.values()).backward()


@pytest.mark.parametrize(
    "background, want",
    [("last_sample", (0.1, 0.2, 0.3)), ("black", (0.1, 0.2, 0.3)), ("white", (0.6, 0.7, 0.8))],
)
def test_truth_with_alpha_is_put_over_the_background(device, background, want):
    view = Rendering(rgb=torch.tensor([want], device=device))
    none = torch.zeros(1, dtype=torch.int64, device=device)
    pixels = Pixels(
        none, torch.zeros(1, 2, device=device), torch.tensor([[0.2, 0.4, 0.6, 0.5]], device=device)
    )
    assert float(losses(view, pixels, LossesConfig(), background=background)["rgb"]) < 1e-12


def test_a_random_background_lies_behind_both(device):
    pixels = seen(device, rays=100, channels=4)
    over_black = pixels.rgb[:, :3] * pixels.rgb[:, 3:]
    exact = Rendering(rgb=over_black, opacity=pixels.rgb[:, 3])
    opaque = Rendering(rgb=over_black, opacity=torch.ones(100, device=device))
    counters = [torch.tensor([1, step], device=device) for step in (2, 3)]

    def loss(view, counter):
        return float(losses(view, pixels, LossesConfig(), counter=counter, background="random")["rgb"])

    for counter in (*counters, None):
        assert loss(exact, counter) < 1e-12 < 0.01 < loss(opaque, counter)
    assert loss(opaque, counters[0]) == loss(opaque, counters[0]) != loss(opaque, counters[1])


def test_bad_words_and_missing_truth_are_refused(device):
    view, pixels = rendered(device), seen(device, depth=torch.ones(6, device=device))
    with pytest.raises(ValueError, match="background is 'grey'"):
        losses(view, pixels, LossesConfig(), background="grey")
    with pytest.raises(ValueError, match="depth_kind is 'laser'"):
        losses(view, pixels, LossesConfig(depth_kind="laser"))
    with pytest.raises(ValueError, match=r"pixels\.rgb is None"):
        losses(view, Pixels(pixels.camera, pixels.xy), LossesConfig())
    with pytest.raises(ValueError, match="expected_depth is None"):
        bare = Rendering(rgb=view.rgb, weights=view.weights, samples=view.samples)
        losses(bare, pixels, LossesConfig(depth=1, depth_kind="urf"))
    losses(view, pixels, LossesConfig(depth=1, depth_kind="urf"))["depth"].backward()


def test_shapes_that_do_not_fit_are_refused(ray):
    _, s, w = ray
    with pytest.raises(ValueError, match="one edge more"):
        distortion(s[:, :-1], w)
    with pytest.raises(ValueError, match="s_proposal must have one edge more"):
        interlevel(s, w, s[:, :-1], w)


@pytest.mark.parametrize("unknown", [float("nan"), 0.0, -1.0])
def test_an_unknown_depth_moves_nothing(unknown):
    w = torch.rand(2, 8, requires_grad=True)
    t = torch.linspace(1, 2, 9).expand(2, 9)
    depth, expected = torch.tensor([unknown, 1.5]), torch.rand(2, requires_grad=True)
    for loss in (depth_ds_nerf(w, t, depth), depth_urf(w, t, depth, expected, 0.2)):
        assert loss[0] == 0
        grads = torch.autograd.grad(loss.sum(), [w, expected], allow_unused=True)
        for grad in grads:
            assert grad is None or ((grad[0] == 0).all() and grad[1].isfinite().all())
        assert (grads[0][1] != 0).any()
