"""Fused stages against the composed pipeline: the same losses, gradients and random numbers."""

import math
from dataclasses import replace

import pytest
import torch

from bench.running import backend
from raymarch.config import override, preset
from raymarch.data.pixels import PixelSource
from raymarch.data.synthetic import as_scene, feature_maps, make_scene
from raymarch.model import Model
from raymarch.model.fused import FusedPipeline, unsupported
from raymarch.ops.field_to_pixels import LossRoom, advance, loss_room, sum_losses
from raymarch.train.guard import _copy, _put
from raymarch.train.runs import fitted, start

NORMALS = "model.fields.radiance.predicted_normals=true"
WIDE = ("model.fields.feature.width=32",)
PRECONDITION = "model.poses.precondition=true"
CASES = {
    "rgb only": (),
    "rgb and features": WIDE,
    "rgb, features and normals": (*WIDE, NORMALS),
    "rgb and normals": (NORMALS,),
    "normals in contracted space": (NORMALS, "model.fields.radiance.normals_space=contracted"),
    "appearance": ("model.fields.radiance.appearance=8", *WIDE),
    "appearance, every code its own": (
        "model.fields.radiance.appearance=8", "model.fields.radiance.appearance_dropout=0.0", *WIDE,
    ),
    "appearance of no camera": (
        "model.fields.radiance.appearance=8", "model.fields.radiance.eval_appearance=zero", *WIDE,
    ),
    "two proposals": ("two",),
    "no proposal": ("none", *WIDE),
    "poses off": ("model.poses.mode=off", NORMALS, *WIDE),
    "poses of SE3 in the camera": (
        "model.poses.mode=SE3", "model.poses.compose=camera", "model.poses.gauge=free",
    ),
    "frozen cameras": ("model.poses.frozen=0,2", "model.poses.gauge=free"),
    "no penalty": ("model.poses.translation_penalty=0.0", "model.poses.rotation_penalty=0.0"),
    "features move poses": ("model.fields.feature.detach_positions=false", *WIDE),
    "features of waves alone": ("model.fields.feature.encoding=pe", *WIDE),
    "waves alone move poses": (
        "model.fields.feature.encoding=pe", "model.fields.feature.detach_positions=false", *WIDE,
    ),
    "features of the grid alone": ("model.fields.feature.encoding=grid", *WIDE),
    "features leave density alone": ("model.fields.feature.detach_weights=true", *WIDE),
    "not calmed": ("model.losses.gradient_scaling=false",),
    "black": ("model.renderer.background=black",),
    "white": ("model.renderer.background=white",),
    "random": ("model.renderer.background=random",),
    "poses without proposals": ("model.poses.through_proposals=false", *WIDE),
    "poses without directions": ("model.poses.through_directions=false", *WIDE),
    "poses without directions of colour": ("model.poses.through_directions=false", NORMALS),
    "preconditioned poses": (PRECONDITION, *WIDE),
    "preconditioned, frozen, SE3": (
        PRECONDITION, "model.poses.mode=SE3", "model.poses.frozen=0,2", "model.poses.gauge=free",
    ),
    "no common motion": (PRECONDITION, "model.poses.gauge=similarity", "model.poses.compose=camera"),
    "a box": ("model.rays.box=-1.0,-1.0,-1.0,1.0,1.0,1.0",),
    "a ball": ("model.fields.norm=l2",),
    "every edge jittered": ("model.sampler.jitter=each", "model.sampler.spacing=uniform",
                             "model.rays.far=6.0"),
    "an older lens": ("model.rays.tangential=nerfstudio_0.3",),
    "lenses": ("model.intrinsics.refine=focal+centre+distortion+p1",),
    "lenses, each camera's own, and normals": (
        "model.intrinsics.refine=focal+k1", "model.intrinsics.share=none", NORMALS, *WIDE,
    ),
    "lenses without poses": ("model.intrinsics.refine=focal+k1", "model.poses.mode=off", NORMALS, *WIDE),
    "older lenses": ("model.intrinsics.refine=focal+p1+p2", "model.rays.tangential=nerfstudio_0.3"),
}  # fmt: skip


def scene(alpha: bool = False):
    truth = make_scene(views=5, test_views=1, size=20, seed=0)
    images = truth.images
    if alpha:
        images = [torch.cat([x, (255 * torch.rand(*x.shape[:2], 1)).to(torch.uint8)], -1) for x in images]
    return as_scene(truth, features=list(feature_maps(truth)), images=images)


