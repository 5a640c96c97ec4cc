"""Several degradations in one picture, and none at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opir_lightning.degradations.base import (
    Degradation,
    Range,
    as_interval,
    as_severity,
    as_share,
    between,
    check_image,
    finish,
    numpy_generator,
    pick_severity,
)
from opir_lightning.errors import UserError


class Compose:
    """Applies degradations one after the other, in the order given.

    Physical order is from the scene to the file: rain and haze are in the scene, blur happens in the lens, low light
    and noise on the sensor. Give all but the last ``quantise=False``: there is one file, at the end. A stated severity
    goes to every step; otherwise each draws its own.

    Args:
        steps: at least one degradation.
        shares: probability of each step, in the same order; ``None`` applies all.

    Attributes:
        margin: the margins of all steps together.
    """

    def __init__(self, steps: Sequence[Degradation], *, shares: Sequence[float] | None = None) -> None:
        self.steps = list(steps)
        self.shares = [1.0] * len(self.steps) if shares is None else [as_share("shares", share) for share in shares]
        if not self.steps or len(self.shares) != len(self.steps):
            raise UserError(
                f"Compose got {len(self.steps)} steps and {len(self.shares)} shares; "
                "it needs at least one step, and one share for each or none at all."
            )
        self.margin = sum(step.margin for step in self.steps)

    def __call__(self, clean: Tensor, *, generator: torch.Generator, severity: float | None = None) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Degradation`."""
        check_image(clean)
        chosen = numpy_generator(generator).random(len(self.steps)) < self.shares
        image = clean.clone()
        for step, wanted in zip(self.steps, chosen, strict=True):
            if wanted:
                image = step(image, generator=generator, severity=severity)
        return image


class Identity:
    """The undamaged picture, for the task "none"; on request with a trace of noise that nobody would see.

    Args:
        sigma_255: deviation of Gaussian noise in 8-bit grey levels at severity 0 and at severity 1, at most 3.
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: round to 8 bits; a picture from an 8-bit file is not changed by it.
    """

    margin = 0

    def __init__(self, sigma_255: Range = (0.0, 0.0), *, severity: Range = (0.0, 1.0), quantise: bool = True) -> None:
        self.sigma_255 = as_interval("sigma_255", sigma_255, low=0.0, high=3.0)
        self.severity = as_severity(severity)
        self.quantise = quantise

    def __call__(self, clean: Tensor, *, generator: torch.Generator, severity: float | None = None) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Degradation`."""
        check_image(clean)
        sigma = between(self.sigma_255, pick_severity(severity, self.severity, numpy_generator(generator)))
        if sigma > 0:
            noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
            return finish(clean + noise * (sigma / 255), quantise=self.quantise)
        return finish(clean, quantise=self.quantise)
