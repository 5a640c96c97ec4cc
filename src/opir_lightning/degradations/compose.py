"""Several degradations in one picture, and none at all."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from opir_lightning.degradations.base import (
    Batched,
    Degradation,
    Range,
    as_interval,
    as_severity,
    as_share,
    between,
    check_image,
    check_severity,
    finish,
    new_seed,
    numpy_generator,
    pick_severity,
    seeded,
)
from opir_lightning.errors import UserError


class Compose(Batched):
    """Applies degradations one after the other, in the order given.

    Physical order is from the scene to the file: rain and haze are in the scene, blur happens in the lens, low light
    and noise on the sensor. There is one file, at the end: steps before the last do not round to 8 bits, whatever their
    ``quantise`` says. A stated severity goes to every step; otherwise each draws its own.

    Args:
        steps: at least one degradation; a function of :class:`Degradation`'s form will do.
        shares: probability of each step, in the same order; ``None`` applies all.

    Attributes:
        margin: the margins of all steps together.
        takes_depth: whether a step takes the depth map; it goes to those that do.
        batched: whether all steps are; if not, pictures are damaged one by one, by a call.
    """

    def __init__(self, steps: Sequence[Degradation], *, shares: Sequence[float] | None = None) -> None:
        self.steps = list(steps)
        self.shares = [1.0] * len(self.steps) if shares is None else [as_share("shares", share) for share in shares]
        if not self.steps or len(self.shares) != len(self.steps):
            raise UserError(
                f"Compose got {len(self.steps)} steps and {len(self.shares)} shares; "
                "it needs at least one step, and one share for each or none at all."
            )
        self.quantise = bool(getattr(self.steps[-1], "quantise", False))
        for place, step in enumerate(self.steps[:-1]):
            if getattr(step, "quantise", False):
                self.steps[place] = copy(step)  # the caller's own stays as it is
                self.steps[place].quantise = False  # type: ignore[attr-defined]
        self.margin = sum(getattr(step, "margin", 0) for step in self.steps)
        self.takes_depth = any(getattr(step, "takes_depth", False) for step in self.steps)
        self.batched = all(getattr(step, "batched", False) for step in self.steps)

    def _chosen(self, generator: torch.Generator) -> list[bool]:
        drawn = numpy_generator(generator).random(len(self.steps))
        return [bool(place < share) for place, share in zip(drawn, self.shares, strict=True)]

    def draw(
        self,
        height: int,
        width: int,
        *,
        generator: torch.Generator,
        severity: float | None = None,
        depth: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """As :class:`~opir_lightning.degradations.base.Batched`: each step's draw, ``None`` where it is left out."""
        draws = []
        for step, wanted in zip(cast(list[Batched], self.steps), self._chosen(generator), strict=True):
            more = _picture(step, depth)
            draws.append(step.draw(height, width, generator=generator, severity=severity, **more) if wanted else None)
        return tuple(draws)

    def apply(self, clean: Tensor, draws: Sequence[tuple[Any, ...]]) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        images = clean
        for step, drawn in zip(cast(list[Batched], self.steps), zip(*draws, strict=True), strict=True):
            wanted = [place for place, each in enumerate(drawn) if each is not None]
            if len(wanted) == len(drawn):
                images = step.apply(images, drawn)
            elif wanted:
                images = images.clone()
                images[wanted] = step.apply(images[wanted], [drawn[place] for place in wanted])
        # Those whose last step, which would have rounded them, was left out.
        left = [place for place, each in enumerate(draws) if each[-1] is None]
        if left:
            images = images.clone()
            images[left] = finish(images[left], quantise=self.quantise)
        return images

    def __call__(
        self,
        clean: Tensor,
        *,
        generator: torch.Generator,
        severity: float | None = None,
        depth: Tensor | None = None,
        **picture: Any,
    ) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Degradation`."""
        if self.batched:
            return super().__call__(clean, generator=generator, severity=severity, depth=depth, **picture)
        check_image(clean)
        image, chosen = clean, self._chosen(generator)
        for step, wanted in zip(self.steps, chosen, strict=True):
            if wanted:
                image = step(image, generator=generator, severity=severity, **_picture(step, depth))
        return image if chosen[-1] else finish(image, quantise=self.quantise)


def _picture(step: Degradation, depth: Tensor | None) -> dict[str, Tensor]:
    """What a step is told of the picture."""
    return {"depth": depth} if depth is not None and getattr(step, "takes_depth", False) else {}


class Trace(NamedTuple):
    """What `Identity` draws: noise in 8-bit grey levels."""

    sigma_255: float
    noise_seed: int


class Identity(Batched):
    """The undamaged picture, for the task "none"; on request with a trace of noise that nobody would see.

    Args:
        sigma_255: deviation of Gaussian noise in 8-bit grey levels at severity 0 and at severity 1, at most 3.
        severity: range that an unstated severity is drawn from, uniformly.
        quantise: round to 8 bits; a picture from an 8-bit file is not changed by it.
    """

    def __init__(self, sigma_255: Range = (0.0, 0.0), *, severity: Range = (0.0, 1.0), quantise: bool = True) -> None:
        self.sigma_255 = as_interval("sigma_255", sigma_255, low=0.0, high=3.0)
        self.severity = as_severity(severity)
        self.quantise = quantise

    def draw(self, height: int, width: int, *, generator: torch.Generator, severity: float | None = None) -> Trace:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        check_severity(severity)
        if self.sigma_255 == (0.0, 0.0):  # nothing is random; drawing took a fifth of the time of a clean crop
            return Trace(0.0, 0)
        amount = pick_severity(severity, self.severity, numpy_generator(generator))
        return Trace(between(self.sigma_255, amount), new_seed(generator))

    def apply(self, clean: Tensor, draws: Sequence[Trace]) -> Tensor:
        """As :class:`~opir_lightning.degradations.base.Batched`."""
        image = clean.clone()
        for part, draw in zip(image, draws, strict=True):
            if draw.sigma_255 > 0:
                noise = torch.randn(part.shape, generator=seeded(draw.noise_seed, clean.device), device=clean.device)
                part += noise * (draw.sigma_255 / 255)
        return finish(image, quantise=self.quantise)