def config(*settings: str):
    found = preset("tiny")
    for setting in ("mode=SO3xR3", "through_proposals=true", "precondition=false"):
        found = override(found, f"model.poses.{setting}")
    for setting in settings:
        if "=" in setting:
            found = override(found, setting)
    fields = found.model.fields
    if "two" in settings:
        fields = replace(fields, proposals=fields.proposals * 2)
        found = replace(
            found, model=replace(found.model, sampler=replace(found.model.sampler, samples=(33, 17, 9)))
        )
    if "none" in settings:
        fields = replace(fields, proposals=())
        found = replace(
            found, model=replace(found.model, sampler=replace(found.model.sampler, samples=(19,)))
        )
    return replace(found, model=replace(found.model, fields=fields))


def both(settings, rays: int, device: torch.device, alpha: bool = False, update: bool = True):
    """Terms and gradients by name, composed and fused."""
    there = scene(alpha)
    wanted = (
        fitted(config(*settings), there) if any("feature.width" in s for s in settings) else config(*settings)
    )
    source = PixelSource(there, there.train, device)
    torch.manual_seed(0)
    model = Model(wanted.model, len(there.train)).to(device).train()
    model.poses.precondition(source.cameras)
    model.intrinsics.measure(source.cameras)
    with torch.no_grad():
        if model.intrinsics.numbers is not None:
            model.intrinsics.numbers.uniform_(-0.05, 0.05)
        for grid in (p.grid for p in model.fields.proposals):
            grid.table.uniform_(-1, 1)  # empty space would leave most gradients at zero
        model.fields.radiance.grid.table.uniform_(-1, 1)
        if model.poses.adjustment is not None:
            model.poses.adjustment.uniform_(-0.1, 0.1)
    counter = torch.tensor([7, 3], device=device)
    anneal = torch.tensor([0.6], device=device)
    pixels = source.draw(counter, rays)
    names = {p: n for n, p in model.named_parameters()}

    rendering = model(
        pixels, source.cameras, train=True, counter=counter, anneal=anneal, update_proposals=update
    )
    terms = model.losses(rendering, pixels, counter)
    torch.stack(list(terms.values())).sum().backward()
    composed = {names[p]: p.grad for p in names if p.grad is not None}

    pipeline = FusedPipeline(model, source.cameras)
    seen, weighing, penalty, found = pipeline.rays_to_pixels(pixels, counter, anneal, update)
    fused_terms = torch.zeros(len(weighing.names), device=device)
    healthy = torch.ones(1, dtype=torch.bool, device=device)
    steps = torch.zeros(2, dtype=torch.int64, device=device)
    room = loss_room(weighing.scales)
    mask = torch.tensor([1, 0], device=device)
    weights = (weighing.scales, weighing.owner, penalty, room)
    sum_losses(seen.losses, *weights, fused_terms, healthy, steps, mask)
    assert bool(healthy) and steps.tolist() == [1, 0]
    fused = {names[p]: g for p, g in found.of.items()}
    return terms, dict(zip(weighing.names, fused_terms, strict=True)), composed, fused


def assert_same(settings, rays, device, alpha=False, update=True):
    terms, fused_terms, composed, fused = both(settings, rays, device, alpha, update)
    assert list(terms) == list(fused_terms)
    loose = 1 if backend(device) == "cpu" else 20  # the feature layer multiplies in TF32
    for name, value in terms.items():
        torch.testing.assert_close(fused_terms[name], value, rtol=1e-4 * loose, atol=1e-7)
    assert {n for n, g in composed.items() if g.abs().max() > 0} <= set(fused)
    for name, gradient in fused.items():
        want = composed.get(name, torch.zeros_like(gradient))
        assert gradient.shape == want.shape
        assert float((gradient - want).norm()) < loose * (2e-4 * float(want.norm()) + 1e-6), name


@pytest.mark.parametrize("case", CASES)
def test_fused_stages_equal_the_composed_pipeline(case, device):
    assert_same(CASES[case], 37, device)


@pytest.mark.parametrize("case", ["appearance", "rgb, features and normals"])
def test_they_do_where_sums_may_have_any_order(case, device):
    torch.use_deterministic_algorithms(
        False
    )  # other kernels on CUDA; the fixture turns it off afterwards, too
    assert_same(CASES[case], 129, device)


@pytest.mark.parametrize("rays", [1, 2, 129])
@pytest.mark.parametrize("case", ["rgb only", "rgb, features and normals"])
def test_they_do_for_odd_numbers_of_rays(case, rays, device):
    assert_same(CASES[case], rays, device)


@pytest.mark.parametrize("case", ["last_sample", "black", "white", "random"])
def test_they_do_where_truth_has_an_alpha(case, device):
    assert_same((f"model.renderer.background={case}",), 37, device, alpha=True)


