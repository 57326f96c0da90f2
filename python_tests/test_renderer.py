"""Samples, Field -> Rendering: which heads appear, what training keeps, and the two ways to features."""

from dataclasses import fields, replace

import pytest
import torch

from raymarch.model.renderer import Renderer, RendererConfig
from raymarch.ops.weights import weights
from raymarch.types import Field, Proposal, Rays, Samples

RAYS, SAMPLES, HIDDEN, WIDTH = 13, 24, 16, 40


def rays(device):
    directions = torch.nn.functional.normalize(torch.randn(RAYS, 3, device=device), dim=-1)
    ones = torch.ones(RAYS, device=device)
    return Rays(torch.zeros_like(directions), directions, ones, ones, ones, ones, ones.long())


def samples(device):
    s = torch.linspace(0, 1, SAMPLES + 1, device=device).repeat(RAYS, 1)
    return Samples(s, 0.1 + 3 * s)


def field(device):
    """Every head, as leaves."""
    per_sample = (RAYS, SAMPLES)
    heads = Field(
        density=3 * torch.rand(*per_sample, device=device),
        rgb=torch.rand(*per_sample, 3, device=device),
        normals=torch.randn(*per_sample, 3, device=device),
        predicted_normals=torch.randn(*per_sample, 3, device=device),
        feature=torch.randn(*per_sample, HIDDEN, device=device),
        feature_layer=torch.randn(WIDTH, HIDDEN, device=device),
    )
    for f in fields(heads):
        getattr(heads, f.name).requires_grad_()
    return heads


def test_a_rendering_has_the_heads_of_its_field(device):
    full = field(device)
    out = Renderer(RendererConfig())(rays(device), samples(device), full)
    shapes = {"rgb": 3, "normals": 3, "predicted_normals": 3, "feature": WIDTH, "feature_hidden": HIDDEN}
    assert {n: getattr(out, n).shape for n in shapes} == {n: (RAYS, c) for n, c in shapes.items()}
    assert all(getattr(out, n).shape == (RAYS,) for n in ("opacity", "depth", "expected_depth"))
    bare = Renderer(RendererConfig())(rays(device), samples(device), Field(full.density, full.rgb))
    assert all(
        getattr(bare, n) is None for n in ("normals", "predicted_normals", "feature", "feature_hidden")
    )
    torch.testing.assert_close(bare.rgb, out.rgb)


def test_training_keeps_what_losses_need_and_evaluation_does_not(device):
    renderer, kept = Renderer(RendererConfig()), ("weights", "samples", "field", "rays")
    level = Proposal(samples(device), torch.rand(RAYS, SAMPLES, device=device))
    out = renderer(rays(device), samples(device), field(device), (level,), train=True)
    assert all(getattr(out, n) is not None for n in kept) and out.proposals == (level,)
    out = renderer(rays(device), samples(device), field(device), (level,), train=False)
    assert all(getattr(out, n) is None for n in kept) and out.proposals == ()


def test_weights_are_those_of_density_and_edges(device):
    f, at = field(device), samples(device)
    out = Renderer(RendererConfig())(rays(device), at, f, train=True)
    want = weights(f.density, at.t.diff(dim=1).contiguous())
    assert torch.equal(out.weights, want)
    torch.testing.assert_close(out.opacity, want.sum(1))


def gradients(config, f, seed, **options):
    out = Renderer(config)(rays(seed.device), samples(seed.device), f, train=True, **options)
    leaves = (f.density, f.feature, f.feature_layer)
    return out.feature, torch.autograd.grad(out.feature, leaves, seed, allow_unused=True)


@pytest.mark.parametrize("apart", [False, True])
def test_deferred_features_are_the_per_sample_ones(device, apart):
    """Values and gradients, with the weights attached and detached."""
    f, seed = field(device), torch.randn(RAYS, WIDTH, device=device)
    fast = gradients(RendererConfig(), f, seed, detach_feature_weights=apart)
    slow = gradients(RendererConfig(feature_path="per_sample"), f, seed, detach_feature_weights=apart)
    torch.testing.assert_close(fast[0], slow[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(fast[1], slow[1], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert (fast[1][0] is None) == apart  # what the density gets


def test_detached_feature_weights_leave_other_heads_attached(device):
    f = field(device)
    out = Renderer(RendererConfig())(
        rays(device), samples(device), f, train=True, detach_feature_weights=True
    )
    assert torch.autograd.grad(out.rgb.sum(), f.density)[0].abs().sum() > 0


def test_pictures_can_be_differentiated(device):
    """Localising a camera needs gradients of what evaluation shows."""
    f = field(device)
    out = Renderer(RendererConfig())(rays(device), samples(device), f, train=False)
    density, rgb = torch.autograd.grad(out.rgb.sum(), (f.density, f.rgb))
    assert density.abs().sum() > 0 and rgb.abs().sum() > 0


def test_evaluation_shows_no_broken_colours(device):
    f = field(device)
    broken = f.rgb.detach().clone()
    broken[2, 3, 1], broken[4, 5] = float("nan"), 7.0
    out = Renderer(RendererConfig())(rays(device), samples(device), replace(f, rgb=broken), train=False)
    assert out.rgb.isfinite().all() and (out.rgb >= 0).all() and (out.rgb <= 1).all()
    out = Renderer(RendererConfig())(rays(device), samples(device), replace(f, rgb=broken), train=True)
    assert out.rgb[2, 1].isnan()


def test_expected_depth_is_clipped_per_ray_unless_told(device):
    f = field(device)
    empty = torch.cat([torch.zeros(1, SAMPLES, device=device), f.density.detach()[1:]])
    near = samples(device)
    t = torch.cat([near.t[:1] + 5, near.t[1:]])
    at = Samples(near.s, t)
    own = Renderer(RendererConfig())(rays(device), at, Field(empty, f.rgb)).expected_depth
    batch = Renderer(RendererConfig(expected_depth_clip="batch"))(rays(device), at, Field(empty, f.rgb))
    middle = (t[:, 1:] + t[:, :-1]) / 2
    torch.testing.assert_close(own[0], middle[0, 0])
    torch.testing.assert_close(batch.expected_depth[0], middle.min())
    torch.testing.assert_close(batch.expected_depth[1:], own[1:])


@pytest.mark.parametrize(
    "wrong, words",
    [
        (
            {"feature_path": "lazy"},
            "feature_path is 'lazy', expected one of deferred, per_sample",
        ),
        (
            {"expected_depth_clip": "row"},
            "expected_depth_clip is 'row', expected one of ray, batch",
        ),
        ({"background": "blue"}, "background is 'blue', expected one of last_sample, black"),
    ],
)
def test_unknown_settings_are_refused_by_name(wrong, words):
    with pytest.raises(ValueError, match="model.renderer." + words):
        Renderer(RendererConfig(**wrong))
