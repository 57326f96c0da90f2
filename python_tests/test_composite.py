"""What is true of compositing alone; what every op must satisfy is in test_ops.py."""

from pathlib import Path

import numpy
import pytest
import torch

from raymarch.ops.composite import composite

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"

# The ray of the oracles: edges, weights, one colour and one normal per sample.
EDGES = [1.0, 1.1, 1.3, 1.6, 2.0]
WEIGHTS = [0.0951626, 0.2983066, 0.3599338, 0.0447004]
COLOURS = [[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]]
NORMALS = [[0.0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, -1]]


def ray(device, weights=WEIGHTS, edges=EDGES):
    return torch.tensor([weights], device=device), torch.tensor([edges], device=device)


def close(got, want, rtol=1e-5, atol=1e-6):
    want = torch.as_tensor(want, dtype=got.dtype, device=got.device)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def random_rays(device, rays=37, samples=50):
    w = torch.softmax(2 * torch.randn(rays, samples + 1), -1)[:, 1:].contiguous()
    return w.to(device), torch.rand(rays, samples + 1).cumsum(1).to(device)


@pytest.mark.parametrize(
    "background, want",
    [
        ("last_sample", [0.218461, 0.421605, 0.483232]),
        ("black", [0.117513, 0.320657, 0.382284]),
        ("random", [0.117513, 0.320657, 0.382284]),
        ("white", [0.319409, 0.522553, 0.584180]),
        (torch.tensor([0.0, 1.0, 0.0]), [0.117513, 0.522553, 0.382284]),
    ],
)
def test_colour_of_a_known_ray_over_each_background(device, background, want):
    colours = torch.tensor([COLOURS], device=device)
    out = composite(*ray(device), rgb=colours, background=background)
    close(out.rgb, [want])
    close(out.opacity, [0.7981035])


def test_a_broken_colour_is_black_in_pictures_and_shows_in_training(device):
    colours = torch.tensor([COLOURS], device=device)
    colours[0, 0, 0] = float("nan")
    close(composite(*ray(device), rgb=colours, clean=True).rgb, [[0.123298, 0.421605, 0.483232]])
    rgb = composite(*ray(device), rgb=colours).rgb
    assert rgb[0, 0].isnan() and rgb[0, 1:].isfinite().all()


def test_pictures_stay_in_range_and_train_where_nothing_was_changed(device):
    w, t = random_rays(device)
    colours = 4 * torch.rand(37, 50, 3, device=device) - 1
    colours[5, 7] = float("inf")
    colours[6, 7] = float("-inf")
    colours.requires_grad_()
    w.requires_grad_()
    plain = (w[..., None] * torch.nan_to_num(colours)).sum(1)
    want = (plain + (1 - w.sum(1))[:, None] * colours[:, -1]).clamp(0, 1)
    got = composite(w, t, rgb=colours, clean=True).rgb
    close(got, want)
    seed = torch.randn_like(got)
    for g, x in zip(
        torch.autograd.grad(got, (w, colours), seed),
        torch.autograd.grad(want, (w, colours), seed),
        strict=True,
    ):
        keep = torch.arange(37) != 5  # torch spreads the largest float over that ray
        close(g[keep], x[keep], atol=1e-5)
        assert g.isfinite().all()


@pytest.mark.parametrize(
    "weights, want",
    [(WEIGHTS, 1.45), ([0.0] * 4, 1.8), ([0.5, 0.2, 0.1, 0.1], 1.05), ([0.25] * 4, 1.2)],
)
def test_median_depth_of_known_rays(device, weights, want):
    close(composite(*ray(device, weights)).depth, [want])


def test_median_depth_has_no_gradient(device):
    w, t = ray(device)
    assert not composite(w.requires_grad_(), t).depth.requires_grad


