"""Haze: the picture fades with depth and the colour of the air takes its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
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
from opir_lightning.degradations.made_up_depth import GRID, LEVELS, Scene, random_depth
from opir_lightning.errors import UserError

FAINTNESS = 1.5  # exponent of the severity: with 1, only one picture in 25 would be hazed so little as to score 30 dB


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
