from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from opir_lightning.degradations import Blur, blur, srgb_to_linear
from opir_lightning.degradations.blur_kernels import defocus_kernel, gaussian_kernel, motion_kernel, shake_kernel
from opir_lightning.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


KERNELS = {
    "shake": lambda size: shake_kernel(size, generator=seeded(int(size * 10))),
    "motion": lambda size: motion_kernel(size, angle=size * 17),
    "defocus": defocus_kernel,
    "gaussian": gaussian_kernel,
}


def spread(kernel: np.ndarray) -> np.ndarray:
    """Second moments in pixels squared, along x and y."""
    at = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    return np.array([(kernel.sum(0) * at**2).sum(), (kernel.sum(1) * at**2).sum()])


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("size", [1.0, 1.001, 1.5, 2.0, 3.0, 4.7, 9.0, 12.3, 25.0])
def test_kernels_are_positive_sum_to_one_fit_their_size_and_do_not_shift(kind, size):
    kernel = KERNELS[kind](size)
    side = kernel.shape[0]
    assert kernel.dtype == np.float32
    assert kernel.shape == (side, side)
    assert side % 2 == 1
    assert side < size + 2
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    at = np.arange(side) - side // 2
    assert (kernel.sum(0) * at).sum() == pytest.approx(0, abs=1e-3)
    assert (kernel.sum(1) * at).sum() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_grow_with_their_size_from_a_single_one(kind):
    assert np.array_equal(KERNELS[kind](1.0), np.ones((1, 1), np.float32))
    nearly = KERNELS[kind](1.02)
    assert nearly[nearly.shape[0] // 2, nearly.shape[0] // 2] > 0.95
    same_path = [shake_kernel(s, generator=seeded(4)) if kind == "shake" else KERNELS[kind](s) for s in (3, 7, 13, 25)]
    widths = [spread(kernel).sum() for kernel in same_path]
    assert widths == sorted(widths)


def test_kernels_have_the_moments_of_what_they_stand_for():
    assert spread(defocus_kernel(21)).mean() == pytest.approx(10.5**2 / 4, rel=0.02)  # an even disk
    assert spread(gaussian_kernel(25)).mean() == pytest.approx(4.0**2, rel=0.03)
    along = spread(motion_kernel(21, angle=0))
    assert along[0] == pytest.approx(20**2 / 12, rel=0.06)
    assert along[1] == pytest.approx(0, abs=1e-6)
    x, y = np.nonzero(motion_kernel(21, angle=45) > 0)
    assert np.corrcoef(x, y)[0, 1] > 0.9  # down to the right


def test_shake_is_a_path_and_no_two_are_alike():
    kernels = [shake_kernel(25, generator=seeded(i)) for i in range(12)]
    assert all(ndimage.label(kernel > 0, structure=np.ones((3, 3)))[1] == 1 for kernel in kernels)
    filled = [float((kernel > 0.05 * kernel.max()).mean()) for kernel in kernels]
    assert min(filled) > 0.01
    assert max(filled) < 0.3  # thin, as the measured ones: 6 to 25 % of their square
    assert len({kernel.tobytes() for kernel in kernels}) == 12


def test_size_below_one_is_refused():
    for kind in KERNELS.values():
        with pytest.raises(UserError, match="size"):
            kind(0.5)


def test_light_is_mixed_and_not_srgb_values():
    edge = torch.zeros(3, 11, 22)
    edge[:, :, 11:] = 1.0
    half = np.array([[0, 0, 0], [0.5, 0.5, 0], [0, 0, 0]], np.float32)
    blurred = blur(edge, half)
    # Half the light of white is 0.7354 in sRGB values, not 0.5. The kernel moves light to the left.
    assert torch.allclose(blurred[:, :, 10], torch.tensor(0.735357), atol=1e-4)
    assert float(blurred[:, :, 9].max()) == 0
    assert torch.allclose(blurred[:, :, 11:], torch.tensor(1.0), atol=1e-6)


@pytest.mark.parametrize("side", [3, 9, 15])
def test_a_point_of_light_becomes_the_kernel(side):
    kernel = np.random.default_rng(side).random((side, side)).astype(np.float32)
    kernel /= kernel.sum()
    point = torch.zeros(3, 41, 41)
    point[:, 20, 20] = 1.0
    light = srgb_to_linear(blur(point, kernel))[1].numpy()
    r = side // 2
    assert np.allclose(light[20 - r : 21 + r, 20 - r : 21 + r], kernel, atol=2e-6)


def test_border_is_reflected(photo):
    kernel = shake_kernel(13, generator=seeded())
    padded = torch.nn.functional.pad(photo[None], (6, 6, 6, 6), mode="reflect")[0]
    assert torch.allclose(blur(padded, kernel)[:, 6:-6, 6:-6], blur(photo, kernel), atol=1e-4)


def test_kernels_of_even_side_are_refused(photo):
    for wrong in (np.ones((4, 4), np.float32), np.ones((3, 5), np.float32), np.ones(3, np.float32)):
        with pytest.raises(ValueError, match="odd"):
            blur(photo, wrong)


@pytest.mark.parametrize("size", [[1, 25], [1, 14], 9])
def test_margin_is_the_context_that_a_crop_needs(size, photo):
    degrade = Blur(size, noise_255=0.0, quantise=False)
    m = degrade.margin
    assert m == {25: 12, 14: 7, 9: 4}[max(size) if isinstance(size, list) else size]
    top, left, h, w = 40, 60, 48, 56
    crop = photo[:, top - m : top + h + m, left - m : left + w + m]
    for seed in range(8):
        whole = degrade(photo, generator=seeded(seed), severity=1.0)[:, top : top + h, left : left + w]
        part = degrade(crop, generator=seeded(seed), severity=1.0)[:, m : m + h, m : m + w]
        assert torch.allclose(part, whole, atol=1e-4)  # 1/40 of a level: the Fourier transform's size differs


def test_margin_is_needed_in_full(photo):
    degrade = Blur(25, motion_share=1.0, defocus_share=0.0, gaussian_share=0.0, noise_255=0.0, quantise=False)
    m = degrade.margin
    short = photo[:, 40 - m + 3 : 88 + m - 3, 60 - m + 3 : 108 + m - 3]
    errors = []
    for seed in range(4):
        whole = degrade(photo, generator=seeded(seed), severity=1.0)[:, 40:88, 60:108]
        part = degrade(short, generator=seeded(seed), severity=1.0)[:, m - 3 : m + 45, m - 3 : m + 45]
        errors.append(float((part - whole).abs().max()))
    assert max(errors) > 0.005


def test_noise_follows_the_blur_and_fades_with_severity():
    grey = torch.full((3, 100, 100), 0.5)
    degrade = Blur(noise_255=4.0, quantise=False)
    for severity in (0.5, 1.0):
        noisy = degrade(grey, generator=seeded(), severity=severity)
        assert 255 * float(noisy.std()) == pytest.approx(4 * severity, rel=0.03)
