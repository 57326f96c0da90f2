"""What is true of networks and of the density activation alone."""

import math

import pytest
import torch
from torch import nn

from bench.running import backend
from raymarch.nn.mlp import MLP
from raymarch.ops.mlp import density, mlp, mlp_gradients, mlp_input_gradient, parameters, shapes

# CUDA rounds the factors of every product to ten bits of mantissa.
TOLERANCE = {"cpu": 1e-5, "cuda": 2e-3}


def close_on(device, got, want):
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    assert got.shape == want.shape
    assert float((got - want).norm()) <= TOLERANCE[backend(device)] * float(want.norm()) + 1e-12


@pytest.mark.parametrize(
    ("widths", "count"),
    [
        ((32, 64, 1, 16), 3072),  # density
        ((63, 64, 2, 3), 9216),  # colour
        ((27, 64, 2, 64), 10240),  # predicted normals
        ((10, 16, 1, 1), 512),  # proposals
    ],
)
def test_parameter_counts_are_tiny_cuda_nns(widths, count):
    assert parameters(*widths) == count


def test_feature_networks_with_their_last_layer_have_the_shipped_counts():
    last = 768 * 64
    assert parameters(36, 64, 1, 64) + last == 56_320
    assert parameters(96 + 36, 64, 1, 64) + last == 62_464


@pytest.mark.parametrize("output_activation", ["none", "sigmoid", "relu"])
def test_a_network_is_its_matrices_in_order(device, output_activation):
    net = MLP(32, 16, 64, 3, output_activation, seed=1).to(device)
    x = torch.randn(77, 32, device=device)
    h = x.double()
    for i in range(3):
        h = (h @ net.weight(i).double().T).relu()
    h = h @ net.weight(3).double().T
    want = {"none": h, "sigmoid": h.sigmoid(), "relu": h.relu()}[output_activation]
    close_on(device, net(x), want)
    assert [tuple(net.weight(i).shape) for i in range(4)] == list(shapes(32, 64, 3, 16))
    assert net.weight(-1).data_ptr() == net.weight(3).data_ptr()


def test_padding_with_ones_gives_the_first_layer_a_bias(device):
    net = MLP(27, 5, 32, 1, padding=1.0, seed=2).to(device)
    x = torch.randn(40, 27, device=device)
    first, second = net.weight(0).double(), net.weight(1).double()
    h = (x.double() @ first[:, :27].T + first[:, 27:].sum(1)).relu()
    close_on(device, net(x), (h @ second.T)[:, :5])


def test_rows_that_make_no_output_get_no_gradient(device):
    net = MLP(16, 3, 16, 1, seed=3).to(device)
    net(torch.randn(50, 16, device=device)).square().sum().backward()
    grad = net.params.grad[-16 * 16 :].view(16, 16)
    assert grad[:3].abs().sum() > 0
    assert grad[3:].abs().sum() == 0


def test_gradients_sum_over_more_points_than_one_block_takes(device):
    net = MLP(10, 1, 16, 1, seed=4).to(device)
    x = torch.randn(70_001, 10, device=device)
    net(x).sum().backward()
    h = (x.double() @ net.weight(0)[:, :10].detach().double().T).requires_grad_()
    out = h.relu()
    want_last = out.sum(0)
    close_on(device, net.params.grad.view(2, 16, 16)[1, 0], want_last)
    assert net.params.grad.view(2, 16, 16)[1, 1:].abs().sum() == 0


