from __future__ import annotations

import numpy as np
import pytest
import torch

from opir_lightning.degradations import Rain, Streaks, add_rain, draw_streaks
from opir_lightning.degradations.rain import Shower


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
    monkeypatch.setattr("opir_lightning.degradations.rain_streaks.POINTS_AT_ONCE", 1000)  # one streak at a time
    assert np.allclose(draw_streaks(40, 60, many), each, atol=1e-5)


def a_shower(**changes: float) -> Shower:
    settings = {
        "coverage": 0.5,
        "brightness": 0.1,
        "length": 40,
        "width": 2,
        "defocus": 0,
        "taper": 0,
        "angle": 10,
        "second": -30,
        "crossing": 0,
        "spread": 1,
        "drizzle": 0.5,
    }
    return Shower(**{**settings, **changes})


def test_rain_is_blended_or_added():
    clean = torch.tensor([0.2, 0.8, 1.0]).reshape(1, 3, 1, 1).expand(2, 3, 2, 2)
    layer = torch.full((2, 2, 2), 0.8 * float(np.log(2)))  # covers half of the time
    rainy = add_rain(clean, layer, light=0.8, cover=torch.tensor([1.0, 0.0]))
    # Blended: halfway to 0.8, so nothing before what is as bright, and dark before white.
    assert torch.allclose(rainy[0, :, 1, 0], torch.tensor([0.5, 0.8, 0.9]))
    # Added: by the same amount to all colours, which fades as the brightest of them nears white.
    assert torch.allclose(rainy[1, :, 0, 1], clean[1, :, 0, 1])
    darker = add_rain(clean / 2, layer, light=0.8, cover=0.0)[1, :, 0, 1] - clean[1, :, 0, 1] / 2
    assert torch.allclose(darker, torch.full((3,), 0.4 * (1 - 0.5**3)))


def test_faint_rain_is_as_bright_as_its_layer_and_dense_rain_not_brighter_than_its_light():
    layer = torch.tensor([0.01, 50.0]).reshape(1, 1, 2)
    faint, dense = add_rain(torch.zeros(1, 3, 1, 2), layer, light=0.7, cover=1.0)[0, 0, 0].tolist()
    assert faint == pytest.approx(0.01, rel=0.01)
    assert dense == pytest.approx(0.7)


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (1, 1)])
def test_a_batch_equals_its_pictures_one_by_one(size):
    rain = Rain(added_share=0.5, quantise=False)
    clean = torch.rand(5, 3, *size, generator=seeded())
    draws = [rain.draw(*size, generator=seeded(i), severity=0.2 * i + 0.1) for i in range(5)]
    assert {drawn.cover for drawn in draws} == {0.0, 1.0}
    each = [rain(picture, generator=seeded(i), severity=0.2 * i + 0.1) for i, picture in enumerate(clean)]
    assert torch.equal(rain.apply(clean, draws), torch.stack(each))


@pytest.mark.parametrize("defocus", [0.0, 3.0])
def test_coverage_is_streaks_over_each_pixel_in_focus_or_not(defocus):
    # Brightness goes with the root of the size, area with its power 1.5; sizes are spread evenly over log 1/2 to log 2.
    size = 2 ** np.linspace(-1, 1, 10_001)
    mean = 0.1 * (size**2).mean() / (size**1.5).mean()
    rain = Rain(
        [0.5, 0.5], brightness=0.1, width=2.0, length=40, defocus=defocus, drizzle=0.0, gusts=0.0, veil_share=0.0,
        added_share=0.0,
    )  # fmt: skip
    light = [float(rain.draw(200, 200, generator=seeded(i), severity=1.0).layer.mean()) for i in range(10)]
    assert np.mean(light) == pytest.approx(0.5 * mean, rel=0.06)
    half = [float(rain.draw(200, 200, generator=seeded(i), severity=0.5).layer.mean()) for i in range(10)]
    assert np.mean(half) == pytest.approx(0.5 * mean * 0.75 * 0.5**1.5, rel=0.12)  # fewer, and fainter


def test_rain_falls_as_densely_at_the_border_as_in_the_middle():
    rain = Rain([1.0, 1.0], brightness=0.1, gusts=0.0, veil_share=0.0, added_share=0.0)
    mean = sum(rain.draw(64, 64, generator=seeded(i), severity=1.0).layer for i in range(300))
    border = torch.cat([mean[:4].flatten(), mean[-4:].flatten(), mean[:, :4].flatten(), mean[:, -4:].flatten()])
    assert float(border.mean()) == pytest.approx(float(mean[16:-16, 16:-16].mean()), rel=0.08)


