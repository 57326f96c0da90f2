"""Whole images: every pixel once, the same whatever the chunks, and close in the reduced mode."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raymarch.config import override, preset
from raymarch.data.synthetic import as_scene, feature_maps, make_scene
from raymarch.model import Model
from raymarch.model.baked import bake, bits, cell_centres, cell_lengths, proposal_density
from raymarch.model.canvas import tile_order
from raymarch.model.exact import density_in_one, final_samples
from raymarch.model.frames import FrameRenderer, OutOfMemory, Settings
from raymarch.model.in_flight import chunk_size
from raymarch.model.rays import generate
from raymarch.model.reduced import (
    ReducedConfig,
    composed,
    cosines,
    factors,
    filled_in,
    folded,
    networks_fit,
    pictures,
    render_rays,
)
from raymarch.model.sampler import Sampler
from raymarch.ops.sample import sample_pdf, sample_spaced
from raymarch.ops.weights import weights
from raymarch.train.evaluate import render_image
from raymarch.train.metrics import psnr
from raymarch.train.runs import start, subset
from raymarch.types import Cameras, Pixels, Samples

EVERYTHING = frozenset({"rgb", "depth", "opacity", "normals", "predicted_normals", "feature"})


@pytest.fixture(scope="module")
def scene():
    truth = make_scene(views=8, test_views=1, size=30, seed=0)
    return as_scene(truth, features=list(feature_maps(truth)))


def configured(steps=150):
    config = override(preset("tiny"), "model.fields.feature.width=32")
    config = override(config, "model.fields.radiance.predicted_normals=True")
    config = override(config, "train.trainer.rays=256")
    return override(config, f"train.trainer.steps={steps}")


@pytest.fixture(scope="module")
def trained(scene):
    """A model that has seen enough to have surfaces, on the CPU."""
    torch.manual_seed(0)
    trainer = start(scene, configured(), device=torch.device("cpu"))
    for _ in trainer.iterate(150):
        pass
    return trainer.model.eval()


@pytest.fixture
def model(trained, device):
    torch.manual_seed(0)
    fresh = Model(trained.config, trained.poses.cameras).to(device)
    fresh.load_state_dict(trained.state_dict())
    return fresh.eval()


@pytest.fixture
def cameras(scene, device):
    return subset(scene.cameras, scene.test, device)


def wide(cameras: Cameras, width: int, height: int) -> Cameras:
    """The same camera with an image that no tile divides."""
    size = torch.tensor([[width, height]], device=cameras.size.device)
    return replace(cameras, size=size)


@pytest.mark.parametrize("width, height", [(8, 4), (1, 1), (13, 9), (40, 3), (5, 33)])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_tiles_hold_every_pixel_once(width, height, step):
    order = tile_order(width, height, step)
    count = -(-width // step) * -(-height // step)
    assert sorted(order[order >= 0].tolist()) == list(range(count))
    assert len(order) % (32 // step**2) == 0


def test_pixels_of_a_tile_are_neighbours():
    order = tile_order(64, 64).view(-1, 32)
    x, y = order % 64, order // 64
    assert (x.amax(1) - x.amin(1) == 7).all() and (y.amax(1) - y.amin(1) == 3).all()


def row_by_row(model, cameras, heads):
    """A frame as the model alone renders it: all rays at once, in reading order."""
    width, height = cameras.size[0].tolist()
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xy = torch.stack([x, y], -1).view(-1, 2).float().to(cameras.size.device) + 0.5
    pixels = Pixels(torch.zeros(len(xy), dtype=torch.int64, device=xy.device), xy)
    with torch.no_grad():
        return model(pixels, cameras, heads=heads)


def test_exact_frames_are_the_models_own_whatever_the_chunks(model, cameras):
    cameras = wide(cameras, 29, 31)
    want = row_by_row(model, cameras, EVERYTHING)
    for chunk in (32, 100, None):
        frames = FrameRenderer(model, Settings(fused=False))
        got = frames.render(cameras, 0, EVERYTHING, chunk=chunk)
        for name in ("rgb", "opacity", "depth", "expected_depth", "normals", "predicted_normals"):
            image = getattr(want, name).view(got[name].shape)
            if cameras.size.is_cuda:
                torch.testing.assert_close(got[name], image, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(got[name], image), (name, chunk)
        torch.testing.assert_close(got["feature"].view(-1, 32), want.feature, rtol=1e-4, atol=1e-5)


def test_second_frame_of_another_view_is_its_own(model, scene, device):
    both = subset(scene.cameras, scene.train[:2], device)
    frames = FrameRenderer(model)
    kept = [frames.render(both, i)["rgb"] for i in (0, 1, 0)]
    assert torch.equal(kept[0], kept[2]) and not torch.equal(kept[0], kept[1])
    torch.testing.assert_close(kept[1], render_image(model, both, 1)["rgb"], rtol=1e-4, atol=1e-4)


def test_reduced_frames_are_close_to_exact_ones(model, cameras):
    exact = render_image(model, cameras, 0, EVERYTHING)
    close = render_image(model, cameras, 0, EVERYTHING, mode="reduced")
    assert exact.keys() == close.keys()
    assert all(exact[k].shape == close[k].shape for k in exact)
    assert psnr(close["rgb"], exact["rgb"]) > 35
    near = torch.nn.functional.cosine_similarity(close["feature"], exact["feature"], dim=-1)
    assert near.median() > 0.9  # a mist of an image, learnt in 150 steps
    assert ((close["depth"] / exact["depth"]).log().abs()).median() < 0.15
    torch.testing.assert_close(close["normals"].norm(dim=-1), exact["normals"].norm(dim=-1))


def test_features_come_closer_with_more_samples_and_pixels(model, cameras):
    exact = render_image(model, cameras, 0, EVERYTHING)["feature"]
    off = {}
    for step, kept in ((2, 4), (1, 4), (1, 32)):
        model.config = replace(model.config, reduced=ReducedConfig(feature_step=step, kept=kept))
        found = render_image(model, cameras, 0, frozenset({"rgb", "feature"}), mode="reduced")["feature"]
        off[step, kept] = float((found - exact).norm() / exact.norm())
    assert off[1, 32] < off[1, 4] < off[2, 4] and off[1, 32] < 0.3, off


def test_the_reduced_mode_sees_what_was_learnt_since(model, cameras):
    frames = FrameRenderer(model)
    before = frames.render(cameras, mode="reduced")["opacity"]
    with torch.no_grad():
        for field in (model.fields.radiance, *model.fields.proposals):
            field.mlp.weight(-1).mul_(-1)
    after = frames.render(cameras, mode="reduced")["opacity"]
    fresh = FrameRenderer(model).render(cameras, mode="reduced")["opacity"]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, fresh)


def test_similarity_is_the_cosine_of_the_features_it_never_forms(model, cameras):
    torch.manual_seed(3)
    texts = torch.randn(5, 32, device=cameras.size.device)
    found = FrameRenderer(model).render(
        cameras, 0, frozenset({"rgb", "feature", "similarity"}), embeddings=texts
    )
    want = torch.nn.functional.cosine_similarity(found["feature"][..., None, :], texts, dim=-1)
    torch.testing.assert_close(found["similarity"], want, rtol=1e-4, atol=1e-4)
    close = FrameRenderer(model).render(
        cameras, 0, frozenset({"rgb", "similarity"}), "reduced", embeddings=texts
    )
    assert (close["similarity"] - want).abs().median() < 0.05


def test_other_embeddings_in_the_same_memory_are_other_embeddings(model, cameras):
    """As when a caller's last embeddings were freed, and the next ones lie where they did."""
    room = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    kept = FrameRenderer(model)
    for _ in range(2):
        texts = torch.from_numpy(room)
        heads = frozenset({"rgb", "similarity"})
        got = kept.render(cameras, 0, heads, embeddings=texts)["similarity"]
        want = FrameRenderer(model).render(cameras, 0, heads, embeddings=texts)["similarity"]
        assert torch.equal(got, want)
        room[:] = room[::-1].copy()


