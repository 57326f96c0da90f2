"""Embeddings -> similarity -> place."""

import pytest
import torch

from raymarch.features.query import locate, mask, prepare, score, similarity, similarity_from_hidden

X, Y, Z = torch.eye(3)
FEATURE = torch.tensor([0.6, 0.8, 0.0])
MODES = ["paired", "f3rm", "cosine"]


def close(got, want):
    torch.testing.assert_close(got.cpu(), torch.tensor(want), rtol=0, atol=2e-6)


def test_known_similarities(device):
    feature, both = FEATURE.to(device), torch.stack([X, Y]).to(device)  # spec O73
    others = torch.stack([Z, Y]).to(device)
    close(similarity(feature, both), 0.989950)
    close(similarity(feature, both, others, "f3rm"), 0.465182)
    close(similarity(feature, both, others, "paired"), 0.869834)
    for mode in ("f3rm", "paired"):
        close(similarity(feature, both, others[:1], mode), 0.999950)


@pytest.mark.parametrize("mode", MODES)
def test_zero_and_broken_features_score_zero(device, mode):
    features = torch.stack([torch.zeros(3), torch.full((3,), torch.nan), FEATURE]).to(device)
    got = similarity(features, X.to(device), Z.to(device), mode)
    assert got[0] == 0 and got[1] == 0 and got[2] > 0.5


def test_paired_is_the_least_of_the_pairs(device):
    features, positive, negatives = torch.randn(50, 8), torch.randn(8), torch.randn(5, 8)
    got = similarity(features.to(device), positive.to(device), negatives.to(device), temperature=0.2)
    unit = torch.nn.functional.normalize
    p = unit(features, dim=-1) @ unit(positive, dim=0) / 0.2
    n = unit(features, dim=-1) @ unit(negatives, dim=-1).T / 0.2
    pairs = torch.stack([torch.stack([p, n[:, j]]).softmax(dim=0)[0] for j in range(5)])
    torch.testing.assert_close(got.cpu(), pairs.amin(dim=0), rtol=1e-5, atol=1e-6)


def test_only_the_direction_of_a_feature_counts(device):
    features, positive = torch.randn(20, 16, device=device), torch.randn(16, device=device)
    for mode in MODES:
        args = positive, torch.randn(3, 16, device=device), mode
        torch.testing.assert_close(similarity(features, *args), similarity(features * 1e4, *args))


def test_a_tiny_temperature_does_not_overflow(device):
    features = torch.randn(20, 16, device=device)
    for mode in ("paired", "f3rm"):
        others = torch.randn(3, 16, device=device)
        assert similarity(features, features[0], others, mode, temperature=1e-4).isfinite().all()


def test_positives_are_averaged_before_they_are_normalised():
    positives = torch.stack([10 * X, Y])
    torch.testing.assert_close(similarity(X, positives), torch.tensor(10 / 101**0.5))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(768, 64), (32, 16), (8, 16)])
def test_hidden_vectors_score_as_their_features_do(device, mode, shape):
    layer, hidden = torch.randn(shape), torch.rand(4, 30, shape[1])
    hidden[0, 0] = 0
    positives, negatives = torch.randn(2, shape[0]), torch.randn(7, shape[0])
    args = [x.to(device) for x in (positives, negatives)]
    want = similarity(hidden.double() @ layer.double().T, positives, negatives, mode)
    got = similarity_from_hidden(hidden.to(device), layer.to(device), *args, mode)
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=5e-6)
    assert got[0, 0] == 0


def test_hidden_vectors_of_an_ill_conditioned_layer(device):
    layer = torch.randn(256, 64) @ torch.diag(torch.logspace(0, -5, 64))
    hidden, positive = torch.randn(100, 64), torch.randn(256)
    want = similarity(hidden.double() @ layer.double().T, positive)
    got = score(hidden.to(device), prepare(positive, feature_layer=layer.to(device)))
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=5e-6)


def test_mask_leaves_out_what_is_not_a_number():
    assert mask(torch.tensor([0.2, 0.5, 0.9, torch.nan])).tolist() == [False, True, True, False]


def test_a_box_is_found_where_the_weight_is(device):
    inside = torch.rand(5000, 3) * torch.tensor([0.2, 0.4, 0.1]) + torch.tensor([1.0, -2.0, 0.5])
    stray = torch.tensor([[50.0, 50.0, 50.0]])
    points = torch.cat([inside, stray, torch.full((100, 3), -9.0)]).to(device)
    weights = torch.cat([torch.ones(5001), torch.zeros(100)]).to(device)
    found = locate(points, weights)
    torch.testing.assert_close(found.centroid.cpu(), inside.mean(dim=0), rtol=0, atol=0.02)
    want = torch.tensor([[1.0, -2.0, 0.5], [1.2, -1.6, 0.6]])
    torch.testing.assert_close(found.box.cpu(), want, rtol=0, atol=0.02)
    exact = locate(points, weights, coverage=1)
    assert exact.box[1].tolist() == [50, 50, 50] and found.weight == 5001


def test_one_point_is_its_own_box():
    found = locate(X[None], torch.ones(1))
    assert found.box.tolist() == [X.tolist(), X.tolist()]


def test_errors_name_both_widths_and_the_words():
    with pytest.raises(ValueError, match="got 3 channels, the embeddings have 4"):
        similarity(X, torch.ones(4))
    with pytest.raises(ValueError, match="positives have 3 channels, negatives 4"):
        similarity(X, X, torch.ones(4))
    with pytest.raises(ValueError, match="feature_layer gives 5 channels, embeddings have 3"):
        similarity_from_hidden(torch.ones(2), torch.ones(5, 2), X)
    with pytest.raises(ValueError, match="got 3 channels, feature_layer takes 2"):
        similarity_from_hidden(torch.ones(3), torch.ones(3, 2), X)
    with pytest.raises(ValueError, match="mode is 'dot', expected one of paired, f3rm, cosine"):
        similarity(X, X, mode="dot")
    with pytest.raises(ValueError, match="no point has a weight above zero"):
        locate(X[None], torch.zeros(1))
