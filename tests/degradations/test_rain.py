from __future__ import annotations

import numpy as np
import pytest
import torch

from opir_lightning.degradations import Rain, Streaks, add_rain, draw_streaks


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_streak(**changes: float) -> Streaks:
    settings = {
        "x": 40.3,
        "y": 50.6,
        "length": 40,
        "width": 3,
        "angle": 0,
        "brightness": 0.5,
        "softness": 0,
        "taper": 0,
    }
    return Streaks(**{name: np.array([float(value)]) for name, value in {**settings, **changes}.items()})


@pytest.mark.parametrize("angle", [0, 25, -45])
@pytest.mark.parametrize("width", [0.4, 1.0, 3.7])
@pytest.mark.parametrize(("softness", "taper"), [(0, 0), (1, 1), (0.5, 0.3)])
def test_a_streak_adds_up_to_length_width_and_brightness(angle, width, softness, taper):
    picture = draw_streaks(101, 83, one_streak(angle=angle, width=width, softness=softness, taper=taper))
    # At 45 degrees every row meets a soft edge at the same places, and what sampling it costs does not average out.
    tolerance = 0.08 if softness and angle == -45 else 0.03
    assert float(picture.sum()) == pytest.approx(40 * width * 0.5 * (1 - taper / 2), rel=tolerance)
    rows, columns = np.mgrid[:101, :83]
    assert (picture * rows).sum() / picture.sum() == pytest.approx(50.6, abs=0.2)
    assert (picture * columns).sum() / picture.sum() == pytest.approx(40.3, abs=0.2)
    assert picture.max() <= 0.5 + 1e-6


def test_a_streak_has_its_direction_length_and_width():
    picture = draw_streaks(101, 83, one_streak(angle=30, length=60))
    rows, columns = np.mgrid[:101, :83]
    weight = picture / picture.sum()
    down, right = rows - (weight * rows).sum(), columns - (weight * columns).sum()
    covariance = np.array([[(weight * a * b).sum() for a in (right, down)] for b in (right, down)])
    values, vectors = np.linalg.eigh(covariance)
    assert np.degrees(np.arctan2(*(vectors[:, 1] * np.sign(vectors[1, 1])))) == pytest.approx(30, abs=1)
    assert values[1] ** 0.5 == pytest.approx(60 / 12**0.5, rel=0.03)  # deviation of an even bar
    assert values[0] ** 0.5 == pytest.approx(3 / 12**0.5, rel=0.15)  # and its soft edges


def test_streaks_add_where_they_cross_and_are_cut_at_the_border():
    first, second = one_streak(angle=40), one_streak(angle=-40, length=25)
    both = Streaks(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
    expected = draw_streaks(101, 83, first) + draw_streaks(101, 83, second)
    assert np.allclose(draw_streaks(101, 83, both), expected, atol=1e-6)
    large = draw_streaks(101, 83, first)
    shifted = one_streak(angle=40, x=40.3 - 30, y=50.6 - 45)
    assert np.allclose(draw_streaks(40, 20, shifted), large[45:85, 30:50], atol=1e-5)
    assert draw_streaks(20, 20, one_streak(y=-500)).sum() == 0


def test_many_streaks_equal_the_sum_of_each(monkeypatch):
    rng = np.random.default_rng(0)
    low = np.array([-10, -10, 5, 0.3, -50, 0.1, 0, 0])[:, None]
    high = np.array([70, 50, 60, 4, 50, 0.6, 1, 1])[:, None]
    many = Streaks(*rng.uniform(low, high, size=(8, 60)))
    each = sum(draw_streaks(40, 60, Streaks(*(part[i : i + 1] for part in many))) for i in range(60))
    assert np.allclose(draw_streaks(40, 60, many), each, atol=1e-5)
    monkeypatch.setattr("opir_lightning.degradations.rain.POINTS_AT_ONCE", 1000)  # one streak at a time
    assert np.allclose(draw_streaks(40, 60, many), each, atol=1e-5)


def test_rain_is_added_and_the_veil_blended():
    clean = torch.tensor([0.2, 0.4, 0.6]).reshape(3, 1, 1).expand(3, 2, 2)
    rainy = add_rain(clean, torch.full((2, 2), 0.3), veil=0.25, veil_light=0.8)
    assert torch.allclose(rainy[:, 0, 0], torch.tensor([0.2, 0.4, 0.6]) * 0.75 + 0.2 + 0.3)


def test_coverage_is_streaks_over_each_pixel():
    # Brightness is spread evenly over 0.3 to 1.7 times sqrt(nearness); its mean over area is known.
    nearness = np.linspace(0.25, 1, 10_001)
    mean = 0.1 * (nearness**2.5).mean() / (nearness**2).mean()
    rain = Rain([0, 0.5], brightness=0.1, width=2.0, length=40, veil_share=0.0, quantise=False)
    black = torch.zeros(3, 300, 300)
    light = [float(rain(black, generator=seeded(i), severity=1.0).mean()) for i in range(12)]
    assert np.mean(light) == pytest.approx(0.5 * mean, rel=0.06)
    half = [float(rain(black, generator=seeded(i), severity=0.5).mean()) for i in range(12)]
    assert np.mean(half) == pytest.approx(0.5 * mean / 4, rel=0.12)  # coverage goes with the square


def test_rain_falls_as_densely_at_the_border_as_in_the_middle():
    rain = Rain([0, 1.0], brightness=0.1, veil_share=0.0, quantise=False)
    black = torch.zeros(3, 64, 64)
    mean = sum(rain(black, generator=seeded(i), severity=1.0)[0] for i in range(300))
    border = torch.cat([mean[:4].flatten(), mean[-4:].flatten(), mean[:, :4].flatten(), mean[:, -4:].flatten()])
    assert float(border.mean()) == pytest.approx(float(mean[16:-16, 16:-16].mean()), rel=0.08)


def test_more_rain_keeps_the_streaks_of_less_rain():
    # Large streaks, so that less rain is a handful: below 10, numpy draws a Poisson number by another method.
    rain, black = Rain(length=100, width=4.0, veil_share=0.0, quantise=False), torch.zeros(3, 90, 90)
    for seed in range(12):
        less, more = (rain(black, generator=seeded(seed), severity=s) for s in (0.15, 0.9))
        assert bool((more >= less - 1e-5).all())
        assert float(more.sum()) > float(less.sum())


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_crossing_share_is_the_probability_of_a_second_direction(share):
    rain, rng = Rain(crossing_share=share), np.random.default_rng(0)
    angles = [rain._streaks(100, 100, 2.0, rng).angle for _ in range(200)]
    # One direction wobbles by +-9 degrees at most; a second one is mostly farther off.
    crossing = np.mean([np.ptp(angle) > 18.001 for angle in angles])
    assert crossing == pytest.approx(0.75 * share, abs=0.1)
    assert all(np.abs(angle).max() < 55 for angle in angles)


def test_rain_is_grey_and_never_darkens_without_a_veil(photo):
    rain = Rain(veil_share=0.0, quantise=False)(photo * 0.3, generator=seeded(), severity=0.7) - photo * 0.3
    assert float(rain.min()) >= -1e-6
    unclipped = (rain + photo * 0.3).amax(0) < 1
    assert float((rain.amax(0) - rain.amin(0))[unclipped].max()) < 1e-5
