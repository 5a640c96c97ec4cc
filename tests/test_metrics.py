"""Scores agree with scikit-image on photographs, and the map's scores with their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.signal.windows import gaussian
from scipy.stats import spearmanr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import opir_lightning
from opir_lightning.metrics import _gaussian_taps, published_crop, score, uncertainty_scores

DEMO = Path(opir_lightning.__file__).parent / "data" / "demo"
SIZES = [(101, 83), (64, 96), (96, 131), (47, 58), (120, 33)]  # H, W: multiples of 16, odd, and in between


def photo_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Ten (degraded, clean) pairs, ``(H, W, 3)`` float64; the degraded ones leave [0, 1] here and there."""
    paths = sorted(DEMO.rglob("*.jpg"))[:10]
    assert len(paths) == 10
    rng = np.random.default_rng(0)
    pairs = []
    for index, path in enumerate(paths):
        height, width = SIZES[index % len(SIZES)]
        with Image.open(path) as picture:
            clean = np.asarray(picture.convert("RGB"))[200 : 200 + height, 300 : 300 + width] / 255.0
        noisy = clean + rng.normal(0, 0.1, clean.shape)
        shifted = np.roll(clean, 1, axis=1) * 1.05
        blurred = (clean + np.roll(clean, 1, axis=0) + np.roll(clean, 2, axis=0)) / 3
        pairs.append(((noisy, shifted, blurred)[index % 3], clean))
    return pairs


def as_batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


