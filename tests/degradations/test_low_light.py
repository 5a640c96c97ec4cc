from __future__ import annotations

import numpy as np
import pytest
import torch

from opir_lightning.degradations import Backlight, Lamp, LowLight, underexpose
from opir_lightning.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NOISELESS = {"electrons": 1e9, "read_electrons": 1e-3, "lamp_share": 0.0, "backlit_share": 0.0}


def test_formula_on_grey():
    grey = torch.full((3, 2, 2), 0.5)  # 0.214041 of the light
    light = underexpose(grey, exposure=0.1, curve=1.5, cast=(0.8, 1.0, 1.2))
    expected = 0.1 * 0.214041**1.5 * torch.tensor([0.8, 1.0, 1.2])
    assert torch.allclose(light[:, 0, 0], expected, rtol=1e-4)
    assert float(underexpose(torch.ones(3, 1, 1), exposure=1.0, cast=(2.0, 1.0, 1.0)).max()) == 1.0


@pytest.mark.parametrize(
    "wrong", [{"exposure": 0.0}, {"exposure": 0.5, "curve": -1.0}, {"exposure": 0.5, "cast": (1, 0, 1)}]
)
def test_impossible_exposures_are_refused(wrong):
    with pytest.raises(UserError, match="positive"):
        underexpose(torch.ones(3, 2, 2), **wrong)


def test_grey_under_a_hundredth_of_the_light_without_noise():
    degrade = LowLight([1.0, 0.01], curve=1.0, cast=1.0, quantise=False, **NOISELESS)
    dark = degrade(torch.full((3, 16, 16), 0.5), generator=seeded(), severity=1.0)
    assert torch.allclose(dark, torch.tensor(12.92 * 0.00214041), atol=2e-4)  # the straight part of the curve: 7 of 255
    part = degrade(torch.full((3, 16, 16), 0.5), generator=seeded(), severity=0.5)
    light = 0.214041 * 0.01 ** (0.5**1.5)
    assert torch.allclose(part, torch.tensor(1.055 * light ** (1 / 2.4) - 0.055), atol=1e-4)


def test_cast_stays_in_its_range_and_leaves_green():
    degrade = LowLight([1.0, 0.3], curve=1.0, cast=[0.8, 1.25], quantise=False, **NOISELESS)
    gains = []
    for seed in range(40):
        dark = degrade(torch.full((3, 8, 8), 0.5), generator=seeded(seed), severity=1.0)
        light = ((dark.mean((1, 2)) + 0.055) / 1.055) ** 2.4
        assert float(light[1]) == pytest.approx(0.3 * 0.214041, rel=1e-3)
        gains.append((light / light[1]).tolist())
    red_blue = np.array(gains)[:, [0, 2]]
    assert 0.799 <= red_blue.min() < 0.86
    assert 1.16 < red_blue.max() <= 1.251
    assert abs(np.corrcoef(red_blue.T)[0, 1]) < 0.5
    faint = degrade(torch.full((3, 8, 8), 0.5), generator=seeded(39), severity=0.25)
    light = ((faint.mean((1, 2)) + 0.055) / 1.055) ** 2.4
    assert np.allclose((light / light[1]).numpy(), np.array(gains[39]) ** 0.25, rtol=2e-3)  # casts fade with severity


def test_noise_is_that_of_the_sensor_and_fades_with_the_square_of_severity():
    degrade = LowLight(
        [0.2, 0.2],
        curve=1.0,
        cast=1.0,
        electrons=2000,
        read_electrons=5,
        lamp_share=0.0,
        backlit_share=0.0,
        quantise=False,
    )
    light = 0.2 * 0.214041
    slope = 1.055 / 2.4 * light ** (1 / 2.4 - 1)
    for severity in (1.0, 0.5):
        electrons = 2000 / severity**2
        dark = degrade(torch.full((3, 120, 120), 0.5), generator=seeded(), severity=severity)
        expected = slope * (light / electrons + (5 / electrons) ** 2) ** 0.5
        assert float(dark.std()) == pytest.approx(expected, rel=0.05)