def test_nearly_dependent_layers_keep_their_digits():
    torch.manual_seed(0)
    layer = torch.randn(40, 1).double() @ torch.ones(1, 8).double() + 1e-4 * torch.randn(40, 8).double()
    hidden, texts = torch.randn(50, 8), torch.randn(3, 40)
    want = torch.nn.functional.cosine_similarity((hidden.double() @ layer.T)[:, None], texts.double(), dim=-1)
    got = cosines(hidden, folded(factors(layer), texts))
    assert (got - want).abs().max() < 2e-3
    assert cosines(torch.zeros(2, 8), folded(factors(layer), texts)).abs().max() == 0


def test_filling_in_keeps_planes_and_does_not_blur_over_edges():
    low = torch.arange(6.0).view(1, 6, 1).expand(4, 6, 1)
    flat = torch.ones(8, 12)
    found = filled_in(low, flat[::2, ::2], flat, 2)[..., 0]
    torch.testing.assert_close(found[:, :11], (torch.arange(11) / 2).expand(8, -1))
    depth = torch.where(torch.arange(12) < 5, 1.0, 4.0).expand(8, 12)
    steps = torch.where(torch.arange(6) < 3, 0.0, 1.0).view(1, 6, 1).expand(4, 6, 1)
    found = filled_in(steps, depth[::2, ::2], depth, 2)[..., 0]
    torch.testing.assert_close(found, (depth > 2).float(), atol=0.01, rtol=0)


