"""Haze: the picture fades with depth and the colour of the air takes its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opir_lightning.degradations.base import (
    Batched,
    Range,
    as_interval,
    as_severity,
    as_share,
    between,
    finish,
    numpy_generator,
    pick_severity,
)
from opir_lightning.errors import UserError

GRID = 4  # knots of the random relief on each axis; coarser than any object, so that the relief has no texture
LEVELS = 3  # layers of the relief: for dark, medium and bright surroundings, and straight lines in between
CELLS = 32  # of the coarse picture along the shorter side, on which outlines and sky are found
EDGE = 0.01  # variance of brightness above which the relief follows it: a step of a fifth of the range
FAINTNESS = 1.5  # exponent of the severity: with 1, only one picture in 25 would be hazed so little as to score 30 dB


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


class Glow(NamedTuple):
    """Air that is brightest around the sun, in the picture or beside it.

    Attributes:
        row, column: place of the sun, as parts of the height and the width; outside [0, 1] it is beside the picture.
        radius: at this distance, in units of the shorter side, the air has lost 39 % of what it loses far away.
        loss: share of its brightness that the air loses far away from the sun.
    """

    row: float
    column: float
    radius: float
    loss: float


class HazeDraw(NamedTuple):
    """What is drawn for one picture: optical thickness at depth 1, RGB of the air, and the depth or how to make it up.

    ``depth`` is ``(H, W)`` float32 with a mean of 1, ``None`` to make it up from the scene; ``glow`` is ``None`` where
    the air is the same everywhere.
    """

    beta: float
    air: tuple[float, float, float]
    scene: Scene
    depth: Tensor | None
    glow: Glow | None


def apply_haze(clean: Tensor, depth: Tensor, *, beta: Tensor | float, airlight: Tensor | float) -> Tensor:
    r"""Koschmieder's law on sRGB values, as RESIDE applies it (not on linear light); not quantised.

    .. math:: I = J t + A (1 - t), \qquad t = \exp(-\beta d)

    Args:
        clean: ``(..., 3, H, W)`` RGB in [0, 1].
        depth: ``(..., H, W)``, at least 0, in the unit that 1 / beta is in (metres; or the typical distance of the
            scene).
        beta: scattering coefficient, at least 0; a number or ``(...)``. RESIDE indoor: 0.6 to 1.8; outdoor 0.04 to 0.2.
        airlight: A in [0, 1], a number, ``(..., 3)``, or ``(..., 3, H, W)`` where it differs over the picture. RESIDE:
            0.7 to 1 indoors, 0.8 to 1 outdoors.

    Returns:
        ``(..., 3, H, W)``, in [0, 1] where the clean picture is.

    Raises:
        ValueError: the depth's shape is not that of the picture.

    Source: RESIDE, Li et al., IEEE TIP 2019.
    """
    if depth.shape != clean.shape[:-3] + clean.shape[-2:]:
        raise ValueError(f"depth of shape {tuple(depth.shape)} for a picture of shape {tuple(clean.shape)}")
    beta = torch.as_tensor(beta, dtype=clean.dtype, device=clean.device)
    air = torch.as_tensor(airlight, dtype=clean.dtype, device=clean.device)
    if 0 < air.ndim < clean.ndim:
        air = air[..., None, None]
    transmission = torch.exp(-beta[..., None, None] * depth)[..., None, :, :]
    return clean * transmission + air * (1 - transmission)


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


def glow_map(height: int, width: int, glow: Glow) -> Tensor:
    r"""How bright the air is, relative to that at the sun: ``(H, W)`` float32.

    .. math:: 1 - l (1 - e^{-d^2 / 2 r^2})

    with the distance d from the sun, the radius r and the loss l.
    """
    short = min(height, width)
    down = (torch.arange(height) + 0.5 - glow.row * height) / short
    right = (torch.arange(width) + 0.5 - glow.column * width) / short
    near = torch.exp(-0.5 * (down.square()[:, None] + right.square()) / glow.radius**2)
    return 1 - glow.loss * (1 - near)


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


class Haze(Batched):
    """Haze from hardly visible to dense, with the depth map of the picture or a plausible one.

    Koschmieder's law, see `apply_haze`, with made-up depth as in `random_depth`. Severity is the optical thickness at
    the typical distance, ``beta * severity ** 1.5``; the rest is drawn per picture. On the clean pictures of RESIDE's
    training sets the mean PSNR is that of their haze, 12.1 dB (four pairs of ITS) and 16.9 dB (two of OTS), at 0.71 and
    0.37.

    Args:
        beta: optical thickness at depth 1 (the typical distance of the scene), at severity 0 and 1. The median over a
            picture is 0.7 to 0.8 in ITS and 0.1 to 0.7 in OTS, and 1.0 to 2.7 in rooms filled with real haze (REVIDE).
        airlight: range of the brightness of the air. ITS has 0.76 to 0.99, OTS 0.96 to 0.99, a room of REVIDE 0.8.
        tint: largest deviation of a colour of the air from its brightness: between bluish and yellowish, and a quarter
            of it at random.
        slope: range of the logarithm of how many times farther the horizon of a made-up depth map is than the bottom.
            A crop of a large picture is almost flat, a landscape is not.
        horizon: range of its horizon, as a part of the height from the top; negative is above the picture.
        sky: range of the logarithm of how many times farther than the horizon a bright smooth top is put.
        relief: range of the relief of a made-up depth map, logarithmic.
        glow_share: probability that the air is brightest around the sun, as it is in fog against the light. A model
            that has only met air of one brightness takes the darker part of such a sky for things behind haze.
        glow_loss: range of the share of its brightness that such air loses far away from the sun.
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: round to 8 bits.

    Source: RESIDE, Li et al., IEEE TIP 2019; REVIDE, Zhang et al., CVPR 2021.
    """

    takes_depth = True

    def __init__(
        self,
        beta: Range = (0.0, 1.5),
        *,
        airlight: Range = (0.75, 1.0),
        tint: float = 0.05,
        slope: Range = (0.0, 2.0),
        horizon: Range = (-0.5, 0.6),
        sky: Range = (0.0, 1.5),
        relief: Range = (0.0, 0.4),
        glow_share: float = 0.0,
        glow_loss: Range = (0.1, 0.45),
        severity: Range = (0.0, 1.0),
        quantise: bool = True,
    ) -> None:
        self.beta = as_interval("beta", beta, low=0.0, high=20.0)
        self.airlight = as_interval("airlight", airlight, low=0.0, high=1.0)
        self.tint = as_interval("tint", tint, low=0.0, high=0.5)[0]
        self.slope = as_interval("slope", slope, low=0.0, high=10.0)
        self.horizon = as_interval("horizon", horizon, low=-10.0, high=1.0)
        self.sky = as_interval("sky", sky, low=0.0, high=10.0)
        self.relief = as_interval("relief", relief, low=0.0, high=5.0)
        self.glow_share = as_share("glow_share", glow_share)
        self.glow_loss = as_interval("glow_loss", glow_loss, low=0.0, high=1.0)
        self.severity = as_severity(severity)
        self.quantise = quantise

    def draw(
        self,
        height: int,
        width: int,
        *,
        generator: torch.Generator,
        severity: float | None = None,
        depth: Tensor | None = None,
    ) -> HazeDraw:
        """As :class:`~opir_lightning.degradations.base.Batched`.

        ``depth``: ``(H, W)``, at least 0, in units of the typical distance of the scene: a crop of a map keeps the unit
        of the whole. Without it one is made up.
        """
        rng = numpy_generator(generator)
        beta = between(self.beta, pick_severity(severity, self.severity, rng) ** FAINTNESS)
        colour = self.tint * (0.75 * rng.uniform(-1, 1) * np.array([1.0, 0.2, -1.0]) + 0.25 * rng.uniform(-1, 1, 3))
        red, green, blue = np.clip(rng.uniform(*self.airlight) + colour, 0, 1).tolist()
        scene = Scene(
            slope=between(self.slope, rng.random()),
            horizon=between(self.horizon, rng.random()),
            turn=rng.normal(0.0, 0.4),
            sky=between(self.sky, rng.random()),
            relief=between(self.relief, rng.random()),
            knots=rng.uniform(-1.0, 1.0, size=(LEVELS, GRID, GRID)).astype(np.float32),
        )
        if depth is not None:
            depth = _checked_depth(depth, height, width)
        glow = None
        if rng.random() < self.glow_share:  # last, so that all else is as without
            row, column = rng.uniform(-0.3, 0.6), rng.uniform(-0.3, 1.3)
            glow = Glow(row, column, radius=rng.uniform(0.3, 1.2), loss=between(self.glow_loss, rng.random()))
        return HazeDraw(beta, (red, green, blue), scene, depth, glow)

    def apply(self, clean: Tensor, draws: Sequence[HazeDraw]) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        device = clean.device
        unknown = [i for i, drawn in enumerate(draws) if drawn.depth is None]
        if len(unknown) == len(draws):
            depth = random_depth(clean, [drawn.scene for drawn in draws])
        else:
            depth = torch.stack([clean[i, 0] if d.depth is None else d.depth.to(device) for i, d in enumerate(draws)])
            if unknown:
                depth[unknown] = random_depth(clean[unknown], [draws[i].scene for i in unknown])
        beta = torch.tensor([drawn.beta for drawn in draws], device=device)
        air = torch.tensor([drawn.air for drawn in draws], device=device)
        if any(drawn.glow for drawn in draws):
            height, width = clean.shape[-2:]
            ones = torch.ones(height, width)
            maps = [ones if drawn.glow is None else glow_map(height, width, drawn.glow) for drawn in draws]
            air = air[..., None, None] * torch.stack(maps)[:, None].to(device)
        return finish(apply_haze(clean, depth, beta=beta, airlight=air), quantise=self.quantise)


def _checked_depth(depth: Tensor, height: int, width: int) -> Tensor:
    """A given depth map; refused unless it is ``(height, width)``, finite and at least 0."""
    if depth.shape != (height, width):
        raise ValueError(f"depth of shape {tuple(depth.shape)} for a picture of {height} x {width} pixels")
    low, high = (float(end) for end in depth.aminmax())
    if not (low >= 0 and math.isfinite(high)):
        raise UserError(f"every depth must be a finite number of at least 0; the smallest is {low:g}.")
    return depth.float()
