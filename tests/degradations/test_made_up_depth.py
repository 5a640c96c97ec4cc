from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from opir_lightning.degradations import Haze, random_depth
from opir_lightning.degradations.made_up_depth import Scene


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(**changes: float) -> Scene:
    """No relief, no slope and no sky, unless they are asked for."""
    settings = {"slope": 0.0, "horizon": 0.3, "turn": 0.0, "sky": 0.0, "relief": 0.0}
    return Scene(**{**settings, **changes}, knots=np.zeros((3, 4, 4), np.float32))


def random_scene(seed: int, **ranges: float) -> Scene:
    haze = Haze(**{"slope": 0.0, "sky": 0.0, "relief": 0.0, **ranges})
    return haze.draw(8, 8, generator=seeded(seed), severity=1.0).scene


def test_made_up_depth_without_slope_relief_and_sky_is_a_wall(photo):
    assert torch.allclose(random_depth(photo[None], [scene()]), torch.tensor(1.0), atol=0.01)


def test_made_up_depth_is_a_ground_that_ends_at_the_horizon():
    depth = random_depth(torch.full((1, 3, 200, 100), 0.2), [scene(slope=2.0, horizon=0.4)])[0]
    assert float(depth.log().mean()) == pytest.approx(0.0, abs=0.03)
    assert torch.allclose(depth[:, :1], depth, rtol=1e-4)  # level
    assert bool((depth[1:, 0] <= depth[:-1, 0] + 1e-5).all())
    assert float(depth[0, 0] / depth[-1, 0]) == pytest.approx(math.exp(2.0), rel=0.1)
    # Inverse depth is a straight line on the ground, and above the horizon it hardly changes.
    slope = (1 / depth[1:, 0] - 1 / depth[:-1, 0])[[20, 120, 180]]
    assert float(slope[1]) == pytest.approx(float(slope[2]), rel=0.1)
    assert float(slope[0]) < 0.1 * float(slope[2])


def test_made_up_depth_leans_and_varies_from_picture_to_picture(photo):
    scenes = [random_scene(i, slope=[1.0, 2.0], relief=0.4) for i in range(20)]
    depth = random_depth(photo[None].expand(20, -1, -1, -1), scenes)
    ratios = depth[:, :15].mean((1, 2)) / depth[:, -15:].mean((1, 2))
    assert 2 < float(ratios.median()) < math.exp(2.0)
    assert float(ratios.max()) > 2 * float(ratios.min())
    sides = depth[:, :, :15].mean((1, 2)) / depth[:, :, -15:].mean((1, 2))
    assert float(sides.min()) < 0.8
    assert float(sides.max()) > 1.25
    assert abs(float(depth.log().mean())) < 0.15


def test_made_up_depth_scales_with_the_picture(photo):
    small = torch.nn.functional.avg_pool2d(photo, 2)
    for seed in range(3):
        drawn = random_scene(seed, slope=1.0, relief=0.6)
        large, little = (random_depth(picture[None], [drawn]).log() for picture in (photo, small))
        reduced = torch.nn.functional.avg_pool2d(large, 2)
        assert float((reduced - little).abs().mean()) < 0.1 * float(little.std())


def test_relief_follows_large_outlines_and_not_texture():
    picture = torch.full((1, 3, 240, 240), 0.25)
    picture[..., 120:] = 0.75
    texture = picture + 0.4 * (torch.rand(1, 1, 240, 240, generator=seeded()) - 0.5)
    steps, near, ripples = [], [], []
    for seed in range(20):
        drawn = [random_scene(seed, relief=0.6)]
        depth = random_depth(picture, drawn)[0].log()
        steps.append(float((depth[:, 129:131] - depth[:, 109:111]).mean().abs()))
        near.append(float((depth[:, 120] - depth[:, 119]).mean().abs()))
        depth = random_depth(texture, drawn)[0].log()
        ripples.append(float((depth[:, 1:] - depth[:, :-1])[:, :100].abs().mean()))
    assert np.mean(steps) > 0.05
    assert np.mean(near) > 0.25 * np.mean(steps)  # much of the step within one pixel
    assert np.mean(ripples) < 0.006


def test_sky_is_far_where_the_top_is_bright_smooth_and_not_warm():
    picture = torch.full((4, 3, 120, 120), 0.2)
    picture[:, :, :60] = torch.tensor([0.6, 0.7, 0.9])[:, None, None]
    picture[:, :, 80:100] = 0.9  # bright, and not connected to the top
    picture[:, :, :60, 57:60] = 0.1  # a mast
    picture[1, :, :60] = torch.tensor([0.9, 0.8, 0.6])[:, None, None]  # a painted wall
    picture[2, :, :60, ::2] = 0.5  # blinds
    picture[3, :, :24] = 0.2  # something dark above
    depth = random_depth(picture, [scene(sky=1.0)] * 4)
    assert torch.allclose(depth[0, :48, :50], torch.tensor(math.e), atol=0.02)
    assert torch.allclose(depth[0, :, 57:60], torch.tensor(1.0), atol=0.02)
    assert torch.allclose(depth[0, 60:], torch.tensor(1.0), atol=0.02)
    assert torch.allclose(depth[1:], torch.tensor(1.0), atol=0.02)


def test_thin_things_before_the_sky_neither_divide_it_nor_leave_an_edge_in_it():
    sky = torch.tensor([0.55, 0.7, 0.9]).reshape(3, 1, 1).repeat(1, 128, 128)
    cable = sky.clone()
    for offset in range(3):
        cable[:, torch.arange(128), (torch.arange(128) // 2 + 30 + offset).clamp(max=127)] = 0.05
    plain, divided = random_depth(torch.stack([sky, cable]), [scene(sky=1.0)] * 2)
    away = (cable == sky).all(0)
    assert float((divided - plain)[away].abs().max()) < 0.1 * float(plain.max())
