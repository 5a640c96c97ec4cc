"""Low light: too little exposure, the wrong white balance, the camera's curve, and the noise of few photons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opir_lightning.degradations.base import (
    Range,
    as_interval,
    as_severity,
    check_image,
    finish,
    log_between,
    numpy_generator,
    pick_severity,
)
from opir_lightning.degradations.colour import linear_to_srgb, srgb_to_linear
from opir_lightning.degradations.noise import sensor_noise
from opir_lightning.errors import UserError

FAINTNESS = 1.5  # exponent of the severity: with 1, only one picture in 30 would score 30 dB or more


def underexpose(
    clean: Tensor, *, exposure: float, curve: float = 1.0, cast: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    r"""The light that reaches a sensor that is exposed too little; linear, without noise.

    .. math:: L'_c = \min(1,\; e\, g_c\, L_c^{\gamma}), \qquad L = \mathrm{sRGB}^{-1}(J)

    Args:
        clean: ``(3, H, W)`` sRGB values in [0, 1].
        exposure: e, positive; 1 leaves the light as it is. The middle of LOL is at 0.035.
        curve: gamma, positive; above 1 shadows sink further than highlights. LOL: 0.83 to 1.31.
        cast: g, gain of red, green and blue, positive.

    Returns:
        ``(3, H, W)`` linear light in [0, 1].

    Raises:
        UserError: a parameter is not positive.
    """
    if min(exposure, curve, *cast) <= 0:
        raise UserError(f"exposure {exposure:g}, curve {curve:g} and cast {tuple(cast)} must all be positive.")
    light = srgb_to_linear(clean)
    if curve != 1:
        light = light**curve
    gain = torch.tensor([exposure * float(part) for part in cast], dtype=clean.dtype, device=clean.device)
    return (light * gain.reshape(3, 1, 1)).clamp_(max=1)


class LowLight:
    """From a picture slightly too dark to the darkness of LOL, noise included.

    At severity 0.75 the pictures score like LOL's training set (8.2 dB), at 1 like eval15 (6.5 dB), at 0.1 30 dB.

    Args:
        exposure: factor on the light at severity 0 and 1; in between the stops grow as ``severity ** 1.5``.
        curve: range of the exponent of the tone curve at severity 1; at severity 0 it is 1.
        cast: range of the gain of red and of blue relative to green at severity 1; at severity 0 it is 1.
        electrons: range of the electrons that make white at severity 1, in equal ratios: fewer is noisier. At severity
            s there are 1 / s^2 times as many: the brighter the scene, the lower the camera's amplification.
        read_electrons: range of the read noise in electrons, in equal ratios.
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: round to 8 bits, as the camera does before anybody can brighten the picture.
    """

    margin = 0

    def __init__(
        self,
        exposure: Range = (1.0, 0.012),
        *,
        curve: Range = (0.85, 1.3),
        cast: Range = (0.75, 1.35),
        electrons: Range = (4_000.0, 60_000.0),
        read_electrons: Range = (1.0, 8.0),
        severity: Range = (0.0, 1.0),
        quantise: bool = True,
    ) -> None:
        self.exposure = as_interval("exposure", exposure, low=1e-4, high=1.0)
        self.curve = as_interval("curve", curve, low=0.1, high=10.0)
        self.cast = as_interval("cast", cast, low=0.05, high=20.0)
        self.electrons = as_interval("electrons", electrons, low=1.0, high=1e9)
        self.read_electrons = as_interval("read_electrons", read_electrons, low=1e-3, high=1e6)
        self.severity = as_severity(severity)
        self.quantise = quantise

    def __call__(self, clean: Tensor, *, generator: torch.Generator, severity: float | None = None) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Degradation`."""
        check_image(clean)
        rng = numpy_generator(generator)
        amount = pick_severity(severity, self.severity, rng)
        curve, red, blue, electrons, read = rng.random(5)
        if amount == 0 and self.exposure[0] == 1:
            return finish(clean, quantise=self.quantise)
        light = underexpose(
            clean,
            exposure=log_between(self.exposure, amount**FAINTNESS),
            curve=log_between(self.curve, curve) ** amount,
            cast=(log_between(self.cast, red) ** amount, 1.0, log_between(self.cast, blue) ** amount),
        )
        light = sensor_noise(
            light,
            electrons=log_between(self.electrons, electrons) / max(amount, 1e-3) ** 2,
            read_electrons=log_between(self.read_electrons, read),
            generator=generator,
        )
        return finish(linear_to_srgb(light), quantise=self.quantise)