def test_gradients_repeat_bit_for_bit(device):
    net = MLP(63, 3, 64, 2, "sigmoid", 1.0, seed=5).to(device)
    x = torch.randn(5000, 63, device=device, requires_grad=True)
    runs = [torch.autograd.grad(net(x).square().sum(), (x, net.params)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("output_activation", ["none", "sigmoid", "relu"])
def test_input_gradient_is_autograds_and_carries_no_graph(device, output_activation):
    net = MLP(32, 16, 64, 1, output_activation, seed=6).to(device)
    x = torch.randn(4, 25, 32, device=device, requires_grad=True)
    grad_y = torch.randn(4, 25, 16, device=device)
    got = net.input_gradient(x, grad_y)
    (want,) = torch.autograd.grad(net(x), x, grad_y)
    assert not got.requires_grad
    assert torch.equal(got, want)


def test_only_the_gradients_asked_for_are_made(device):
    net = MLP(12, 4, 32, 2, seed=7).to(device)
    x = torch.randn(9, 12, device=device)
    net(x).sum().backward()
    both = torch.randn(9, 12, device=device, requires_grad=True)
    net.requires_grad_(False)
    net(both).sum().backward()
    assert both.grad.shape == both.shape
    assert x.grad is None


def test_rows_need_no_alignment(device):
    net = MLP(32, 16, 64, 1, seed=8).to(device)
    flat = torch.randn(33 * 32 + 1, device=device)
    shifted = flat[1:].view(33, 32)
    assert torch.equal(net(shifted), net(shifted.clone()))
    grad_y = torch.randn(33 * 16 + 1, device=device)[1:].view(33, 16)
    assert torch.equal(
        net.input_gradient(shifted, grad_y), net.input_gradient(shifted.clone(), grad_y.clone())
    )


def test_points_do_not_see_each_other(device):
    net = MLP(27, 64, 64, 2, padding=1.0, seed=9).to(device)
    x = torch.randn(130, 27, device=device)
    whole = net(x)
    assert torch.equal(whole[37:38], net(x[37:38]))
    x[5] = torch.nan
    spoiled = net(x)
    assert spoiled[5].isnan().all()
    keep = torch.arange(130, device=device) != 5
    assert torch.equal(spoiled[keep], whole[keep])


def test_no_points_make_no_outputs_and_no_gradient(device):
    net = MLP(32, 16, 64, 1, seed=10).to(device)
    y = net(torch.zeros(0, 7, 32, device=device))
    assert y.shape == (0, 7, 16)
    y.sum().backward()
    assert torch.equal(net.params.grad, torch.zeros_like(net.params))


def test_initial_weights_are_uniform_in_the_padded_xavier_range():
    net = MLP(63, 3, 64, 2, seed=11)
    for i, (rows, columns) in enumerate(shapes(63, 64, 2, 3)):
        bound = math.sqrt(6 / (rows + columns))
        w = net.weight(i).detach()
        assert w.abs().max() <= bound
        assert w.abs().max() > 0.98 * bound
        assert abs(float(w.std()) - bound / math.sqrt(3)) < 0.05 * bound
    assert torch.equal(net.params, MLP(63, 3, 64, 2, seed=11).params)
    assert not torch.equal(net.params, MLP(63, 3, 64, 2, seed=12).params)


def test_a_network_trains(device):
    torch.manual_seed(1)
    net = MLP(2, 1, 32, 2, padding=1.0, seed=13).to(device)
    x = 2 * torch.rand(512, 2, device=device) - 1
    truth = (x[:, :1] * x[:, 1:]).sin()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    first = None
    for _ in range(150):
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(net(x), truth)
        loss.backward()
        optimiser.step()
        first = first or float(loss.detach())
    assert float(loss.detach()) < 0.05 * first


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((32, 16, 40, 1), "hidden"),
        ((32, 16, 256, 1), "hidden"),
        ((257, 16, 64, 1), "inputs"),
        ((32, 129, 64, 1), "outputs"),
        ((32, 0, 64, 1), "outputs"),
        ((32, 16, 64, 5), "layers"),
        ((32, 16, 64, 0), "layers"),
        ((32, 16, 64, 1, "tanh"), "output_activation"),
        ((32, 16, 64, 1, "none", 0.5), "padding"),
    ],
)
def test_unsupported_settings_are_named(arguments, word):
    with pytest.raises(ValueError, match=rf"^MLP: {word} is .*expected"):
        MLP(*arguments)


def test_arrays_that_do_not_fit_are_named(device):
    x, params = torch.zeros(4, 32, device=device), torch.zeros(3072, device=device)
    with pytest.raises(ValueError, match=r"mlp: params has shape \[3071\], expected \[3072\]"):
        mlp(x, params[1:], 64, 1, 16)
    with pytest.raises(
        ValueError, match="mlp: output_activation is 'exp', expected one of none, sigmoid, relu"
    ):
        mlp(x, params, 64, 1, 16, "exp")
    with pytest.raises(ValueError, match="mlp_input_gradient: grad_y has shape"):
        mlp_input_gradient(x, params, torch.zeros(5, 16, device=device), 64, 1)
    with pytest.raises(TypeError, match="params has dtype float64, expected float32"):
        mlp(x, params.double(), 64, 1, 16)
    with pytest.raises(ValueError, match="density: h has shape"):
        density(x, torch.zeros(5, 3, device=device))


