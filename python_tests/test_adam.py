"""Adam on many parameters in one pass, and the half copies of tables that it keeps."""

import pytest
import torch
from test_train import config, run_to, scene  # noqa: F401

from raymarch.nn import HashGrid
from raymarch.ops.adam import MOST, AdamItem, adam, adam_many
from raymarch.train.optim import Adam, OptimConfig, runs
from raymarch.train.runs import start

SIZES = (1, 3, 4, 37, 4096, 4099, 12_289)
GRID = (4, 4, 32, 10, 2)  # levels, resolutions, log2 of the table's size, features


def flag(device):
    return torch.ones(1, dtype=torch.bool, device=device)


def an_item(device, size, seed=0, stored=None, rate=1e-2, step=1, **settings):
    random = torch.Generator().manual_seed(seed)
    parameter, gradient = (torch.randn(size, generator=random).to(device) for _ in range(2))
    copy = None if stored is None else parameter.to(stored)
    return AdamItem(
        parameter,
        gradient,
        torch.zeros_like(parameter),
        torch.zeros_like(parameter),
        torch.full((1,), rate, device=device),
        torch.full((1,), step, dtype=torch.int64, device=device),
        stored=copy,
        **settings,
    )


def test_a_thousand_steps_are_those_of_torch(device):
    random = torch.Generator().manual_seed(0)
    sizes, rates, decays = (2048, 5, 1023), (1e-2, 1e-3, 3e-3), (0.0, 1e-2, 0.0)
    ours = [torch.randn(n, generator=random).to(device) for n in sizes]
    theirs = [torch.nn.Parameter(p.cpu().double()) for p in ours]
    groups = [
        {"params": [p], "lr": r, "weight_decay": d}
        for p, r, d in zip(theirs, rates, decays, strict=True)
    ]  # fmt: skip
    reference = torch.optim.Adam(groups, eps=1e-15)
    first, second = ([torch.zeros_like(p) for p in ours] for _ in range(2))
    rate = [torch.full((1,), r, device=device) for r in rates]
    steps, healthy = torch.zeros(1, dtype=torch.int64, device=device), flag(device)
    for _ in range(1000):
        gradients = [
            p.detach().cpu().float() * 0.1 + torch.randn(n, generator=random)
            for p, n in zip(theirs, sizes, strict=True)
        ]
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g.double()
        reference.step()
        steps += 1
        items = [
            AdamItem(p, g.to(device), m, v, r, steps, weight_decay=d)
            for p, g, m, v, r, d in zip(ours, gradients, first, second, rate, decays, strict=True)
        ]
        adam_many(items, healthy)
    assert bool(healthy)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.cpu().double(), want.data, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("count", [len(SIZES), MOST + 3])
def test_many_parameters_are_one_after_another(device, count):
    def items():
        stored = (None, torch.float16, torch.bfloat16)
        return [
            an_item(
                device, SIZES[i % len(SIZES)], i, stored[i % 3], 1e-3 * (i + 1), i + 1, weight_decay=0.01 * i
            )
            for i in range(count)
        ]

    together, apart = items(), items()
    adam_many(together, flag(device))
    for x in apart:
        adam(*x[:6], flag(device), epsilon=x.epsilon, weight_decay=x.weight_decay, stored=x.stored)
    for got, want in zip(together, apart, strict=True):
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_the_copy_follows_its_parameter(device, dtype, size):
    x = an_item(device, size, stored=dtype, rate=0.1)
    adam_many([x], flag(device))
    assert torch.equal(x.stored, x.parameter.to(dtype))


def test_a_half_copy_of_what_is_too_large_is_the_largest_half(device):
    x = an_item(device, 9, stored=torch.float16)
    x.parameter.copy_(torch.tensor([1e6, -1e6, 65519.0] * 3))
    adam_many([x], flag(device))
    assert x.stored.tolist() == [65504.0, -65504.0, 65504.0] * 3


def test_parameters_may_start_anywhere(device):
    x = an_item(device, 4100, stored=torch.float16)
    views = [torch.empty(4101, device=device, dtype=t.dtype)[1:].copy_(t) for t in (*x[:4], x.stored)]
    moved = AdamItem(*views[:4], *x[4:8], views[4])
    adam_many([x], flag(device))
    adam_many([moved], flag(device))
    assert torch.equal(moved.parameter, x.parameter) and torch.equal(moved.stored, x.stored)


