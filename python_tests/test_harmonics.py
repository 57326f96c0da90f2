"""What is true of spherical harmonics and Fourier features alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from raymarch import _C
from raymarch.nn.harmonics import Fourier, Harmonics
from raymarch.ops.harmonics import fourier, harmonics

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "sh.npz"

THIRDS = (1 / 3, 2 / 3, -2 / 3)
AT_THIRDS = [
    *(0.282095, 0.325735, -0.325735, 0.162868, 0.242789, -0.485577, 0.105131, -0.242789),
    *(-0.182091, -0.043707, -0.428239, 0.372408, 0.193499, 0.186204, 0.321179, -0.240388),
]


def close(got, want, **tolerance):
    torch.testing.assert_close(got.cpu(), torch.as_tensor(want, dtype=got.dtype), **tolerance)


def test_harmonics_at_a_known_direction(device):
    d = torch.tensor([THIRDS], device=device)
    close(harmonics(d)[0], AT_THIRDS, rtol=0, atol=2e-6)
    negated = [-y if i % 2 else y for i, y in enumerate(AT_THIRDS)]
    close(harmonics(d, "tcnn")[0], negated, rtol=0, atol=2e-6)


def test_harmonics_on_a_coordinate_plane(device):
    y = harmonics(torch.tensor([[0.6, 0.0, -0.8]], device=device))[0]
    want = {2: -0.390882, 3: 0.293162, 6: 0.290160, 7: -0.524423, 8: 0.196659}
    want |= {12: -0.059708, 13: 0.603300, 14: -0.416248, 15: 0.127449}
    for i, value in want.items():
        assert float(y[i]) == pytest.approx(value, abs=2e-6)


def test_the_torch_fallback_of_nerfstudio_forgets_to_map_directions_back(device):
    d = torch.tensor([[0.6, 0.0, -0.8]], device=device, requires_grad=True)
    y = harmonics(d, "nerfstudio_torch")[0]
    for i, value in {1: 0.244301, 2: 0.048860, 3: 0.390882, 15: -0.051924}.items():
        assert float(y[i].detach()) == pytest.approx(value, abs=2e-6)
    (grad,) = torch.autograd.grad(y[1], d)
    close(grad[0], [0, 0.4886025 / 2, 0], rtol=0, atol=1e-6)


def test_harmonics_agree_with_nerfstudio(device):
    if not GOLDEN.exists():
        pytest.skip("../shared/golden is absent")
    golden = np.load(GOLDEN)
    got = harmonics(torch.from_numpy(golden["dirs"]).float().to(device))
    close(got, golden["degree3"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("signs", ["nerfstudio", "tcnn"])
def test_harmonics_are_orthonormal(signs):
    """Exact for degree 6 in z by Gauss-Legendre, and around it by equal steps."""
    z, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    turn = torch.arange(16) * (2 * math.pi / 16)
    ring = (1 - z**2).sqrt()[:, None]
    d = torch.stack([ring * turn.cos(), ring * turn.sin(), z[:, None].expand(8, 16)], -1).reshape(-1, 3)
    area = (weight[:, None] * (2 * math.pi / 16)).expand(8, 16).reshape(-1).float()
    y = harmonics(d.float().contiguous(), signs)
    close(torch.einsum("pi,pj,p->ij", y, y, area), torch.eye(16), rtol=0, atol=1e-5)


def test_fourier_at_a_known_position(device):
    x = torch.tensor([[0.3, 0.6, 0.9]], device=device)
    tcnn = [0.809017, 0.587785, 0.951057, -0.309017, 0.951057, -0.309017]
    tcnn += [-0.587785, -0.809017, 0.309017, -0.951057, -0.587785, 0.809017]
    nerfstudio = [0.951056, -0.587786, -0.587786, 0.951057, -0.587785, -0.951057]
    nerfstudio += [-0.309017, -0.809017, -0.809017, 0.309016, 0.809017, 0.309017]
    close(fourier(x, 2)[0], tcnn, rtol=0, atol=3e-6)
    close(fourier(x, 2, "nerfstudio")[0], nerfstudio, rtol=0, atol=3e-6)


def test_fourier_is_accurate_far_from_zero(device):
    x = 1000 * (torch.rand(500, 3) - 0.5)
    angle = math.pi * x.double()[:, :, None] * 2.0 ** torch.arange(10)
    want = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
    close(fourier(x.to(device), 10).double(), want, rtol=0, atol=3e-7)


@pytest.mark.parametrize("layout", ["tcnn", "nerfstudio"])
@pytest.mark.parametrize("points", [1, 63, 64, 65, 1000])
def test_sines_and_cosines_lie_on_the_unit_circle(device, layout, points):
    y = fourier(torch.rand(points, 3, device=device), 5, layout)
    squares = y.square().reshape(points, -1, 2).sum(-1) if layout == "tcnn" else None
    if squares is None:
        squares = y[:, :15].square() + y[:, 15:].square()
    torch.testing.assert_close(squares, torch.ones_like(squares), rtol=0, atol=1e-6)


def test_nan_stays_nan(device):
    x = torch.tensor([[float("nan"), 0.5, 0.5]], device=device)
    y = fourier(x, 2)[0]
    assert y[:4].isnan().all() and y[4:].isfinite().all()


def test_bad_settings_are_named():
    d = torch.rand(2, 3)
    with pytest.raises(ValueError, match="signs is 'physics', expected one of nerfstudio, tcnn"):
        harmonics(d, "physics")
    with pytest.raises(ValueError, match="layout is 'rows', expected one of tcnn, nerfstudio"):
        fourier(d, 2, "rows")
    with pytest.raises(ValueError, match="frequencies is 0, expected 1 to 24"):
        fourier(d, 0)
    with pytest.raises(ValueError, match="signs is 'physics'"):
        Harmonics("physics")
    with pytest.raises(ValueError, match="layout is 'rows'"):
        Fourier(2, "rows")


def test_the_kernels_name_bad_settings_too(device):
    x, y = torch.zeros(4, 3, device=device), torch.zeros(4, 160, device=device)
    with pytest.raises(ValueError, match=r"fourier_forward: frequencies must lie in 1\.\.24"):
        _C.fourier_forward(x, 25, 0, 0, y)
    with pytest.raises(ValueError, match=r"6 \* frequencies columns from column on"):
        _C.fourier_forward(x, 4, 0, 140, y)
    for signs in (-1, 3):
        with pytest.raises(ValueError, match="harmonics_forward: signs is not a known convention"):
            _C.harmonics_forward(x, signs, y[:, :16].contiguous())


def test_modules_do_what_the_ops_do(device):
    d = torch.nn.functional.normalize(torch.randn(5, 3, device=device), dim=-1)
    assert torch.equal(Harmonics("tcnn")(d), harmonics(d, "tcnn"))
    assert Harmonics().outputs == 16
    module = Fourier(4, "nerfstudio")
    assert torch.equal(module(d), fourier(d, 4, "nerfstudio"))
    assert module(d).shape[1] == module.outputs == 24
