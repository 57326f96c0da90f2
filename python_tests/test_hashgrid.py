"""What is true of the hash grid alone. Oracle numbers are tiny-cuda-nn's formulas evaluated in float32."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from raymarch import _C
from raymarch.nn.hashgrid import HashGrid
from raymarch.ops.hashgrid import hashgrid, hashgrid_input_gradient, table_layout

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "hashgrid_nerfstudio_torch.npz"

NERFACTO = (16, 16, 2048, 19)
FEATURE = (12, 16, 128, 19)
SMALL = (4, 4, 40, 8)


def entries(settings, layout="tcnn"):
    last = table_layout(*settings, layout)[-1]
    return last.offset + last.entries


def random_table(settings, features, device="cpu"):
    return (torch.rand(entries(settings), features) - 0.5).to(device)


def ray_points(rays, samples, device="cpu"):
    """Points as the pipeline makes them: ray after ray, neighbours close together."""
    along = (
        torch.nn.functional.normalize(torch.randn(rays, 1, 3), dim=-1)
        * torch.linspace(0, 0.4, samples)[:, None]
    )
    return (0.3 + 0.4 * torch.rand(rays, 1, 3) + along).clamp(0, 1).reshape(-1, 3).contiguous().to(device)


def at_level(settings, level, table, x):
    """Value of one level at x, from a grid of all levels."""
    features = table.shape[1]
    return hashgrid(x, table, *settings)[:, level * features : (level + 1) * features]


# Layout


@pytest.mark.parametrize(
    "settings, resolutions, dense, count",
    [
        (
            NERFACTO,
            [16, 23, 31, 43, 59, 81, 112, 154, 213, 295, 407, 562, 777, 1073, 1483, 2048],
            5,
            6098120,
        ),
        (FEATURE, [16, 20, 24, 29, 35, 42, 50, 61, 73, 88, 106, 129], 9, 2481152),
        ((5, 16, 128, 17), [16, 27, 46, 77, 128], 3, 383264),
        ((5, 16, 256, 17), [16, 32, 64, 128, 256], 2, 430080),
    ],
)
def test_layout_is_that_of_tiny_cuda_nn(settings, resolutions, dense, count):
    layout = table_layout(*settings)
    assert [level.resolution for level in layout] == resolutions
    assert [level.resolution**3 <= level.entries for level in layout] == [
        i < dense for i in range(len(layout))
    ]
    assert entries(settings) == count
    assert all(level.entries % 8 == 0 for level in layout)


def test_scales_carry_the_float32_roundings_of_tiny_cuda_nn():
    assert table_layout(*FEATURE)[-1].scale == np.float32(127.000046)  # so 129 vertices, not 128
    assert table_layout(*NERFACTO)[1].scale == pytest.approx(21.110605, abs=2e-6)
    assert table_layout(*NERFACTO)[5].scale == pytest.approx(79.6349258, abs=8e-6)
    assert table_layout(*FEATURE)[4].scale == pytest.approx(33.0813179, abs=4e-6)


def test_layout_of_nerfstudio_rounds_scales_down_and_hashes_every_level():
    layout = table_layout(*NERFACTO, "nerfstudio")
    scales = [16, 22, 30, 42, 58, 80, 111, 153, 212, 294, 406, 561, 776, 1072, 1482, 2047]
    assert [level.scale for level in layout] == scales
    assert all(level.entries == 2**19 for level in layout)


def test_one_level_has_the_base_resolution():
    (level,) = table_layout(1, 16, 2048, 19)
    assert (level.resolution, level.scale, level.entries, level.offset) == (16, 15.0, 4096, 0)


# Where a vertex lies: a point on a vertex reads that entry alone.


def entry_at(settings, level, vertex, device):
    """The entry that a vertex of a level reads, as a number within the level."""
    layout = table_layout(*settings)[level]
    index = torch.zeros(entries(settings), 1)
    index[layout.offset : layout.offset + layout.entries, 0] = torch.arange(layout.entries)
    # The centre of a cell's lower vertex: p = scale x + 1/2 is the vertex itself.
    x = ((torch.tensor([vertex], dtype=torch.float64) - 0.5) / layout.scale).float()
    return float(at_level(settings, level, index.to(device), x.to(device)))


def test_dense_levels_index_row_by_row_and_wrap(device):
    assert entry_at(NERFACTO, 0, (3, 5, 7), device) == pytest.approx(1875, abs=0.05)
    # x = 1 lies between vertices 15 and 16 in x: the latter is entry 16 + 16 * 15 + 256 * 15 - 4096 = 0.
    layout, index = table_layout(*NERFACTO)[0], torch.zeros(entries(NERFACTO), 1, device=device)
    index[layout.offset] = 1.0
    x = torch.tensor([[1.0, 14.5 / 15, 14.5 / 15]], device=device)
    assert float(at_level(NERFACTO, 0, index, x)) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    "vertex, mod_19, mod_17",
    [
        ((1, 2, 3), 128476, 128476),
        ((100, 200, 300), 110768, None),
        ((2047, 2047, 2047), 285147, 23003),
        ((37, 0, 511), 315982, 53838),
    ],
)
def test_hash_is_that_of_tiny_cuda_nn(device, vertex, mod_19, mod_17):
    for log2_size, want in ((19, mod_19), (17, mod_17)):
        if want is None:
            continue
        # The finest level of 16 to 2049 vertices has scale 2048: vertices are exact in float32.
        table = torch.zeros(entries((2, 16, 2049, log2_size)), 1)
        layout = table_layout(2, 16, 2049, log2_size)[1]
        assert round(layout.scale) == 2048
        table[layout.offset + want] = 1.0
        x = ((torch.tensor([vertex], dtype=torch.float64) - 0.5) / layout.scale).clamp_min(0).float()
        got = at_level((2, 16, 2049, log2_size), 1, table.to(device), x.to(device))
        # A coordinate 0 cannot sit on its vertex: there p = 1/2, halfway to the next one.
        assert float(got) == pytest.approx(0.5 ** vertex.count(0), abs=2e-3)


def test_hashed_level_of_nerfacto(device):
    assert entry_at(NERFACTO, 5, (3, 5, 7), device) == pytest.approx(329061, rel=1e-4)


# Values and gradients of a known table: sin(0.1 * entry).


@pytest.mark.parametrize(
    "settings, level, interpolation, value, gradient",
    [
        (NERFACTO, 0, "linear", -0.682219, (-0.58028, -18.60883, -2.81601)),
        (NERFACTO, 0, "smoothstep", -0.794470, (-0.37991, -18.06349, -3.57993)),
        (NERFACTO, 5, "linear", -0.478383, (3.28821, -51.62693, -38.48069)),
        (NERFACTO, 5, "smoothstep", -0.556698, None),
        (FEATURE, 4, "linear", 0.457803, (-0.06963, -29.51458, -64.69048)),
    ],
)
def test_value_and_gradient_of_a_sine_table(device, settings, level, interpolation, value, gradient):
    layout = table_layout(*settings)[level]
    table = torch.zeros(entries(settings), 1, dtype=torch.float64)
    own = slice(layout.offset, layout.offset + layout.entries)
    table[own, 0] = torch.sin(0.1 * torch.arange(layout.entries, dtype=torch.float64))
    x = torch.tensor([[0.31, 0.62, 0.93]], device=device, requires_grad=True)
    y = hashgrid(x, table.float().to(device), *settings, interpolation)[0, level]
    assert float(y.detach()) == pytest.approx(value, abs=2e-5)
    if gradient:
        (grad_x,) = torch.autograd.grad(y, x)
        torch.testing.assert_close(grad_x.cpu(), torch.tensor([gradient]), rtol=1e-3, atol=1e-3)


def test_cells_and_fractions(device):
    layout = table_layout(*NERFACTO)[1]  # scale 21.110605, dense
    table = torch.zeros(entries(NERFACTO), 1)
    x_index = torch.arange(23).repeat(23 * 23).float()  # entry x + 23 y + 529 z holds x
    table[layout.offset : layout.offset + 23**3, 0] = x_index
    x = torch.tensor([[0.25, 0.5, 0.5], [0.7, 0.5, 0.5]], device=device)
    got = at_level(NERFACTO, 1, table.to(device), x)[:, 0].cpu()
    torch.testing.assert_close(got, torch.tensor([5.777651, 15.277424]), rtol=0, atol=2e-5)


# Properties


@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_a_constant_table_gives_a_constant(device, interpolation, features):
    table = torch.ones(entries(SMALL), features, device=device)
    x = torch.rand(200, 3, device=device)
    y = hashgrid(x, table, *SMALL, interpolation)
    torch.testing.assert_close(y, torch.ones_like(y))
    grad = hashgrid_input_gradient(x, table, torch.ones_like(y), *SMALL, interpolation)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-3)


def test_gradient_to_the_table_spreads_each_gradient_with_weights_that_sum_to_one(device):
    table = torch.zeros(entries(SMALL), 2, device=device, requires_grad=True)
    x = ray_points(20, 48, device)
    grad_y = torch.randn(len(x), 8, device=device)
    hashgrid(x, table, *SMALL).backward(grad_y)
    for i, level in enumerate(table_layout(*SMALL)):
        spread = table.grad[level.offset : level.offset + level.entries].sum(0)
        torch.testing.assert_close(spread, grad_y[:, 2 * i : 2 * i + 2].sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_table_is_looked_up_as_its_float_values(device, dtype):
    table = random_table(SMALL, 2, device)
    x, half = torch.rand(100, 3, device=device), table.to(dtype)
    torch.testing.assert_close(
        hashgrid(x, table, *SMALL, stored=half), hashgrid(x, half.float(), *SMALL), rtol=0, atol=1e-6
    )


def test_the_gradient_goes_to_the_float_table_when_a_half_copy_is_looked_up(device):
    table = random_table(SMALL, 2, device).requires_grad_()
    x = torch.rand(100, 3, device=device)
    y = hashgrid(x, table, *SMALL, stored=table.detach().half())
    y.backward(torch.ones_like(y))
    assert table.grad.dtype == torch.float32
    assert float(table.grad.sum()) == pytest.approx(100 * y.shape[1], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("points", [1, 33, 100])
def test_half_results_are_rounded_once_from_float_sums(device, dtype, features, points):
    settings = (3, 4, 40, 8)  # an odd number of levels: rows of one feature have odd widths
    table, x = random_table(settings, features, device), torch.rand(points, 3, device=device)
    got = hashgrid(x, table, *settings, dtype=dtype)
    assert got.dtype == dtype
    assert torch.equal(got, hashgrid(x, table, *settings).to(dtype))


def test_half_results_pass_on_the_gradient(device):
    table = random_table(SMALL, 2, device).requires_grad_()
    x = torch.rand(50, 3, device=device, requires_grad=True)
    grad_y = torch.randn(50, 8, device=device).half()
    got = torch.autograd.grad(hashgrid(x, table, *SMALL, dtype=torch.float16), (x, table), grad_y)
    want = torch.autograd.grad(hashgrid(x, table, *SMALL), (x, table), grad_y.float())
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_no_gradient_flows_where_none_arrives(device):
    table = random_table(SMALL, 2, device).requires_grad_()
    x = torch.rand(64, 3, device=device, requires_grad=True)
    y = hashgrid(x, table, *SMALL)
    grad_y = torch.zeros_like(y)
    grad_y[7] = 1
    y.backward(grad_y)
    assert x.grad[7].abs().sum() > 0
    assert x.grad[:7].abs().sum() == 0 and x.grad[8:].abs().sum() == 0
    assert int((table.grad != 0).any(-1).sum()) <= 8 * SMALL[0]


def test_points_outside_and_nan_read_nothing_out_of_bounds(device):
    table = random_table(SMALL, 2, device).requires_grad_()
    bad = [
        [float("nan")] * 3,
        [-1e30, 0.5, 0.5],
        [1e30, 2.0, -3.0],
        [float("inf"), float("-inf"), 0.5],
        [0.0] * 3,
    ]
    x = torch.tensor(bad, device=device, requires_grad=True)
    y = hashgrid(x, table, *SMALL)
    assert y[0].isnan().all() and y[4].isfinite().all()
    y[4].sum().backward()
    assert table.grad.isfinite().all()


def test_the_far_corner_of_the_cube_is_inside(device):
    table = random_table(SMALL, 2, device)
    near = hashgrid(torch.full((1, 3), 1 - 1e-6, device=device), table, *SMALL)
    torch.testing.assert_close(
        hashgrid(torch.ones(1, 3, device=device), table, *SMALL), near, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("interpolation", ["linear", "smoothstep"])
@pytest.mark.parametrize("order", ["along rays", "to and fro", "scattered"])
def test_the_gradient_to_the_table_is_the_sum_over_points_one_by_one(device, features, interpolation, order):
    """Walks that keep what neighbouring cells share lose nothing, whichever way the next cell lies."""
    torch.use_deterministic_algorithms(False)
    settings = (3, 4, 64, 10)
    table = random_table(settings, features, device).requires_grad_()
    x = ray_points(9, 64, device)
    if order == "to and fro":  # steps of at most a few cells, along every axis in both directions
        x = (0.5 + 0.01 * torch.randn(len(x), 3).cumsum(0)).clamp(0, 1).to(device)
    if order == "scattered":
        x = x[torch.randperm(len(x))].contiguous()
    grad_y = torch.randn(len(x), 3 * features, device=device)
    grad_y[::5] = 0
    y = hashgrid(x, table, *settings, interpolation)
    (got,) = torch.autograd.grad(y, table, grad_y)
    want = torch.zeros_like(table)
    for i in range(len(x)):
        one = hashgrid(x[i : i + 1], table, *settings, interpolation)
        want += torch.autograd.grad(one, table, grad_y[i : i + 1])[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", [1, 2, 4, 8])
@pytest.mark.parametrize("points", [1, 15, 16, 17, 31, 33, 100, 4097])
def test_gradients_agree_with_differentiated_sums_for_any_count(device, features, points):
    """d(sum of y g)/d(table) is linear in g: the gradient for g against random tables gives back sum(y g)."""
    table = random_table(SMALL, features, device).requires_grad_()
    x = ray_points(points // 48 + 1, 48, device)[:points].contiguous()
    y = hashgrid(x, table, *SMALL)
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    want = (y.detach().double() * grad_y.double()).sum()
    got = (table.grad.double() * table.detach().double()).sum()
    assert float(got) == pytest.approx(float(want), rel=1e-3, abs=1e-3)


def test_the_gradient_to_the_table_is_the_same_in_every_run(device):
    assert torch.are_deterministic_algorithms_enabled()
    table = random_table(SMALL, 2, device).requires_grad_()
    x = ray_points(400, 48, device)
    y = hashgrid(x, table, *SMALL)
    grad_y = torch.randn_like(y) * torch.logspace(-8, 4, len(x), device=device)[:, None]
    runs = [torch.autograd.grad(y, table, grad_y, retain_graph=True)[0] for _ in range(3)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_fast_and_exact_sums_agree(device):
    table = random_table(SMALL, 2, device).requires_grad_()
    x = ray_points(100, 48, device)
    y = hashgrid(x, table, *SMALL)
    grad_y = torch.randn_like(y)
    (exact,) = torch.autograd.grad(y, table, grad_y, retain_graph=True)
    torch.use_deterministic_algorithms(False)
    (fast,) = torch.autograd.grad(y, table, grad_y)
    torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-4)


def test_nan_gradients_are_not_hidden(device):
    table = random_table(SMALL, 2, device).requires_grad_()
    y = hashgrid(torch.rand(20, 3, device=device), table, *SMALL)
    grad_y = torch.ones_like(y)
    grad_y[3, 0] = float("nan")
    y.backward(grad_y)
    assert table.grad.isnan().any()


def test_views_that_start_between_vectors_work(device):
    table = random_table(SMALL, 2, device)
    x = torch.rand(50, 3, device=device)
    shifted = torch.cat([table.new_zeros(1), table.flatten()])[1:].view_as(table)
    torch.testing.assert_close(hashgrid(x, shifted, *SMALL), hashgrid(x, table, *SMALL))


def test_agrees_with_nerfstudio(device):
    if not GOLDEN.exists():
        pytest.skip("../shared/golden is absent")
    golden = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN).items()}
    settings = [int(golden[k]) for k in ("num_levels", "min_res", "max_res", "log2_hashmap_size")]
    table = golden["table"].to(device).requires_grad_()
    y = hashgrid(golden["positions"].to(device), table, *settings, layout="nerfstudio")
    torch.testing.assert_close(y.detach().cpu(), golden["out"], rtol=1e-5, atol=1e-5)
    y.backward(golden["grad_out"].to(device))
    want = torch.zeros_like(golden["table"])
    want[golden["grad_rows"]] = golden["grad_vals"]
    torch.testing.assert_close(table.grad.cpu(), want, rtol=1e-5, atol=1e-5)


# What is rejected


@pytest.mark.parametrize(
    "change, why",
    [
        ({"levels": 0}, "levels is 0"),
        ({"levels": 33}, "levels must lie in 1..32"),
        ({"log2_size": 2}, "log2_size must lie in 3..30"),
        ({"max_resolution": 2}, "max_resolution must lie between"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic', expected one of linear, smoothstep"),
        ({"layout": "ngp"}, "layout is 'ngp', expected one of tcnn, nerfstudio"),
        ({"base_resolution": 5}, "entries, expected"),
    ],
)
def test_bad_settings_are_named(change, why):
    names = ("levels", "base_resolution", "max_resolution", "log2_size")
    settings = {**dict(zip(names, SMALL, strict=True)), **change}
    with pytest.raises(ValueError, match=why):
        hashgrid(torch.rand(2, 3), random_table(SMALL, 2), **settings)


def test_the_kernel_names_rows_that_are_too_short(device):
    x, y = torch.zeros(5, 3, device=device), torch.zeros(5, 7, device=device)
    table = torch.zeros(sum(level.entries for level in table_layout(4, 4, 16, 8)), 2, device=device)
    with pytest.raises(ValueError, match=r"the encoding must have levels \* features columns"):
        _C.hashgrid_forward(x, table, 4, 4, 16, 8, 0, 0, 0, 0, y)


def test_bad_tables_are_named():
    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match=r"table has shape \(\d+, 3\)"):
        hashgrid(x, random_table(SMALL, 3), *SMALL)
    with pytest.raises(ValueError, match="stored has shape"):
        hashgrid(x, random_table(SMALL, 2), *SMALL, stored=random_table(SMALL, 4).half())
    with pytest.raises(TypeError, match=r"dtype is torch\.int8, expected"):
        hashgrid(x, random_table(SMALL, 2), *SMALL, dtype=torch.int8)
    with pytest.raises(TypeError, match="pass a half copy as stored"):
        hashgrid(x, random_table(SMALL, 2).half().requires_grad_(), *SMALL)


# The module


def test_modules_with_one_seed_are_equal_and_start_small():
    one, two, other = (HashGrid(*SMALL, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.table, two.table) and not torch.equal(one.table, other.table)
    assert 0.9e-4 < float(one.table.detach().abs().max()) <= 1e-4
    assert one.outputs == 8


def test_module_gradient_to_positions_is_that_of_autograd(device):
    grid = HashGrid(*SMALL, 2).to(device)
    x = torch.rand(40, 3, device=device, requires_grad=True)
    y = grid(x)
    grad_y = torch.randn_like(y)
    (want,) = torch.autograd.grad(y, x, grad_y)
    torch.testing.assert_close(grid.input_gradient(x, grad_y), want)


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_module_looks_up_a_copy_that_follows_the_table(device, storage):
    grid = HashGrid(*SMALL, 2, storage=storage).to(device)
    x = torch.rand(40, 3, device=device)
    y = grid(x)
    kept = grid.stored
    assert kept.dtype == getattr(torch, storage)
    y.sum().backward()
    with torch.no_grad():
        grid.table.mul_(2)
    torch.testing.assert_close(grid(x), 2 * y, rtol=1e-2, atol=3e-7)  # half's last place
    assert grid.stored is kept  # the same memory, for CUDA graphs
    grid.eval()
    before = grid(x)
    with torch.no_grad():
        grid.table.mul_(2)
    torch.testing.assert_close(grid(x), 2 * before, rtol=1e-2, atol=3e-7)
    assert "stored" not in grid.state_dict()
    with torch.no_grad():
        grid.table[3, 1] = 1e6
    assert grid(x).isfinite().all() and grid.stored.isfinite().all()


def test_two_forward_passes_may_come_before_one_backward(device):
    grid = HashGrid(*SMALL, 2, storage="float16").to(device)
    x = torch.rand(10, 3, device=device, requires_grad=True)
    (grid(x).sum() + grid(x).sum()).backward()
    assert grid.table.grad.isfinite().all() and x.grad.isfinite().all()


def test_module_keeps_float_tables_on_the_cpu_by_default():
    grid = HashGrid(*SMALL, 2)
    grid(torch.rand(4, 3))
    assert grid.stored is None


def test_module_names_bad_settings():
    with pytest.raises(ValueError, match="features is 3, expected 1, 2, 4 or 8"):
        HashGrid(*SMALL, 3)
    with pytest.raises(ValueError, match="storage is 'int8', expected one of auto"):
        HashGrid(*SMALL, 2, storage="int8")


def test_a_copy_of_a_grid_looks_its_own_table_up():
    """A copied table counts its changes from 0 again, and may arrive at the number of the half copy kept."""
    grid = copy.deepcopy(HashGrid(2, 4, 8, 6, 2, storage="float16")).eval()
    x = torch.rand(5, 3)
    grid(x)  # makes the half copy
    with torch.no_grad():
        grid.table.add_(1)
    again = copy.deepcopy(grid)
    assert torch.equal(again(x), grid(x))
