"""Haze: the picture fades with depth and the colour of the air takes its place."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from opir_lightning.degradations.base import (
    Range,
    as_interval,
    as_severity,
    between,
    check_image,
    finish,
    numpy_generator,
    pick_severity,
)
from opir_lightning.errors import UserError

GRID = 4  # knots of the random relief on each axis; coarser than any object, so that the relief has no texture
FAINTNESS = 1.5  # exponent of the severity: with 1, only one picture in 25 would be hazed so little as to score 30 dB
LEVELS = 3  # layers of the relief over brightness


def apply_haze(clean: Tensor, depth: Tensor, *, beta: float, airlight: Sequence[float] | float) -> Tensor:
    r"""Koschmieder's law on sRGB values, as RESIDE applies it (not on linear light); not quantised.

    .. math:: I = J t + A (1 - t), \qquad t = \exp(-\beta d)

    Args:
        clean: ``(3, H, W)`` RGB in [0, 1].
        depth: ``(H, W)``, at least 0, in the unit that 1 / beta is in (metres; or the typical distance of the scene).
        beta: scattering coefficient, at least 0. RESIDE indoor: 0.6 to 1.8; outdoor 0.04 to 0.2.
        airlight: A, one number or one per colour, in [0, 1]. RESIDE: 0.7 to 1.

    Returns:
        ``(3, H, W)``, in [0, 1] where the clean picture is.

    Raises:
        ValueError: the depth's shape is not that of the picture.
        UserError: ``beta`` or a depth is negative.

    Source: RESIDE, Li et al., IEEE TIP 2019.
    """
    if depth.shape != clean.shape[-2:]:
        raise ValueError(f"depth of shape {tuple(depth.shape)} for a picture of shape {tuple(clean.shape)}")
    if beta < 0 or float(depth.amin()) < 0:
        raise UserError(f"beta ({beta:g}) and every depth (smallest {float(depth.amin()):g}) must be at least 0.")
    transmission = torch.exp(-beta * depth)
    air = torch.as_tensor(airlight, dtype=clean.dtype, device=clean.device).reshape(-1, 1, 1)
    return clean * transmission + air * (1 - transmission)


def random_depth(clean: Tensor, *, slope: float, relief: float, generator: torch.Generator) -> Tensor:
    """A plausible depth map for a picture that has none; its geometric mean is close to 1.

    Depth is exp of a ramp that mostly rises from the bottom to the top (the ground in perspective), plus a smooth
    random relief. The relief also depends on the brightness of the surroundings (a random function of position and
    brightness, as in a bilateral grid), so that its steps follow the outlines in the picture. Everything scales with
    the picture.

    Args:
        clean: ``(3, H, W)`` float32 RGB in [0, 1] on the CPU.
        slope: logarithm of the ratio of depths at the two ends of the ramp; 0 is a flat wall, 2.5 a road.
        relief: size of the relief, logarithmic; 0.5 varies by up to about +-50 %. 0 has none.
        generator: the only source of randomness.

    Returns:
        ``(H, W)`` float32, positive.
    """
    height, width = clean.shape[1:]
    rng = numpy_generator(generator)
    turn = rng.normal(0.0, 0.5)  # radians; the ground rises to the top in most pictures, and leans in crops
    knots = rng.uniform(-1.0, 1.0, size=(LEVELS, GRID, GRID)).astype(np.float32)
    down = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    right = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    log_depth = np.float32(-slope * np.cos(turn)) * down + np.float32(slope * np.sin(turn)) * right
    if relief > 0:
        grey = clean.numpy().mean(axis=0)
        radius = max(1, min(height, width) // 48)
        grey = cv2.blur(grey, (2 * radius + 1, 2 * radius + 1))  # leaves and bricks must not show in the haze
        layers = [cv2.resize(knot, (width, height), interpolation=cv2.INTER_CUBIC) for knot in knots]
        position = grey * (LEVELS - 1)
        for level, layer in enumerate(layers):
            log_depth = log_depth + np.float32(relief) * np.clip(1 - np.abs(position - level), 0, 1) * layer
    return torch.from_numpy(np.exp(log_depth))


class Haze:
    """Haze from hardly visible to dense, with the depth map of the picture or a plausible one.

    Severity is the optical thickness at the typical distance, ``beta * severity ** 1.5``; the rest is drawn per
    picture. At 0.7 the pictures score like SOTS-indoor (12.2 dB), at 0.15 about 30 dB.

    Args:
        beta: optical thickness at depth 1 (the typical distance of the scene), at severity 0 and 1.
        airlight: range of the brightness of the air.
        tint: largest deviation of a colour of the air from its brightness.
        slope: range of the ramp of a made-up depth map. A crop of a large picture is almost flat, a landscape is not.
        relief: range of the relief of a made-up depth map.
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: round to 8 bits.
    """

    margin = 0

    def __init__(
        self,
        beta: Range = (0.0, 1.1),
        *,
        airlight: Range = (0.7, 1.0),
        tint: float = 0.04,
        slope: Range = (0.0, 2.0),
        relief: Range = (0.0, 0.6),
        severity: Range = (0.0, 1.0),
        quantise: bool = True,
    ) -> None:
        self.beta = as_interval("beta", beta, low=0.0, high=20.0)
        self.airlight = as_interval("airlight", airlight, low=0.0, high=1.0)
        self.tint = as_interval("tint", tint, low=0.0, high=0.5)[0]
        self.slope = as_interval("slope", slope, low=0.0, high=10.0)
        self.relief = as_interval("relief", relief, low=0.0, high=5.0)
        self.severity = as_severity(severity)
        self.quantise = quantise

    def __call__(
        self,
        clean: Tensor,
        *,
        generator: torch.Generator,
        severity: float | None = None,
        depth: Tensor | None = None,
    ) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Degradation`.

        ``depth``: ``(H, W)``, at least 0, any unit: it is divided by its mean. Without it one is made up.
        """
        check_image(clean)
        rng = numpy_generator(generator)
        beta = between(self.beta, pick_severity(severity, self.severity, rng) ** FAINTNESS)
        slope, relief = between(self.slope, rng.random()), between(self.relief, rng.random())
        air = np.clip(rng.uniform(*self.airlight) + self.tint * rng.uniform(-1, 1, size=3), 0, 1)
        if depth is None:
            depth = random_depth(clean, slope=slope, relief=relief, generator=generator)
        else:
            depth = depth / depth.numpy().mean(dtype=np.float64).clip(1e-12)
        return finish(apply_haze(clean, depth, beta=beta, airlight=air.tolist()), quantise=self.quantise)
