"""What every degradation has in common: the protocol, the checks, and the way random numbers are drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from opir_lightning.errors import UserError

Range: TypeAlias = float | Sequence[float]
"""A number, or the two ends ``[low, high]`` of what is drawn; severity 0 is the first end, severity 1 the second."""

Interval: TypeAlias = tuple[float, float]


class Degradation(Protocol):
    """Damages a clean picture. Every random number comes from ``generator``; global random state is left alone.

    Any callable of this form will do, a function as well. Three attributes are optional:

    - ``margin``, 0 if there is none: pixels of context needed around the wanted area on every side (the radius of the
      largest blur kernel). The caller hands in a picture that is larger by that much and crops the result, or hands in
      what there is, and the border is reflected.
    - ``takes_depth``, false if there is none: it has a keyword argument ``depth`` for the depth map of the picture.
    - ``batched``, false if there is none: it can be drawn and applied apart, see :class:`Batched`.
    """

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


class Batched(ABC):
    """A degradation in two steps: what is random is drawn on the CPU, the pixels are worked on where they are.

    So loader processes draw, which is cheap, and a batch is damaged at once on the device that trains. Drawn and
    applied one by one on the CPU the result is the same, bit for bit; on another device, to rounding and to its
    random numbers.
    """

    margin: int = 0
    takes_depth: bool = False
    batched: bool = True

    @abstractmethod
    def draw(self, height: int, width: int, *, generator: torch.Generator, severity: float | None = None) -> Any:
        """Everything that is random about one picture of ``height`` x ``width`` pixels, margins included.

        Returns:
            A named tuple of numbers, CPU tensors and numpy arrays: it travels between processes. White noise is drawn
            where it is applied; here stands the seed of it.
        """

    @abstractmethod
    def apply(self, clean: Tensor, draws: Sequence[Any]) -> Tensor:
        """Damage a batch.

        Args:
            clean: ``(B, 3, H, W)`` float32 RGB in [0, 1] on any device; it is not written to.
            draws: one for each picture, as `draw` returned them for this height and width.

        Returns:
            ``(B, 3, H, W)`` float32 in [0, 1] on the same device. A picture's result does not depend on the others.
        """

    def __call__(
        self, clean: Tensor, *, generator: torch.Generator, severity: float | None = None, **picture: Any
    ) -> Tensor:
        """As :class:`Degradation`; ``picture`` is what `draw` wants to know of the picture (its depth)."""
        check_image(clean)
        return self.apply(
            clean[None], [self.draw(*clean.shape[1:], generator=generator, severity=severity, **picture)]
        )[0]


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """A generator on the device of the pixels, for the white noise of one picture."""
    return torch.Generator(device).manual_seed(seed)


def new_seed(generator: torch.Generator) -> int:
    """A seed for `seeded`, from the picture's own generator."""
    return int(torch.randint(2**62, (1,), generator=generator))


def check_image(image: Tensor) -> None:
    """Raise ``ValueError`` unless ``image`` is a ``(3, H, W)`` float32 tensor on the CPU with values in [0, 1]."""
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"expected one picture of shape (3, H, W), got {tuple(image.shape)}")
    if image.dtype != torch.float32 or image.device.type != "cpu":
        raise ValueError(f"expected float32 on the CPU, got {image.dtype} on '{image.device}'")
    low, high = (float(bound) for bound in image.aminmax())
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # written so that NaN fails too
        raise ValueError(f"expected values in [0, 1], got {low:g} to {high:g}; divide 8-bit values by 255")


def as_interval(
    name: str, value: Range, *, low: float = -math.inf, high: float = math.inf, falling: bool = False
) -> Interval:
    """Turn a configured number or pair into ``(first, second)``.

    Args:
        name: of the setting.
        value: as it was configured.
        low, high: between these both ends must lie.
        falling: the first end is the larger one, as what there is less of in a worse picture.

    Raises:
        UserError: it is no number or pair of numbers, an end lies outside ``[low, high]``, or the two are in the wrong
            order.
    """
    try:
        ends = (float(value),) * 2 if isinstance(value, int | float) else tuple(float(end) for end in value)
    except (TypeError, ValueError):
        ends = ()
    if len(ends) != 2:
        raise UserError(f"{name} is {value!r}; it needs a number or a list of two numbers, [first, second].")
    if not all(low <= end <= high for end in ends):
        raise UserError(f"{name} is {value!r}; both ends must lie between {low:g} and {high:g}.")
    if ends[0] != ends[1] and (ends[0] > ends[1]) != falling:
        wrong = "less" if falling else "more"
        raise UserError(f"{name} is {value!r}; its first end must not be {wrong} than its second.")
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
    return np.random.Generator(np.random.PCG64(new_seed(generator)))


def pick_severity(severity: float | None, bounds: Interval, rng: np.random.Generator) -> float:
    """The given severity, or one drawn uniformly. Draws in both cases, so that a given one moves nothing else."""
    drawn = float(rng.uniform(*bounds))
    check_severity(severity)
    return drawn if severity is None else float(severity)


def check_severity(severity: float | None) -> None:
    """Raise ``UserError`` unless a severity is unstated or lies in [0, 1]."""
    if severity is not None and not 0 <= severity <= 1:
        raise UserError(f"severity is {severity!r}; it must lie between 0 (hardly anything) and 1 (the worst).")


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
