"""Several feature heads at once: one trunk, one composited hidden layer, a last layer and a loss for each."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import raymarch
from raymarch.config import ConfigError, from_dict, override, preset, to_dict
from raymarch.data.error import SceneError
from raymarch.data.maps import FeatureMaps
from raymarch.data.pixels import PixelSource
from raymarch.data.scene import Scene
from raymarch.data.synthetic import as_scene, feature_maps, make_scene
from raymarch.data.window import PixelWindow
from raymarch.model.fields import FeatureConfig, FeatureField, feature_heads
from raymarch.model.fused import unsupported
from raymarch.ops.pixels import gather_features
from raymarch.train.runs import OpenRun, resume, start

DINO, CLIP = 12, 32


@pytest.fixture(scope="module")
def truth():
    return make_scene(views=6, test_views=2, size=24, seed=0)


@pytest.fixture(scope="module")
def scene(truth):
    """The synthetic scene with two kinds of maps, on grids of different sizes."""
    clip = tuple(feature_maps(truth, 4))
    turn = torch.randn(CLIP, DINO, generator=torch.Generator().manual_seed(3))
    dino = tuple((x.float() @ turn).half() for x in feature_maps(truth, 2))
    both = FeatureMaps(dino, "dino", beside=(FeatureMaps(clip, "clip", "bilinear", info={"model": "ViT"}),))
    return as_scene(truth, features=both)


def config(**knobs):
    values = {
        "train.trainer.steps": 20,
        "train.trainer.rays": 64,
        "train.trainer.log_every": 5,
        "model.fields.feature.width": 1,  # any: the scene knows better
        **knobs,
    }
    found = preset("tiny")
    for name, value in values.items():
        found = override(found, f"{name}={value}")
    return found


def test_heads_are_ranges_of_channels():
    heads = feature_heads(FeatureConfig(width=5, heads=(("dino", 2), ("clip", 3))))
    assert heads == {"dino": slice(0, 2), "clip": slice(2, 5)}
    assert feature_heads(FeatureConfig(width=5)) == {"feature": slice(0, 5)}
    assert feature_heads(FeatureConfig()) == {}


@pytest.mark.parametrize("heads", [(("a", 2), ("a", 3)), (("a", 0), ("b", 5)), (("a", 2), ("b", 2))])
def test_heads_that_do_not_fit_are_refused(heads):
    with pytest.raises(ValueError, match=r"fields\.feature"):
        feature_heads(FeatureConfig(width=5, heads=heads))


def test_one_named_head_draws_the_parameters_of_an_unnamed_one():
    torch.manual_seed(1)
    one = FeatureField(FeatureConfig(width=24), "linf").layer
    torch.manual_seed(1)
    named = FeatureField(FeatureConfig(width=24, heads=(("clip", 24),)), "linf").layer
    assert torch.equal(one, named)


def test_heads_go_through_the_config_and_back():
    found = override(preset("tiny"), "model.fields.feature.heads=(('dino', 12), ('clip', 32))")
    assert found.model.fields.feature.heads == (("dino", 12), ("clip", 32))
    assert from_dict(to_dict(found)) == found


def test_pixels_read_every_head_from_its_own_grid(scene, device):
    source = PixelSource(scene, scene.train, device)
    assert source.feature_width == DINO + CLIP
    pixels = source.draw(torch.tensor([5, 9], device=device), 200)
    parts = []
    for head in scene.features.heads:
        maps = [head.maps[i].to(device) for i in scene.train]
        starts = torch.tensor([0] + [m.shape[0] * m.shape[1] for m in maps[:-1]], device=device).cumsum(0)
        sizes = torch.tensor([(m.shape[1], m.shape[0]) for m in maps], device=device)
        cells = torch.cat([m.flatten(0, 1) for m in maps])
        sizes_px = source.cameras.size
        parts.append(gather_features(cells, starts, sizes, sizes_px, pixels.camera, pixels.xy, head.mode))
    assert torch.equal(pixels.feature, torch.cat(parts, 1))


def test_every_head_has_a_loss_and_no_say_in_another_heads_layer(scene, device):
    trainer = start(scene, config(), device=device)
    model = trainer.model
    assert model.config.fields.feature.heads == (("dino", DINO), ("clip", CLIP))
    pixels = trainer.source.draw(trainer.counter, 64)
    rendering = model(pixels, trainer.source.cameras, train=True, counter=trainer.counter)
    terms = model.losses(rendering, pixels, trainer.counter)
    weight = model.config.losses.feature
    layer = model.fields.feature.layer
    for name, rows in model.fields.feature.heads.items():
        own = F.linear(rendering.feature_hidden, layer[rows])  # the head on its own
        alone = weight * F.mse_loss(own, pixels.feature[:, rows])
        torch.testing.assert_close(terms[f"feature_{name}"], alone)
        (slope,) = torch.autograd.grad(terms[f"feature_{name}"], layer, retain_graph=True)
        touched = slope.abs().sum(1) > 0
        assert touched[rows].all() and int(touched.sum()) == rows.stop - rows.start
    assert "feature" not in terms


def test_both_heads_learn_and_come_back_from_a_checkpoint(scene, tmp_path, device):
    trainer = start(scene, config(**{"train.trainer.steps": 200}), tmp_path / "run", device)
    seen = list(trainer.iterate())
    trainer.save()
    for name in ("feature_dino", "feature_clip"):
        first, last = (sum(p.losses[name] for p in part) for part in (seen[:4], seen[-4:]))
        assert last < 0.5 * first, name
    opened = raymarch.load(tmp_path / "run", device.type)
    assert opened.feature_heads == {"dino": slice(0, DINO), "clip": slice(DINO, DINO + CLIP)}
    assert opened.text_head == "clip"
    camera = opened.camera("test", 0)
    frame = opened.render(camera, ("feature", "clip", "dino"))
    assert torch.equal(frame["feature"], torch.cat([frame["dino"], frame["clip"]], -1))
    assert opened.similarity(camera, torch.randn(1, CLIP, device=device)).shape == (24, 24)
    kept = opened.meta["scene"]["features"]
    assert [(x["name"], x["width"], x["mode"]) for x in kept] == [
        ("dino", DINO, "nearest"),
        ("clip", CLIP, "bilinear"),
    ]
    assert kept[1]["info"] == {"model": "ViT"}
    again = resume(tmp_path / "run", device.type, scene=scene)
    for name, value in trainer.state().items():
        assert torch.equal(value.cpu(), again.state()[name].cpu()), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_step_with_two_heads_equals_an_eager_one(scene):
    def after(graph):
        trainer = start(scene, config(**{"train.trainer.graph": graph}), device="cuda")
        for _ in trainer.iterate(20):
            pass
        return trainer

    replayed, eager = after("true"), after("false")
    assert replayed._graphs and not eager._graphs
    for name, value in eager.state().items():
        torch.testing.assert_close(replayed.state()[name], value, rtol=2e-2, atol=2e-3, msg=name)


def test_resuming_with_other_features_is_refused(scene, tmp_path):
    run = tmp_path / "run"
    start(scene, config(), run, "cpu").save()
    alone = replace(scene, features=replace(scene.features, beside=()))
    with pytest.raises(ConfigError, match=r"dino 12, clip 32 wide.*dino 12 wide"):
        resume(run, "cpu", scene=alone)
    with pytest.raises(ConfigError, match="without any"):
        resume(run, "cpu", scene=replace(scene, features=None))
    single = tmp_path / "single"
    start(alone, config(), single, "cpu").save()
    assert OpenRun(single, "cpu").config.model.fields.feature.heads == ()
    with pytest.raises(ConfigError, match=r"12 wide.*dino 12, clip 32 wide"):
        resume(single, "cpu", scene=scene)


def test_two_heads_of_one_name_are_refused(scene):
    twice = replace(scene.features, beside=(replace(scene.features, beside=()),))
    with pytest.raises(ConfigError, match="two feature files are of one kind, 'dino'"):
        start(replace(scene, features=twice), config(), device="cpu")


def test_maps_beside_are_checked_like_the_first(scene, truth):
    bad = FeatureMaps(tuple(x[:2] for x in scene.features.maps), "clip")
    with pytest.raises(SceneError, match="cells"):
        Scene.from_arrays(
            truth.images,
            truth.intrinsics,
            truth.camera_to_worlds,
            features=replace(scene.features, beside=(bad,)),
        )


def test_a_draw_reads_every_head_where_depths_are_there_and_where_they_are_not(scene, truth):
    plain = PixelSource(scene, scene.train)
    deep = tuple(torch.ones(x.shape[:2]) for x in scene.images)
    beside_depth = PixelSource(replace(scene, depths=deep), scene.train)
    counter = torch.tensor([5, 9])
    one, other = plain.draw(counter, 300), beside_depth.draw(counter, 300)
    assert torch.equal(one.feature, other.feature) and one.feature.shape == (300, DINO + CLIP)
    assert torch.equal(one.rgb, other.rgb) and torch.equal(one.xy, other.xy)


def test_several_heads_are_trained_composed_and_one_is_fused(scene):
    both = start(scene, config(), device="cpu")
    assert both._fused is None and "model.fields.feature.heads" in unsupported(both.model)
    alone = replace(scene, features=replace(scene.features, beside=()))
    assert start(alone, config(), device="cpu")._fused is not None


def test_heads_pass_through_a_window_as_they_do_without(scene):
    whole = PixelSource(scene, scene.train)
    one = PixelWindow(scene, scene.train, most=1 << 20)
    window = PixelWindow(scene, scene.train, most=one.bytes // one.slots * 3, every=2)
    assert window.slots == 3 and window.feature_width == DINO + CLIP
    for step in range(20):
        window.prepare(step)
        pixels = window.draw(torch.tensor([0, step]), 64)
        expected = whole._features_at(pixels.camera, pixels.xy)
        assert torch.equal(pixels.feature, expected)


@pytest.mark.parametrize("mode", ["exact", "reduced"])
def test_embeddings_are_compared_with_the_head_for_text(scene, tmp_path, mode):
    trainer = start(scene, config(), tmp_path / "run", "cpu")
    trainer.save()
    opened = raymarch.load(tmp_path / "run", "cpu")
    opened.model.config = replace(
        opened.model.config, reduced=replace(opened.model.config.reduced, feature_step=1)
    )
    camera = opened.camera("test", 0)
    texts = torch.randn(2, CLIP, generator=torch.Generator().manual_seed(2))
    frame = opened.render(camera, ("clip", "similarity"), mode, texts)
    assert set(frame) >= {"rgb", "clip", "similarity"} and "feature" not in frame
    expected = F.cosine_similarity(frame["clip"][:, :, None], texts, dim=-1)
    torch.testing.assert_close(frame["similarity"], expected, rtol=1e-3, atol=1e-4)
    cosine = opened.similarity(camera, texts[:1])
    if mode == "exact":
        torch.testing.assert_close(cosine, frame["similarity"][..., 0], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"expected \[K, 32\]"):
        opened.render(camera, ("similarity",), mode, torch.randn(2, DINO + CLIP))