def crop16(image: np.ndarray) -> np.ndarray:
    """The published evaluations' crop, written as they do: from half the surplus to the end minus the rest."""
    dh, dw = image.shape[0] % 16, image.shape[1] % 16
    return image[dh // 2 : image.shape[0] - dh + dh // 2, dw // 2 : image.shape[1] - dw + dw // 2]


@pytest.mark.parametrize("pair", photo_pairs())
def test_published_agrees_with_scikit_image(pair):
    got = score(as_batch(pair[0]), as_batch(pair[1]))
    prediction, target = crop16(pair[0]).clip(0, 1), crop16(pair[1])
    assert got["psnr"].item() == pytest.approx(peak_signal_noise_ratio(target, prediction, data_range=1), abs=1e-4)
    want = structural_similarity(target, prediction, channel_axis=2, data_range=1)
    assert got["ssim"].item() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("pair", photo_pairs())
def test_full_agrees_with_scikit_image(pair):
    got = score(as_batch(pair[0]), as_batch(pair[1]), profile="full")
    prediction, target = np.rint(pair[0].clip(0, 1) * 255) / 255, pair[1]
    assert got["psnr"].item() == pytest.approx(peak_signal_noise_ratio(target, prediction, data_range=1), abs=1e-4)
    want = structural_similarity(
        target, prediction, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert got["ssim"].item() == pytest.approx(want, abs=1e-6)


def test_images_of_a_batch_are_scored_one_by_one():
    clean = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    bad = clean.clone()
    bad[1] = (bad[1] + 0.1).clamp(0, 1)
    got = score(bad, clean)
    assert got["psnr"][0] == torch.inf  # identical: not capped
    assert got["ssim"][0].item() == pytest.approx(1, abs=1e-12)
    alone = score(bad[1:], clean[1:])
    assert got["psnr"][1] == alone["psnr"][0] < 25
    assert got["ssim"][1].item() == pytest.approx(alone["ssim"][0].item(), abs=1e-12)


def test_a_prediction_from_the_cropped_input_scores_like_one_cropped_afterwards():
    gen = torch.Generator().manual_seed(1)
    prediction, target = torch.rand(2, 3, 37, 50, generator=gen), torch.rand(2, 3, 37, 50, generator=gen)
    late, early = score(prediction, target), score(published_crop(prediction), target)
    assert torch.equal(late["psnr"], early["psnr"])
    assert torch.equal(late["ssim"], early["ssim"])


def test_the_window_of_the_full_profile_is_a_gaussian_that_sums_to_one():
    taps = np.array(_gaussian_taps(1.5, 5))
    assert taps.sum() == pytest.approx(1, abs=1e-12)
    assert taps / taps.max() == pytest.approx(gaussian(11, 1.5), abs=1e-12)


def test_the_crop_takes_the_centre_of_anything_that_ends_in_height_and_width():
    picture = torch.arange(3 * 37 * 58).reshape(3, 37, 58)
    assert torch.equal(published_crop(picture), picture[:, 2:34, 5:53])
    assert published_crop(picture[0, :16, :16]).shape == (16, 16)  # the smallest there is
    same = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    same = (same * 255).round() / 255  # 'full' rounds one of the two
    smallest = same[..., :11, :11]
    assert score(same, same)["ssim"].item() == pytest.approx(1, abs=1e-12)
    assert score(smallest, smallest, profile="full")["ssim"].item() == pytest.approx(1, abs=1e-9)


def test_wrong_input_is_named():
    image = torch.zeros(1, 3, 20, 20)
    with pytest.raises(ValueError, match=r"unknown profile 'ycbcr'; there are 'published', 'full'$"):
        score(image, image, profile="ycbcr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"only 10x20\. Use profile='full' for such small images\.$"):
        score(image[..., :10], image[..., :10])
    with pytest.raises(ValueError, match="window is 11x11 and the image only 10x20"):
        score(image[..., :10], image[..., :10], profile="full")
    with pytest.raises(ValueError, match="differ in shape"):
        score(image[..., :17], image)
    for first, second in ((image[:, :1], image[:, :1]), (image, image[0]), (image[0], image)):
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\) twice"):
            score(first, second)


def test_rank_correlations_are_spearmans_with_ties():
    gen = torch.Generator().manual_seed(2)
    error = torch.rand(2, 1, 32, 43, generator=gen)
    noise = torch.rand(2, 1, 32, 43, generator=gen)
    uncertainty = ((error + noise) * 6).round()  # many ties
    got = uncertainty_scores(uncertainty, error)
    for index in range(2):
        pixel = spearmanr(uncertainty[index].flatten(), error[index].flatten()).statistic
        assert got["rank_correlation_pixel"][index].item() == pytest.approx(pixel, abs=1e-9)
        blocks = [x[index, 0, :32, :40].double().reshape(4, 8, 5, 8).mean((1, 3)) for x in (uncertainty, error)]
        want = spearmanr(blocks[0].flatten(), blocks[1].flatten()).statistic
        assert got["rank_correlation_block8"][index].item() == pytest.approx(want, abs=1e-9)


def test_ause_of_a_perfect_a_useless_and_an_inverted_map():
    # 1024 pixels, error 1 in a random quarter, 0 elsewhere. Remaining mean over overall mean, removing a fraction f:
    # perfect (1/4 - f) / (1 - f) * 4 up to f = 1/4, then 0; useless 1; inverted 1 / (1 - f) up to f = 3/4, then 4.
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(3))
    error = torch.zeros(1024)
    error[order[:256]] = 1
    error = error.view(1, 1, 32, 32)
    f = np.arange(100) / 100
    oracle = np.where(f < 0.25, (0.25 - f) / (1 - f) * 4, 0)
    inverted = np.where(f < 0.75, 1 / (1 - f), 4)
    assert uncertainty_scores(error * 0.5 + 0.1, error)["ause"].item() == pytest.approx(0, abs=1e-12)
    assert uncertainty_scores(torch.ones_like(error), error)["ause"].item() == pytest.approx(
        (1 - oracle).mean(), abs=2e-3
    )
    assert uncertainty_scores(1 - error, error)["ause"].item() == pytest.approx((inverted - oracle).mean(), abs=1e-2)


def test_a_constant_map_ranks_nothing_and_a_perfect_result_has_no_ause():
    error = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(4))
    constant = uncertainty_scores(torch.full_like(error, 0.3), error)
    assert constant["rank_correlation_block8"].item() == constant["rank_correlation_pixel"].item() == 0
    perfect = uncertainty_scores(error, torch.zeros_like(error))
    assert perfect["ause"].item() == 0
    colours, low, flat = error.expand(1, 3, 16, 16), error[..., :8, :], error[0]
    for first, second in ((error, error[..., :8]), (colours, colours), (low, low), (flat, flat), (flat, error)):
        with pytest.raises(ValueError, match=r"^expected \(B, 1, H, W\) twice with sides of at least 16, got"):
            uncertainty_scores(first, second)
