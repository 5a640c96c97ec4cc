"""Rain: bright motion-blurred streaks at many distances, and the veil that distant drops form."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from opir_lightning.degradations.base import (
    Range,
    as_interval,
    as_severity,
    as_share,
    between,
    check_image,
    finish,
    log_between,
    numpy_generator,
    pick_severity,
)

FARTHEST = 4.0  # distance of the farthest streaks drawn one by one; the nearest are at 1, what is beyond is the veil
MEAN_AREA = 0.4375  # mean of 1 / distance^2 over the streaks, 1 / distance being uniform in [1 / FARTHEST, 1]
SLIMNESS = 10.0  # least length over width; below 8 it looks like snow or confetti
MAX_ANGLE = 60.0  # streaks are drawn row by row, which needs them to be steeper than 30 degrees
POINTS_AT_ONCE = 1 << 19  # bounds the memory of large pictures: 40 bytes a point


class Streaks(NamedTuple):
    """One array of N numbers per property; pixels and degrees.

    Attributes:
        x, y: centre of the streak, pixel (0, 0) having its centre at (0, 0).
        length: from end to end, along the streak.
        width: across the streak, at half brightness; below 1 the streak is fainter instead of narrower.
        angle: from the vertical; positive leans to the right at the bottom. Within +-60.
        brightness: what is added at the middle of a streak that is at least one pixel wide, 1 is white.
        softness: 0 has edges as sharp as pixels allow, 1 fades all the way from the middle line (out of focus).
        taper: 0 ends abruptly, 1 fades all the way from the middle to the ends.
    """

    x: np.ndarray
    y: np.ndarray
    length: np.ndarray
    width: np.ndarray
    angle: np.ndarray
    brightness: np.ndarray
    softness: np.ndarray
    taper: np.ndarray


def draw_streaks(height: int, width: int, streaks: Streaks) -> np.ndarray:
    """Sum of all streaks, anti-aliased, as a ``(height, width)`` float32 picture; what lies outside is cut off.

    Each streak is a bar: a trapezoid across (its edges at least one pixel soft), constant along with tapered ends.
    Its sum over the picture is length * width * brightness * (1 - taper / 2), to 3 % (soft edges at 45 degrees: 8 %).
    """
    tangent = np.tan(np.radians(streaks.angle))
    cosine = np.cos(np.radians(streaks.angle))
    half_rows = 0.5 * streaks.length * cosine
    half_columns, _ = _profile(streaks, cosine)
    # Only what touches the picture costs anything.
    reach = half_rows * np.abs(tangent) + half_columns
    seen = (np.abs(streaks.y - (height - 1) / 2) < height / 2 + half_rows) & (
        np.abs(streaks.x - (width - 1) / 2) < width / 2 + reach
    )
    canvas = np.zeros(height * width, dtype=np.float32)
    order = np.flatnonzero(seen)
    if order.size == 0:
        return canvas.reshape(height, width)
    order = order[np.argsort(half_rows[order], kind="stable")]  # alike lengths share a block, so little is padded
    per_streak = (2 * math.ceil(half_rows[order].max()) + 2) * (2 * math.ceil(half_columns[order].max()) + 1)
    block = max(1, min(POINTS_AT_ONCE // per_streak, -(-order.size // 4)))
    for start in range(0, order.size, block):
        chosen = order[start : start + block]
        index, value = _rasterise(height, width, Streaks(*(part[chosen] for part in streaks)), tangent[chosen])
        np.add.at(canvas, index, value)  # both float32: with mixed types it is 30 times slower
    return canvas.reshape(height, width)


def _profile(s: Streaks, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half the width that has any light, and the width of the fading edge, both along a row of pixels.

    Along a row, so that each row of a sharp streak adds up to exactly its width, whatever the angle. A bar narrower
    than a pixel is drawn one pixel wide and fainter, which is what a sensor makes of it.
    """
    edge = np.maximum(s.softness * s.width / cosine, 1.0)
    return 0.5 * (np.maximum(s.width, 1.0) / cosine + edge), edge