def test_more_rain_keeps_the_streaks_of_less_rain():
    rain = Rain(veil_share=0.0)
    for seed in range(12):
        less, more = (rain.draw(90, 90, generator=seeded(seed), severity=s) for s in (0.15, 0.9))
        assert bool((more.layer >= less.layer - 1e-5).all())
        assert float(more.layer.sum()) > 2 * float(less.layer.sum())
        assert (more.light, more.cover) == (less.light, less.cover)


def test_near_streaks_are_larger_and_what_is_out_of_focus_is_wider_softer_and_fainter():
    sharp, soft = (a_shower(defocus=blur).streaks(np.ones((100, 100)), np.random.default_rng(0)) for blur in (0.0, 3.0))
    # Length falls with distance (4 times) and varies with the size of the drop (2 times), width 4 times with each.
    assert 6 < sharp.length.max() / sharp.length.min() <= 8.0
    assert 10 < sharp.width.max() / sharp.width.min() <= 16.0
    many = min(len(sharp.x), len(soft.x))  # the canvas of blurred streaks is larger, so there are more of them
    assert many > 100
    assert soft.width.mean() > 2 * sharp.width.mean()
    assert soft.softness.mean() > sharp.softness.mean() + 0.3
    assert (soft.width * soft.brightness).mean() == pytest.approx((sharp.width * sharp.brightness).mean(), rel=0.1)


def test_gusts_decide_where_streaks_fall():
    density = np.ones((80, 80))
    density[:, :40] = 0.0
    density[:, 60:] = 0.5
    streaks = a_shower(coverage=4.0).streaks(density, np.random.default_rng(0))
    inside = streaks.x[(streaks.x >= 0) & (streaks.x < 80)]
    assert inside.min() >= 40
    assert (inside >= 60).sum() == pytest.approx(0.5 * (inside < 60).sum(), rel=0.2)
    far = a_shower().far(density.astype(np.float32), np.random.default_rng(0))
    assert np.abs(far[:, :40]).max() == 0


def test_the_far_layer_has_its_brightness_and_direction():
    shower = a_shower(coverage=0.4, length=80, angle=40, drizzle=0.5)
    far = shower.far(np.ones((200, 200), dtype=np.float32), np.random.default_rng(0))
    assert far.mean() == pytest.approx(0.4 * 0.1 * 0.5, rel=0.05)
    far = far - far.mean()

    def correlation(down: int, right: int) -> float:
        return float((far[: 200 - down, 10:190] * far[down:, 10 + right : 190 + right]).mean() / far.var())

    assert correlation(5, 4) > 0.3  # 40 degrees, leaning right at the bottom
    assert abs(correlation(5, -4)) < 0.1


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_crossing_share_is_the_probability_of_a_second_direction(share):
    rain, rng, everywhere = Rain(crossing_share=share), np.random.default_rng(0), np.ones((100, 100))
    angles = [rain._shower(1.0, rng).streaks(everywhere, rng).angle for _ in range(200)]
    # One direction wobbles by +-7.5 degrees at most; a second one is mostly farther off.
    crossing = np.mean([np.ptp(angle) > 15.001 for angle in angles])
    assert crossing == pytest.approx(0.78 * share, abs=0.1)
    assert all(np.abs(angle).max() < 53 for angle in angles)


def test_the_veil_is_smooth_and_as_strong_as_configured_and_denser_at_the_top():
    rain = Rain([0.001, 0.001], drizzle=0.0, brightness=0.001, veil=0.4, veil_share=1.0, added_share=0.0)
    layers = torch.stack([rain.draw(60, 80, generator=seeded(i), severity=0.5).layer for i in range(40)])
    assert 0.15 < float(layers.max()) <= 0.21
    assert float((layers[:, 1:] - layers[:, :-1]).abs().max()) < 0.03
    assert float(layers[:, :20].mean()) > 1.5 * float(layers[:, -20:].mean())
    without = Rain([0.001, 0.001], drizzle=0.0, brightness=0.001, veil=0.4, veil_share=0.0)
    assert float(without.draw(60, 80, generator=seeded(), severity=0.5).layer.max()) < 0.01


def test_shares_of_rain_that_only_adds(photo):
    for share, cover in ((0.0, 1.0), (1.0, 0.0)):
        rain = Rain(added_share=share)
        assert {rain.draw(8, 8, generator=seeded(i), severity=0.5).cover for i in range(20)} == {cover}
    added = Rain(added_share=1.0, quantise=False)(photo * 0.3, generator=seeded(), severity=0.7) - photo * 0.3
    assert float(added.min()) >= -1e-6
    assert float((added.amax(0) - added.amin(0)).max()) < 1e-5  # grey
    white = Rain(added_share=0.0, light=0.8, quantise=False)(torch.ones(3, 60, 60), generator=seeded(), severity=0.7)
    assert 0.8 - 1e-6 < float(white.min()) < 0.95