def test_they_do_where_proposals_do_not_learn(device):
    assert_same((*WIDE, NORMALS), 37, device, update=False)


def test_no_rays_have_gradients_of_zero(device):
    there = scene()
    wanted = fitted(config(*WIDE, NORMALS), there)
    source = PixelSource(there, there.train, device)
    model = Model(wanted.model, len(there.train)).to(device).train()
    counter = torch.tensor([7, 3], device=device)
    pipeline = FusedPipeline(model, source.cameras)
    seen, _, _, found = pipeline.rays_to_pixels(source.draw(counter, 0), counter, None)
    assert seen.w.shape[0] == 0
    for parameter, gradient in found.of.items():
        if parameter is not model.poses.adjustment:  # which its penalty moves
            assert float(gradient.abs().max()) == 0


def test_samples_are_the_composed_ones_bit_for_bit(device):
    there = scene()
    wanted = config()
    source = PixelSource(there, there.train, device)
    model = Model(wanted.model, len(there.train)).to(device).train()
    counter = torch.tensor([7, 3], device=device)
    pixels = source.draw(counter, 64)
    anneal = torch.tensor([0.5], device=device)
    with torch.no_grad():
        rendering = model(pixels, source.cameras, train=True, counter=counter, anneal=anneal)
        rays = FusedPipeline(model, source.cameras).rays_to_samples(pixels, counter, anneal)
    assert rendering.rays is not None and rendering.samples is not None
    first = rendering.proposals[0].samples
    assert torch.equal(first.s, rays.levels[0].s)
    torch.testing.assert_close(rays.origins, rendering.rays.origins, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rays.last.s, rendering.samples.s, rtol=1e-5, atol=1e-6)


def test_what_fused_stages_cannot_do_is_trained_composed():
    there = scene()
    depth = start(there, config("model.losses.depth=0.001"), device="cpu")
    assert unsupported(depth.model) is not None and depth._fused is None
    with pytest.raises(ValueError, match=r"model\.losses\.depth.*train\.trainer\.fused=false"):
        FusedPipeline(depth.model, depth.source.cameras)
    assert start(there, config("train.trainer.fused=false"), device="cpu")._fused is None
    assert start(there, config(), device="cpu")._fused is not None


@pytest.mark.parametrize(
    "options",
    [
        ("model.poses.outlier_factor=4.0",),
        ("model.poses.coarse_resolution=16.0", "model.poses.coarse_until=100"),
        ("model.poses.smooth_slope=true",),
        ("model.renderer.feature_path=per_sample", *WIDE),
    ],
)
def test_every_option_that_only_the_composed_pipeline_knows_falls_back_to_it(options):
    there = scene()
    trainer = start(there, fitted(config(*options), there), device="cpu")
    assert trainer._fused is None
    name = options[0].split("=")[0].rpartition(".")[2]
    assert name in unsupported(trainer.model)


@pytest.mark.parametrize("fused", ["true", "false"])
def test_braked_poses_stay_where_they_are(fused):
    there = scene()
    steps = ("train.trainer.steps=20", "train.trainer.rays=128", "train.optim.poses.warmup=0")
    options = (*steps, f"train.trainer.fused={fused}", "train.trainer.guard_at=15")
    trainer = start(there, config(*options), device="cpu")
    assert (trainer._fused is not None) == (fused == "true")
    for _ in trainer.iterate(5):
        pass
    before = trainer.model.poses.adjustment.detach().clone()
    assert float(before.abs().max()) > 0
    trainer.brake.zero_()
    for _ in trainer.iterate(10):
        pass
    assert torch.equal(trainer.model.poses.adjustment, before)


@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_trainer_put_back_takes_the_same_steps_again(fused):
    """Schedules are looked up a step ahead in fused stages; putting a state back must look them up again."""
    there = scene()
    options = ("train.trainer.steps=40", "train.trainer.rays=128", f"train.trainer.fused={fused}")
    trainer = start(there, config(*options), device="cpu")
    for _ in trainer.iterate(10):
        pass
    kept = _copy(trainer)
    for _ in trainer.iterate(30):
        pass
    first = _copy(trainer)
    _put(trainer, kept, 10)
    for _ in trainer.iterate(30):
        pass
    for name, value in _copy(trainer).items():
        assert torch.equal(value, first[name]), name


