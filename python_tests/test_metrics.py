"""Image metrics against numbers from torchmetrics and against their definitions."""

import math

import pytest
import torch

from raymarch.train.metrics import depth_error, feature_cosine, psnr, ssim, ssim_protocol

FLOAT32 = 5e-6  # what torchmetrics, whose numbers these are, loses by summing variances in float32


@pytest.fixture
def pair(device):
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    truth = torch.stack([row / 15, column / 15, (row + column) / 30], -1)
    pred = (0.9 * truth + 0.02 * torch.sin(column)[..., None]).clamp(0, 1)
    return pred.to(device), truth.to(device)


def test_psnr(pair):
    assert float(psnr(*pair)) == pytest.approx(24.91105, abs=1e-4)
    assert float(psnr(pair[0] * 255, pair[1] * 255, data_range=255)) == pytest.approx(24.91105, abs=1e-3)
    assert float(psnr(pair[0], pair[0])) == math.inf


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bytes_have_another_range_than_one(pair, metric):
    """Bytes judged as if they ran to 1 are 48 dB off."""
    pred, truth = ((255 * x).round() for x in pair)
    with pytest.raises(ValueError, match=rf"{metric.__name__}: a picture is torch.uint8 and data_range is 1"):
        metric(pred.byte(), truth.byte())
    with pytest.raises(ValueError, match=r"a picture is torch\.uint8"):
        metric(pair[0], truth.byte())
    want = metric(pred / 255, truth / 255)
    torch.testing.assert_close(metric(pred.byte(), truth.byte(), data_range=255), want)


def test_ssim_by_protocol(pair):
    assert float(ssim(*pair, protocol="torchmetrics")) == pytest.approx(0.977708, abs=FLOAT32)
    assert float(ssim(*pair, protocol="torchmetrics_1.2")) == pytest.approx(0.976973, abs=FLOAT32)
    assert float(ssim(pair[0], pair[0])) == pytest.approx(1, abs=1e-6)


def test_ssim_of_darker_images_depends_on_the_data_range(pair):
    pred, truth = (x / 2 for x in pair)
    assert float(ssim(pred, truth)) == pytest.approx(0.981098, abs=FLOAT32)
    assert float(ssim(pred, truth, protocol="torchmetrics")) == pytest.approx(0.977708, abs=FLOAT32)
    assert float(ssim(pred, truth, data_range=0.5)) == pytest.approx(float(ssim(*pair)), abs=FLOAT32)
    assert "data range 1" in ssim_protocol()


def test_ssim_equals_torchmetrics_where_it_is_installed(pair):
    image = pytest.importorskip("torchmetrics.functional.image")
    planes = [x.permute(2, 0, 1)[None].double() for x in pair]
    want = image.structural_similarity_index_measure(*planes, data_range=1.0)
    assert float(ssim(*pair)) == pytest.approx(float(want), abs=1e-9)


def test_ssim_of_flat_images_is_finite(device):
    flat = torch.full((12, 20, 3), 0.3, device=device)
    assert float(ssim(flat, flat)) == pytest.approx(1, abs=1e-5)
    assert 0 < float(ssim(flat, 2 * flat)) < 1


def test_feature_cosine(device):
    a = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]], device=device)
    b = torch.tensor([[0.0, 2.0], [6.0, 8.0], [1.0, 0.0]], device=device)
    assert feature_cosine(a, b).tolist() == pytest.approx([0, 1, 0], abs=1e-6)


def test_depth_error_skips_unknown_depths(device):
    truth = torch.tensor([[0.0, 1.0], [2.0, 4.0]], device=device)
    pred = torch.tensor([[9.0, 1.1], [2.3, 4.9]], device=device)
    assert float(depth_error(pred, truth)) == pytest.approx(0.3, abs=1e-6)
    assert math.isnan(float(depth_error(pred, torch.zeros_like(truth))))


@pytest.mark.parametrize("metric", [psnr, ssim, feature_cosine, depth_error])
def test_different_shapes_are_refused(metric):
    with pytest.raises(ValueError, match=f"{metric.__name__}: shapes are"):
        metric(torch.rand(12, 12, 3), torch.rand(12, 12, 1))


def test_bad_images_and_protocols_are_refused():
    image = torch.rand(8, 8, 3)
    with pytest.raises(ValueError, match="protocol is 'wang'"):
        ssim(image, image, protocol="wang")
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(image, image, protocol="torchmetrics_1.2")
    with pytest.raises(ValueError, match=r"expected \[h, w, channels\]"):
        ssim(image[0], image[0])


def test_pixels_left_out_count_in_no_metric(pair, device):
    pred, truth = pair
    keep = torch.ones(16, 16, dtype=torch.bool, device=device)
    assert float(ssim(pred, truth, keep=keep)) == pytest.approx(float(ssim(pred, truth)), abs=1e-12)
    keep[3:9, 5:] = False
    spoilt = torch.where(keep[..., None], pred, torch.rand_like(pred))
    assert float(psnr(spoilt, truth, keep=keep)) == float(psnr(pred, truth, keep=keep))
    assert float(ssim(spoilt, truth, keep=keep)) == float(ssim(pred, truth, keep=keep))
    assert float(ssim(spoilt, truth)) < float(ssim(pred, truth)) - 0.1
    none = torch.zeros_like(keep)
    assert math.isnan(float(psnr(pred, truth, keep=none))) and math.isnan(float(ssim(pred, truth, keep=none)))


def test_a_half_that_is_kept_scores_as_ssim_written_out(pair, device):
    pred, truth = (x.double() for x in pair)
    keep = torch.zeros(16, 16, dtype=torch.bool, device=device)
    keep[:, :8] = True
    g = torch.exp((torch.arange(-5.0, 6, dtype=torch.float64, device=device) / 1.5).square() / -2)
    near = [abs(k) if k < 16 else 30 - k for k in range(-5, 21)]  # borders reflected
    total = []
    for row in range(16):
        for column in range(8):
            rows, columns = near[row : row + 11], near[column : column + 11]
            w = (g[:, None] * g * keep[rows][:, columns])[..., None]
            w = w / w.sum()
            a, b = pred[rows][:, columns], truth[rows][:, columns]
            ma, mb = (w * a).sum((0, 1)), (w * b).sum((0, 1))
            va, vb = (w * a * a).sum((0, 1)) - ma**2, (w * b * b).sum((0, 1)) - mb**2
            cov = (w * a * b).sum((0, 1)) - ma * mb
            one = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4) * (2 * cov + 9e-4) / (va + vb + 9e-4)
            total.append(one.mean())
    assert float(ssim(*pair, keep=keep)) == pytest.approx(float(torch.stack(total).mean()), abs=1e-9)


def test_a_mask_of_another_size_is_refused(pair):
    with pytest.raises(ValueError, match=r"psnr: keep is torch.bool \(4, 4\), expected bool \(16, 16\)"):
        psnr(*pair, keep=torch.ones(4, 4, dtype=torch.bool))
