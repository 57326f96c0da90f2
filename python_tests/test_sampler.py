"""Proposal sampling: nerfstudio's schedules, what has a graph and what has none, levels and their order."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from raymarch.model.sampler import Sampler, SamplerConfig, anneal_at, updates_at
from raymarch.ops.sample import sample_pdf, sample_spaced
from raymarch.ops.weights import weights
from raymarch.types import Rays

SMALL = SamplerConfig(samples=(32, 16, 8))


def bundle(device, count=20):
    d = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1).to(device)
    full = lambda x: torch.full((count,), x, device=device)  # noqa: E731
    camera = torch.zeros(count, dtype=torch.int64, device=device)
    return Rays(torch.zeros_like(d), d, full(1e-6), full(1.0), full(0.05), full(1000.0), camera)


def counter(device, step=11):
    return torch.tensor([7, step], device=device)


def shell(at=2.0, width=0.2, scale=50.0):
    """A density that lies around one distance; it also says how often and on what it was asked."""

    def density(rays, samples):
        density.asked.append(samples)
        middle = (samples.t[:, 1:] + samples.t[:, :-1]) / 2
        return density.scale * torch.exp(-(((middle - at) / width) ** 2))

    density.asked, density.scale = [], torch.tensor(scale, requires_grad=True)
    return density


def test_annealing_schedule():  # O34
    want = [0, 0.00991080, 0.0917431, 0.344828, 0.526316, 0.769231, 0.909091, 1]
    got = [anneal_at(step, SamplerConfig()) for step in (0, 1, 10, 50, 100, 250, 500, 1000)]
    assert got == pytest.approx(want, rel=2e-6)
    assert anneal_at(10**6, SamplerConfig()) == 1 and anneal_at(0, SamplerConfig(anneal_steps=0)) == 1


def test_update_schedule():  # O35
    flags = updates_at(9001, SamplerConfig())
    assert "".join(str(int(f)) for f in flags[:20]) == "11111111111010101010"
    shares = [sum(flags[a : a + 1000]) / 1000 for a in range(0, 5000, 1000)]
    assert shares == pytest.approx([0.505, 0.5, 0.334, 0.25, 0.2], abs=2e-3)
    late = [i for i, f in enumerate(flags) if f and i > 5010]
    assert {b - a for a, b in pairwise(late)} == {6}
    assert all(updates_at(50, SamplerConfig(update_every=1, update_warmup=0))[:11])
    assert updates_at(0, SamplerConfig()) == []


def test_levels_follow_each_other(device):
    rays, fns = bundle(device), [shell(), shell(2.1)]
    samples, proposals = Sampler(SMALL)(rays, fns)
    assert [p.samples.s.shape[1] for p in proposals] == [33, 17] and samples.s.shape == (20, 9)
    near, far = rays.near, rays.far
    s, t = sample_spaced(near, far, 32)
    for level, (proposal, fn) in enumerate(zip(proposals, fns, strict=True)):
        assert fn.asked[0] is proposal.samples and len(fn.asked) == 1
        assert_close((proposal.samples.s, proposal.samples.t), (s, t))
        w = weights(fn(rays, proposal.samples), t.diff())
        assert_close(proposal.weights, w)
        s, t = sample_pdf(s, w, near, far, SMALL.samples[level + 1])
    assert_close((samples.s, samples.t), (s, t))
    assert ((samples.t > 1) & (samples.t < 3)).float().mean() > 0.6  # where the shell is


def test_one_level_needs_no_proposals(device):
    samples, proposals = Sampler(SamplerConfig(samples=(12,)))(bundle(device), [])
    assert samples.s.shape == (20, 13) and proposals == ()


def test_weights_have_a_graph_and_edges_have_none(device):
    rays, fns = bundle(device), [shell(), shell()]
    samples, proposals = Sampler(SMALL)(rays, fns, counter(device), torch.ones(1, device=device), train=True)
    assert not samples.s.requires_grad and not samples.t.requires_grad
    for level, fn in enumerate(fns):
        assert not proposals[level].samples.t.requires_grad
        proposals[level].weights.square().sum().backward()
        assert fn.scale.grad.isfinite() and fn.scale.grad != 0
        assert all(other.scale.grad is None for other in fns[level + 1 :])


def test_proposals_that_do_not_learn_have_no_graph(device):
    args = counter(device), torch.ones(1, device=device), True
    fns = [shell(), shell()]
    with_graph = Sampler(SMALL)(bundle(device, 3), fns, *args, update=True)
    torch.manual_seed(1)
    rays = bundle(device, 3)
    with_graph, without = (Sampler(SMALL)(rays, fns, *args, update=update) for update in (True, False))
    for a, b in zip(with_graph[1], without[1], strict=True):
        assert a.weights.requires_grad and not b.weights.requires_grad
        assert torch.equal(a.weights, b.weights)
    assert torch.equal(with_graph[0].s, without[0].s)


def test_evaluation_repeats_and_training_does_not(device):
    sampler, rays, fns = Sampler(SMALL), bundle(device), [shell(), shell()]

    def edges(step, train):
        anneal = torch.full((1,), 0.5, device=device)
        return sampler(rays, fns, counter(device, step), anneal, train=train)[0].s

    assert torch.equal(edges(1, False), edges(2, False))
    assert torch.equal(edges(1, False), sampler(rays, fns)[0].s)
    assert torch.equal(edges(1, True), edges(1, True))
    assert (edges(1, True) != edges(2, True)).float().mean() > 0.9


def test_rays_do_not_depend_on_their_company(device):
    rays, sampler = bundle(device), Sampler(SMALL)
    few = Rays(
        *(
            getattr(rays, f)[:4]
            for f in ("origins", "directions", "area", "directions_norm", "near", "far", "camera")
        )
    )
    args = counter(device), torch.ones(1, device=device), True
    assert torch.equal(
        sampler(rays, [shell(), shell()], *args)[0].t[:4], sampler(few, [shell(), shell()], *args)[0].t
    )


def test_a_flat_start_ignores_the_proposals(device):
    """Annealing of 0: the weights are there, but samples stay even."""
    rays, sampler = bundle(device), Sampler(SMALL)
    args = counter(device), torch.zeros(1, device=device), True
    here, nowhere = ([shell(), shell()], [shell(scale=0.0), shell(scale=0.0)])
    assert_close(sampler(rays, here, *args)[0].s, sampler(rays, nowhere, *args)[0].s, rtol=1e-5, atol=1e-6)


def test_levels_draw_their_own_numbers(device):
    rays, fns = bundle(device, 500), [shell(scale=0.0), shell(scale=0.0)]
    samples, proposals = Sampler(SamplerConfig((8, 8, 8)))(rays, fns, counter(device), None, train=True)
    first = torch.stack([p.samples.s[:, 4] for p in proposals] + [samples.s[:, 4]]).double().cpu()
    together = torch.corrcoef(torch.stack([first[0], first[1] - first[0], first[2] - first[1]]))
    assert first.std(1).min() > 0.01 and together.isfinite().all()


def test_no_rays(device):
    samples, proposals = Sampler(SMALL)(bundle(device, 0), [shell(), shell()])
    assert samples.s.shape == (0, 9) and proposals[1].weights.shape == (0, 16)


def test_settings_that_make_no_sense_are_refused(device):
    with pytest.raises(ValueError, match="has 2 proposal levels, but there are 1 proposal fields"):
        Sampler(SMALL)(bundle(device), [shell()])
    for samples in ((), (8, 0), (-1,)):
        with pytest.raises(ValueError, match="expected counts of at least 1"):
            Sampler(SamplerConfig(samples=samples))
    with pytest.raises(ValueError, match="jitter needs a counter"):
        Sampler(SMALL)(bundle(device), [shell(), shell()], train=True)
