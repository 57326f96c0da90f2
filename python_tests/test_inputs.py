"""What is true of the networks' inputs alone: one buffer holds exactly what its pieces would."""

import pytest
import torch

from raymarch.nn import Fourier, HashGrid
from raymarch.ops import colour_inputs, density, encode, fourier, hashgrid


def pieces(device, rays=7, samples=5):
    torch.manual_seed(0)
    h, y = torch.randn(rays * samples, 16, device=device), torch.rand(rays * samples, 3, device=device)
    y[::4] = 0  # outside: no density
    return h, y, 0.01, torch.randn(rays, 16, device=device), torch.randn(rays, 32, device=device)


def composed(h, y, scale, direction, code):
    rays, samples = len(direction), len(h) // len(direction)
    between = h.view(rays, samples, -1)[..., 1:]
    around = (part[:, None].expand(-1, samples, -1) for part in (direction, code))
    before, after = around
    return density(h, y, scale), torch.cat([before, between, after], -1).view(rays * samples, -1)


def test_colour_inputs_are_their_pieces_to_the_last_bit(device):
    args = pieces(device)
    for got, want in zip(colour_inputs(*args), composed(*args), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["density", "colour", "both"])
def test_colour_inputs_pass_on_either_gradient(device, which):
    grads = []
    for form in (colour_inputs, composed):
        args = pieces(device)
        leaves = [args[i].requires_grad_() for i in (0, 3, 4)]
        outputs = form(*args)
        torch.manual_seed(1)
        sum((outputs[i] * torch.randn_like(outputs[i])).sum() for i in which).backward()
        grads.append([torch.zeros_like(x) if x.grad is None else x.grad for x in leaves])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert torch.equal(grads[0][0], grads[1][0])  # nothing is summed on the way to h


def test_colour_inputs_refuse_rays_of_different_lengths(device):
    h, y, scale, direction, code = pieces(device)
    with pytest.raises(ValueError, match="colour_inputs: h has shape"):
        colour_inputs(h[:-1], y[:-1], scale, direction, code)
    with pytest.raises(ValueError, match="rays"):
        colour_inputs(h, y, scale, direction, code[:-1])


GRID = (3, 4, 14, 7)


@pytest.mark.parametrize("features, frequencies", [(8, 6), (4, 3), (2, 1), (1, 2)])
def test_encode_is_grid_beside_fourier_to_the_last_bit(device, features, frequencies):
    torch.manual_seed(0)
    grid, waves = HashGrid(*GRID, features).to(device), Fourier(frequencies)
    x = torch.rand(300, 3, device=device)
    assert torch.equal(grid.beside(waves, x), torch.cat([grid(x), waves(x)], -1))


@pytest.mark.parametrize("layout", ["tcnn", "nerfstudio"])
def test_encode_rounds_half_results_once(device, layout):
    torch.manual_seed(0)
    table, x = torch.randn(HashGrid(*GRID, 8).table.shape, device=device), torch.rand(77, 3, device=device)
    want = encode(x, table, 6, *GRID, fourier_layout=layout)
    got = encode(x, table, 6, *GRID, fourier_layout=layout, dtype=torch.float16)
    assert torch.equal(got, want.half())


def test_encode_passes_on_the_gradients_of_its_halves(device):
    torch.manual_seed(0)
    seed, grads = torch.randn(300, 60, device=device), []
    table = torch.randn(HashGrid(*GRID, 8).table.shape, device=device)
    x = torch.rand(300, 3, device=device)
    for form in (
        lambda x, table: encode(x, table, 6, *GRID),
        lambda x, table: torch.cat([hashgrid(x, table, *GRID), fourier(x, 6)], -1),
    ):
        leaves = x.clone().requires_grad_(), table.clone().requires_grad_()
        form(*leaves).backward(seed)
        grads.append([leaf.grad for leaf in leaves])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_encode_names_what_it_refuses():
    x, table = torch.rand(4, 3), HashGrid(*GRID, 2).table
    with pytest.raises(ValueError, match="encode: frequencies is 25"):
        encode(x, table, 25, *GRID)
    with pytest.raises(ValueError, match="encode: fourier_layout is 'x'"):
        encode(x, table, 2, *GRID, fourier_layout="x")
    with pytest.raises(ValueError, match="hashgrid: table has"):
        encode(x, table[:-1], 2, *GRID)