@pytest.mark.parametrize("hit", [0, 31, 32, 63, 64, 99])
def test_median_is_found_in_every_chunk(device, hit):
    w = torch.full((1, 100), 1e-3, device=device)
    w[0, hit] = 0.6
    t = torch.arange(101.0, device=device)[None]
    close(composite(w, t).depth, [hit + 0.5])


def test_expected_depth_of_a_known_ray(device):
    w, t = ray(device)
    out = composite(w.requires_grad_(), t)
    close(out.expected_depth, [1.328466])
    out.expected_depth.sum().backward()
    close(w.grad, [[-0.348910, -0.160964, 0.152278, 0.590818]])


def test_an_empty_ray_has_its_own_nearest_depth(device):
    """Whatever else is in the batch."""
    t = torch.tensor([[1.0, 2, 3], [10, 20, 30]], device=device)
    w = torch.zeros(2, 2, device=device, requires_grad=True)
    out = composite(w, t)
    close(out.expected_depth, [1.5, 15.0])
    out.expected_depth.sum().backward()
    assert (w.grad == 0).all()


def test_normals_of_a_known_ray(device):
    normals = torch.tensor([NORMALS], device=device)
    out = composite(*ray(device), normals=normals, predicted_normals=-normals)
    close(out.normals, [[0.765495, 0.634429, 0.107321]])
    close(out.predicted_normals, -out.normals)


def test_a_ray_without_a_normal_keeps_zero_and_finite_gradients(device):
    w, t = ray(device, [0.0] * 4)
    normals = torch.tensor([NORMALS], device=device, requires_grad=True)
    out = composite(w.requires_grad_(), t, normals=normals)
    close(out.normals, [[0.0, 0, 0]])
    out.normals.sum().backward()
    assert w.grad.isfinite().all() and normals.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 2, 3, 8, 12, 20, 64, 72, 256, 264, 520, 2048])
def test_features_of_any_width_and_type_are_summed_in_float32(device, dtype, channels):
    w, t = random_rays(device, 5, 41)
    feature = torch.randn(5, 41, channels).to(device, dtype)
    w.requires_grad_()
    got = composite(w, t, feature=feature.requires_grad_()).feature
    assert got.dtype == torch.float32
    slow_w, slow = w.detach().double().requires_grad_(), feature.detach().double().requires_grad_()
    want = (slow_w[..., None] * slow).sum(1)
    close(got, want.float(), atol=1e-5)
    seed = torch.randn(5, channels, device=device)
    got.backward(seed)
    want.backward(seed.double())
    close(w.grad, slow_w.grad.float(), atol=1e-5 * channels**0.5)
    assert feature.grad.dtype == dtype
    half = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    close(feature.grad.float(), slow.grad.float(), rtol=half, atol=1e-6)


def test_features_at_an_odd_address_are_the_same(device):
    """Vector loads need alignment; an array that lacks it takes another way."""
    w, t = random_rays(device, 5, 41)
    room = torch.randn(5 * 41 * 64 + 1, device=device)
    shifted = room[1:].view(5, 41, 64)
    close(composite(w, t, feature=shifted).feature, composite(w, t, feature=shifted.clone()).feature)


def test_heads_do_not_depend_on_each_other(device):
    w, t = random_rays(device)
    heads = {
        "rgb": torch.rand(37, 50, 3, device=device),
        "normals": torch.randn(37, 50, 3, device=device),
        "predicted_normals": torch.randn(37, 50, 3, device=device),
        "feature": torch.randn(37, 50, 40, device=device),
    }
    together = composite(w, t, **heads)
    for name, values in heads.items():
        alone = composite(w, t, **{name: values})
        assert torch.equal(getattr(alone, name), getattr(together, name))
        assert all(getattr(alone, other) is None for other in heads if other != name)