def test_training_fused_is_training_composed(device):
    """Not bit for bit: sums have other orders, and Adam makes full steps of the smallest differences."""
    there = scene()
    ends = []
    for fused in ("true", "false"):
        steps = ("train.trainer.steps=60", "train.trainer.rays=256", f"train.trainer.fused={fused}")
        trainer = start(there, fitted(config(*WIDE, *steps), there), device=device)
        losses = [progress.losses["rgb"] for progress in trainer.iterate()]
        ends.append(losses)
    assert ends[0][-1] < 0.5 * ends[0][0]
    assert abs(ends[0][-1] - ends[1][-1]) < 0.1 * ends[1][0]
    assert ends[0][0] == pytest.approx(ends[1][0], rel=0.02)


def test_a_loss_that_is_not_finite_stops_the_counts(device):
    rows = torch.ones(3, 40, device=device)
    rows[1, 7] = float("inf")
    scales = torch.tensor([1.0, 1.0, 0.5], device=device)
    terms = torch.zeros(2, device=device)
    healthy = torch.ones(1, dtype=torch.bool, device=device)
    steps = torch.zeros(1, dtype=torch.int64, device=device)
    room: LossRoom = loss_room(scales)
    mask = torch.ones(1, dtype=torch.int64, device=device)
    owner = torch.tensor([0, 1, 0], device=device)
    for _ in range(2):
        sum_losses(rows, scales, owner, None, room, terms, healthy, steps, mask)
        assert float(terms[0]) == 60.0 and float(terms[1]) == float("inf")
        assert not bool(healthy) and steps.tolist() == [0]
    counter = torch.tensor([3, 4], device=device)
    schedules = torch.arange(12.0, device=device).view(6, 2)
    row = torch.zeros(2, device=device)
    advance(counter, healthy, schedules, row)
    assert counter.tolist() == [3, 4] and row.tolist() == [8.0, 9.0]
    advance(counter, ~healthy, schedules, row)
    assert counter.tolist() == [3, 5] and row.tolist() == [10.0, 11.0]
    advance(counter, ~healthy, schedules, row)
    assert counter.tolist() == [3, 6] and row.tolist() == [10.0, 11.0]  # the last row holds on


def test_filled_halves_say_what_floats_say(device):
    from raymarch.ops.samples_to_field import radiance_inputs_backward, radiance_inputs_forward

    h, y = torch.randn(20, 6, device=device), torch.rand(20, 3, device=device)
    directions = torch.nn.functional.normalize(torch.randn(4, 3, device=device), dim=-1)
    codes, camera = torch.randn(3, 2, device=device), torch.tensor([0, 2, 2, 1], device=device)
    known = (h, y, 0.1, directions, 0, camera)
    plain_sigma, plain = radiance_inputs_forward(*known, codes, False)
    sigma, x = radiance_inputs_forward(*known, codes, True)
    assert plain.shape == (20, 23) and x.shape == (20, 32) and x.dtype == torch.float16
    assert torch.equal(x[:, :23], plain.half()) and torch.equal(sigma, plain_sigma)
    assert bool((x[:, 23:] == 1).all())
    grad = torch.randn(20, 32, device=device)
    grad_sigma = torch.randn(20, device=device)
    narrow = grad[:, :23].contiguous()
    want = radiance_inputs_backward(*known, 2, grad_sigma, narrow, None, 0, None)
    got = radiance_inputs_backward(*known, 2, grad_sigma, grad, None, 0, None)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dense, seen", [(float("inf"), 0.1), (1e38, 0.1 + 0.2)])
def test_an_interval_that_rounding_turned_round_weighs_nothing_however_dense(device, dense, seen):
    """Its end a last place before its beginning, times infinity, would weigh minus infinity. Infinity times
    no length is no number, behind which nothing is seen (math/transmittance.h)."""
    from raymarch.ops.field_to_pixels import field_to_pixels_forward, pixel_losses

    below = torch.nextafter(torch.tensor(2.0), torch.tensor(0.0)).item()
    t = torch.tensor([[1.0, 2.0, below, 3.0]], device=device)
    s = torch.tensor([[0.0, 0.4, 0.4, 1.0]], device=device)
    sigma = torch.tensor([[0.1, dense, 0.2]], device=device)
    rgb, truth = torch.full((1, 3, 3), 0.5, device=device), torch.zeros(1, 3, device=device)
    w, colour, opacity, _, losses = field_to_pixels_forward(
        sigma, s, t, rgb, None, None, None, None, truth, None, [], [], 0, 0
    )
    assert w[0, 1] == 0 and colour.isfinite().all() and opacity.isfinite().all() and losses.isfinite().all()
    assert float(opacity) == pytest.approx(1 - math.exp(-seen))

    leaf = sigma.clone().requires_grad_()
    losses, _ = pixel_losses(leaf, s, t, rgb, truth, background="black")
    losses.sum().backward()
    assert leaf.grad.isfinite().all() and leaf.grad[0, 1] == 0


