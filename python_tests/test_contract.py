"""Scene contraction: space into a cube or a ball, back, and as Gaussians; what it does at its edges."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from raymarch.ops.contract import conical_frustum, contract, contract_gaussian, contract_unit, uncontract

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
NORMS = ["linf", "l2"]


def golden(name):
    if not (GOLDEN / name).exists():
        pytest.skip("../shared/golden is absent")
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / name).items()}


def close(got, want, rtol=1e-5, atol=1e-6):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert_close(got.detach().cpu().double(), want, rtol=rtol, atol=atol)


def jacobian(function, x, norm):
    """[P, 3, 3], row i the gradient of output i; exact, since points do not depend on each other."""
    x = x.detach().clone().requires_grad_()
    y = function(x, norm)
    return torch.stack([torch.autograd.grad(y[..., i].sum(), x, retain_graph=True)[0] for i in range(3)], -2)


def test_known_points_in_the_cube(device):  # O37, O39
    x = torch.tensor([[2.0, -1, 0.5], [1000, 0, 0]], device=device)
    close(contract(x), [[1.5, -0.75, 0.375], [1.999, 0, 0]])
    close(contract_unit(x)[0], [0.875, 0.3125, 0.59375])
    steep, far = jacobian(contract, x, "linf")
    close(steep, [[0.25, 0, 0], [0.25, 0.75, 0], [-0.125, 0, 0.75]])
    close(far, torch.diag(torch.tensor([1e-6, 0.001999, 0.001999])), atol=1e-12)


def test_known_points_in_the_ball(device):  # O38
    x = torch.tensor([[2.0, -1, 0.5]], device=device)
    close(contract(x, "l2"), [[1.364791, -0.682395, 0.341198]])
    close(contract_unit(x, "l2"), [[0.841198, 0.329401, 0.585299]])
    want = [[0.307600, 0.187398, -0.093699], [0.187398, 0.588696, 0.046849], [-0.093699, 0.046849, 0.658971]]
    close(jacobian(contract, x, "l2")[0], want, rtol=1e-5, atol=2e-6)


def test_where_axes_tie_they_share_the_way_out(device):  # O39
    x = torch.tensor([[2.0, -2, 0.5], [2, 2, 2], [1, 1, 1]], device=device)
    two, three, corner = jacobian(contract, x, "linf")
    close(two, [[0.5, 0.25, 0], [0.25, 0.5, 0], [-0.0625, 0.0625, 0.75]])
    close(three, 0.75 * torch.eye(3) - 0.5 / 3)
    close(corner, torch.eye(3))


@pytest.mark.parametrize("norm", NORMS)
def test_the_inside_is_left_alone_to_the_last_bit(device, norm):
    x = torch.cat([torch.rand(500, 3) * 1.1 - 0.55, torch.zeros(1, 3), torch.full((1, 3), 1e-40)]).to(device)
    assert torch.equal(contract(x, norm), x) and torch.equal(uncontract(x, norm), x)
    for function in (contract, uncontract):
        assert torch.equal(jacobian(function, x, norm), torch.eye(3, device=device).expand(len(x), 3, 3))
    close(contract_unit(x, norm), (x.double().cpu() + 2) / 4, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_there_and_back(device, norm):
    x = (torch.randn(1000, 3) * torch.logspace(-2, 2, 1000)[:, None]).to(device)
    y = contract(x, norm)
    length = y.abs().amax(-1) if norm == "linf" else y.norm(dim=-1)
    assert (length < 2).all()
    assert ((uncontract(y, norm) - x).norm(dim=-1) <= 3e-7 * (1 + x.norm(dim=-1)) ** 2).all()


@pytest.mark.parametrize("norm", NORMS)
def test_going_back_turns_gradients_back(device, norm):
    x = (3 * torch.randn(200, 3)).to(device)
    there, back = jacobian(contract, x, norm), jacobian(uncontract, contract(x, norm), norm)
    close(there @ back, torch.eye(3).expand(200, 3, 3), atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_no_way_back_from_beyond_the_border(device, norm):
    y = torch.tensor([[2.0, 0, 0], [0.5, -3, -1e-9], [-1e30, 0, 1e30]], device=device)
    inf = float("inf")
    assert uncontract(y, norm).tolist() == [[inf, 0, 0], [inf, -inf, -inf], [-inf, 0, inf]]
    assert (jacobian(uncontract, y, norm) == 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_far_out_the_small_slope_outwards_keeps_its_digits(device, norm):
    x = torch.logspace(0.1, 6, 200, device=device)[:, None] * torch.tensor([0.0, -1, 0], device=device)
    slope = jacobian(contract, x, norm)[:, 1, 1]
    close(slope * x[:, 1].square(), torch.ones(200), rtol=1e-6)


FAR = [1e7, 1e10, 1e19, 1e20, 1e38, 3.4e38]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", FAR)
def test_however_far_points_stay_in_their_direction(device, norm, size):
    way = torch.tensor([[1.0, 0, 0], [0, -1, 0], [1, 1, 1], [-1, 0.5, 0.25], [1, 1e-30, 0]], device=device)
    y = contract(size * way, norm)
    unit = way / (way.abs().amax(-1) if norm == "linf" else way.norm(dim=-1))[:, None]
    close(y, 2 * unit.cpu(), atol=1e-6)
    slope = jacobian(contract, size * way, norm)
    assert slope.isfinite().all() and (slope.abs() <= 2.1 / size).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), 1e8, 1e10, 1e38, -3.4e38])
def test_what_has_no_place_becomes_the_corner(device, norm, number):
    x = torch.tensor([[number, 0, 0], [0.1, number, -0.2], [1, 2, number], [number] * 3], device=device)
    corner = contract_unit(x, norm)
    if norm == "l2" and np.isfinite(number):  # (1, 1, 1) / sqrt 3 is well inside the cube
        corner = corner[:3]
    assert (corner == 0).all()
    for function in (contract, contract_unit):
        assert jacobian(function, x, norm).isfinite().all()
    assert (jacobian(contract_unit, x[: len(corner)], norm) == 0).all()


def test_the_selector_is_strict(device):
    """(f + 2) / 4 reaches 1 in float32 near |x| = 8.4e6."""
    x = torch.logspace(6, 8, 200, device=device)[:, None] * torch.tensor([1.0, 0.5, -0.5], device=device)
    y = contract_unit(x)
    wanted = (contract(x) + 2) / 4
    inside = ((wanted > 0) & (wanted < 1)).all(-1)
    assert inside.any() and not inside.all()
    assert torch.equal((y != 0).any(-1), inside)
    assert (x[~inside].amax() > 8e6) and (x[inside, 0].amax() < 2e7)


def test_any_batch_shape(device):
    x = 3 * torch.randn(4, 5, 6, 3, device=device)
    assert torch.equal(contract(x).view(-1, 3), contract(x.view(-1, 3)))
    assert contract(x[0, 0, 0]).shape == (3,)
    assert torch.equal(contract(x.transpose(0, 2)), contract(x).transpose(0, 2))
    assert contract_unit(x[:0]).shape == (0, 5, 6, 3)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="contract: norm is 'l3', expected one of linf, l2"):
        contract(torch.zeros(2, 3), "l3")
    with pytest.raises(ValueError, match=r"contract_unit: x has shape \(3, 2\), expected \[..., 3\]"):
        contract_unit(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"uncontract: x has shape \(\)"):
        uncontract(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"covariance has shape \(2, 3\)"):
        contract_gaussian(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("norm,peer", [("l2", "L2_multinerf"), ("linf", "Linf_nerfstudio")])
def test_golden_contraction(device, norm, peer):
    g = golden("contraction.npz")
    x = g["x"].float().to(device)
    close(contract(x, norm), g[peer])
    size = g["x"].abs().sort(-1).values
    length = size[:, 2] if norm == "linf" else g["x"].norm(dim=-1)
    smooth = (length - 1).abs() > 1e-6
    if norm == "linf":
        smooth &= (length < 1) | (size[:, 2] - size[:, 1] > 1e-6)
    smooth &= ~g[f"{'L2' if norm == 'l2' else 'Linf'}_jacobian"].isnan().flatten(1).any(-1)
    assert smooth.sum() > 100
    want = g["L2_jacobian" if norm == "l2" else "Linf_jacobian"]
    close(jacobian(contract, x, norm).cpu()[smooth], want[smooth])
    if norm == "l2":
        near = g["x"].norm(dim=-1) < 100
        close(uncontract(g["L2_multinerf"].float().to(device), norm).cpu()[near], g["x"][near], rtol=1e-3)


def test_gaussians_at_known_places(
    device,
):  # O40: the reference's mask takes the length where it means the cube
    covariance = torch.diag(torch.tensor([0.01, 0.02, 0.03])).expand(2, 3, 3).to(device)
    mean, got = contract_gaussian(torch.tensor([[2.0, -1, 0.5], [0.8, 0.8, 0]], device=device), covariance)
    close(mean, [[1.5, -0.75, 0.375], [0.8, 0.8, 0]])
    want = [[0.000625, 0.000625, -0.0003125], [0.000625, 0.011875, -0.0003125]]
    close(got[0], [*want, [-0.0003125, -0.0003125, 0.01703125]])
    assert torch.equal(got[1], covariance[1])


def test_golden_gaussians(device):
    g = golden("contraction.npz")
    x, covariance = (g[k].float().to(device) for k in ("x", "cov"))
    mean, got = contract_gaussian(x, covariance, "l2")
    smooth = (g["x"].norm(dim=-1) - 1).abs() > 1e-6
    close(mean, g["L2_mean_linearized"])
    close(got.cpu()[smooth], g["L2_cov_linearized"][smooth])


def test_a_frustum_as_a_gaussian(device):  # O40b
    o, d = torch.tensor([[0.1, 0.2, 0.3]], device=device), torch.tensor([[0, 0.6, -0.8]], device=device)
    mean, covariance = conical_frustum(
        o, d, torch.tensor([[1.0, 1.5]], device=device), torch.tensor([4e-6], device=device)
    )
    assert mean.shape == (1, 1, 3) and covariance.shape == (1, 1, 3, 3)
    close(mean[0, 0], [0.1, 0.969737, -0.726316])
    c = covariance[0, 0]
    close(
        torch.stack([c[0, 0], c[1, 1], c[1, 2], c[2, 2]]),
        [5.302372e-7, 0.00718974, -0.00958562, 0.0127814],
        atol=1e-9,
    )
    close(c, c.T.cpu())


def test_golden_frusta(device):
    g = golden("conical_frustum.npz")
    t = torch.stack([g["t0"], g["t1"]], -1).to(device)
    d = g["dirs"].to(device)
    mean, covariance = conical_frustum(torch.zeros_like(d), d, t, (np.pi * g["base_radius"] ** 2).to(device))
    close(mean[:, 0], g["mean"])
    close(covariance[:, 0], g["cov"])