def test_a_lamp_lights_its_surroundings():
    grey = torch.full((3, 101, 201), 0.5)
    lamp = Lamp(strength=4.0, top=0.5, left=0.25, reach=0.2)  # at pixel (50, 50), reaching 40 pixels
    light = underexpose(grey, exposure=0.1, lamp=lamp)[1] / (0.1 * 0.214041)
    assert float(light[50, 50]) == pytest.approx(4.0, rel=1e-3)
    assert float(light[50, 90]) == pytest.approx(2.5, rel=0.01)
    assert float(light[90, 50]) == pytest.approx(2.5, rel=0.01)
    assert float(light[50, 200]) == pytest.approx(1 + 3 / (1 + (150 / 40.2) ** 2), rel=0.02)
    assert bool((light.amax(1).diff().abs() < 0.2).all())


def test_lamps_are_as_frequent_as_stated_and_fade_with_severity():
    degrade, generator = LowLight(lamp_share=0.3, lamp=[2.0, 8.0]), seeded()
    lamps = [degrade.draw(8, 8, generator=generator, severity=1.0).lamp for _ in range(300)]
    strengths = [lamp.strength for lamp in lamps if lamp is not None]
    assert 65 < len(strengths) < 115
    assert 2 <= min(strengths) < 2.5
    assert 6.5 < max(strengths) <= 8
    full, half = (LowLight(lamp_share=1.0).draw(8, 8, generator=seeded(), severity=s).lamp for s in (1.0, 0.5))
    assert half.strength == pytest.approx(full.strength**0.5)
    assert half[1:] == full[1:]


def test_what_lies_in_the_light_is_exposed_rightly_and_is_where_the_picture_is_bright():
    picture = torch.full((3, 60, 80), 0.2)
    picture[..., 40:] = 0.7
    knots = np.zeros((4, 4), np.float32)
    light = underexpose(picture, exposure=0.1, backlight=Backlight(0.0, 0.5, bright=2.0, grain=4, knots=knots))
    shade = underexpose(picture, exposure=0.1)
    full = underexpose(picture, exposure=1.0)
    torch.testing.assert_close(light[..., 46:], full[..., 46:])
    torch.testing.assert_close(light[..., :36], shade[..., :36])
    half = underexpose(picture, exposure=0.1, backlight=Backlight(0.5, 0.5, bright=2.0, grain=4, knots=knots))
    torch.testing.assert_close(half[..., 46:], full[..., 46:] * 0.1**0.5)
    night = underexpose(picture, exposure=0.005, backlight=Backlight(0.0, 0.5, bright=2.0, grain=4, knots=knots))
    torch.testing.assert_close(night[..., 46:], underexpose(picture, exposure=0.005 * 24)[..., 46:])


def test_backlight_is_as_frequent_as_stated_and_draws_nothing_else_anew():
    degrade, generator = LowLight(backlit_share=0.3, lit_area=[0.2, 0.5]), seeded()
    backlights = [degrade.draw(8, 8, generator=generator).backlight for _ in range(300)]
    areas = [backlight.area for backlight in backlights if backlight is not None]
    assert 65 < len(areas) < 115
    assert 0.2 <= min(areas) < 0.25
    assert 0.45 < max(areas) <= 0.5
    never, always = (LowLight(backlit_share=share).draw(8, 8, generator=seeded()) for share in (0.0, 1.0))
    assert never == always._replace(backlight=None)


def test_high_severity_is_as_dark_as_lol(photo):
    means = [float(LowLight(backlit_share=0)(photo, generator=seeded(i), severity=0.9).mean()) for i in range(6)]
    assert 0.02 < np.mean(means) < 0.1  # LOL-v1 train: 0.06, half of them 0.043 to 0.084
