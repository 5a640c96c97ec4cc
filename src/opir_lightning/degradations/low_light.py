"""Low light: too little exposure, the wrong white balance, the camera's curve, and the noise of few photons."""

from __future__ import annotations

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
    log_between,
    new_seed,
    numpy_generator,
    pick_severity,
    seeded,
)
from opir_lightning.degradations.colour import linear_to_srgb, power, srgb_to_linear
from opir_lightning.degradations.noise import sensor_noise
from opir_lightning.errors import UserError

FAINTNESS = 1.5  # exponent of the severity: with 1, only one picture in 30 would score 30 dB or more
BRIGHTEST = 24.0  # times the light of the shade: some 4.6 stops, sunlight against a room
KNOTS = 4  # of the random field on each axis that helps to decide what lies in the light
EDGE = 0.3  # of the field's deviation: from the shade into the light


class Lamp(NamedTuple):
    """A light in or near the picture.

    Attributes:
        strength: light at its place relative to the light without it, at least 1; 1 is no lamp.
        top, left: its place as parts of height and width; it may lie outside.
        reach: distance at which half of its light is left, as a part of the longer side.
    """

    strength: float = 1.0
    top: float = 0.5
    left: float = 0.5
    reach: float = 0.3


class Backlight(NamedTuple):
    """A part of the scene that lies in the light, as the sky does behind a dark house.

    Attributes:
        stops: part of the missing exposure that it misses as well; 0 leaves it as bright as it was.
        area: part of the picture that it covers.
        bright: how far it follows what is bright in the picture, in units of the random field; positive.
        grain: pixels over which brightness is averaged for that.
        knots: ``(KNOTS, KNOTS)`` float32, the random field.
    """

    stops: float
    area: float
    bright: float
    grain: int
    knots: np.ndarray


def underexpose(
    clean: Tensor,
    *,
    exposure: float,
    curve: float = 1.0,
    cast: Sequence[float] = (1.0, 1.0, 1.0),
    lamp: Lamp | None = None,
    backlight: Backlight | None = None,
) -> Tensor:
    r"""The light that reaches a sensor that is exposed too little; linear, without noise.

    .. math:: L'_c = \min(1,\; e\, g_c\, l\, b\, L_c^{\gamma}), \qquad L = \mathrm{sRGB}^{-1}(J), \qquad
        l = 1 + (s - 1) / (1 + d^2 / r^2), \qquad b = \min(e^{k - 1}, 24)^m

    Args:
        clean: ``(3, H, W)`` sRGB values in [0, 1].
        exposure: e, positive; 1 leaves the light as it is. LOL-v1 train: 0.009 to 0.10 (5 to 95 % of it).
        curve: gamma, positive; above 1 shadows sink further than highlights. LOL-v1 train: 0.82 to 1.39.
        cast: g, gain of red, green and blue, positive. LOL-v1 train: red 0.72 to 1.46, blue 0.58 to 1.13 of green.
        lamp: its strength s and reach r; d is the distance from it.
        backlight: its stops k; m in [0, 1] tells what lies in the light.

    Returns:
        ``(3, H, W)`` linear light in [0, 1].

    Raises:
        UserError: a parameter is not positive.
    """
    if min(exposure, curve, *cast) <= 0:
        raise UserError(f"exposure {exposure:g}, curve {curve:g} and cast {tuple(cast)} must all be positive.")
    light = srgb_to_linear(clean)
    if curve != 1:
        light = power(light, curve)
    gain = torch.tensor([exposure * float(part) for part in cast], dtype=clean.dtype, device=clean.device)
    light = light * gain.reshape(3, 1, 1)
    if lamp is not None and lamp.strength != 1:
        light *= _lamplight(lamp, clean)
    if backlight is not None:
        light *= min(exposure ** (backlight.stops - 1), BRIGHTEST) ** _lit(backlight, clean)
    return light.clamp_(max=1)


def _lamplight(lamp: Lamp, like: Tensor) -> Tensor:
    """How much more light there is with the lamp, ``(H, W)``."""
    height, width = like.shape[-2:]
    reach = lamp.reach * max(height, width)
    down = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5 - lamp.top * height) / reach
    right = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5 - lamp.left * width) / reach
    return 1 + (lamp.strength - 1) / (1 + down[:, None] ** 2 + right[None, :] ** 2)


