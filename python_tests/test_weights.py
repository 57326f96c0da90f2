"""What is true of rendering weights alone; what every op must satisfy is in test_ops.py."""

import math
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.running import backend
from raymarch.ops.weights import transmittance, weights, weights_from_alpha, weights_packed

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"

# The ray of the oracles: edges 1, 1.1, 1.3, 1.6, 2 and densities 1, 2, 3, 0.5.
DELTA = [[0.1, 0.2, 0.3, 0.4]]
SIGMA = [[1.0, 2.0, 3.0, 0.5]]
WEIGHTS = [[0.0951626, 0.2983066, 0.3599338, 0.0447004]]
INF, NAN = math.inf, math.nan


def golden(name, device):
    if not (GOLDEN / name).exists():
        pytest.skip("../shared/golden is absent")
    with numpy.load(GOLDEN / name) as file:
        return {
            k: torch.as_tensor(file[k]).to(device, torch.float32 if file[k].dtype.kind == "f" else None)
            for k in file.files
        }


def close(got, want, rtol=1e-5, atol=1e-6):
    want = torch.as_tensor(want, dtype=got.dtype, device=got.device)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def tensors(device, *values):
    return [torch.tensor(v, device=device) for v in values]


def test_weights_of_a_known_ray(device):
    w = weights(*tensors(device, SIGMA, DELTA))
    close(w, WEIGHTS)
    close(w.sum(), 0.7981035)


def test_gradient_of_a_known_ray(device):
    sigma, delta = tensors(device, SIGMA, DELTA)
    sigma.requires_grad_()
    weights(sigma, delta).backward(torch.tensor([[0.3, -0.2, 0.7, 0.1]], device=device))
    close(sigma.grad, [[0.00746889, -0.0755459, 0.0504444, 0.00807586]])


@pytest.mark.parametrize(
    "sigma, delta, want",
    [
        ([0.0, INF, 1.0, 1.0], [0.1] * 4, [0.0, 1.0, 0.0, 0.0]),
        ([1.0, NAN, 1.0, 1.0], [0.1] * 4, [0.0951626, 0.0, 0.0, 0.0]),
        ([INF, 1.0, 1.0, 1.0], [0.0, 0.1, 0.1, 0.1], [0.0] * 4),
        ([INF, INF, 1.0, 1.0], [0.1] * 4, [1.0, 0.0, 0.0, 0.0]),
        ([0.0] * 4, [0.1] * 4, [0.0] * 4),
    ],
)
@pytest.mark.parametrize("repeats", [1, 20])  # within one chunk of a warp, and over several
def test_numbers_that_are_not_finite_end_the_ray(device, sigma, delta, want, repeats):
    clear = 4 * (repeats - 1)
    sigma = torch.tensor([[0.0] * clear + sigma], device=device, requires_grad=True)
    delta = torch.tensor([[0.1] * clear + delta], device=device, requires_grad=True)
    w = weights(sigma, delta)
    close(w, [[0.0] * clear + want])
    (w * torch.linspace(-1, 1, w.shape[1], device=device)).sum().backward()
    assert sigma.grad.isfinite().all() and delta.grad.isfinite().all()
    light = transmittance(sigma.detach(), delta.detach())
    assert light.isfinite().all() and light[0, 0] == 1


