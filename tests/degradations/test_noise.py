from __future__ import annotations

import numpy as np
import pytest
import torch

from opir_lightning.degradations import Noise, add_gaussian_noise, add_shot_noise, benchmark_noise, sensor_noise
from opir_lightning.degradations.noise import electrons_for_sigma
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
    noisy = Noise(25, shot_share=0.0)(grey, generator=seeded()) * 255
    assert float(noisy.mean()) == pytest.approx(127.5, abs=0.25)
    assert float(noisy.std()) == pytest.approx(25, abs=0.3)
    exact = Noise(25, shot_share=0.0, quantise=False)(grey, generator=seeded()) * 255
    assert float(exact.mean()) == pytest.approx(128, abs=0.25)


def test_shot_share_is_a_probability():
    # Sensor noise leaves black alone, Gaussian noise does not.
    black, degrade, generator = torch.zeros(3, 8, 8), Noise(40, shot_share=0.25, read_share=0.0), seeded()
    sensor = sum(float(degrade(black, generator=generator).max()) == 0 for _ in range(400))
    assert 70 < sensor < 130