def test_gradients_of_every_head_but_features_are_calmed_near_the_camera(device):
    """By clamp(mid^2, 0, 1), those of predicted normals too, in the fused stage and in the composed one."""
    from raymarch.model import calmed
    from raymarch.ops.field_to_pixels import pixel_losses
    from raymarch.types import Field, Samples

    torch.manual_seed(0)
    t = torch.tensor([[0.05, 0.15, 0.35, 1.0, 3.0]], device=device)
    s, truth = t / 3, torch.rand(1, 3, device=device)
    directions = torch.nn.functional.normalize(torch.randn(1, 3, device=device), dim=-1)
    normals = torch.nn.functional.normalize(torch.randn(1, 4, 3, device=device), dim=-1)

    def gradients(calm):
        torch.manual_seed(1)
        leaves = [torch.rand(1, 4), torch.rand(1, 4, 3), torch.randn(1, 4, 3), torch.rand(1, 4, 5)]
        sigma, rgb, predicted, hidden = (x.to(device).requires_grad_() for x in leaves)
        losses, summed = pixel_losses(
            sigma, s, t, rgb, truth, hidden, normals, predicted, directions, background="black", calm=calm
        )
        return torch.autograd.grad(losses.sum() + summed.square().sum(), (sigma, rgb, predicted, hidden))

    factor = torch.tensor([0.01, 0.0625, 0.455625, 1.0], device=device)
    calm, plain = gradients(True), gradients(False)
    for got, raw in zip(calm[:3], plain[:3], strict=True):
        assert raw.abs().sum((0, *range(2, raw.dim()))).min() > 0
        torch.testing.assert_close(got, raw * factor.view(1, 4, *[1] * (raw.dim() - 2)))
    assert torch.equal(calm[3], plain[3])

    leaves = [torch.rand(*x, device=device, requires_grad=True) for x in ((1, 4), (1, 4, 3), (1, 4, 3))]
    field = calmed(Field(leaves[0], leaves[1], None, leaves[2], None, None), Samples(s, t))
    for leaf, passed in zip(leaves, (field.density, field.rgb, field.predicted_normals), strict=True):
        (found,) = torch.autograd.grad(passed.sum(), leaf)
        torch.testing.assert_close(found, factor.view(1, 4, *[1] * (leaf.dim() - 2)).expand_as(leaf))


def test_halves_hold_what_is_too_large_for_them_as_their_largest_number(device):
    """An infinite input would make NaN of the next network; what is no number stays none."""
    from raymarch.ops.samples_to_field import normal_inputs_forward, radiance_inputs_forward

    h = torch.tensor([[0.0, 1e6, -1e6, float("inf"), float("nan")]], device=device)
    y, directions = torch.rand(1, 3, device=device), torch.tensor([[0.0, 0.6, 0.8]], device=device)
    want = torch.tensor([65504.0, -65504, 65504, float("nan")], device=device)
    _, x = radiance_inputs_forward(h, y, 0.1, directions, 0, None, None, True)
    assert torch.equal(x[0, 16:20].float().nan_to_num(1), want.nan_to_num(1))
    t = torch.tensor([[1.0, 2.0]], device=device)
    x = normal_inputs_forward(torch.zeros_like(directions), directions, t, h, 2, 0, True)
    assert torch.equal(x[0, 12:16].float().nan_to_num(1), want.nan_to_num(1))


@pytest.mark.parametrize("fused", ["true", "false"])
def test_poses_move_in_every_third_step(fused):
    """In the others they keep their numbers and their count of steps."""
    there = scene()
    steps = ("train.trainer.steps=20", "train.trainer.rays=128", "train.trainer.poses_every=3")
    options = (
        *steps,
        "train.optim.poses.warmup=0",
        "train.optim.poses.delay=0",
        f"train.trainer.fused={fused}",
    )
    trainer = start(there, config(*options, "model.poses.translation_penalty=0.1"), device="cpu")
    seen = []
    for step in range(1, 8):
        for _ in trainer.iterate(step):
            pass
        seen.append((trainer.model.poses.adjustment.detach().clone(), int(trainer.optim.steps["poses"])))
    assert [count for _, count in seen] == [1, 1, 1, 2, 2, 2, 3]
    for k in (1, 2, 4, 5):
        assert torch.equal(seen[k][0], seen[k - 1][0])
    for k in (3, 6):
        assert not torch.equal(seen[k][0], seen[k - 1][0])
    assert int(trainer.optim.steps["fields"]) == 7