def _lit(backlight: Backlight, clean: Tensor) -> Tensor:
    """What lies in the light, ``(H, W)`` in [0, 1]: where a field of brightness and chance is highest."""
    height, width = clean.shape[-2:]
    grain = min(backlight.grain, height, width)
    coarse = F.avg_pool2d(clean.mean(0)[None, None], grain, ceil_mode=True)
    bright = F.interpolate(coarse, (height, width), mode="bilinear")[0, 0]
    bright = (bright - bright.mean()) / (bright.std(correction=0) + 0.05)
    knots = torch.from_numpy(backlight.knots).to(clean)[None, None]
    field = backlight.bright * bright + F.interpolate(knots, (height, width), mode="bicubic")[0, 0]
    some = field[:: max(height // 32, 1), :: max(width // 32, 1)].flatten()
    return ((field - some.quantile(1 - backlight.area)) / (EDGE * (1 + backlight.bright)) + 0.5).clamp(0, 1)


class LowLightDraw(NamedTuple):
    """What is drawn for one picture: `underexpose`'s parameters and `sensor_noise`'s; exposure 0 leaves it as it is."""

    exposure: float
    curve: float
    cast: tuple[float, float, float]
    lamp: Lamp | None
    backlight: Backlight | None
    electrons: float
    read_electrons: float
    noise_seed: int


class LowLight(Batched):
    """From a picture slightly too dark to the darkest of LOL-v1 train, noise included.

    Args:
        exposure: factor on the light at severity 0 and 1; in between the stops grow as ``severity ** 1.5``.
        curve: range of the exponent of the tone curve at severity 1; at severity 0 it is 1.
        cast: range of the gain of red and of blue relative to green at severity 1; at severity 0 it is 1.
        lamp_share: probability of local light.
        lamp: range of its strength at severity 1, in equal ratios; at severity 0 it is 1. In LOL-v1
            train the brightest 2 % get 1.8 times the light of the rest in one picture of twenty, and at most 5 times.
        backlit_share: probability that a part of the scene lies in the light and is exposed rightly, or nearly so.
        lit_stops: range of the part of the missing exposure that is missing there as well.
        lit_area: range of its part of the picture.
        electrons: range of the electrons that make white at severity 1, in equal ratios: fewer is noisier. At severity
            s there are 1 / s^2 times as many: the brighter the scene, the lower the camera's amplification.
        read_electrons: range of the read noise in electrons, in equal ratios.
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: round to 8 bits, as the camera does before anybody can brighten the picture.
    """

    def __init__(
        self,
        exposure: Range = (1.0, 0.005),
        *,
        curve: Range = (0.8, 1.4),
        cast: Range = (0.65, 1.4),
        lamp_share: float = 0.1,
        lamp: Range = (1.5, 5.0),
        backlit_share: float = 0.25,
        lit_stops: Range = (0.0, 0.4),
        lit_area: Range = (0.1, 0.6),
        electrons: Range = (4_000.0, 60_000.0),
        read_electrons: Range = (1.0, 8.0),
        severity: Range = (0.0, 1.0),
        quantise: bool = True,
    ) -> None:
        self.exposure = as_interval("exposure", exposure, low=1e-4, high=1.0, falling=True)
        self.curve = as_interval("curve", curve, low=0.1, high=10.0)
        self.cast = as_interval("cast", cast, low=0.05, high=20.0)
        self.lamp_share = as_share("lamp_share", lamp_share)
        self.lamp = as_interval("lamp", lamp, low=1.0, high=1000.0)
        self.backlit_share = as_share("backlit_share", backlit_share)
        self.lit_stops = as_interval("lit_stops", lit_stops, low=0.0, high=1.0)
        self.lit_area = as_interval("lit_area", lit_area, low=0.0, high=1.0)
        self.electrons = as_interval("electrons", electrons, low=1.0, high=1e9)
        self.read_electrons = as_interval("read_electrons", read_electrons, low=1e-3, high=1e6)
        self.severity = as_severity(severity)
        self.quantise = quantise

    def draw(
        self, height: int, width: int, *, generator: torch.Generator, severity: float | None = None
    ) -> LowLightDraw:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        rng = numpy_generator(generator)
        amount = pick_severity(severity, self.severity, rng)
        curve, red, blue, electrons, read, lit, strength, top, left, reach = (float(part) for part in rng.random(10))
        lamp = Lamp(
            strength=log_between(self.lamp, strength) ** amount,
            top=between((-0.2, 1.0), top),  # seldom at the bottom of a picture
            left=between((-0.2, 1.2), left),
            reach=between((0.1, 0.4), reach),
        )
        backlit, stops, area, bright, grain = (float(part) for part in rng.random(5))
        backlight = Backlight(
            stops=between(self.lit_stops, stops),
            area=between(self.lit_area, area),
            bright=log_between((1.5, 6.0), bright),
            grain=round(log_between((2.0, 12.0), grain)),
            knots=rng.standard_normal((KNOTS, KNOTS), dtype=np.float32),
        )
        return LowLightDraw(
            exposure=0.0 if amount == 0 and self.exposure[0] == 1 else log_between(self.exposure, amount**FAINTNESS),
            curve=log_between(self.curve, curve) ** amount,
            cast=(log_between(self.cast, red) ** amount, 1.0, log_between(self.cast, blue) ** amount),
            lamp=lamp if lit < self.lamp_share else None,
            backlight=backlight if backlit < self.backlit_share else None,
            electrons=log_between(self.electrons, electrons) / max(amount, 1e-3) ** 2,
            read_electrons=log_between(self.read_electrons, read),
            noise_seed=new_seed(generator),
        )

    def apply(self, clean: Tensor, draws: Sequence[LowLightDraw]) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        return torch.stack([self._damage(image, draw) for image, draw in zip(clean, draws, strict=True)])

    def _damage(self, clean: Tensor, draw: LowLightDraw) -> Tensor:
        if draw.exposure == 0:
            return finish(clean, quantise=self.quantise)
        light = underexpose(
            clean,
            exposure=draw.exposure,
            curve=draw.curve,
            cast=draw.cast,
            lamp=draw.lamp,
            backlight=draw.backlight,
        )
        light = sensor_noise(
            light,
            electrons=draw.electrons,
            read_electrons=draw.read_electrons,
            generator=seeded(draw.noise_seed, clean.device),
        )
        return finish(linear_to_srgb(light), quantise=self.quantise)