# ---- memory ----


def failing(monkeypatch, times):
    """Makes that many chunks run out of memory."""
    left, real = [times], FrameRenderer._chunk
    sizes = []

    def chunk(self, camera, canvas, numbers, mode, heads):
        sizes.append(len(numbers[0]))
        if left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, camera, canvas, numbers, mode, heads)

    monkeypatch.setattr(FrameRenderer, "_chunk", chunk)
    return sizes


def test_a_frame_that_ran_out_of_memory_is_tried_with_fewer_rays(model, cameras, monkeypatch):
    want = render_image(model, cameras, 0)["rgb"]
    sizes = failing(monkeypatch, 1)
    got = render_image(model, cameras, 0, chunk=512)["rgb"]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert sizes[1] <= sizes[0] // 2


def test_twice_out_of_memory_names_what_to_lower(model, cameras, monkeypatch):
    failing(monkeypatch, 2)
    with pytest.raises(
        OutOfMemory, match=r"neither 512 nor 128 rays .* lower model\.sampler\.samples"
    ) as error:
        render_image(model, cameras, 0, chunk=512)
    assert "\n" not in str(error.value)


def test_chunks_follow_the_memory_allowed(model):
    cuda = torch.device("cuda")
    if not torch.cuda.is_available():
        assert chunk_size(model, EVERYTHING, "exact", torch.device("cpu")) == 1 << 14
        return
    small, large = (chunk_size(model, EVERYTHING, "exact", cuda, gb) for gb in (0.2, 2.0))
    assert small < large


@pytest.mark.parametrize(
    "words, arguments",
    [
        ("mode is 'fast', expected one of exact, reduced", {"mode": "fast"}),
        ("similarity needs embeddings", {"heads": frozenset({"similarity"})}),
    ],
)
def test_unknown_modes_and_missing_embeddings_are_refused(model, cameras, words, arguments):
    with pytest.raises(ValueError, match=words):
        FrameRenderer(model).render(cameras, 0, **arguments)


# ---- the baked grid, and stages in one ----


