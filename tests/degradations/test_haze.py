from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from opir_lightning.degradations import Haze, apply_haze
from opir_lightning.degradations.haze import Glow, glow_map
from opir_lightning.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_formula_with_a_known_transmission():
    clean = torch.tensor([0.2, 0.5, 0.8]).reshape(3, 1, 1).expand(3, 1, 2)
    depth = torch.tensor([[math.log(2), 0.0]])  # t = 1/2 and t = 1
    hazy = apply_haze(clean, depth, beta=1.0, airlight=[0.9, 0.8, 1.0])
    assert torch.allclose(hazy[:, 0, 0], torch.tensor([0.55, 0.65, 0.9]))
    assert torch.allclose(hazy[:, 0, 1], clean[:, 0, 1])
    twice = apply_haze(clean, depth, beta=2.0, airlight=1.0)
    assert torch.allclose(twice[:, 0, 0], torch.tensor([0.2, 0.5, 0.8]) * 0.25 + 0.75)


def test_every_picture_of_a_batch_has_its_own_beta_and_air():
    clean = torch.full((2, 3, 1, 1), 0.5)
    air = torch.tensor([[1.0, 0.8, 0.6], [0.0, 0.0, 0.0]])
    hazy = apply_haze(clean, torch.ones(2, 1, 1), beta=torch.tensor([math.log(2), 0.0]), airlight=air)
    assert torch.allclose(hazy[:, :, 0, 0], torch.tensor([[0.75, 0.65, 0.55], [0.5, 0.5, 0.5]]))


def test_wrong_depths_are_refused(photo):
    depth = torch.ones(photo.shape[1:])
    with pytest.raises(ValueError, match="shape"):
        apply_haze(photo, depth.T, beta=0.1, airlight=0.9)
    for wrong, error, said in (
        (-depth, UserError, "smallest is -1"),
        (depth * float("nan"), UserError, "nan"),
        (depth * float("inf"), UserError, "finite"),
        (depth.T, ValueError, "shape"),
    ):
        with pytest.raises(error, match=said):
            Haze()(photo, generator=seeded(), depth=wrong)


def test_a_real_depth_decides_where_the_haze_is(photo):
    depth = torch.ones(photo.shape[1:])
    depth[:, 115:] = 3.0
    haze = Haze([0.0, 1.1], airlight=0.95, tint=0.0, quantise=False)
    hazy = haze(photo, generator=seeded(), severity=0.8, depth=depth)
    beta = 1.1 * 0.8**1.5
    for side, metres in ((photo[:, :, :100], 1.0), (photo[:, :, 130:], 3.0)):
        t = math.exp(-beta * metres)
        got = hazy[:, :, :100] if metres == 1.0 else hazy[:, :, 130:]
        assert torch.allclose(got, side * t + 0.95 * (1 - t), atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (1, 1)])
@pytest.mark.parametrize("known", [(), (1, 3), (0, 1, 2, 3)])
def test_a_batch_equals_its_pictures_one_by_one(size, known):
    haze = Haze(quantise=False)
    clean = torch.rand(4, 3, *size, generator=seeded())
    depths = [torch.rand(*size, generator=seeded(i)) + 0.1 if i in known else None for i in range(4)]
    draws = [haze.draw(*size, generator=seeded(i), severity=0.7, depth=depths[i]) for i in range(4)]
    each = [haze(clean[i], generator=seeded(i), severity=0.7, depth=depths[i]) for i in range(4)]
    assert torch.equal(haze.apply(clean, draws), torch.stack(each))


def test_air_has_the_configured_colour():
    black = torch.zeros(3, 8, 8)
    haze = Haze([0.0, 20.0], airlight=[0.6, 0.8], tint=0.05, slope=0.0, relief=0.0, sky=0.0, quantise=False)
    airs = torch.stack([haze(black, generator=seeded(i), severity=1.0)[:, 0, 0] for i in range(60)])
    assert 0.55 <= float(airs.min()) < 0.63
    assert 0.77 < float(airs.max()) <= 0.85
    spread = airs.amax(1) - airs.amin(1)
    assert 0.02 < float(spread.mean()) < 0.1
    assert float(spread.max()) <= 0.1 + 1e-6


def test_tint_is_mostly_between_blue_and_yellow():
    colours = np.array([Haze(airlight=0.8).draw(8, 8, generator=seeded(i)).air for i in range(60)]) - 0.8
    assert np.corrcoef(colours[:, 0], colours[:, 2])[0, 1] < -0.8
    assert np.abs(colours[:, 1]).mean() < 0.5 * np.abs(colours[:, 0]).mean()


def test_air_against_the_light_is_brightest_at_the_sun_and_fades_away_from_it():
    glow = Glow(row=0.25, column=1.0, radius=0.5, loss=0.4)
    air = glow_map(40, 80, glow)
    assert float(air[10, -1]) == pytest.approx(1.0, abs=1e-3)
    assert float(air[10, -21]) == pytest.approx(1 - 0.4 * (1 - math.exp(-0.5)), abs=0.01)  # a radius to the left
    assert float(air[10, 0]) == pytest.approx(0.6, abs=0.01)
    draw = Haze(airlight=0.8, tint=0.0).draw(40, 80, generator=seeded(), severity=1.0)
    dense = Haze(airlight=0.8, quantise=False).apply(torch.zeros(1, 3, 40, 80), [draw._replace(beta=1e3, glow=glow)])
    assert torch.allclose(dense[0], (0.8 * air).expand(3, -1, -1), atol=1e-5)


def test_with_the_light_everything_is_as_without_glow(photo):
    plain, glowing = Haze(), Haze(glow_share=0.5, glow_loss=[0.2, 0.3])
    pairs = [[haze.draw(40, 60, generator=seeded(i)) for haze in (plain, glowing)] for i in range(80)]
    glows = [after.glow for _, after in pairs]
    assert all(before.glow is None and before[:2] == after[:2] for before, after in pairs)
    assert 25 < sum(glow is not None for glow in glows) < 55
    assert all(0.2 <= glow.loss <= 0.3 for glow in glows if glow is not None)
    # In a batch each picture has its own light, and one without is what it is alone.
    number = glows.index(None)
    other = next(i for i, glow in enumerate(glows) if glow is not None)
    draws = [glowing.draw(*photo.shape[1:], generator=seeded(i)) for i in (number, other)]
    both = glowing.apply(torch.stack([photo, photo]), draws)
    assert torch.equal(both[0], plain(photo, generator=seeded(number)))
    assert torch.equal(both[1], glowing(photo, generator=seeded(other)))
