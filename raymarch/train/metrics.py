"""How good a picture is: numbers per image, computed where the image lies, never synchronising."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class _Ssim:
    """What implementations of SSIM disagree about."""

    crop: bool  # leave pixels whose window sticks out of the image out of the mean
    clamp: bool  # keep variances from rounding below zero
    own_range: bool  # data range: the larger of the two images' ranges, whatever the caller says


SSIM_PROTOCOLS = {
    "raymarch": _Ssim(crop=False, clamp=True, own_range=False),
    "torchmetrics": _Ssim(crop=False, clamp=True, own_range=True),  # 1.9, as nerfstudio calls it
    "torchmetrics_1.2": _Ssim(crop=True, clamp=False, own_range=True),  # and before
}
SSIM_SIGMA = 1.5  # pixels; the window spans 3.5 sigma to each side
SSIM_RADIUS = 5
SSIM_K = (0.01, 0.03)


def psnr(pred: Tensor, truth: Tensor, data_range: float = 1.0, keep: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, a scalar: 10 log10(data_range^2 / mean squared error); equal: inf.

    pred and truth of one shape. keep [h, w] bool: the pixels that count (default: all); NaN where it keeps
    none. ValueError if the shapes differ, or for whole numbers (uint8) with a data range of 1.
    """
    _same_shape("psnr", pred, truth)
    _has_range("psnr", pred, truth, data_range)
    if keep is not None:
        _fits("psnr", keep, pred)
        pred, truth = pred[keep], truth[keep]
    return 10 * (data_range**2 / F.mse_loss(pred.float(), truth.float())).log10()


def ssim(
    pred: Tensor,
    truth: Tensor,
    data_range: float = 1.0,
    protocol: str = "raymarch",
    keep: Tensor | None = None,
) -> Tensor:
    """Structural similarity, a scalar; 1 for equal images.

    pred and truth [h, w, channels], at least 6 pixels each way. A Gaussian window of 11 x 11 pixels (sigma
    1.5) over images padded by reflection, K1 = 0.01, K2 = 0.03, the mean over pixels and channels (Wang et
    al. 2004), in double. `protocol`: raymarch; torchmetrics (1.9, with data_range=None), which takes the
    larger range of the two images for data_range; torchmetrics_1.2, which also leaves the border of 5 pixels
    out of the mean and then needs 11 pixels. keep [h, w] bool: the pixels that count (default: all). Others
    are left out of the mean and of every window, whose weights are scaled to sum to one again; NaN where
    none is kept. ValueError for other shapes and protocols, and for whole numbers with a data range of 1.
    """
    if protocol not in SSIM_PROTOCOLS:
        raise ValueError(f"ssim: protocol is {protocol!r}, expected one of {', '.join(SSIM_PROTOCOLS)}")
    how = SSIM_PROTOCOLS[protocol]
    _same_shape("ssim", pred, truth)
    _has_range("ssim", pred, truth, data_range)
    least = 2 * SSIM_RADIUS + 1 if how.crop else SSIM_RADIUS + 1
    if pred.dim() != 3 or min(pred.shape[:2]) < least:
        raise ValueError(
            f"ssim: pred is {tuple(pred.shape)}, expected [h, w, channels], at least {least} pixels each way"
        )
    a, b = pred.double().permute(2, 0, 1), truth.double().permute(2, 0, 1)  # variances cancel in float32
    if keep is not None:
        _fits("ssim", keep, pred)
        a, b = a * keep, b * keep
    peak = torch.maximum(a.max() - a.min(), b.max() - b.min()) if how.own_range else data_range
    c1, c2 = (SSIM_K[0] * peak) ** 2, (SSIM_K[1] * peak) ** 2
    means = _windowed(torch.stack([a, b, a * a, b * b, a * b]))
    if keep is not None:
        means = means / _windowed(keep.double()[None, None])
    mean_a, mean_b, aa, bb, ab = means
    var_a, var_b, cov = aa - mean_a.square(), bb - mean_b.square(), ab - mean_a * mean_b
    if how.clamp:
        var_a, var_b = var_a.clamp_min(0), var_b.clamp_min(0)
    alike = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    alike = alike * (2 * cov + c2) / (var_a + var_b + c2)
    if how.crop:
        inner = (..., slice(SSIM_RADIUS, -SSIM_RADIUS), slice(SSIM_RADIUS, -SSIM_RADIUS))
        alike, keep = alike[inner], None if keep is None else keep[inner]
    return alike.mean() if keep is None else alike[:, keep].mean()


def ssim_protocol() -> str:
    """How `ssim` measures by default, for people who compare numbers."""
    return (
        "SSIM with data range 1, Gaussian window 11 x 11 (sigma 1.5), reflected borders included, "
        "averaged over channels, then over images"
    )


def feature_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between each pixel's two feature vectors, [P]: a, b [P, D]; 0 where one of them is zero."""
    _same_shape("feature_cosine", a, b)
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def depth_error(pred: Tensor, truth: Tensor) -> Tensor:
    """Median of |pred - truth| over pixels with a known depth (truth > 0), a scalar; NaN if there are none.

    pred and truth of one shape, in the same units, the result in them too. ValueError if the shapes differ.
    """
    _same_shape("depth_error", pred, truth)
    return torch.where(truth > 0, (pred - truth).abs(), torch.nan).float().nanmedian()


def _same_shape(metric: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{metric}: shapes are {tuple(a.shape)} and {tuple(b.shape)}, expected the same")


def _has_range(metric: str, a: Tensor, b: Tensor, data_range: float) -> None:
    """Pictures of bytes run to 255, and no figure shows that somebody forgot it."""
    if data_range == 1 and (
        whole := [x for x in (a, b) if not x.is_floating_point() and x.dtype != torch.bool]
    ):
        raise ValueError(
            f"{metric}: a picture is {whole[0].dtype} and data_range is 1: divide by 255, or give data_range"
        )


def _fits(metric: str, keep: Tensor, image: Tensor) -> None:
    if keep.dtype != torch.bool or keep.shape != image.shape[:2]:
        raise ValueError(
            f"{metric}: keep is {keep.dtype} {tuple(keep.shape)}, expected bool {tuple(image.shape[:2])}"
        )


def _windowed(images: Tensor) -> Tensor:
    """Gaussian means around every pixel of images [n, channels, h, w]."""
    x = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=images.dtype, device=images.device)
    g = torch.exp((x / SSIM_SIGMA).square() / -2)
    g = (g / g.sum()).view(1, 1, 1, -1)
    wide = F.pad(images.flatten(0, 1)[:, None], [SSIM_RADIUS] * 4, mode="reflect")
    return F.conv2d(F.conv2d(wide, g), g.mT).view(images.shape)
