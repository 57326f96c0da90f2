"""Feature -> colour."""

import pytest
import torch

from raymarch.features.pca import Pca, apply, fit_pca

TABLE = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [1, 0, -1, 2], [10, -3, 0.5, 1]])


def cloud(count=2000, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    strength = torch.linspace(4, 0.2, width)
    turned = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    return torch.randn(count, width, generator=generator) * strength @ turned + 3


def test_known_projection_gives_known_colours(device):
    pca = fit_pca(TABLE.to(device), projection=torch.eye(4, 3, device=device))  # spec O72
    torch.testing.assert_close(pca.low.cpu(), torch.tensor([0.03, -2.91, -0.955]))
    torch.testing.assert_close(pca.high.cpu(), torch.tensor([9.82, 4.88, 5.88]))
    want = [[0, 0.501926, 0.432334], [0.405516, 1, 1], [0.099081, 0.373556, 0], [1, 0, 0.212875]]
    torch.testing.assert_close(apply(TABLE.to(device), pca).cpu(), torch.tensor(want), rtol=1e-5, atol=1e-6)


def test_directions_are_those_of_the_singular_value_decomposition(device):
    features = cloud()
    got = fit_pca(features.to(device)).projection.cpu().double()
    centred = features.double() - features.double().mean(dim=0)
    want = torch.linalg.svd(centred, full_matrices=False).Vh[:3].T
    torch.testing.assert_close((got * want).sum(dim=0).abs(), torch.ones(3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["f3rm", "robust"])
def test_the_same_features_in_any_order_get_the_same_colours(device, method):
    features = cloud().to(device)
    shuffled = features[torch.randperm(len(features)).to(device)]
    one, two = apply(features, fit_pca(features, method)), apply(features, fit_pca(shuffled, method))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_sign_is_fixed(device):
    projection = fit_pca(cloud().to(device)).projection
    strongest = projection.gather(0, projection.abs().argmax(dim=0, keepdim=True))
    assert (strongest > 0).all()


def test_colours_stay_put_from_image_to_image(device):
    features = cloud().to(device)
    pca = fit_pca(features)
    half = apply(features[:700], pca)
    torch.testing.assert_close(half, apply(features, pca)[:700])
    assert not torch.allclose(half, apply(features[:700], pca, colour_range="image"))


def test_a_channel_that_does_not_vary_is_grey_and_finite(device):
    flat = torch.full((10, 7, 5), 2.5, device=device)
    for method in ("f3rm", "robust"):
        assert (apply(flat, fit_pca(flat, method)) == 0.5).all()
    two_channels = torch.randn(50, 2, device=device)
    colours = apply(two_channels, fit_pca(two_channels))
    assert colours.isfinite().all() and (colours[:, 2] == 0.5).all()


def test_outliers_and_zeros_do_not_set_the_robust_range(device):
    features = cloud(4000).to(device)
    pca = fit_pca(features, "robust")
    spoilt = torch.cat([features, features[:3] * 100, torch.zeros(500, 24, device=device)])
    again = fit_pca(spoilt, "robust", projection=pca.projection)
    torch.testing.assert_close(again.high - again.low, pca.high - pca.low, rtol=0.02, atol=0)
    colours = apply(spoilt, again)
    assert (colours[-500:] == 0).all() and colours[:4000].std() > 0.1


def test_features_that_are_not_finite_are_black_and_change_nothing(device):
    features = cloud().to(device)
    broken = torch.cat([features, torch.full((1, 24), torch.nan, device=device)])
    pca = fit_pca(broken)
    torch.testing.assert_close(pca.projection, fit_pca(features).projection)
    assert (apply(broken, pca)[-1] == 0).all()


def test_half_precision_and_image_shapes(device):
    image = cloud(600).reshape(20, 30, 24).to(device)
    colours = apply(image.half(), fit_pca(image.half()))
    assert colours.shape == (20, 30, 3) and colours.dtype == torch.float32
    torch.testing.assert_close(colours, apply(image, fit_pca(image)), rtol=0, atol=0.02)


def test_more_than_sixteen_million_elements(device):
    many = torch.arange(6_000_000, device=device, dtype=torch.float32).remainder(1000)[:, None].expand(-1, 3)
    pca = fit_pca(many)
    torch.testing.assert_close((pca.high - pca.low)[0].cpu(), torch.tensor(980 * 3**0.5), rtol=0.01, atol=0)


def test_wrong_words_and_widths_are_named():
    pca = Pca(torch.eye(4, 3), torch.zeros(3), torch.ones(3), "f3rm")
    with pytest.raises(ValueError, match="fitted to 4 channels, the features have 5"):
        apply(torch.zeros(2, 5), pca)
    with pytest.raises(ValueError, match="f3rm, robust, got 'best'"):
        fit_pca(TABLE, "best")
    with pytest.raises(ValueError, match="no usable feature"):
        fit_pca(torch.full((4, 8), torch.nan))