def test_a_baked_cell_holds_the_proposals_density(model):
    baked = bake(model.fields, 16, 0.0)
    y = cell_centres(16, 0, 16**3, baked.density.device)
    want = proposal_density(model.fields, y).view(16, 16, 16)
    mean = torch.nn.functional.avg_pool3d(want[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    torch.testing.assert_close(baked.density.float(), (want + mean) / 2, rtol=2e-3, atol=1e-3)
    assert baked.occupied is None


def test_an_occupied_cell_has_its_bit(model):
    baked = bake(model.fields, 16, 1e-2)
    y = cell_centres(16, 0, 16**3, baked.density.device)
    thick = proposal_density(model.fields, y) * cell_lengths(y, 16, "linf") > 1e-2
    byte = baked.occupied.long()[torch.arange(16**3, device=y.device) // 8]
    found = byte >> (torch.arange(16**3, device=y.device) % 8) & 1
    assert (found[thick] == 1).all() and thick.any()
    assert torch.equal(bits(found.bool()), baked.occupied)


def test_cells_are_longer_far_away():
    y = torch.tensor([[0.5, 0.5, 0.5], [0.74, 0.5, 0.5], [0.95, 0.5, 0.5]])
    length = cell_lengths(y, 64, "linf")
    torch.testing.assert_close(length[:2], torch.full((2,), 4 / 64))
    torch.testing.assert_close(length[2], torch.tensor(4 / 64 * 25.0), rtol=1e-3, atol=0)


def some_rays(model, cameras, count=200):
    torch.manual_seed(1)
    xy = torch.rand(count, 2, device=cameras.size.device) * cameras.size[0]
    pixels = Pixels(torch.zeros(count, dtype=torch.int64, device=xy.device), xy)
    return generate(pixels, cameras, None, model.config.rays, False)


@pytest.fixture
def large(device):
    """A model of nerfacto's networks with something to see."""
    config = override(preset("nerfacto"), "model.fields.radiance.grid.log2_size=12")
    config = override(config, "model.fields.radiance.average_init_density=3.0")
    torch.manual_seed(0)
    model = Model(config.model, 4).to(device).eval()
    with torch.no_grad():
        for p in model.fields.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("background", ["last_sample", "white", "black"])
@torch.no_grad()
def test_pictures_in_one_are_those_of_the_stages(large, cameras, background):
    large.renderer.config = replace(large.renderer.config, background=background)
    large.config = replace(large.config, renderer=large.renderer.config)
    assert networks_fit(large.fields.radiance)
    rays = some_rays(large, cameras)
    samples, _ = large.sampler(rays, list(large.fields.proposals))
    got, want = pictures(large, rays, samples.t, True), composed(large, rays, samples.t)
    exact = not rays.origins.is_cuda
    for name in ("rgb", "opacity", "expected_depth", "weights"):
        a, b = getattr(got, name), getattr(want, name)
        torch.testing.assert_close(a, b, rtol=1e-4 if exact else 2e-2, atol=1e-5 if exact else 4e-3)
    assert (got.depth == want.depth).float().mean() > (0.99 if exact else 0.9)


@torch.no_grad()
def test_densities_in_one_are_those_of_the_stages(large, cameras):
    rays = some_rays(large, cameras)
    samples = Samples(*sample_spaced(rays.near, rays.far, 40))
    for field in large.fields.proposals:
        tolerance = 1e-4 if not rays.origins.is_cuda else 1e-2  # the stages round to TF32 there
        torch.testing.assert_close(
            density_in_one(field)(rays.origins, rays.directions, samples.t),
            field(rays, samples),
            rtol=tolerance,
            atol=tolerance,
        )


@torch.no_grad()
def test_stopping_early_changes_colours_within_the_bound(large, cameras):
    rays = some_rays(large, cameras)
    samples, _ = large.sampler(rays, list(large.fields.proposals))
    want = pictures(large, rays, samples.t, False)
    for stop in (2.0, 6.9):
        got = pictures(large, rays, samples.t, False, stop=stop)
        off = (got.rgb - want.rgb).abs().max()
        assert off <= torch.exp(torch.tensor(-stop)) + 1e-3
        assert (want.opacity - got.opacity).max() <= torch.exp(torch.tensor(-stop)) + 1e-3
    assert not torch.equal(pictures(large, rays, samples.t, False, stop=2.0).rgb, want.rgb)


@torch.no_grad()
def test_light_samples_without_colour_stay_within_the_bound(large, cameras):
    rays = some_rays(large, cameras)
    samples, _ = large.sampler(rays, list(large.fields.proposals))
    want = pictures(large, rays, samples.t, False)
    got = pictures(large, rays, samples.t, False, least=1e-3)
    assert (got.rgb - want.rgb).abs().max() <= 48 * 1e-3 + 1e-5
    assert torch.equal(got.opacity, want.opacity)


@torch.no_grad()
def test_a_march_is_a_proposal_level_on_the_grid(model, cameras):
    """The reduced samples are those of the sampler whose only proposal is a lookup in the grid."""
    baked = bake(model.fields, 32, 0.0)
    rays = some_rays(model, cameras)
    config = replace(model.config.reduced, steps=64, samples=10, stop=1e9)
    model.config = replace(model.config, reduced=config)
    s, t = sample_spaced(rays.near, rays.far, 64)
    from raymarch.ops.march import march
    from raymarch.ops.sample import sample_unit_positions

    y = sample_unit_positions(rays.origins, rays.directions, t)
    cell = (y * 32).long().clamp_max(31)
    sigma = baked.density.float()[cell[..., 2], cell[..., 1], cell[..., 0]] * (y > 0).any(-1)
    w = weights(sigma, t.diff())
    _, want = sample_pdf(s, w, rays.near, rays.far, 10, padding=0.01)
    lines = (rays.origins, rays.directions, rays.near, rays.far)
    got = march(*lines, baked.density, 10, 64, padding=0.01, stop=1e9)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    found = render_rays(model, rays, baked, frozenset({"rgb"}))
    assert found["rgb"].shape == (200, 3) and isinstance(model.sampler, Sampler)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_frames_are_those_without_a_graph(model, scene):
    cameras = wide(subset(scene.cameras, scene.train[:2], torch.device("cuda")), 30, 30)
    cameras = replace(cameras, size=cameras.size.expand(2, -1).contiguous())
    for mode in ("exact", "reduced"):
        heads = frozenset({"rgb", "depth", "normals", "feature"})
        with_graph, without = FrameRenderer(model), FrameRenderer(model, Settings(graph=False))
        for camera in (0, 1):
            for chunk in (128, 1 << 14):
                got = with_graph.render(cameras, camera, heads, mode, chunk=chunk)
                junk = [torch.full((4**k,), 1 << 40, device="cuda") for k in range(12)]  # over what is free
                again = with_graph.render(cameras, camera, heads, mode, chunk=chunk)
                assert all(torch.equal(got[name], again[name]) for name in got) and junk
                want = without.render(cameras, camera, heads, mode, chunk=chunk)
                for name in want:
                    torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_features_that_do_not_fit_are_returned_on_the_host(model, cameras):
    cameras = cameras if cameras.size.is_cuda else Cameras(*(x.cuda() for x in vars(cameras).values()))
    model = model.cuda()
    heads = frozenset({"rgb", "feature"})
    want = FrameRenderer(model).render(cameras, 0, heads)["feature"]
    got = FrameRenderer(model, Settings(max_gb=1e-4)).render(cameras, 0, heads)["feature"]
    assert want.is_cuda and not got.is_cuda
    torch.testing.assert_close(got, want.cpu(), rtol=1e-4, atol=1e-4)


def test_samples_of_exact_frames_are_the_samplers(trained, scene):
    cameras = subset(scene.cameras, scene.test, torch.device("cpu"))
    xy = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 30
    pixels = Pixels(torch.zeros(len(xy), dtype=torch.int64), xy)
    with torch.no_grad():
        rays = generate(pixels, cameras, None, trained.config.rays, False)
        found = final_samples(trained, rays)
        wanted, _ = trained.sampler(rays, list(trained.fields.proposals))
    assert density_in_one(trained.fields.proposals[0]) is not None, "nothing is compared otherwise"
    torch.testing.assert_close(found.s, wanted.s, rtol=0, atol=2e-4)
    torch.testing.assert_close(found.t, wanted.t, rtol=2e-3, atol=2e-3)


def test_rays_in_flight_are_asked_for_once(trained, monkeypatch):
    asked = []
    monkeypatch.setattr("raymarch.model.frames.chunk_size", lambda *a: asked.append(a) or 512)
    frames, cpu = FrameRenderer(trained), torch.device("cpu")
    heads = frozenset({"rgb"})
    assert [frames._in_flight(heads, "exact", cpu) for _ in range(3)] == [512] * 3 and len(asked) == 1
    frames._in_flight(heads, "reduced", cpu)
    frames.forget()
    frames._in_flight(heads, "exact", cpu)
    assert len(asked) == 3