@given(
    rays=st.integers(1, 5),
    samples=st.integers(1, 80),
    thickness=st.sampled_from([1e-6, 1e-2, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_weights_never_sum_past_one(rays, samples, thickness, seed):
    rng = torch.Generator().manual_seed(seed)
    sigma = thickness * torch.rand(rays, samples, generator=rng)
    delta = torch.rand(rays, samples, generator=rng)
    w = weights(sigma, delta)
    assert (w >= 0).all() and (w.sum(1) <= 1 + 1e-5).all()
    light = transmittance(sigma, delta)
    close(w.sum(1), 1 - light[:, -1] + w[:, -1], atol=3e-6)
    assert (light.diff(dim=1) <= 0).all()


def test_thin_fog_keeps_its_accuracy(device):
    """Where 1 - exp(-tau) would round to nothing."""
    sigma = torch.full((1, 40), 1e-9, device=device)
    close(weights(sigma, torch.ones_like(sigma)), torch.full((1, 40), 1e-9), atol=0)


def test_what_is_hidden_gets_no_gradient(device):
    """Not even rounding noise, which an optimiser that divides by its size would blow up."""
    sigma = torch.cat([torch.full((1, 20), 3.0), torch.full((1, 1), 1e9), torch.rand(1, 60)], 1).to(device)
    sigma.requires_grad_()
    w = weights(sigma, torch.full_like(sigma, 0.1))
    (w * torch.randn_like(w)).sum().backward()
    assert (sigma.grad[:, 21:] == 0).all() and (sigma.grad[:, :20] != 0).all()


def test_splitting_an_interval_shares_its_weight(device):
    sigma, delta = 3 * torch.rand(7, 20, device=device), torch.rand(7, 20, device=device)
    whole = weights(sigma, delta)
    halves = weights(sigma.repeat_interleave(2, 1), (delta / 2).repeat_interleave(2, 1))
    close(halves.view(7, 20, 2).sum(-1), whole)


def test_opacities_of_a_known_ray(device):
    (alpha,) = tensors(device, [[0.4, 0.8, 1.0, 0.5]])
    w, light = weights_from_alpha(alpha, epsilon=1e-7)
    close(w, [[0.4, 0.48, 0.12, 6.0e-9]], atol=1e-8)
    close(light, [[1, 0.6, 0.12, 1.2e-8, 6.0e-9]], atol=1e-9)
    w, light = weights_from_alpha(alpha)
    close(w, [[0.4, 0.48, 0.12, 0.0]])
    close(light, [[1, 0.6, 0.12, 0, 0]])


def test_opacity_of_one_has_a_finite_gradient(device):
    alpha = torch.tensor([[0.4, 1.0, 0.0, 1.0] + [0.3] * 40], device=device, requires_grad=True)
    slow = alpha.detach().double().cpu().requires_grad_()
    w, light = weights_from_alpha(alpha)
    passed = [torch.ones(1, dtype=torch.float64)]
    for i in range(44):
        passed.append(passed[-1] * (1 - slow[:, i]))
    want = torch.stack(passed, 1)
    seed = torch.randn(1, 44)
    ((w * seed.to(device)).sum() + light.square().sum()).backward()
    ((slow * want[:, :-1] * seed).sum() + want.square().sum()).backward()
    close(alpha.grad, slow.grad.float())


def test_opacity_and_density_agree(device):
    sigma, delta = tensors(device, SIGMA, DELTA)
    w, light = weights_from_alpha(-torch.expm1(-sigma * delta))
    close(w, weights(sigma, delta))
    close(light[:, :-1], transmittance(sigma, delta))


def test_packed_rays_of_equal_length_are_dense_rays(device):
    sigma = (5 * torch.rand(9, 70, device=device)).requires_grad_()
    delta = torch.rand(9, 70, device=device).requires_grad_()
    offsets = torch.arange(0, 9 * 70 + 1, 70, device=device)
    seed = torch.randn(9, 70, device=device)
    for dense, packed in ((weights, weights_packed), (transmittance, transmittance)):
        want = dense(sigma, delta)
        got = packed(sigma.view(-1), delta.view(-1), offsets).view(9, 70)
        assert torch.equal(got, want)
        for g, w in zip(
            torch.autograd.grad(got, (sigma, delta), seed),
            torch.autograd.grad(want, (sigma, delta), seed),
            strict=True,
        ):
            close(g, w)


def test_packed_weights_of_a_peers_test(device):
    """Sums restart with every ray; a ray may have no samples."""
    alpha = torch.tensor([0.4, 0.8, 0.1, 0.8, 0.1, 0.0, 0.9], device=device)
    offsets = torch.tensor([0, 3, 3, 5, 7, 7], device=device)
    got = weights_packed(-torch.log1p(-alpha), torch.ones_like(alpha), offsets)
    close(got, [0.4, 0.48, 0.012, 0.8, 0.02, 0.0, 0.9])


def test_packed_gradient_of_a_peers_test(device):
    sigma = torch.tensor([0.4, 0.8, 0.1, 0.8, 0.1], device=device, requires_grad=True)
    offsets = torch.tensor([0, 1, 1, 5], device=device)
    w = weights_packed(sigma, torch.ones_like(sigma), offsets)
    close(w, [0.3297, 0.5507, 0.0428, 0.2239, 0.0174], atol=1e-4)
    w.sum().backward()
    close(sigma.grad, [0.6703, 0.1653, 0.1653, 0.1653, 0.1653], atol=1e-4)


@pytest.mark.skipif(backend("cpu") != "cpu", reason="kernels do not look")
@pytest.mark.parametrize(
    "offsets, words",
    [([0, 2], "from 0 to"), ([1, 3], "from 0 to"), ([0, 5, 3], "not decrease"), ([], "one number more")],
)
def test_wrong_offsets_are_refused(offsets, words):
    with pytest.raises(ValueError, match=f"weights_packed_forward: offsets must.*{words}"):
        weights_packed(torch.rand(3), torch.rand(3), torch.tensor(offsets, dtype=torch.int64))


def test_golden_rays(device):
    g = golden("rendering.npz", device)
    sigma, delta = g["sigma"].requires_grad_(), g["t_edges"].diff(dim=1)
    w = weights(sigma, delta)
    close(w, g["weights_multinerf"], atol=1e-5)
    close(transmittance(sigma, delta), g["transmittance"], atol=1e-5)
    w.backward(g["grad_out_w"])
    close(sigma.grad, g["grad_sigma"], atol=1e-5)
    from_alpha, light = weights_from_alpha(g["alpha"])
    close(from_alpha, g["weights_multinerf"], atol=1e-5)
    close(light[:, :-1], g["transmittance"], atol=1e-5)


def test_golden_packed_rays(device):
    g = golden("rendering_packed.npz", device)
    offsets = torch.cat([g["counts"].new_zeros(1), g["counts"].cumsum(0)])
    delta = g["t_ends"] - g["t_starts"]
    w = weights_packed(g["sigma"], delta, offsets)
    close(w, g["weights"], atol=1e-5)
    close(transmittance(g["sigma"], delta, offsets), g["transmittance"], atol=1e-5)
    sums = torch.zeros(len(g["counts"]), 3, device=device)
    torch.use_deterministic_algorithms(False)
    close(sums.index_add(0, g["ray_indices"], w[:, None] * g["values"]), g["accumulated"], atol=1e-5)
