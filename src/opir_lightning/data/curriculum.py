"""How a training begins, where that differs from how it goes on."""

from __future__ import annotations

from collections.abc import Mapping

from opir_lightning.errors import UserError


class Curriculum:
    """Severities and weights that begin elsewhere and come to their own in equal steps, by the number of the sample.

    Args:
        samples: how many samples it takes, over all devices; after them everything is as configured.
        severity: range that the severities of synthetic degradations are drawn from at the beginning; it widens or
            narrows to [0, 1], in which each degradation's own range then lies.
        weights: factors on the weights of sources at the beginning, by name; 0 leaves a source out at first.
    """

    def __init__(
        self,
        *,
        samples: int,
        severity: tuple[float, float] = (0.0, 1.0),
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if samples < 1:
            raise UserError(f"The curriculum takes {samples} samples; it needs at least 1.")
        low, high = severity
        if not 0 <= low <= high <= 1:
            raise UserError(f"The curriculum's severity is {list(severity)}; it needs [low, high] within [0, 1].")
        self.samples, self.low, self.high, self.weights = samples, low, high, dict(weights or {})
        if any(factor < 0 for factor in self.weights.values()):
            raise UserError(f"The curriculum's weights {self.weights} must be at least 0.")

    def position(self, number: int) -> float:
        """How far the sample with this number is into it, from 0 to 1."""
        return min(number / self.samples, 1.0)

    def severity(self, number: int, drawn: float) -> float:
        """Where in a degradation's own range of severities a sample lies: ``drawn`` in [0, 1), put into the range."""
        position = self.position(number)
        low, high = self.low * (1 - position), self.high + (1 - self.high) * position
        return low + (high - low) * drawn

    def factor(self, source: str, number: int) -> float:
        """Factor on the weight of a source."""
        start = self.weights.get(source, 1.0)
        return start + (1 - start) * self.position(number)