def test_only_what_is_asked_for_gets_a_gradient(device):
    w, t = random_rays(device)
    rgb = torch.rand(37, 50, 3, device=device)
    feature = torch.randn(37, 50, 40, device=device, requires_grad=True)
    out = composite(w, t, rgb=rgb, feature=feature)
    (grad,) = torch.autograd.grad(out.feature.sum(), feature)
    close(grad, w[..., None].expand(-1, -1, 40))
    assert rgb.grad is None and w.grad is None


def test_gradient_of_heads_that_were_not_used_is_zero(device):
    w, t = random_rays(device)
    heads = [torch.randn(37, 50, c, device=device, requires_grad=True) for c in (3, 3, 3, 40)]
    out = composite(w.requires_grad_(), t, *heads)
    grads = torch.autograd.grad(out.opacity.sum(), (w, *heads))
    close(grads[0], torch.ones_like(w))
    assert all((g == 0).all() for g in grads[1:])


def test_last_linear_layer_commutes_with_compositing():
    """In float64, with a bias: forward and all four gradients."""
    rng = torch.Generator().manual_seed(0)
    shapes = ((3, 5), (3, 5, 4), (6, 4), (6,))
    w, hidden, layer, bias = (torch.rand(s, dtype=torch.float64, generator=rng) for s in shapes)
    leaves = [x.requires_grad_() for x in (w, hidden, layer, bias)]
    t = torch.linspace(0, 1, 6, dtype=torch.float64).repeat(3, 1)
    out = composite(w, t, feature=hidden)
    once_per_ray = out.feature @ layer.T + out.opacity[:, None] * bias
    per_sample = composite(w, t, feature=hidden @ layer.T + bias).feature
    torch.testing.assert_close(once_per_ray, per_sample, rtol=0, atol=1e-14)
    seed = torch.randn(3, 6, dtype=torch.float64, generator=rng)
    for a, b in zip(
        torch.autograd.grad(once_per_ray, leaves, seed),
        torch.autograd.grad(per_sample, leaves, seed),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"background": "blue"}, "composite: background is 'blue', expected last_sample"),
        ({"background": torch.zeros(4)}, r"composite: background has shape \(4,\), expected \[3\]"),
        ({"t": torch.rand(37, 50)}, "composite_forward: t must have one edge more"),
        ({"rgb": torch.rand(37, 49, 3)}, "composite_forward: rgb has 49 samples, expected 50"),
        ({"feature": torch.rand(36, 50, 4)}, "composite_forward: feature has 36 rays, expected 37"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, words):
    w, t = random_rays("cpu")
    with pytest.raises(ValueError, match=words):
        composite(**{"weights": w, "t": t, "rgb": torch.rand(37, 50, 3)} | change)


def test_golden_rays(device):
    if not (GOLDEN / "rendering.npz").exists():
        pytest.skip("../shared/golden is absent")
    with numpy.load(GOLDEN / "rendering.npz") as file:
        g = {k: torch.as_tensor(file[k], dtype=torch.float32, device=device) for k in file.files}
    w, t = g["weights_nerfstudio"], g["t_edges"]
    out = composite(w, t, g["rgb"], g["normals"], g["pred_normals"], g["features"], g["bg"])
    close(out.rgb, g["rgb_over_bg"], atol=1e-5)
    close(composite(w, t, g["rgb"], background="black").rgb, g["rgb_over_black"], atol=1e-5)
    close(out.opacity, g["accumulation"], atol=1e-5)
    close(out.depth, g["depth_median"], atol=1e-5)
    close(out.feature, g["feature_render"], atol=1e-5)
    seen = out.opacity > 1e-4  # below, the direction of what is left is a matter of rounding
    close(out.normals[seen], g["normals_render_normalised"][seen], atol=1e-5)
    middle = (t[:, 1:] + t[:, :-1]) / 2
    want = g["depth_expected_batchclip"]
    inside = (want > middle.min()) & (want < middle.max()) & (out.opacity > 1e-4)
    assert inside.sum() > 40
    close(out.expected_depth[inside], want[inside], rtol=1e-5)
