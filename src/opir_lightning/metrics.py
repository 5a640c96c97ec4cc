"""Scores: one definition for training, evaluation and comparison. Every number is computed in float64, per image.

====================  =================================================================================================
profile               rule
====================  =================================================================================================
``published``         what PromptIR, AdaIR and most successors report: prediction and target centre-cropped to multiples
                      of 16 (the model sees the cropped input, see `published_crop`), RGB, prediction clamped to [0, 1]
                      and not rounded; PSNR with range 1; SSIM as ``skimage.metrics.structural_similarity`` by default:
                      uniform 7x7 window, sample covariance.
``full``              the whole image, prediction clamped and rounded to 8 bits; SSIM with the Gaussian window (sigma
                      1.5, 11x11) and population covariance, the parameters of Wang et al. 2004.
====================  =================================================================================================

Both agree with scikit-image. The SSIM is written out because torchmetrics knows no sample covariance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Profile = Literal["published", "full"]

CROP_MULTIPLE = 16
SPARSIFICATION_STEPS = 100


class _Window(NamedTuple):
    taps: tuple[float, ...]  # 1-D weights that sum to 1; the window is their outer product
    sample_covariance: bool


def _gaussian_taps(sigma: float, radius: int) -> tuple[float, ...]:
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    return tuple(weight / sum(weights) for weight in weights)


_WINDOWS = {
    "published": _Window((1 / 7,) * 7, sample_covariance=True),
    "full": _Window(_gaussian_taps(1.5, int(3.5 * 1.5 + 0.5)), sample_covariance=False),
}


def published_crop(image: Tensor) -> Tensor:
    """Cut the centre whose sides are multiples of 16, as the published evaluations do.

    For evaluation the *input* is cropped before the model sees it, and so is the target. A second crop changes nothing.

    Args:
        image: ``(..., H, W)``, both sides at least 16.

    Returns:
        ``(..., H - H % 16, W - W % 16)``, a view; an odd surplus loses its extra row at the bottom or right.

    Raises:
        ValueError: a side is shorter than 16.
    """
    height, width = image.shape[-2:]
    if min(height, width) < CROP_MULTIPLE:
        raise ValueError(
            f"the profile 'published' crops to multiples of {CROP_MULTIPLE} and this image is only {width}x{height}. "
            "Use profile='full' for such small images."
        )
    top, left = (height % CROP_MULTIPLE) // 2, (width % CROP_MULTIPLE) // 2
    return image[..., top : top + height - height % CROP_MULTIPLE, left : left + width - width % CROP_MULTIPLE]


def score(prediction: Tensor, target: Tensor, *, profile: Profile = "published") -> dict[str, Tensor]:
    """PSNR and SSIM of every image of a batch, by the rules in this module's table.

    Args:
        prediction: ``(B, 3, H, W)`` RGB, any float dtype; values outside [0, 1] are clamped. In the profile
            ``published`` it may already have the size of ``published_crop(target)``.
        target: ``(B, 3, H, W)`` RGB in [0, 1].
        profile: ``"published"`` or ``"full"``.

    Returns:
        ``{"psnr": (B,) in dB, "ssim": (B,)}``, float64 on the device of ``target``. Identical images have a PSNR of
        infinity, and so has the mean of a set that holds such a pair: it is not capped, because any cap would be part
        of the reported mean.

    Raises:
        ValueError: the shapes disagree, the profile is unknown, or a side is below 16 (``published``) or 11 pixels
            (``full``), where the SSIM has no window.
    """
    if profile not in _WINDOWS:
        raise ValueError(f"unknown profile {profile!r}; there are {', '.join(map(repr, _WINDOWS))}")
    if prediction.ndim != 4 or target.ndim != 4 or prediction.shape[1] != 3:
        raise ValueError(f"expected (B, 3, H, W) twice, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    if profile == "published":
        target_crop = published_crop(target)
        if prediction.shape == target.shape:
            prediction = published_crop(prediction)
        target = target_crop
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    prediction, target = prediction.detach().double().clamp(0, 1), target.detach().double()
    if profile == "full":
        prediction = (prediction * 255).round() / 255
    mse = (prediction - target).square().mean(dim=(1, 2, 3))
    return {"psnr": -10 * mse.log10(), "ssim": _ssim(prediction, target, _WINDOWS[profile])}


def _ssim(first: Tensor, second: Tensor, window: _Window) -> Tensor:
    r"""Mean structural similarity per image, for values of range 1.

    .. math:: \frac{(2\mu_x\mu_y + C_1)(2\sigma_{xy} + C_2)}{(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},
        \qquad C_1 = 0.01^2,\; C_2 = 0.03^2

    averaged over the colours and over the pixels whose window lies inside the image.

    Source: Wang et al., IEEE TIP 13(4), 2004; defaults of scikit-image.
    """
    side = len(window.taps)
    if min(first.shape[-2:]) < side:
        raise ValueError(
            f"the SSIM window is {side}x{side} and the image only {first.shape[-1]}x{first.shape[-2]} pixels"
        )
    n = side * side
    correction = n / (n - 1) if window.sample_covariance else 1.0
    taps = window.taps
    mean_x, mean_y = _local_mean(first, taps), _local_mean(second, taps)
    var_x = correction * (_local_mean(first * first, taps) - mean_x**2)
    var_y = correction * (_local_mean(second * second, taps) - mean_y**2)
    cov = correction * (_local_mean(first * second, taps) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    bottom = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return (top / bottom).mean(dim=(1, 2, 3))


def _local_mean(x: Tensor, taps: Sequence[float]) -> Tensor:
    """Weighted mean over the window, only where it lies inside: ``(B, C, H, W)`` to ``(B, C, H-k+1, W-k+1)``.

    Shifted multiply-adds: torch's float64 convolution makes a score 4 to 6 times as slow on a CPU.
    """
    for axis in (2, 3):
        length = x.shape[axis] - len(taps) + 1
        mean = x.narrow(axis, 0, length) * taps[0]
        for offset, tap in enumerate(taps[1:], start=1):
            mean.add_(x.narrow(axis, offset, length), alpha=tap)
        x = mean
    return x


def uncertainty_scores(uncertainty: Tensor, error: Tensor) -> dict[str, Tensor]:
    """How well a map says where an image is wrong.

    Args:
        uncertainty: ``(B, 1, H, W)``, sides at least 16; only its order counts.
        error: ``(B, 1, H, W)`` true absolute error, not negative; for RGB the mean over the colours.

    Returns:
        float64 ``(B,)`` each:

        - ``rank_correlation_block8``: Spearman's rank correlation of the means over whole 8x8 blocks. Report this one:
          one pixel's error is a random draw, whose ranks cannot follow even a perfect map closely.
        - ``rank_correlation_pixel``: the same per pixel.
        - ``ause``: area between two sparsification curves. Each gives the mean error of the pixels that remain after
          the fraction f with the highest uncertainty (for the oracle: the highest error) is removed, divided by the
          mean error of all; f = 0, 0.01, ..., 0.99. 0 is a perfect order. Pixels of equal uncertainty share their
          mean error, which is what a random order among them gives on average.

        A constant map, or a constant error, ranks nothing: its correlation is 0.

    Raises:
        ValueError: the shapes disagree or a side is below 16.

    Source: Ilg et al., ECCV 2018 (sparsification and AUSE).
    """
    if uncertainty.shape != error.shape or error.ndim != 4 or error.shape[1] != 1 or min(error.shape[-2:]) < 16:
        raise ValueError(
            "expected (B, 1, H, W) twice with sides of at least 16, "
            f"got {tuple(uncertainty.shape)} and {tuple(error.shape)}"
        )
    maps, errors = uncertainty.detach().double(), error.detach().double()
    pairs = list(zip(maps.flatten(1), errors.flatten(1), strict=True))
    blocks = zip(F.avg_pool2d(maps, 8).flatten(1), F.avg_pool2d(errors, 8).flatten(1), strict=True)
    return {
        "rank_correlation_block8": torch.stack([_spearman(*pair) for pair in blocks]),
        "rank_correlation_pixel": torch.stack([_spearman(*pair) for pair in pairs]),
        "ause": torch.stack([_ause(*pair) for pair in pairs]),
    }


def _spearman(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of the ranks of two vectors; ties share their mean rank."""
    a, b = _centred_ranks(first), _centred_ranks(second)
    norm = (a.square().sum() * b.square().sum()).sqrt()
    return (a * b).sum() / norm if norm > 0 else norm


def _centred_ranks(values: Tensor) -> Tensor:
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    mean_rank = counts.cumsum(0).double() - (counts - 1) / 2  # of each group of ties, the ranks starting at 1
    return mean_rank[group] - (values.numel() + 1) / 2


def _ause(uncertainty: Tensor, error: Tensor) -> Tensor:
    if not error.any():
        return error.new_zeros(())
    _, group, counts = uncertainty.unique(return_inverse=True, return_counts=True)
    shared = error.new_zeros(counts.numel()).index_add_(0, group, error) / counts  # expectation over the order of ties
    by_map = shared[group][group.argsort()]
    return (_sparsification(by_map) - _sparsification(error.sort().values)).mean() / error.mean()


def _sparsification(ascending: Tensor) -> Tensor:
    """Mean of what is left after removing 0 %, 1 %, ..., 99 % from the end: ``(N,)`` to ``(100,)``."""
    steps = torch.arange(SPARSIFICATION_STEPS, device=ascending.device, dtype=torch.float64) / SPARSIFICATION_STEPS
    kept = (ascending.numel() * (1 - steps)).round().long()  # at least 3 of the 256 that a map has
    return ascending.cumsum(0)[kept - 1] / kept