def test_a_non_finite_gradient_spares_the_copy_too(device):
    x = an_item(device, 9000, stored=torch.float16)
    before = x.parameter.clone()
    x.gradient[[5, 8999]] = torch.tensor([float("nan"), float("inf")], device=device)
    healthy = flag(device)
    adam_many([x], healthy)
    assert not bool(healthy)
    assert torch.equal(x.parameter[[5, 8999]], before[[5, 8999]])
    assert torch.equal(x.stored, x.parameter.half())
    frozen = x.parameter.clone()
    adam_many([x._replace(gradient=torch.ones_like(frozen))], healthy)
    assert torch.equal(x.parameter, frozen)


def test_shapes_that_differ_are_named(device):
    x = an_item(device, 8)
    with pytest.raises(ValueError, match="adam: gradients has 7 parameters, expected 8"):
        adam_many([an_item(device, 4), x._replace(gradient=torch.ones(7, device=device))], flag(device))


def test_runs_of_groups():
    assert runs([True, True, False, True]) == [(0, 2), (3, 4)]
    assert runs([False]) == [] and runs([True]) == [(0, 1)]


# The copies of tables


def a_grid(device, **knobs):
    grid = HashGrid(*GRID, storage="float16").to(device)
    rates = {"fields": torch.full((1,), 0.01, device=device)}
    return grid, Adam({"fields": [grid.table]}, OptimConfig(), [grid]), rates


def lookups(grid, x):
    """What the grid gives, and what a fresh copy of its table would."""
    other = HashGrid(*GRID, storage="float16").to(x.device)
    other.load_state_dict(grid.state_dict())
    with torch.no_grad():
        return grid(x), other(x)


def test_an_optimiser_that_keeps_the_copy_leaves_nothing_to_refresh(device):
    grid, optim, rates = a_grid(device)
    x = torch.rand(50, 3, device=device)
    with optim.keeping_copies():
        for _ in range(3):
            optim.zero_grad()
            grid(x).square().sum().backward()
            optim.step(rates, flag(device))
            assert grid._stored_version == grid.table._version
            assert torch.equal(grid.stored, grid.table.half())
            assert torch.equal(*lookups(grid, x))
    assert int(optim.steps["fields"]) == 3 and not grid.kept


@pytest.mark.parametrize("training", [True, False])
def test_other_changes_of_a_kept_table_are_seen(device, training):
    grid, optim, _ = a_grid(device)
    grid.train(training)
    x = torch.rand(50, 3, device=device)
    with optim.keeping_copies():
        grid(x)
        with torch.no_grad():
            grid.table.mul_(2)
        assert torch.equal(*lookups(grid, x))
        grid.load_state_dict({"table": torch.rand_like(grid.table)})
        assert torch.equal(*lookups(grid, x))
        grid.load_state_dict({"table": torch.rand_like(grid.table)})
        optim.grids[grid.table].refresh()
        assert torch.equal(grid.stored, grid.table.half())


def test_a_copy_that_was_not_current_is_not_called_so(device):
    grid, optim, rates = a_grid(device)
    x = torch.rand(50, 3, device=device)
    with optim.keeping_copies():
        grid(x).sum().backward()
        with torch.no_grad():
            grid.table.add_(1)
        healthy = flag(device)
        healthy.fill_(False)  # so that this step writes nothing
        optim.step(rates, healthy)
        assert torch.equal(*lookups(grid, x))


def test_without_keeping_every_training_pass_copies(device):
    grid, optim, rates = a_grid(device)
    x = torch.rand(50, 3, device=device)
    grid(x).sum().backward()
    grid.table.data.mul_(3)  # behind torch's back
    assert torch.equal(*lookups(grid, x))
    optim.step(rates, flag(device))
    assert torch.equal(*lookups(grid, x))


def test_training_with_copies_leaves_them_current(scene, device):  # noqa: F811
    trainer = start(scene, config(), device=device)
    grids = list(trainer.optim.grids.values())
    assert grids
    for grid in grids:
        grid.storage = "float16"

    def current():
        return all(g.stored is None or torch.equal(g.stored, g.table.half()) for g in grids)

    run_to(trainer, 15)  # on CUDA the last batch is replays alone
    assert current()
    trainer.model.eval()
    for grid in grids:
        assert torch.equal(*(y.cpu() for y in (grid(torch.zeros(1, 3, device=device)), _fresh(grid))))
    with torch.no_grad():
        for grid in grids:
            grid.table.mul_(0.5)
    run_to(trainer, 20)
    assert current()


def _fresh(grid):
    grid._stored_version = None
    return grid(torch.zeros(1, 3, device=grid.table.device))
