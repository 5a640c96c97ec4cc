from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from opir_lightning.degradations import Haze, apply_haze, random_depth
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


def test_negative_numbers_and_wrong_depths_are_refused(photo):
    depth = torch.ones(photo.shape[1:])
    with pytest.raises(UserError, match="beta"):
        apply_haze(photo, depth, beta=-0.1, airlight=0.9)
    with pytest.raises(UserError, match="depth"):
        apply_haze(photo, -depth, beta=0.1, airlight=0.9)
    with pytest.raises(ValueError, match="shape"):
        apply_haze(photo, depth.T, beta=0.1, airlight=0.9)


def test_made_up_depth_without_slope_and_relief_is_a_wall(photo):
    assert torch.allclose(random_depth(photo, slope=0.0, relief=0.0, generator=seeded()), torch.tensor(1.0))


def test_made_up_depth_rises_to_the_top_and_lies_around_one(photo):
    ratios, middles = [], []
    for seed in range(20):
        depth = random_depth(photo, slope=2.0, relief=0.4, generator=seeded(seed))
        assert depth.shape == photo.shape[1:]
        ratios.append(float(depth[:15].mean() / depth[-15:].mean()))
        middles.append(float(depth.log().mean()))
    assert 3 < np.median(ratios) < math.exp(2.0) + 2
    assert max(ratios) > 1.5 * min(ratios)
    assert abs(np.mean(middles)) < 0.15


def test_made_up_depth_scales_with_the_picture(photo):
    small = torch.nn.functional.avg_pool2d(photo, 2)
    for seed in range(3):
        large, little = (random_depth(p, slope=1.0, relief=0.6, generator=seeded(seed)).log() for p in (photo, small))
        reduced = torch.nn.functional.avg_pool2d(large[None], 2)[0]
        assert float((reduced - little).abs().mean()) < 0.1 * float(little.std())


def test_relief_follows_large_outlines_and_not_texture():
    picture = torch.full((3, 240, 240), 0.25)
    picture[:, :, 120:] = 0.75
    texture = picture + 0.4 * (torch.rand(1, 240, 240, generator=seeded()) - 0.5)
    steps, ripples = [], []
    for seed in range(20):
        depth = random_depth(texture, slope=0.0, relief=0.6, generator=seeded(seed)).log()
        steps.append(float((depth[:, 127:131].mean() - depth[:, 109:113].mean()).abs()))
        ripples.append(float((depth[:, 1:] - depth[:, :-1])[:, :100].abs().mean()))
    assert np.mean(steps) > 0.07
    assert np.mean(ripples) < 0.008


def test_a_real_depth_decides_where_the_haze_is_and_its_unit_does_not_matter(photo):
    depth = torch.ones(photo.shape[1:])
    depth[:, 115:] = 3.0
    haze = Haze(airlight=0.95, tint=0.0, quantise=False)
    hazy = haze(photo, generator=seeded(), severity=0.8, depth=depth)
    assert torch.allclose(hazy, haze(photo, generator=seeded(), severity=0.8, depth=depth * 1000), atol=1e-5)
    beta = 1.1 * 0.8**1.5
    for side, metres in ((photo[:, :, :100], 1.0), (photo[:, :, 130:], 3.0)):
        t = math.exp(-beta * metres / float(depth.mean()))
        got = hazy[:, :, :100] if metres == 1.0 else hazy[:, :, 130:]
        assert torch.allclose(got, side * t + 0.95 * (1 - t), atol=1e-5)


def test_air_has_the_configured_colour():
    black = torch.zeros(3, 8, 8)
    haze = Haze([0.0, 20.0], airlight=[0.6, 0.8], tint=0.05, slope=0.0, relief=0.0, quantise=False)
    airs = torch.stack([haze(black, generator=seeded(i), severity=1.0)[:, 0, 0] for i in range(60)])
    assert 0.55 <= float(airs.min()) < 0.63
    assert 0.77 < float(airs.max()) <= 0.85
    spread = airs.amax(1) - airs.amin(1)
    assert 0.02 < float(spread.mean()) < 0.1
    assert float(spread.max()) <= 0.1 + 1e-6
