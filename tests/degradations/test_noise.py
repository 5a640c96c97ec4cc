from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from opir_lightning.degradations import Camera, Noise, add_gaussian_noise, add_shot_noise, benchmark_noise, sensor_noise
from opir_lightning.degradations.camera_noise import grain, noise_levels
from opir_lightning.degradations.noise import _add_up, electrons_for_sigma
from opir_lightning.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gaussian_noise_has_the_stated_deviation_and_is_not_clipped():
    noisy = add_gaussian_noise(torch.zeros(3, 200, 200), sigma_255=25, generator=seeded()) * 255
    assert float(noisy.std()) == pytest.approx(25, abs=0.2)
    assert float(noisy.mean()) == pytest.approx(0, abs=0.2)
    assert float(noisy.min()) < -75
    row, column = noisy[0, 1:] * noisy[0, :-1], noisy[0, :, 1:] * noisy[0, :, :-1]
    assert max(abs(float(row.mean())), abs(float(column.mean()))) < 10  # white: no correlation of neighbours, of 625


@pytest.mark.parametrize("sigma", [0.1, 0.999, -5])
def test_sigma_in_the_wrong_unit_is_refused_with_the_right_number(sigma, photo):
    with pytest.raises(UserError, match=f"sigma_255={abs(sigma) * 255:g}"):
        add_gaussian_noise(photo, sigma_255=sigma, generator=seeded())
    with pytest.raises(UserError, match="grey levels"):
        benchmark_noise(np.zeros((4, 4, 3), np.uint8), sigma_255=sigma, name="a.png")


def test_benchmark_noise_is_the_published_rule():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = benchmark_noise(grey, sigma_255=25, name="101085.png")
    assert noisy.dtype == np.uint8
    assert noisy.mean() == pytest.approx(127.5, abs=0.3)  # truncation takes half a level
    assert noisy.std() == pytest.approx(25, abs=0.3)
    # The first numbers are pinned: whoever changes the seeding changes everybody's test set.
    assert noisy[0, 0].tolist() == [86, 145, 97]
    assert np.array_equal(noisy, benchmark_noise(grey, sigma_255=25, name="101085.png"))
    assert not np.array_equal(noisy, benchmark_noise(grey, sigma_255=25, name="101087.png"))
    strong = benchmark_noise(grey, sigma_255=250, name="x")  # clipped and not wrapped around: 30 % at either end
    assert (strong == 0).mean() == pytest.approx(0.305, abs=0.01)
    assert (strong == 255).mean() == pytest.approx(0.306, abs=0.01)
    assert np.array_equal(benchmark_noise(grey, sigma_255=0, name="x"), grey)


def test_benchmark_noise_wants_eight_bits():
    for wrong in (np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            benchmark_noise(wrong, sigma_255=25, name="a.png")


def test_sensor_noise_follows_the_square_root_of_the_light():
    for light in (0.01, 0.2, 0.8):
        noisy = sensor_noise(torch.full((3, 150, 150), light), electrons=500, generator=seeded())
        assert float(noisy.mean()) == pytest.approx(light, rel=0.02)
        assert float(noisy.std()) == pytest.approx((light / 500) ** 0.5, rel=0.02)
        assert torch.allclose(noisy * 500, (noisy * 500).round(), atol=1e-3)  # whole electrons
    dark = sensor_noise(torch.zeros(3, 150, 150), electrons=500, read_electrons=4, generator=seeded())
    assert float(dark.std()) == pytest.approx(4 / 500, rel=0.02)


@pytest.mark.parametrize(("electrons", "read"), [(0, 1), (-5, 0), (100, -1)])
def test_impossible_sensors_are_refused(electrons, read, photo):
    with pytest.raises(UserError, match="electrons"):
        add_shot_noise(photo, electrons=electrons, read_electrons=read, generator=seeded())


@pytest.mark.parametrize("read_share", [0.0, 0.5])
def test_shot_noise_of_a_sigma_has_that_sigma_at_mid_grey(read_share):
    electrons, read = electrons_for_sigma(5.0, read_share)
    grey = torch.full((3, 200, 200), 0.5)
    noisy = add_shot_noise(grey, electrons=electrons, read_electrons=read, generator=seeded())
    assert 255 * float(noisy.std()) == pytest.approx(5.0, rel=0.03)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.002)
    if read_share == 0.0:
        assert electrons == pytest.approx(650, rel=0.01)
        dark = add_shot_noise(grey * 0.5, electrons=electrons, generator=seeded())
        assert float(dark.std()) > 1.05 * float(noisy.std())  # the sRGB curve lifts the noise of the shadows


def test_noise_of_the_class_truncates_like_the_benchmark():
    grey = torch.full((3, 200, 200), 128 / 255)
    noisy = Noise(25, shot_share=0.0, camera_share=0.0)(grey, generator=seeded()) * 255
    assert float(noisy.mean()) == pytest.approx(127.5, abs=0.25)
    assert float(noisy.std()) == pytest.approx(25, abs=0.3)
    exact = Noise(25, shot_share=0.0, camera_share=0.0, quantise=False)(grey, generator=seeded()) * 255
    assert float(exact.mean()) == pytest.approx(128, abs=0.25)


def test_shares_are_probabilities():
    degrade, generator = Noise(40, shot_share=0.25, camera_share=0.4), seeded()
    kinds = [degrade.draw(8, 8, generator=generator).kind for _ in range(400)]
    assert 70 < kinds.count("sensor") < 130
    assert 125 < kinds.count("camera") < 195


