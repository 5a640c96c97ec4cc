"""A plausible depth for pictures that have none: ground in perspective, relief that follows outlines, and sky."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 4  # knots of the random relief on each axis; coarser than any object, so that the relief has no texture
LEVELS = 3  # layers of the relief: for dark, medium and bright surroundings, and straight lines in between
CELLS = 32  # of the coarse picture along the shorter side, on which outlines and sky are found
EDGE = 0.01  # variance of brightness above which the relief follows it: a step of a fifth of the range


class Scene(NamedTuple):
    """What is drawn of a made-up depth map.

    Attributes:
        slope: logarithm of the ratio of depths at the horizon and at the bottom; 0 is a wall, 2.5 a road.
        horizon: where the ground ends, as a part of the height from the top; below 0 it is above the picture.
        turn: radians by which the ground leans, as it does in crops and between walls.
        sky: logarithm of how many times farther a bright smooth top is than the scenery would be.
        relief: size of the relief, logarithmic; 0.5 varies by up to about +-50 %.
        knots: ``(LEVELS, GRID, GRID)`` float32 in [-1, 1], the relief.
    """

    slope: float
    horizon: float
    turn: float
    sky: float
    relief: float
    knots: np.ndarray


def random_depth(clean: Tensor, scenes: Sequence[Scene]) -> Tensor:
    r"""Plausible depth maps of pictures that have none; without sky their geometric mean is close to 1.

    .. math:: \log d = g(u - h) + r(x, y, J) + s M, \qquad g(t) = c - \log(e + \max(t, 0))

    The ground in perspective: depth is one over the distance below the horizon h, u being the height from the top (the
    corner at the horizon is rounded, and above it nothing grows farther). On it lies a smooth random relief r, which
    also depends on the brightness J of the surroundings, as in a bilateral grid, and goes through a guided filter, so
    that its steps follow outlines while leaves and bricks do not show in the haze. M is the sky: bright and
    smooth, not warm in colour, and without a wide break up to the top. Everything scales with the picture.

    Args:
        clean: ``(B, 3, H, W)`` float32 RGB in [0, 1] on any device.
        scenes: one for each picture.

    Returns:
        ``(B, H, W)`` float32, positive.

    Source: the guided filter on a coarse picture is that of He and Sun, arXiv:1505.00996; bilateral grid: Chen et al.,
    SIGGRAPH 2007.
    """
    height, width = clean.shape[-2:]
    device = clean.device
    cell = max(1.0, min(height, width) / CELLS)
    rows, columns = round(height / cell), round(width / cell)
    # Sums and means over the whole picture are avoided: torch adds them up in an order that depends on the batch.
    colours = F.adaptive_avg_pool2d(clean, (rows, columns))
    grey = clean.mean(1, keepdim=True)
    mean = colours.mean(1, keepdim=True)
    square = F.adaptive_avg_pool2d(grey * grey, (rows, columns))
    variance = square - mean * mean

    numbers = [(*_ramp(scene), scene.relief, scene.sky) for scene in scenes]
    across, along, middle, least, level, strength, distance = (
        torch.tensor(numbers, dtype=torch.float32).T[..., None, None, None].to(device)
    )
    down, right = (((torch.arange(n, device=device) + 0.5) / n - 0.5) for n in (rows, columns))
    ramp = level - torch.log(least + _hinge(along * down[:, None] + across * right + middle))

    # The guided filter: within 3 x 3 cells, the relief as a straight line over brightness.
    knots = torch.from_numpy(np.stack([scene.knots for scene in scenes])).to(device)
    dark, medium, bright = F.interpolate(knots, size=(rows, columns), mode="bicubic", align_corners=False).split(1, 1)
    relief = medium + torch.where(mean < 0.5, medium - dark, bright - medium) * (2 * mean - 1)
    around = F.avg_pool2d(torch.cat([mean, square, relief, mean * relief], 1), 3, 1, 1, count_include_pad=False)
    mean, square, relief, product = around.split(1, 1)
    gain = strength * (product - mean * relief) / (square - mean * mean + EDGE)
    level = ramp + strength * relief - gain * mean
    smooth = F.avg_pool2d(torch.cat([gain, level], 1), 3, 1, 1, count_include_pad=False)

    sky = _step(colours.amax(1, keepdim=True), 0.5, 0.65) * _step(variance, 0.006, 0.002)
    sky = sky * _step(colours[:, 2:] - colours[:, :1], -0.12, -0.04)  # walls and skin are warmer than a sky by day
    sky = -F.max_pool2d(-F.max_pool2d(sky, 5, 1, 2), 5, 1, 2)  # cables and branches do not divide it
    sky = F.avg_pool2d(F.max_pool2d(sky.cumprod(-2), 3, 1, 1), 5, 1, 2, count_include_pad=False)  # nor end it sharply
    sky = distance * sky

    fine = F.interpolate(torch.cat([smooth, sky], 1), size=(height, width), mode="bilinear", align_corners=False)
    gain, level, sky = fine.unbind(1)
    return torch.exp(gain * grey[:, 0] + level + sky * _step(clean.amax(1), 0.5, 0.65))


def _ramp(scene: Scene) -> tuple[float, float, float, float, float]:
    """Rightward and downward rise of the distance below the horizon, its middle, least distance, and level.

    The level makes the geometric mean of the depth 1.
    """
    middle = 0.5 - scene.horizon
    least = max(1 - scene.horizon, 0.2) / max(math.expm1(scene.slope), 1e-3)
    below = torch.linspace(-0.5, 0.5, 64) + middle
    level = float(torch.log(least + _hinge(below)).mean())
    return math.sin(scene.turn), math.cos(scene.turn), middle, least, level


def _hinge(value: Tensor) -> Tensor:
    """The larger of the value and 0, with a rounded corner."""
    return 0.5 * (value + torch.sqrt(value * value + 0.01))


def _step(value: Tensor, none: float, full: float) -> Tensor:
    """0 at ``none`` and beyond, 1 at ``full`` and beyond, a straight line in between."""
    return ((value - none) / (full - none)).clamp(0, 1)
