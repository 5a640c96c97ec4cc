"""Learning-rate schedules as plain functions of the training's progress."""

from __future__ import annotations

import math

from opir_lightning.errors import UserError


class WarmupCosine:
    """Linear warm-up, then half a cosine down to a last share.

    Args:
        warmup: share of the training, in [0, 1), during which the factor rises from 0 to 1.
        last: factor at the end.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(self, *, warmup: float = 0.02, last: float = 0.01) -> None:
        if not 0 <= warmup < 1:
            raise UserError(f"schedule.warmup is {warmup:g}; it is a share of the training and must be in [0, 1).")
        if not 0 <= last < math.inf:
            raise UserError(f"schedule.last is {last:g}; it is a factor of the learning rate and must be 0 or more.")
        self.warmup, self.last = warmup, last

    def __call__(self, progress: float) -> float:
        """Factor of the learning rate at a progress in [0, 1]; beyond 1 it stays at the last."""
        if progress < self.warmup:
            return progress / self.warmup
        angle = math.pi * min((progress - self.warmup) / (1 - self.warmup), 1.0)
        return self.last + (1 - self.last) * (1 + math.cos(angle)) / 2
