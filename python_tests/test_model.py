"""What the composed pipeline promises: shapes, train and eval differences, and which gradients flow."""

from dataclasses import replace

import pytest
import torch

from raymarch.config import override, preset
from raymarch.data.pixels import PixelSource
from raymarch.data.synthetic import as_scene, feature_maps, make_scene
from raymarch.model import Model


@pytest.fixture(scope="module")
def scene():
    truth = make_scene(views=4, test_views=1, size=16, seed=0)
    return as_scene(truth, features=list(feature_maps(truth)))


def tiny(**knobs):
    config = override(preset("tiny"), "model.fields.feature.width=32")
    config = override(config, "model.poses.mode=SO3xR3")
    config = override(config, "model.fields.radiance.average_init_density=10")  # something to see at once
    for name, value in knobs.items():
        config = override(config, f"{name}={value}")
    return config.model


class Step:
    """A model and the rendering of one training batch."""

    def __init__(self, scene, device, config=None):
        torch.manual_seed(0)
        self.source = PixelSource(scene, scene.train, device)
        self.model = Model(config or tiny(), len(scene.train)).to(device)
        for p in self.model.fields.parameters():  # far from the initial state, where everything is zero
            p.data.add_(0.05 * torch.randn_like(p))
        self.counter = torch.tensor([0, 3], device=device)
        self.pixels = self.source.draw(self.counter, 32)
        anneal = torch.ones(1, device=device)
        self.rendering = self.model(
            self.pixels, self.source.cameras, train=True, counter=self.counter, anneal=anneal
        )
        self.terms = self.model.losses(self.rendering, self.pixels, self.counter)

    def reached(self, *terms):
        """Which parts of the model a sum of losses sends a non-zero gradient to."""
        self.model.zero_grad()
        sum(self.terms[t] for t in terms).backward(retain_graph=True)
        parts = {
            "poses": self.model.poses,
            "proposals": self.model.fields.proposals,
            "radiance": self.model.fields.radiance,
            "feature": self.model.fields.feature,
        }
        return {
            name
            for name, part in parts.items()
            if any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
        }


def test_rgb_loss_reaches_the_radiance_field_and_the_poses(scene, device):
    assert Step(scene, device).reached("rgb") == {"radiance", "poses"}


def test_feature_loss_reaches_density_and_poses_through_the_weights(scene, device):
    assert Step(scene, device).reached("feature") == {"feature", "radiance", "poses"}


def test_feature_loss_leaves_the_density_alone_where_weights_are_detached(scene, device):
    config = tiny(**{"model.fields.feature.detach_weights": "true"})
    assert Step(scene, device, config).reached("feature") == {"feature"}


def test_interlevel_loss_teaches_proposals_not_the_field(scene, device):
    assert "radiance" not in Step(scene, device).reached("interlevel")
    assert "proposals" in Step(scene, device).reached("interlevel")


def test_distortion_loss_shapes_the_density(scene, device):
    assert "radiance" in Step(scene, device).reached("distortion")


def test_orientation_loss_reaches_no_field_parameter(scene, device):
    config = tiny(**{"model.fields.radiance.predicted_normals": "true"})
    assert Step(scene, device, config).reached("orientation") <= {"poses"}


def test_predicted_normals_learn_from_the_density_gradient(scene, device):
    config = tiny(**{"model.fields.radiance.predicted_normals": "true"})
    step = Step(scene, device, config)
    assert "radiance" in step.reached("predicted_normals")
    lengths = step.rendering.field.predicted_normals.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=1e-4, atol=1e-4)


def test_one_set_of_weights_composites_every_head(scene, device):
    step = Step(scene, device)
    w, f = step.rendering.weights, step.rendering.field
    hidden = (w[..., None] * f.feature).sum(1)
    torch.testing.assert_close(step.rendering.feature, hidden @ f.feature_layer.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step.rendering.opacity.view(-1), w.sum(1), rtol=1e-5, atol=1e-6)