def _rasterise(height: int, width: int, s: Streaks, tangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat pixel indices and values of a block of streaks, computed on a (streak, row, column) grid around each."""
    cosine = np.cos(np.radians(s.angle))
    parts = (s.x, s.y, s.length, s.width, s.brightness, s.taper, cosine, tangent, *_profile(s, cosine))
    x, y, length, thick, brightness, taper, cosine, slope, half_width, edge = (
        part.astype(np.float32)[:, None, None] for part in parts
    )
    reach_y = math.ceil(float((0.5 * length * cosine).max()))
    reach_x = math.ceil(float(half_width.max()))
    rows = np.rint(y) + np.arange(-reach_y, reach_y + 1, dtype=np.float32)[None, :, None]
    middle = x + (rows - y) * slope
    columns = np.rint(middle) + np.arange(-reach_x, reach_x + 1, dtype=np.float32)[None, None, :]
    value = np.clip((half_width - np.abs(columns - middle)) / edge, 0, 1)
    along = np.clip((0.5 * length - np.abs(rows - y) / cosine) / np.maximum(0.5 * length * taper, 1.0), 0, 1)
    value *= along * along * (3 - 2 * along) * (brightness * np.minimum(thick, 1))
    inside = (value > 0) & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.astype(np.int64) * width + columns.astype(np.int64)  # float32 can't count 17 million pixels
    return index[inside], value[inside]


def add_rain(clean: Tensor, streaks: Tensor, *, veil: Tensor | float = 0.0, veil_light: float = 0.9) -> Tensor:
    r"""Add streaks and a veil in sRGB values, as the benchmarks do; the result is not clipped.

    .. math:: I = J (1 - v) + A v + S

    Args:
        clean: ``(3, H, W)`` RGB in [0, 1].
        streaks: ``(H, W)``, the brightness that the streaks add; the same for the three colours.
        veil: v in [0, 1], a number or ``(H, W)``: the part of the light that distant drops have scattered.
        veil_light: A, the veil's own brightness.

    Source: the streak model of Yang et al. (Rain100L/H), CVPR 2017. There I - J does not depend on J until the sum
    clips (measured on all eight brightness bands of both sets), so streaks are added and not blended.
    """
    return clean * (1 - veil) + veil_light * veil + streaks


class Rain:
    """Rain from single faint streaks to a downpour.

    Severity is the amount of rain: ``coverage * severity ** 2``, and the strength of the veil. At 0.25 the pictures
    score like Rain100L (25.6 dB), at 0.9 like Rain100H (12.1 dB), and the percentiles of what the rain adds agree. All
    sizes are in pixels of the picture that is handed in.

    Args:
        coverage: mean number of streaks over each pixel, at severity 0 and 1.
        brightness: range of what the nearest streaks add, drawn in equal ratios per picture.
        length: range of the nearest streaks' length in pixels, in equal ratios per picture; far ones are down to 1/4.
        width: range of the nearest streaks' width in pixels, likewise, but at most a tenth of the length.
        angle: range of the direction in degrees from the vertical, within +-60; the middle is more frequent.
        crossing_share: probability of a second direction, for up to half of the streaks.
        veil: range of the largest part of the light that the veil replaces, at severity 1.
        veil_share: probability of a veil.
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: round to 8 bits.
    """

    margin = 0

    def __init__(
        self,
        coverage: Range = (0.0, 1.2),
        *,
        brightness: Range = (0.12, 0.7),
        length: Range = (12.0, 110.0),
        width: Range = (1.0, 4.0),
        angle: Range = (-45.0, 45.0),
        crossing_share: float = 0.12,
        veil: Range = (0.0, 0.3),
        veil_share: float = 0.4,
        severity: Range = (0.0, 1.0),
        quantise: bool = True,
    ) -> None:
        self.coverage = as_interval("coverage", coverage, low=0.0, high=10.0)
        self.brightness = as_interval("brightness", brightness, low=1e-3, high=1.0)
        self.length = as_interval("length", length, low=2.0, high=1000.0)
        self.width = as_interval("width", width, low=0.2, high=100.0)
        self.angle = as_interval("angle", angle, low=-MAX_ANGLE, high=MAX_ANGLE)
        self.crossing_share = as_share("crossing_share", crossing_share)
        self.veil = as_interval("veil", veil, low=0.0, high=1.0)
        self.veil_share = as_share("veil_share", veil_share)
        self.severity = as_severity(severity)
        self.quantise = quantise

    def __call__(self, clean: Tensor, *, generator: torch.Generator, severity: float | None = None) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Degradation`."""
        check_image(clean)
        height, width = clean.shape[1:]
        rng = numpy_generator(generator)
        amount = pick_severity(severity, self.severity, rng)
        veil = between(self.veil, rng.random()) * amount if rng.random() < self.veil_share else 0.0
        field, veil_light = rng.random((3, 3), dtype=np.float32), rng.uniform(0.7, 1.0)
        streaks = self._streaks(height, width, between(self.coverage, amount**2), rng)
        layer = torch.from_numpy(draw_streaks(height, width, streaks))
        if veil == 0:
            return finish(add_rain(clean, layer), quantise=self.quantise)
        mist = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(veil)
        rainy = add_rain(clean, layer, veil=torch.from_numpy(mist), veil_light=veil_light)
        return finish(rainy, quantise=self.quantise)

    def _streaks(self, height: int, width: int, coverage: float, rng: np.random.Generator) -> Streaks:
        """Draw one kind of rain, then its streaks. With more coverage come more of them, and the first ones stay."""
        kind = rng.random(7)
        streak_seed = int(rng.integers(2**62))
        length = log_between(self.length, kind[0])
        thick = min(log_between(self.width, kind[1]), length / SLIMNESS)
        brightness, taper = log_between(self.brightness, kind[2]), kind[3]
        leaning = between(self.angle, rng.beta(2.0, 2.0))
        crossing = rng.uniform(0.1, 0.5) if kind[4] < self.crossing_share else 0.0
        second, jitter = between(self.angle, rng.random()), 0.5 + 2.5 * kind[5]
        steepest = math.radians(min(max(abs(leaning), abs(second) if crossing else 0.0) + 3 * jitter, MAX_ANGLE))
        # Streaks that begin outside reach in: centres are spread over a canvas that is larger by half a streak.
        reach_y, reach_x = length / 2, length / 2 * math.sin(steepest) + thick
        area = (height + 2 * reach_y) * (width + 2 * reach_x)
        count = int(rng.poisson(coverage * area / (MEAN_AREA * length * thick * (1 - taper / 2))))
        # A generator of their own: how much a Poisson number takes from its generator depends on the coverage.
        draws = np.random.Generator(np.random.PCG64(streak_seed)).random((count, 6))
        nearness = 1 / FARTHEST + (1 - 1 / FARTHEST) * draws[:, 2]  # 1 / distance
        angle = np.where(draws[:, 3] < crossing, second, leaning) + jitter * (6 * draws[:, 4] - 3)
        return Streaks(
            x=draws[:, 0] * (width + 2 * reach_x) - reach_x,
            y=draws[:, 1] * (height + 2 * reach_y) - reach_y,
            length=length * nearness,
            width=thick * nearness,
            angle=np.clip(angle, -MAX_ANGLE, MAX_ANGLE),
            brightness=brightness * np.sqrt(nearness) * (0.3 + 1.4 * draws[:, 5]),
            softness=np.full(count, kind[6]),
            taper=np.full(count, taper),
        )