def test_sensor_noise_of_the_class_leaves_black_alone():
    black = torch.zeros(3, 8, 8)
    sensor, gaussian = (Noise(40, shot_share=s, camera_share=0.0, read_share=0.0) for s in (1.0, 0.0))
    assert float(sensor(black, generator=seeded()).max()) == 0
    assert float(gaussian(black, generator=seeded()).max()) > 0


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.8, 2.2, 12.0, 300.0])
def test_electrons_come_in_a_poisson_distribution(mean):
    counts = sensor_noise(torch.full((400_000,), mean / 100), electrons=100, generator=seeded()).mul(100).round().int()
    found = np.bincount(counts.numpy()) / counts.numel()
    expected = stats.poisson.pmf(np.arange(len(found)), mean)
    assert np.abs(found - expected).sum() / 2 < 0.012


def test_few_electrons_are_counted_alike_by_numpy_and_torch():
    mean, rank = torch.rand(2, 5000, generator=seeded()) * torch.tensor([[2.0], [1.0]])
    by_numpy = _add_up(torch.exp(-mean).numpy(), mean.numpy(), rank.numpy().copy(), np.zeros(5000, np.int8))
    assert np.array_equal(by_numpy, stats.poisson.ppf(rank.double(), mean.double()))
    assert np.array_equal(by_numpy, _add_up(torch.exp(-mean), mean, rank, torch.zeros(5000, dtype=torch.int8)).numpy())


def test_dark_and_bright_pixels_have_their_own_noise_in_one_picture():
    light = torch.tensor([0.001, 0.5]).repeat(50_000)
    noisy = sensor_noise(light, electrons=1000, generator=seeded())
    for start, mean in ((0, 0.001), (1, 0.5)):
        assert float(noisy[start::2].mean()) == pytest.approx(mean, rel=0.02)
        assert float(noisy[start::2].std()) == pytest.approx((mean / 1000) ** 0.5, rel=0.02)


def test_levels_of_a_camera_follow_its_curve():
    plain = noise_levels(5.0, 0.0, Camera()) * 255
    # Shot noise: sRGB slope times the root of the light, 5 at grey level 127.5.
    light = {64: 0.051269, 128: 0.215861, 255: 1.0}
    for level, amount in light.items():
        expected = 5 * (amount / 0.214041) ** (1 / 2.4 - 1 + 0.5)
        assert plain[:, level] == pytest.approx(expected, rel=0.01)
    assert plain[0, 0] == 0
    read = noise_levels(5.0, 1.0, Camera()) * 255
    assert read[0, 255] == pytest.approx(5 * 0.214041 ** (1 - 1 / 2.4), rel=0.01)  # the slope alone
    assert read[0, 0] == pytest.approx(5 * 4.5 / 1.0803, rel=0.01)
    curved = noise_levels(5.0, 0.5, Camera(contrast=1.0)) * 255
    assert curved[:, [0, 255]] == pytest.approx(0, abs=1e-4)  # a smooth step is flat at its ends
    assert curved[:, 127:129].mean() == pytest.approx(5, rel=0.01)


def test_white_balance_amplifies_the_noise_of_weak_colours():
    red, green, blue = noise_levels(5.0, 0.0, Camera(gains=(2.0, 1.0, 1.5)))[:, 128] * 255
    assert red / green == pytest.approx(2**0.5, rel=1e-4)
    assert blue / green == pytest.approx(1.5**0.5, rel=1e-4)
    read = noise_levels(5.0, 1.0, Camera(gains=(2.0, 1.0, 1.5)))[:, 128]
    assert read / read[1] == pytest.approx([2.0, 1.0, 1.5], rel=1e-4)
    assert ((red**2 + green**2 + blue**2) / 3) ** 0.5 == pytest.approx(5, rel=0.01)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_grain_has_the_stated_size_and_keeps_the_deviation():
    camera = Camera(luma_share=0.7, luma=0.8, chroma=2.0)
    noise = grain(torch.randn(3, 400, 400, generator=seeded()) * 5, camera)
    grey = noise.mean(0)
    chroma = noise[2] - grey
    assert float(noise.square().mean().sqrt()) == pytest.approx(5, rel=0.03)
    assert float(grey.var() / noise.var()) == pytest.approx(0.7, abs=0.02)
    # White noise through a Gaussian of deviation s is correlated by exp(-d^2 / 4 s^2) at a distance of d pixels.
    assert correlation(grey[:, 1:], grey[:, :-1]) == pytest.approx(0.677, abs=0.03)
    assert correlation(grey[4:], grey[:-4]) == pytest.approx(0, abs=0.03)
    assert correlation(chroma[4:], chroma[:-4]) == pytest.approx(0.368, abs=0.04)
    blotched = grain(torch.randn(3, 400, 400, generator=seeded()) * 5, camera._replace(blotch_share=0.3, blotch=4.0))
    assert float(blotched.square().mean().sqrt()) == pytest.approx(5, rel=0.04)
    assert correlation(blotched.mean(0)[4:], blotched.mean(0)[:-4]) > 0.2


def test_noise_of_a_camera_is_as_deep_as_stated():
    grey = torch.full((3, 200, 200), 0.5)
    degrade = Noise(camera_sigma_255=8, shot_share=0.0, camera_share=1.0, quantise=False)
    for seed in range(4):
        noise = (degrade(grey, generator=seeded(seed)) - grey) * 255
        assert float(noise.square().mean().sqrt()) == pytest.approx(8, rel=0.1)
