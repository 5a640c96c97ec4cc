"""What every degradation has in common: the protocol, the checks, and the way random numbers are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from opir_lightning.errors import UserError

Range: TypeAlias = float | Sequence[float]
"""A number, or the two ends ``[low, high]`` of what is drawn; severity 0 is the first end, severity 1 the second."""

Interval: TypeAlias = tuple[float, float]


class Degradation(Protocol):
    """Damages a clean picture. Every random number comes from ``generator``; global random state is left alone.

    Attributes:
        margin: pixels of context needed around the wanted area on every side (the radius of the largest blur kernel;
            0 where a pixel needs no neighbours). The caller hands in a picture that is larger by that much and crops
            the result, or hands in what there is, and the border is reflected.
    """

    margin: int

    def __call__(self, clean: Tensor, *, generator: torch.Generator, severity: float | None = None) -> Tensor:
        """Return the damaged picture.

        Args:
            clean: ``(3, H, W)`` float32 RGB in [0, 1] on the CPU; it is not written to.
            generator: the only source of randomness, on the CPU.
            severity: ``None`` draws it from the configured range, a number in [0, 1] fixes it. Everything else that is
                random stays the same for the same generator.

        Returns:
            ``(3, H, W)`` float32 in [0, 1].
        """
        ...


def check_image(image: Tensor) -> None:
    """Raise ``ValueError`` unless ``image`` is a ``(3, H, W)`` float32 tensor on the CPU with values in [0, 1]."""
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"expected one picture of shape (3, H, W), got {tuple(image.shape)}")
    if image.dtype != torch.float32 or image.device.type != "cpu":
        raise ValueError(f"expected float32 on the CPU, got {image.dtype} on '{image.device}'")
    low, high = (float(bound) for bound in image.aminmax())
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # written so that NaN fails too
        raise ValueError(f"expected values in [0, 1], got {low:g} to {high:g}; divide 8-bit values by 255")


def as_interval(name: str, value: Range, *, low: float = -math.inf, high: float = math.inf) -> Interval:
    """Turn a configured number or pair into ``(first, second)``.

    Raises:
        UserError: it is no number or pair of numbers, or an end lies outside ``[low, high]``.
    """
    try:
        ends = (float(value),) * 2 if isinstance(value, int | float) else tuple(float(end) for end in value)
    except (TypeError, ValueError):
        ends = ()
    if len(ends) != 2:
        raise UserError(f"{name} is {value!r}; it needs a number or a list of two numbers, [first, second].")
    if not all(low <= end <= high for end in ends):
        raise UserError(f"{name} is {value!r}; both ends must lie between {low:g} and {high:g}.")
    return ends[0], ends[1]


def as_share(name: str, value: float) -> float:
    """A configured probability or fraction; ``UserError`` unless it lies in [0, 1]."""
    return as_interval(name, value, low=0.0, high=1.0)[0]


def as_severity(value: Range) -> Interval:
    """The configured range of severities; ``UserError`` unless both ends lie in [0, 1]."""
    return as_interval("severity", value, low=0.0, high=1.0)


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """A numpy generator seeded by one draw from the torch generator.

    On 64 x 64 pixels numpy and OpenCV are faster than torch (a call costs 1 us, not 5), and do not depend on
    torch's number of threads.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return np.random.Generator(np.random.PCG64(seed))


def pick_severity(severity: float | None, bounds: Interval, rng: np.random.Generator) -> float:
    """The given severity, or one drawn uniformly. Draws in both cases, so that a given one moves nothing else."""
    drawn = float(rng.uniform(*bounds))
    if severity is None:
        return drawn
    if not 0 <= severity <= 1:
        raise UserError(f"severity is {severity!r}; it must lie between 0 (hardly anything) and 1 (the worst).")
    return float(severity)


def between(bounds: Interval, position: float) -> float:
    """``bounds[0]`` at position 0, ``bounds[1]`` at position 1, a straight line in between."""
    return bounds[0] + position * (bounds[1] - bounds[0])


def log_between(bounds: Interval, position: float) -> float:
    """As :func:`between`, in equal ratios instead of equal steps; both ends positive."""
    return float(bounds[0] * (bounds[1] / bounds[0]) ** position)


def finish(image: Tensor, *, quantise: bool) -> Tensor:
    """Clip to [0, 1] and, if wanted, round to the 255 steps of an 8-bit file."""
    image = image.clamp(0, 1)
    return (image * 255).round_().div_(255) if quantise else image