def test_what_an_earlier_kernel_left_in_shared_memory_does_not_count(device):
    """The last points fill only some warps of the last blocks."""
    inputs, hidden, layers, outputs = 132, 64, 1, 64
    on_gpu = device.type == "cuda"
    blocks = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 3
    x = torch.rand(blocks * 192 + 100, inputs, device=device).half()
    params = 0.1 * torch.randn(parameters(inputs, hidden, layers, outputs), device=device)
    grad = torch.randn(len(x), outputs, device=device)
    grad_params = []
    for numbers in (x, torch.full_like(x, torch.nan), x):
        found = mlp_gradients(numbers, params, hidden, layers, 0, 1.0, None, grad, 96, True)
        grad_params.append(found[1])
    assert grad_params[0].isfinite().all() and grad_params[1].isnan().any()
    torch.testing.assert_close(grad_params[2], grad_params[0], rtol=0, atol=0)


@pytest.mark.parametrize("inputs,hidden,layers", [(132, 64, 1), (9, 32, 2)])
@pytest.mark.parametrize("each", [48, 7, 1])
def test_points_may_share_rows_of_the_outputs_gradient(inputs, hidden, layers, each, device):
    """The kernel that the feature field has, on CUDA, and any other."""
    rows, outputs = 150, 64
    x = torch.rand(rows * each, inputs, device=device)
    x = x.half() if backend(device) == "cuda" else x
    params = 0.1 * torch.randn(parameters(inputs, hidden, layers, outputs), device=device)
    share = torch.rand(rows * each, device=device) ** 3
    grad = torch.randn(rows, outputs, device=device)
    if each == 48:  # points that are summed together on CUDA are then of one row, large or small
        grad *= 10.0 ** torch.randint(-9, 3, (rows, 1), device=device)
    how = (x, params, hidden, layers, 0, 1.0, None)
    got = mlp_gradients(*how, grad, 96 if inputs > 96 else inputs, True, share)
    whole = share[:, None] * grad.repeat_interleave(each, 0)
    want = mlp_gradients(*how, whole, 96 if inputs > 96 else inputs, True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-3 * float(b.abs().max()))
    if each < 48:
        return
    by_row = got[0].view(rows, -1).norm(dim=1) / want[0].view(rows, -1).norm(dim=1)
    torch.testing.assert_close(by_row, torch.ones_like(by_row), rtol=2e-3, atol=0)
    with pytest.raises(ValueError, match="grad_y must have a row per point"):
        mlp_gradients(*how, grad[:-1], inputs, True, share)


def test_density_is_a_truncated_exponential(device):
    z = torch.tensor([-20.0, -15, 0, 10, 15, 20, 88], device=device)
    h = torch.stack([z, torch.full_like(z, 7.0)], -1).requires_grad_()
    sigma = density(h, torch.full((7, 3), 0.5, device=device))
    want = [2.061154e-9, 3.059023e-7, 1, 22026.46, 3269017, 4.851652e8, 1.651636e38]
    torch.testing.assert_close(sigma.cpu(), torch.tensor(want), rtol=1e-5, atol=0)
    sigma.backward(torch.ones_like(sigma))
    slopes = [3.059023e-7, 3.059023e-7, 1, 22026.46, 3269017, 3269017, 3269017]
    torch.testing.assert_close(h.grad[:, 0].cpu(), torch.tensor(slopes), rtol=1e-5, atol=0)
    assert h.grad[:, 1].abs().sum() == 0


def test_density_overflows_to_infinity_with_a_finite_gradient(device):
    h = torch.full((1, 1), 200.0, device=device, requires_grad=True)
    sigma = density(h, torch.ones(1, 3, device=device), 0.01)
    assert sigma.isinf().all()
    sigma.sum().backward()
    torch.testing.assert_close(h.grad.cpu(), torch.tensor([[32690.17]]), rtol=1e-5, atol=0)


def test_density_is_zero_at_the_origin_of_the_unit_cube(device):
    y = torch.tensor([[0.0, 0, 0], [1e-6, 0, 0], [0, 0, 0.5]], device=device)
    h = torch.full((3, 4), 100.0, device=device, requires_grad=True)
    sigma = density(h, y, 2.0)
    assert (sigma > 0).tolist() == [False, True, True]
    sigma[0].backward()
    assert h.grad.abs().sum() == 0


@pytest.mark.parametrize("half", [False, True])
def test_activations_beyond_what_a_half_holds_end_in_numbers(device, half):
    """Tensor cores take halves: 1e6 becomes 65504 there, and infinity would be NaN in the next layer."""
    from raymarch.nn.mlp import MLP

    net = MLP(32, 3, 64, 2, output_activation="sigmoid").to(device)
    with torch.no_grad():
        net.params.mul_(1e4)
        x = torch.randn(70, 32, device=device) * 100
        y = net(x.half() if half and x.is_cuda else x)
    assert y.isfinite().all()