def test_rendering_twice_gives_the_same_picture_and_chunks_do_not_matter(scene, device):
    step = Step(scene, device)
    cameras = step.source.cameras
    with torch.no_grad():
        a = step.model(step.pixels, cameras)
        halves = []
        for part in (slice(0, 13), slice(13, 32)):
            p = replace(step.pixels, camera=step.pixels.camera[part], xy=step.pixels.xy[part])
            halves.append(step.model(p, cameras))
    for head in ("rgb", "depth", "expected_depth", "opacity", "feature"):
        joined = torch.cat([getattr(h, head) for h in halves])
        torch.testing.assert_close(getattr(a, head), joined, rtol=1e-5, atol=1e-6)


def test_gradient_normals_are_the_normals_of_the_density(scene):
    """Against finite differences of log density in world space."""
    torch.manual_seed(0)
    model = Model(tiny(**{"model.fields.radiance.grid.storage": "float32"}), 4)
    radiance = model.fields.radiance
    radiance.grid.table.data.normal_(0, 0.3)
    radiance.mlp.params.data.mul_(2)
    from raymarch.types import Rays, Samples

    directions = torch.nn.functional.normalize(torch.randn(64, 3), dim=-1)
    rays = Rays(torch.zeros(64, 3), directions, None, None, None, None, torch.zeros(64, dtype=torch.int64))
    t = torch.tensor([[0.7, 0.9], [1.9, 2.1]]).repeat(32, 1)  # inside and outside the unit cube
    field = radiance(rays, Samples(t, t), frozenset({"rgb", "normals"}), False)
    x = directions * t.mean(1, keepdim=True)
    step = 2e-4
    slope = []
    for axis in torch.eye(3):
        ahead, behind = (model.fields.at(x + s * step * axis)["density"].log() for s in (1, -1))
        slope.append((ahead - behind) / (2 * step))
    want = -torch.nn.functional.normalize(torch.stack(slope, -1), dim=-1)
    cosine = (field.normals[:, 0] * want).sum(-1)
    assert cosine.median() > 0.999 and (cosine > 0.98).float().mean() > 0.9  # kinks of cells and ReLUs differ


@pytest.mark.parametrize("encoding, parameters", [("pe", 56_320), ("grid+pe", 19_849_216 + 62_464)])
def test_feature_field_sizes_are_f3rms(encoding, parameters):  # spec 8: 768-wide, tiny-cuda-nn's padding
    config = override(preset("f3rm"), f"model.fields.feature.encoding={encoding}")
    from raymarch.model.fields import FeatureField

    field = FeatureField(config.model.fields.feature, "linf")
    assert sum(p.numel() for p in field.parameters()) == parameters


def test_a_share_of_the_rays_has_the_code_of_cameras_never_trained_on(scene, device):
    step = Step(scene, device, tiny(**{"model.fields.radiance.appearance": 8}))
    radiance, camera = step.model.fields.radiance, step.pixels.camera
    rays = step.rendering.rays
    codes = radiance.codes(rays, train=True)
    assert torch.allclose(codes[:8], radiance.appearance.mean(0).expand(8, -1))
    assert torch.equal(codes[8:], radiance.appearance[camera[8:]])
    assert torch.equal(radiance.codes(rays, train=False), radiance.shared_code().expand(32, -1))
    (grad,) = torch.autograd.grad(codes.sum(), radiance.appearance)
    assert torch.equal(grad[:, 0].long(), torch.bincount(camera[8:], minlength=len(grad)))


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"appearance_dropout is 1\.5, expected 0 \.\. 1"):
        Model(tiny(**{"model.fields.radiance.appearance_dropout": 1.5}), 3)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("norm=none", "fields: norm is 'none', expected one of linf, l2"),
        ("radiance.normals_space=World", "normals_space is 'World', expected one of world, contracted"),
        ("radiance.eval_appearance=Mean", "eval_appearance is 'Mean', expected one of mean, zero"),
        ("feature.layers=1", "fields.feature.layers is 1, expected at least 2"),
    ],
)
def test_settings_of_fields_that_nothing_can_be_made_of_are_named(setting, sentence):
    config = override(override(preset("tiny"), "model.fields.feature.width=8"), f"model.fields.{setting}")
    with pytest.raises(ValueError, match=sentence):
        Model(config.model, 2)
