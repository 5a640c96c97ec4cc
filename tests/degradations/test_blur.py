from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from opir_lightning.degradations import Blur, blur, srgb_to_linear
from opir_lightning.degradations.blur import Layer, move_layers
from opir_lightning.degradations.blur_kernels import (
    defocus_kernel,
    gaussian_kernel,
    measured_kernel,
    motion_kernel,
    read_kernels,
    rolling_shake_kernels,
    shake_kernel,
)
from opir_lightning.degradations.filters import convolve, convolve_together, gaussian_taps, soften, soften_by_torch
from opir_lightning.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


MEASURED = np.random.default_rng(2).random((9, 9)).astype(np.float32) ** 4

KERNELS = {
    "measured": lambda size: measured_kernel(MEASURED, size, angle=size * 31, mirrored=True),
    "rolling": lambda size: rolling_shake_kernels(size, roll=0.5, generator=seeded(7))[1],
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
    degrade = Blur(size, roll_share=0.0, object_share=0.0, noise_255=0.0, quantise=False)  # those follow the picture
    m = degrade.margin
    assert m == {25: 12, 14: 7, 9: 4}[max(size) if isinstance(size, list) else size]
    top, left, h, w = 40, 60, 48, 56
    crop = photo[:, top - m : top + h + m, left - m : left + w + m]
    for seed in range(8):
        whole = degrade(photo, generator=seeded(seed), severity=1.0)[:, top : top + h, left : left + w]
        part = degrade(crop, generator=seeded(seed), severity=1.0)[:, m : m + h, m : m + w]
        assert torch.allclose(part, whole, atol=1e-4)  # 1/40 of a level: the Fourier transform's size differs


def test_margin_is_needed_in_full(photo):
    shares = {"motion_share": 1.0, "defocus_share": 0.0, "gaussian_share": 0.0, "object_share": 0.0}
    degrade = Blur(25, **shares, noise_255=0.0, quantise=False)
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


def test_kornia_and_opencv_convolve_alike():
    images = torch.rand(4, 4, 21, 30, generator=seeded())
    kernels = [shake_kernel(size, generator=seeded(i)) for i, size in enumerate((1.0, 5.0, 13.0, 25.0))]
    assert torch.allclose(convolve(images, kernels), convolve_together(images, kernels), atol=1e-5)
    tiny = images[:, :, :2, :1]  # far smaller than the kernels
    assert torch.allclose(convolve(tiny, kernels), convolve_together(tiny, kernels), atol=1e-5)


def test_opencv_and_torch_soften_alike():
    image = torch.rand(3, 20, 17, generator=seeded())
    for deviation in (0.4, 2.0, 8.0):
        taps = gaussian_taps(deviation)
        assert torch.allclose(soften(image, taps), soften_by_torch(image, taps), atol=1e-5)
    point = torch.zeros(1, 31, 31)
    point[0, 15, 15] = 1.0
    assert spread(soften(point, gaussian_taps(2.5))[0].numpy()) == pytest.approx(2.5**2, rel=0.05)


def test_all_parts_moving_alike_are_one_convolution(photo):
    kernel = shake_kernel(11, generator=seeded())
    share = np.random.default_rng(0).random(photo.shape[1:]).astype(np.float32)
    parts = [Layer(kernel, share), Layer(kernel, 1 - share)]
    one, both = move_layers(torch.stack([photo, photo]), [[Layer(kernel)], parts])
    assert torch.allclose(one, both, atol=1e-5)


def test_each_part_moves_by_its_own_kernel(photo):
    left = np.zeros(photo.shape[1:], np.float32)
    left[:, :115] = 1.0
    still, moving = np.ones((1, 1), np.float32), motion_kernel(13, angle=0)
    result = move_layers(photo[None], [[Layer(still, left), Layer(moving, 1 - left)]])[0]
    assert torch.allclose(result[:, :, :108], photo[:, :, :108], atol=1e-5)
    assert torch.allclose(result[:, :, 122:], convolve(photo[None], [moving])[0, :, :, 122:], atol=1e-5)


def test_an_object_is_a_part_of_the_picture_with_a_blur_of_its_own(photo):
    degrade = Blur(object_share=1.0, value_share=0.0, noise_255=0.0, quantise=False)
    shares = []
    for seed in range(8):
        thing, rest = degrade.draw(150, 230, generator=seeded(seed), severity=1.0).layers
        assert not np.array_equal(thing.kernel, rest.kernel)
        assert thing.kernel.shape == (25, 25)
        assert rest.kernel.shape[0] <= 25
        assert (thing.share + rest.share).min() >= 1 - 1e-6
        shares.append(thing.share.mean())
    assert 0.1 < min(shares) < max(shares) < 0.6


def test_a_camera_that_rolls_moves_the_ends_apart():
    same = rolling_shake_kernels(15, roll=0.0, generator=seeded())
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(same[1], same[2])
    left, middle, right = rolling_shake_kernels(15, roll=0.8, generator=seeded())
    assert max(kernel.shape[0] for kernel in (left, middle, right)) == 15
    assert np.abs(left - middle).sum() > 0.3
    assert np.abs(left - right).sum() > 0.3
    # Only up and down: along x all three are one path.
    assert np.allclose(left.sum(0), middle.sum(0), atol=1e-5)
    assert not np.allclose(left.sum(1), right.sum(1), atol=1e-2)


@pytest.mark.parametrize("values", [True, False])
def test_values_are_averaged_on_request(values):
    stripes = torch.zeros(3, 32, 64)
    stripes[:, :, ::2] = 1.0
    degrade = Blur(9, motion_share=1.0, defocus_share=0.0, gaussian_share=0.0, roll_share=0.0, object_share=0.0)
    degrade.noise_255, degrade.value_share = (0.0, 0.0), float(values)
    middle = [float(degrade(stripes, generator=seeded(i))[:, :, 20:44].mean()) for i in range(3)]
    assert np.mean(middle) == pytest.approx(0.5 if values else 0.72, abs=0.04)


def test_measured_kernels_keep_their_form():
    own = measured_kernel(MEASURED, 9.0)
    centre = (MEASURED * np.arange(9)).sum() / MEASURED.sum()
    assert abs(centre - 4) > 0.1  # it is not in the middle of its file, and will be
    assert np.array_equal(np.rot90(own, -1).round(4), measured_kernel(MEASURED, 9.0, angle=90).round(4))
    assert np.array_equal(own[:, ::-1].round(4), measured_kernel(MEASURED, 9.0, mirrored=True).round(4))
    symmetric = np.zeros((9, 9), np.float32)
    symmetric[4, :], symmetric[:, 4] = 2.0, 1.0
    assert np.corrcoef(measured_kernel(symmetric, 9.0).ravel(), symmetric.ravel())[0, 1] > 0.95
    large = measured_kernel(symmetric, 31.0)
    assert (large[15, 1:-1] > 0).all()  # no holes between what were neighbours


def save(path: Path, pixels: np.ndarray) -> Path:
    cv2.imwrite(str(path), pixels)
    return path


def test_kernel_files_are_read_cut_out_and_normalised(tmp_path):
    picture = np.zeros((20, 30), np.uint8)
    picture[3:8, 10:13] = [[0, 40, 0], [0, 80, 0], [120, 80, 0], [0, 80, 0], [0, 40, 0]]
    save(tmp_path / "b.png", picture)
    save(tmp_path / "a.png", np.full((1, 1, 3), 7, np.uint8))  # in colour
    save(tmp_path / "c.png", picture.astype(np.uint16) * 200)
    (tmp_path / "notes.txt").write_text("no kernel")
    a, b, c = read_kernels([tmp_path])
    assert np.array_equal(a, np.ones((1, 1), np.float32))
    assert b.shape == (5, 5)
    assert b.sum() == pytest.approx(1, abs=1e-6)
    assert b.max() == pytest.approx(120 / 440)
    assert np.allclose(b, c, atol=1e-6)
    assert np.array_equal(read_kernels([str(tmp_path / "b.png")])[0], b)


def test_bad_kernel_files_are_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    save(tmp_path / "black.png", np.zeros((5, 5), np.uint8))
    for name, said in (
        ("empty", "no pictures"),
        ("text.png", "cannot be read"),
        ("black.png", "black"),
        ("x", "not there"),
    ):
        with pytest.raises(UserError, match=f"{name}.*{said}"):
            Blur(measured_share=0.5, motion_share=0.0, kernels=[tmp_path / name])


def test_measured_kernels_are_used_and_turned_on_request(tmp_path):
    picture = np.zeros((9, 9), np.uint8)
    picture[4, :] = 255
    only = {
        "motion_share": 0.0,
        "defocus_share": 0.0,
        "gaussian_share": 0.0,
        "measured_share": 1.0,
        "object_share": 0.0,
    }
    for turned in (True, False):
        degrade = Blur(9, **only, kernels=str(save(tmp_path / "line.png", picture)), turned=turned)
        tall = [spread(degrade.draw(8, 8, generator=seeded(i)).layers[0].kernel)[1] for i in range(6)]
        assert max(tall) > 2 if turned else max(tall) < 0.4
