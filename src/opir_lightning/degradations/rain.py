"""Rain: motion-blurred streaks at many distances, and the veil that distant drops form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
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
    log_between,
    numpy_generator,
    pick_severity,
)
from opir_lightning.degradations.rain_layers import draw_places, lay, read_layers
from opir_lightning.degradations.rain_streaks import MAX_ANGLE, Streaks, draw_streaks
from opir_lightning.errors import UserError

__all__ = ["MAX_ANGLE", "Rain", "RainDraw", "Streaks", "add_rain", "draw_streaks"]

FARTHEST = 4.0  # distance of the farthest streaks drawn one by one; the nearest are at 1
DRIZZLE = 5.0  # typical distance of the streaks beyond, which are drawn all at once
MEAN_AREA = (1 - FARTHEST**-2) / (2 * math.log(FARTHEST)) * (2**1.5 - 2**-1.5) / (3 * math.log(2))
"""Mean of length times width over the streaks, in units of that of the nearest ordinary drop."""
ADDED = 0.6  # brightness of rain that only adds, as a part of the other's: in RainSIRR it ends at 150 grey levels
GRID = 4  # knots of the gusts and of the veil on each axis
SLIMNESS = 12.0  # least length over width, defocus included; below 8 it looks like snow or confetti
CROWDING = 1.5  # exponent of the severity in the number of streaks
# Of rain from pairs, root of the mean square at severity 1, and exponent: about what the drawn rain has.
MEASURED_STRENGTH = (0.275, 1.1)
FAINTEST = 0.5  # their brightness at severity 0, as a part of that at severity 1


class RainDraw(NamedTuple):
    """What is drawn for one picture.

    Attributes:
        layer: ``(H, W)`` float32, optical thickness of streaks and veil, times the brightness of the rain.
        light: brightness of the rain.
        cover: 1 if it hides what is behind it as much as it is bright, 0 if it only adds.
        fading: 1 if what only adds fades before what is bright, 0 if not.
    """

    layer: Tensor
    light: float
    cover: float
    fading: float = 1.0


def add_rain(
    clean: Tensor, layer: Tensor, *, light: Tensor | float, cover: Tensor | float, fading: Tensor | float = 1.0
) -> Tensor:
    r"""Put rain before pictures, in sRGB values; the result is not clipped.

    .. math:: I = J (1 - m a) + A a (1 - f (1 - m) M^3), \qquad a = 1 - e^{-S / A}

    a is the part of the time that drops cover a pixel; streaks one behind the other leave the product of what each
    leaves; M is the largest of J's three colours. With m = 1 the picture is blended towards A, so that streaks fade
    before what is as bright as they are and are dark before what is brighter; with m = 0 they are as bright before a
    grey wall as before a black one, and fade only where the picture nears the brightest it can be, for no drop
    outshines the sky that lights it, and what a channel cannot hold would colour the others. Both
    exist: in the heavy pictures of Rain13K's training set the mean residual falls linearly from black to white (42 to
    3 grey levels in a typical one), in RainSIRR it is the same at every brightness.

    Args:
        clean: ``(B, 3, H, W)`` RGB in [0, 1].
        layer: ``(B, H, W)``, S, at least 0; the same for the three colours. A faint streak is as bright as its S.
        light: A in (0, 1], a number or ``(B)``.
        cover: m in [0, 1], a number or ``(B)``.
        fading: f in [0, 1], a number or ``(B)``; 0 adds the same before everything, up to what can be held.

    Source: a drop covers the background for the part of the exposure that it takes to pass, Garg and Nayar, IJCV 2007;
    added streaks, Yang et al., CVPR 2017.
    """
    light, cover, fading = (
        torch.as_tensor(n, device=clean.device).reshape(-1, 1, 1, 1) for n in (light, cover, fading)
    )
    covered = 1 - torch.exp(-layer[:, None] / light)
    room = 1 - fading * (1 - cover) * clean.amax(1, keepdim=True) ** 3
    return clean * (1 - cover * covered) + light * covered * room


class Rain(Batched):
    """Rain from single faint streaks to a downpour.

    Drops have distances and sizes of their own: streaks are larger the nearer they are, a large drop falls faster and
    covers more, and what is out of focus is wider, softer and more transparent. Beyond the streaks that are drawn one
    by one there is a layer of many short and faint ones, and a veil. Gusts make all of it denser here than there. The
    layers add up and are put before the picture by `add_rain`. All sizes are in pixels of the picture handed in.

    Severity is the amount of rain: the number of streaks goes with ``severity ** 1.5``, their brightness from a half to
    all of it, and the veil with ``severity``. On the clean pictures of Rain13K's training set and of RainSIRR the mean
    PSNR is that of their rain, 21.7 and 22.1 dB, at 0.39 and 0.37.

    Args:
        coverage: range of the mean number of streaks over each pixel at severity 1, were all in focus; in equal ratios
            per picture.
        brightness: range of what an ordinary drop in focus adds to black at severity 1, in equal ratios per picture;
            dense rain has less of it than sparse rain.
        length: range of the nearest streaks' length in pixels, in equal ratios per picture.
        width: range of the nearest streaks' width in pixels, likewise.
        defocus: range of the width in pixels that the nearest streaks gain by being out of focus, mostly near the
            first end. Both together are at most a twelfth of the length.
        angle: range of the direction in degrees from the vertical, within +-60; the middle is more frequent.
        crossing_share: probability of a second direction, for up to half of the streaks.
        drizzle: range of the brightness of the far layer, as a part of that of the streaks.
        gusts: range of how much thinner the rain is in some places than in others; 1 leaves none.
        veil: range of the largest brightness of the veil at severity 1.
        veil_share: probability of a veil.
        light: range of the brightness of the rain, which the picture is blended towards.
        added_share: probability of rain that only adds, with 0.6 of that brightness.
        measured_share: probability of rain from pairs of pictures, which adds the same before everything.
        layers: folders of such pairs for ``measured_share``, each with ``input`` and ``target``. They are read once;
            parts are cut from them, turned, mirrored and enlarged, and made as bright, or laid one before the other, as
            the severity asks for.
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: round to 8 bits.

    Source: sizes and speeds of drops, and how they show, after Garg and Nayar, IJCV 2007; the veil of distant rain:
    Yang et al., CVPR 2017.
    """

    def __init__(
        self,
        coverage: Range = (0.3, 2.0),
        *,
        brightness: Range = (0.3, 0.9),
        length: Range = (30.0, 140.0),
        width: Range = (0.8, 3.0),
        defocus: Range = (0.0, 8.0),
        angle: Range = (-45.0, 45.0),
        crossing_share: float = 0.08,
        drizzle: Range = (0.2, 1.2),
        gusts: Range = (0.0, 0.9),
        veil: Range = (0.0, 0.7),
        veil_share: float = 0.7,
        light: Range = (0.8, 1.0),
        added_share: float = 0.25,
        measured_share: float = 0.0,
        layers: Sequence[str | Path] | str | Path = (),
        severity: Range = (0.0, 1.0),
        quantise: bool = True,
    ) -> None:
        self.coverage = as_interval("coverage", coverage, low=1e-3, high=10.0)
        self.brightness = as_interval("brightness", brightness, low=1e-3, high=1.0)
        self.length = as_interval("length", length, low=2.0, high=1000.0)
        self.width = as_interval("width", width, low=0.2, high=100.0)
        self.defocus = as_interval("defocus", defocus, low=0.0, high=100.0)
        self.angle = as_interval("angle", angle, low=-MAX_ANGLE, high=MAX_ANGLE)
        self.crossing_share = as_share("crossing_share", crossing_share)
        self.drizzle = as_interval("drizzle", drizzle, low=0.0, high=5.0)
        self.gusts = as_interval("gusts", gusts, low=0.0, high=1.0)
        self.veil = as_interval("veil", veil, low=0.0, high=1.0)
        self.veil_share = as_share("veil_share", veil_share)
        self.light = as_interval("light", light, low=0.05, high=1.0)
        self.added_share = as_share("added_share", added_share)
        self.measured_share = as_share("measured_share", measured_share)
        self.layers = read_layers([layers] if isinstance(layers, str | Path) else layers)
        if measured_share > 0 and not self.layers:
            raise UserError(f"rain: measured_share is {measured_share:g}, but layers names no folders of pairs.")
        self.severity = as_severity(severity)
        self.quantise = quantise

    def draw(self, height: int, width: int, *, generator: torch.Generator, severity: float | None = None) -> RainDraw:
        """As :class:`~opir_lightning.degradations.base.Batched`; the streaks are drawn here."""
        rng = numpy_generator(generator)
        amount = pick_severity(severity, self.severity, rng)
        if self.measured_share > 0 and rng.random() < self.measured_share:
            return self._measured(height, width, amount, rng)
        shower = self._shower(amount, rng)
        light, added = rng.uniform(*self.light), rng.random() < self.added_share
        veil = between(self.veil, rng.random()) * amount if rng.random() < self.veil_share else 0.0
        gusts, field = rng.random((2, GRID, GRID), dtype=np.float32)
        density = 1 - np.float32(between(self.gusts, rng.random())) * _enlarged(gusts, height, width)
        layer = draw_streaks(height, width, shower.streaks(density, rng))
        layer += shower.far(density, rng)
        if veil > 0:  # the ground recedes to the top, where there is more air to look through
            field = 0.5 * field + 0.5 * np.linspace(1, 0, GRID, dtype=np.float32)[:, None]
            layer += np.float32(veil) * _enlarged(field, height, width)
        if added:
            return RainDraw(torch.from_numpy(layer * np.float32(ADDED)), light * ADDED, cover=0.0)
        return RainDraw(torch.from_numpy(layer), light, cover=1.0)

    def apply(self, clean: Tensor, draws: Sequence[RainDraw]) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        layer = torch.stack([drawn.layer for drawn in draws]).to(clean.device)
        settings = torch.tensor([(drawn.light, drawn.cover, drawn.fading) for drawn in draws])
        light, cover, fading = settings.T.to(clean.device)
        return finish(add_rain(clean, layer, light=light, cover=cover, fading=fading), quantise=self.quantise)

    def _measured(self, height: int, width: int, amount: float, rng: np.random.Generator) -> RainDraw:
        """Rain from pairs; the layer is what `add_rain` turns into it."""
        strength, exponent = MEASURED_STRENGTH
        places = draw_places(rng, len(self.layers))
        rain = lay(self.layers, places, height, width, strength * amount**exponent)
        layer = -np.log1p(-rain.clip(max=0.999))
        return RainDraw(torch.from_numpy(layer), light=1.0, cover=0.0, fading=0.0)

    def _shower(self, amount: float, rng: np.random.Generator) -> Shower:
        """One kind of rain."""
        kind = rng.random(10)
        length = log_between(self.length, kind[0])
        widest = length / SLIMNESS
        width = min(log_between(self.width, kind[3]), 0.6 * widest)
        return Shower(
            coverage=log_between(self.coverage, kind[1]) * amount**CROWDING,
            brightness=log_between(self.brightness, 0.5 * (1 - kind[1] + kind[2])) * between((FAINTEST, 1.0), amount),
            length=length,
            width=width,
            defocus=min(between(self.defocus, kind[4] ** 2), widest - width),
            taper=kind[5],
            angle=between(self.angle, rng.beta(2.0, 2.0)),
            second=between(self.angle, kind[6]),
            crossing=rng.uniform(0.1, 0.5) if kind[7] < self.crossing_share else 0.0,
            spread=0.5 + 2.0 * kind[8],
            drizzle=between(self.drizzle, kind[9]),
        )


class Shower(NamedTuple):
    """One kind of rain in one picture; sizes in pixels, angles in degrees.

    Attributes:
        coverage: mean number of streaks over each pixel, were all in focus.
        brightness: of an ordinary drop in focus.
        length, width: of the nearest streaks, of an ordinary drop in focus.
        defocus: what being out of focus adds to the width of the nearest.
        taper: as in `Streaks`.
        angle, second: directions.
        crossing: share of the second direction.
        spread: deviation from the direction, a third of the largest.
        drizzle: brightness of the far layer as a part of ``brightness``.
    """

    coverage: float
    brightness: float
    length: float
    width: float
    defocus: float
    taper: float
    angle: float
    second: float
    crossing: float
    spread: float
    drizzle: float

    def streaks(self, density: np.ndarray, rng: np.random.Generator) -> Streaks:
        """The streaks drawn one by one. With more coverage come more of them, and the first ones stay.

        Args:
            density: ``(height, width)`` in [0, 1], where they fall how densely.
            rng: random numbers.
        """
        height, width = density.shape
        # Generators of their own: how much is taken from them depends on the coverage.
        own = np.random.Generator(np.random.PCG64(int(rng.integers(2**62))))
        steepest = max(abs(self.angle), abs(self.second) if self.crossing else 0.0) + 3 * self.spread
        # Streaks that begin outside reach in: centres are spread over a canvas that is larger by half a streak.
        longest = self.length * math.sqrt(2)
        reach_y = longest / 2
        reach_x = longest / 2 * math.sin(math.radians(min(steepest, MAX_ANGLE))) + self.width + self.defocus
        area = (height + 2 * reach_y) * (width + 2 * reach_x)
        mean = self.coverage * area / (MEAN_AREA * self.length * self.width * (1 - self.taper / 2))
        count = int(mean + rng.random())
        draws = own.random((count, 7))
        x = draws[:, 0] * (width + 2 * reach_x) - reach_x
        y = draws[:, 1] * (height + 2 * reach_y) - reach_y
        row, column = np.clip(y, 0, height - 1).astype(int), np.clip(x, 0, width - 1).astype(int)
        falls = draws[:, 6] < density[row, column]
        x, y, draws = x[falls], y[falls], draws[falls]
        nearness = FARTHEST ** -draws[:, 2]  # 1 / distance
        size = 2 ** (2 * draws[:, 5] - 1)  # diameter of the drop
        focused = self.width * nearness * size
        blurred = focused + self.defocus * nearness
        angle = np.where(draws[:, 3] < self.crossing, self.second, self.angle) + self.spread * (6 * draws[:, 4] - 3)
        return Streaks(
            x=x,
            y=y,
            length=self.length * nearness * np.sqrt(size),  # a drop falls with the square root of its diameter
            width=blurred,
            angle=np.clip(angle, -MAX_ANGLE, MAX_ANGLE),
            # It covers a pixel for its diameter over its speed, and the same light spreads over the blurred width.
            brightness=self.brightness * np.sqrt(size) * focused / blurred,
            softness=np.clip(0.3 + self.defocus * nearness / blurred, 0, 1),
            taper=np.full(len(x), self.taper),
        )

    def far(self, density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``(height, width)`` float32: the streaks beyond, too many to draw apart: specks blurred by one streak."""
        height, width = density.shape
        own = np.random.Generator(np.random.PCG64(int(rng.integers(2**62))))
        length = max(self.length / DRIZZLE, 3.0)
        reach = math.ceil(length / 2) + 1
        side = 2 * reach + 1
        one = (reach, reach, length, 1.0, self.angle, 1.0, 0.5, 0.5)
        streak = draw_streaks(side, side, Streaks(*(np.array([float(number)]) for number in one)))
        specks = own.random((2, height + 2 * reach, width + 2 * reach), dtype=np.float32)
        share = min(self.coverage / float(streak.sum()), 1.0)
        seen = np.where(specks[0] < share, specks[1] * np.float32(2 * self.brightness * self.drizzle), np.float32(0))
        blurred = cv2.filter2D(seen, -1, streak, borderType=cv2.BORDER_CONSTANT)
        return blurred[reach : reach + height, reach : reach + width] * density


def _enlarged(knots: np.ndarray, height: int, width: int) -> np.ndarray:
    """A smooth ``(height, width)`` picture of a few knots in [0, 1]."""
    return np.clip(cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
