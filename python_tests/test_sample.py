"""Samples along rays: spacings, inverse transform sampling, midpoints; the numbers of peers and odd input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from raymarch.ops.contract import contract_unit
from raymarch.ops.sample import (
    JITTERS,
    SPACINGS,
    positions,
    s_from_t,
    sample_pdf,
    sample_spaced,
    sample_unit_positions,
    t_from_s,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


def golden(name):
    if not (GOLDEN / name).exists():
        pytest.skip("../shared/golden is absent")
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / name).items()}


def close(got, want, rtol=1e-5, atol=1e-6):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert_close(got.detach().cpu().double(), want, rtol=rtol, atol=atol)


def planes(device, near=0.05, far=1000.0, rays=1):
    return torch.full((rays,), near, device=device), torch.full((rays,), far, device=device)


def counter(device, seed=7, step=11):
    return torch.tensor([seed, step], device=device)


KNOWN = {  # O24 - O27
    "uniform": [0.05, 250.0375, 500.0250, 750.0125, 1000],
    "linear-disparity": [0.05, 0.0666656, 0.0999950, 0.199970, 999.9999],
    "sqrt": [0.05, 65.17978, 253.5480, 565.1548, 999.9999],
    "log": [0.05, 0.594604, 7.071068, 84.08968, 1000],
    "piecewise": [0.05, 0.537250, 1.025115, 2.048131, 1000],
}


@pytest.mark.parametrize("spacing", SPACINGS)
def test_known_edges(device, spacing):
    s, t = sample_spaced(*planes(device), 4, spacing)
    close(s, [[0, 0.25, 0.5, 0.75, 1]])
    close(t, [KNOWN[spacing]], rtol=1e-4)
    close(t[:, :4], [KNOWN[spacing][:4]], rtol=1e-5)


def test_known_edges_from_the_eye_on(device):  # O27
    close(
        sample_spaced(*planes(device, near=0.0), 4)[1], [[0, 0.499750, 0.999500, 1.997004, 1000]], rtol=1e-4
    )


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_near_of_zero_is_finite(device, spacing):
    s, t = sample_spaced(*planes(device, near=0.0), 16, spacing)
    assert t.isfinite().all() and (t.diff() > 0).all()
    assert t[0, 0] <= 1.01e-6 and abs(t[0, -1] / 1000 - 1) < 1e-4
    s, t = sample_pdf(s, torch.ones(1, 16, device=device), *planes(device, near=0.0), 8, spacing)
    assert t.isfinite().all() and (t.diff() > 0).all()


def edges_of(jitter, n):
    """The stratified edges of the reference, all offsets being the same."""
    b = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    middle = (b[1:] + b[:-1]) / 2
    low, high = torch.cat([b[:1], middle]), torch.cat([middle, b[-1:]])
    return low + (high - low) * jitter


def test_stratified_edges(
    device,
):  # O28, O29: their offset is 1/4; ours comes from the counter, so read it back
    close(edges_of(0.25, 4), [0.03125, 0.1875, 0.4375, 0.6875, 0.90625])
    near, far = planes(device, rays=50)
    s, t = sample_spaced(near, far, 4, "piecewise", "single", counter(device))
    offset = s[:, :1].double().cpu() * 8
    assert ((offset >= 0) & (offset < 1)).all() and offset.std() > 0.2
    close(s, torch.cat([edges_of(o, 4)[None] for o in offset]))
    close(t, t_from_s(s.double().cpu(), near.double().cpu(), far.double().cpu()), rtol=1e-4)


def test_known_stratified_distances():  # O28, O29; in double, so on the CPU
    device = torch.device("cpu")
    s = edges_of(0.25, 4)[None].to(device)
    want = [[0.110906, 0.415437, 0.902687, 1.639176, 5.443101]]
    close(t_from_s(s, *(x.double() for x in planes(device)), "piecewise"), want)
    close(
        t_from_s(s, *(x.double() for x in planes(device, 2.0, 6.0)), "uniform"),
        [[2.125, 2.75, 3.75, 4.75, 5.625]],
    )


def test_far_distances_are_exact(device):
    """Where the reference loses digits to 1 - g (999.953 for 1000)."""
    _, t = sample_spaced(*planes(device), 4)
    close(t[:, -1], [1000.0], rtol=3e-7)
    close(sample_spaced(*planes(device, far=1e6), 4)[1][:, -1], [1e6], rtol=3e-7)


def test_s_stays_within_the_ray(device):
    near, far = planes(device, 1.0, 2.0, rays=2)
    far[1] = 1.0
    s = s_from_t(torch.tensor([[0.5, 1, 2, 3], [0.5, 1, 2, 3]], device=device), near, far)
    assert s.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_s_and_t_are_each_others_inverse(device, spacing):
    near, far = planes(device, 0.2, 50.0, rays=3)
    s = torch.rand(3, 40, device=device)
    t = t_from_s(s, near, far, spacing)
    assert ((t >= 0.2 * 0.9999) & (t <= 50.005)).all()
    close(s_from_t(t, near, far, spacing), s.cpu(), atol=1e-5)
    even, kernel = sample_spaced(near, far, 9, spacing)
    close(t_from_s(even, near, far, spacing), kernel.cpu(), rtol=1e-5)


def test_golden_spacings(device):
    g = golden("spaced_samplers_eval.npz")
    near, far = (g[k].float().flatten().to(device) for k in ("nears", "fars"))
    names = {name: name for name in SPACINGS} | {"linear-disparity": "lindisp"}
    for spacing, name in names.items():
        s, t = sample_spaced(near, far, 32, spacing)
        close(s, g[f"{name}_spacing"], rtol=1e-4)
        close(t, g[name], rtol=1e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("jitter", JITTERS)
@pytest.mark.parametrize("samples", [1, 2, 31, 256])
def test_edges_increase_within_the_ray(device, spacing, jitter, samples):
    near, far = 0.01 + torch.rand(20, device=device), 3 + 100 * torch.rand(20, device=device)
    s, t = sample_spaced(near, far, samples, spacing, jitter, counter(device))
    for _ in range(3):
        assert s.shape == t.shape == (20, samples + 1)
        assert (s.diff() >= 0).all() and s.min() >= 0 and s.max() <= 1
        assert (t.diff() >= 0).all()
        assert (t >= near[:, None] * 0.999).all() and (t <= far[:, None] * 1.001).all()
        w = torch.rand(20, samples, device=device) ** 8
        s, t = sample_pdf(s, w, near, far, samples, spacing, jitter, counter(device))


def even(device, bins, rays=1):
    return torch.linspace(0, 1, bins + 1, device=device).repeat(rays, 1)


W = [0.1, 0.2, 0.6, 0.1]
O30 = [0.273810, 0.528688, 0.635246, 0.741803]


def drawn(device, weights, samples, **settings):
    w = torch.tensor([weights], device=device)
    return sample_pdf(even(device, len(weights)), w, *planes(device), samples, **settings)[0]


def test_known_draws(device):  # O30 - O33
    close(drawn(device, W, 3), [O30], atol=2e-6)
    for padding in (0.0, 0.01):
        close(drawn(device, [0.0] * 4, 3, padding=padding), [[0.125, 0.375, 0.625, 0.875]])
    close(drawn(device, [0.0, 1, 0, 0], 3, padding=0.0), [[0.28125, 0.34375, 0.40625, 0.46875]])
    union = [0, 0.25, O30[0], 0.5, *O30[1:], 0.75, 1]
    close(drawn(device, W, 3, include_original=True), [union], atol=2e-6)


def test_a_jittered_draw_lies_between_its_ends(device):  # O30: r = 0 gives low, r = 1 the next edge's low
    w = torch.tensor([W], device=device).expand(300, -1)
    for jitter in ("single", "each"):
        s, t = sample_pdf(
            even(device, 4, 300), w, *planes(device, rays=300), 3, jitter=jitter, counter=counter(device)
        )
        low = torch.tensor([0, 0.428571, 0.581967, 0.688525, 1.0], device=device)
        assert (s >= low[:4] - 1e-6).all() and (s <= low[1:] + 1e-6).all()
        assert s.std(0).min() > 0.02
        close(t, t_from_s(s.double().cpu(), *(x.double() for x in planes("cpu", rays=300))), rtol=1e-3)


def test_the_original_edges_are_kept(device):
    s = even(device, 16, 9)
    near, far = planes(device, rays=9)
    new, t = sample_pdf(s, torch.rand(9, 16, device=device), near, far, 5, include_original=True)
    assert new.shape == t.shape == (9, 16 + 5 + 2)
    assert torch.isin(s[0], new[0]).all() and (new.diff() >= 0).all()
    close(t, t_from_s(new, near, far).cpu())


def test_annealing(device):  # O36
    w = torch.rand(1, 8, device=device)
    w[0, 3] = 0
    call = lambda w, a: sample_pdf(  # noqa: E731
        even(device, 8), w, *planes(device), 6, anneal=None if a is None else torch.tensor([a], device=device)
    )[0]
    close(call(w, 0.0), [[(k + 0.5) / 7 for k in range(7)]])
    close(call(w, 0.5), call(w.sqrt(), None).cpu())
    close(call(w, 0.3), call(w**0.3, None).cpu())
    assert torch.equal(call(w, 1.0), call(w, None))


def test_sharpening_is_a_power(device):
    """Over the whole range of exponents and weights: in a histogram of two, one draw tells their ratio."""
    w = torch.logspace(-25, 0, 2000, device=device)
    for exponent in (1e-3, 0.0099108, 0.1, 0.5, 0.9, 0.999):
        pair = torch.stack([w, torch.ones_like(w)], 1)
        anneal = torch.tensor([exponent], device=device)
        s = sample_pdf(
            even(device, 2, 2000), pair, *planes(device, rays=2000), 1, anneal=anneal, padding=0.0
        )[0]
        sharp = w.double().cpu() ** exponent
        target, total = 0.25 * (sharp + 1), sharp + 1  # the first of two edges
        want = torch.where(target < sharp, target / sharp / 2, 0.5 + (target - sharp) / 2)
        assert total.min() >= 1
        close(s[:, 0], want, atol=1e-6, rtol=1e-6)


def test_sharpening_is_the_same_in_the_double_build():
    s, w = torch.linspace(0, 1, 9)[None], torch.rand(1, 8)
    found = []
    for kind in (torch.float32, torch.float64):
        near, far = (x.to(kind) for x in planes("cpu"))
        anneal = torch.tensor([0.3], dtype=kind)
        found.append(sample_pdf(s.to(kind), w.to(kind), near, far, 6, anneal=anneal)[0])
    close(found[0], found[1])


def test_weights_that_are_no_numbers_count_as_none(device):
    for wrong in (float("nan"), float("inf"), -1.0, 1e-40):
        for anneal in (None, torch.tensor([0.5], device=device)):
            settings = {"anneal": anneal, "padding": 0.0}
            assert torch.equal(
                drawn(device, [1, wrong, 2], 9, **settings), drawn(device, [1, 0.0, 2], 9, **settings)
            )


@pytest.mark.parametrize("bins", [1024, 4096])  # more than fits into the shared memory a kernel has unasked
def test_long_histograms(device, bins):
    w = torch.rand(5, bins) ** 4
    near, far = planes(device, 0.0, 1.0, rays=5)
    got = sample_pdf(even(device, bins, 5), w.to(device), near, far, 200, "uniform", padding=0.0)[0]
    cdf = torch.nn.functional.pad(w.double().cumsum(1) / w.double().sum(1, keepdim=True), (1, 0))
    reached = got.double().cpu() * bins
    low = reached.long().clamp(0, bins - 1)
    share = cdf.gather(1, low) + (reached - low) * (cdf.gather(1, low + 1) - cdf.gather(1, low))
    close(share, ((torch.arange(201) + 0.5) / 201).expand(5, -1), atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_too_long_a_histogram_is_refused_on_cuda():
    near, far = planes("cuda")
    with pytest.raises(ValueError, match="at most 4096 bins"):
        sample_pdf(even("cuda", 4097), torch.ones(1, 4097, device="cuda"), near, far, 8)


def test_golden_draws(device):
    g = golden("resampling_losses.npz")
    s, w = (g[k].float().to(device) for k in ("bins", "weights"))
    ends = torch.zeros(24, device=device), torch.ones(24, device=device)
    got, t = sample_pdf(s, w, *ends, 24, "uniform", padding=float(g["histogram_padding"]))
    close(got, g["nerfstudio_pdf_eval_bins"], rtol=1e-4, atol=1e-5)
    close(t, got.cpu())


def test_every_level_covers_less(device):
    near, far = planes(device, rays=4)
    s, _ = sample_spaced(near, far, 32)
    for _ in range(3):
        new, _ = sample_pdf(s, torch.rand(4, 32, device=device), near, far, 32)
        assert (new[:, 0] > s[:, 0]).all() and (new[:, -1] < s[:, -1]).all()
        s = new


def test_samples_gather_where_the_weight_is(device):
    w = torch.zeros(1, 100, device=device)
    w[0, 40:42] = 0.5
    s = sample_pdf(even(device, 100), w, *planes(device), 64, padding=1e-4)[0]
    assert ((s > 0.395) & (s < 0.425)).float().mean() > 0.97


def test_draws_follow_the_histogram(device):
    """Over many rays the new edges are spread as the weights are."""
    rays, w = 4000, torch.tensor([0.1, 0.5, 0.0, 1.0, 0.2])
    many = w.to(device).expand(rays, -1)
    s = sample_pdf(
        even(device, 5, rays),
        many,
        *planes(device, rays=rays),
        7,
        jitter="each",
        counter=counter(device),
        padding=0.0,
    )[0]
    share = torch.histc(s.cpu(), 5, 0, 1) / s.numel()
    close(share, w / w.sum(), atol=0.01, rtol=0)


@pytest.mark.parametrize("bins", [1, 2, 33, 300])
def test_odd_histograms(device, bins):
    s = even(device, bins, 6)
    s[5] = 0.5  # no width at all
    w = torch.rand(6, bins, device=device)
    w[0], w[1], w[2], w[3, :] = 0, 1e-12, 1e30, 0
    w[3, -1] = 1
    for padding in (0.0, 0.01):
        for samples in (1, 48):
            new, t = sample_pdf(s, w, *planes(device, rays=6), samples, padding=padding)
            assert new.isfinite().all() and t.isfinite().all()
            assert (new.diff() >= 0).all() and (new >= 0).all() and (new <= 1).all()
            assert (new[5] == 0.5).all()


def test_a_ray_of_no_length(device):
    s, t = sample_spaced(*planes(device, 3.0, 3.0), 8)
    close(t, torch.full((1, 9), 3.0))
    close(
        sample_pdf(s, torch.rand(1, 8, device=device), *planes(device, 3.0, 3.0), 4)[1],
        torch.full((1, 5), 3.0),
    )


def test_no_rays(device):
    near, far = planes(device, rays=0)
    s, t = sample_spaced(near, far, 8)
    new, _ = sample_pdf(s, torch.rand(0, 8, device=device), near, far, 4)
    assert s.shape == t.shape == (0, 9) and new.shape == (0, 5)
    empty = torch.zeros(0, 3, device=device, requires_grad=True)
    sample_unit_positions(empty, empty, t).sum().backward()
    assert empty.grad.shape == (0, 3)


@pytest.mark.parametrize("jitter", ["single", "each"])
def test_jitter_depends_on_counter_stream_and_ray_alone(device, jitter):
    near, far = planes(device, rays=64)
    w = torch.rand(64, 16, device=device)

    def both(rays, seed=7, step=11, stream=3, place=device):
        a, b = near[:rays].to(place), far[:rays].to(place)
        now = counter(place, seed, step)
        s, _ = sample_spaced(a, b, 16, jitter=jitter, counter=now, stream=stream)
        return s, sample_pdf(
            even(place, 16, rays), w[:rays].to(place), a, b, 8, jitter=jitter, counter=now, stream=stream
        )[0]

    for few, many in zip(both(5), both(64), strict=True):
        assert torch.equal(few, many[:5])
    for here, there in zip(both(64), both(64, place="cpu"), strict=True):
        close(here, there)
    for other in ({"seed": 8}, {"step": 12}, {"stream": 4}):
        for a, b in zip(both(64), both(64, **other), strict=True):
            assert (a != b).float().mean() > 0.9


@pytest.mark.parametrize("jitter", ["single", "each"])
def test_jitter_is_even(device, jitter):
    rays = 20000
    s, _ = sample_spaced(*planes(device, rays=rays), 4, "uniform", jitter, counter(device))
    offset = (s.cpu()[:, 1:4] * 4 - torch.tensor([0.5, 1.5, 2.5])).double()
    for column in offset.T:
        counts = torch.histc(column, 20, 0, 1)
        assert counts.sum() == rays
        chi = ((counts - rays / 20).square() / (rays / 20)).sum()
        assert 4 < chi < 44  # 19 degrees of freedom: outside with probability 1e-3
    together = torch.corrcoef(offset.T)[0, 1]
    assert together > 0.999 if jitter == "single" else abs(together) < 0.03


def test_no_gradient_passes_through_new_edges(device):
    near, far = (x.requires_grad_() for x in planes(device))
    w = torch.rand(1, 8, device=device, requires_grad=True)
    s, t = sample_spaced(near, far, 8)
    for x in (s, t, *sample_pdf(s, w, near, far, 4), *sample_pdf(s, w, near, far, 4, include_original=True)):
        assert not x.requires_grad


def along(device, rays=50, samples=24):
    o = (2 * torch.randn(rays, 3)).to(device)
    d = torch.nn.functional.normalize(torch.randn(rays, 3), dim=-1).to(device)
    return o, d, torch.rand(rays, samples + 1).cumsum(1).to(device)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_unit_positions_are_contracted_positions(device, norm):
    o, d, t = along(device)
    t[:5] *= 1e8  # beyond the selector
    seed = torch.randn(50, 24, 3, device=device)
    results = []
    for fused in (True, False):
        a, b = (x.clone().requires_grad_() for x in (o, d))
        y = sample_unit_positions(a, b, t, norm) if fused else contract_unit(positions(a, b, t), norm)
        y.backward(seed)
        results.append((y, a.grad, b.grad))
    for fused, composed in zip(*results, strict=True):
        close(fused, composed.detach().cpu(), rtol=1e-4, atol=1e-5)


def test_no_position_however_far_breaks_a_gradient(device):
    o, d, t = along(device, 6)
    t[0], t[1], t[2] = 0, 1e10, 1e38
    t[3], o[4], d[5] = float("inf"), float("inf"), float("nan")
    o[0] = 0
    a, b = (x.clone().requires_grad_() for x in (o, d))
    y = sample_unit_positions(a, b, t)
    assert y.isfinite().all() and (y[1:] == 0).any(-1).any() and (y[3:] == 0).all()
    y.sum().backward()
    assert a.grad.isfinite().all() and b.grad[:3].isfinite().all()


def test_nonsense_is_refused():
    near, far = planes("cpu")
    with pytest.raises(ValueError, match="sample_spaced: samples is 0, expected at least 1"):
        sample_spaced(near, far, 0)
    with pytest.raises(ValueError, match="sample_pdf: samples is -1"):
        sample_pdf(even("cpu", 4), torch.ones(1, 4), near, far, -1)
    with pytest.raises(ValueError, match="spacing is 'cubic', expected one of uniform, linear-disparity"):
        sample_spaced(near, far, 4, "cubic")
    with pytest.raises(ValueError, match="jitter is 'some', expected one of none, single, each"):
        sample_pdf(even("cpu", 4), torch.ones(1, 4), near, far, 4, jitter="some")
    with pytest.raises(ValueError, match="jitter needs a counter"):
        sample_spaced(near, far, 4, jitter="each")
    with pytest.raises(ValueError, match="jitter needs a counter"):
        sample_pdf(even("cpu", 4), torch.ones(1, 4), near, far, 4, jitter="single")
    with pytest.raises(ValueError, match="one edge more than weights"):
        sample_pdf(even("cpu", 4), torch.ones(1, 5), near, far, 4)
    with pytest.raises(ValueError, match="sample_unit_positions: norm is 'l1'"):
        sample_unit_positions(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 2), "l1")
