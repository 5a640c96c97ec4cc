"""Averaged weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from opir_lightning.errors import UserError
from opir_lightning.training.callbacks.finite import was_skipped


class ExponentialMovingAverage(WeightAveraging):
    """Exponential moving average of the weights; validated, saved and kept in place of the live ones.

    On a GPU an update makes the host wait for the device, so `every` is better larger than 1 there.

    Args:
        decay: share of the average that is kept per step. At the start it is less, ``(1 + n) / (10 + n)`` at step n:
            otherwise an average over 1,000 steps would after 2,000 still hold a seventh of the untrained weights.
        every: steps between two updates; the decay is raised to this power.
        after: steps before the first update; until then the average is the live weights' copy.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(self, *, decay: float = 0.999, every: int = 1, after: int = 0) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay is {decay:g}; it is a share and must be in [0, 1).")
        if every < 1:
            raise UserError(f"callbacks.ema.every is {every}; it must be 1 step or more.")
        if after < 0:
            raise UserError(f"callbacks.ema.after is {after}; it must be 0 steps or more.")
        # The foreach form: the per-tensor default took 3 ms a step for the some 200 small tensors of opir_tiny.
        super().__init__(use_buffers=True, multi_avg_fn=_warming_up(decay, every))
        self.every, self.after = every, after

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # It is made before the module is moved. Left on the CPU, every update copied every tensor there, one by one.
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step > self._latest_update_step and self.should_update(step_idx=step - 1) and was_skipped(trainer):
            self._latest_update_step = step  # or the next part of an accumulated step would make up for it
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that is resumed after its last step has no end of its training, and would keep the live weights.
        self._copy_average_to_current(pl_module)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx >= self.after and (step_idx + 1) % self.every == 0


def _warming_up(decay: float, every: int) -> Callable[[Any, Any, Any], None]:
    """Update all tensors of one kind at once, with a decay that rises to its value."""

    def update(averaged: Any, current: Any, updates: Any) -> None:
        steps = int(updates) * every
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)) ** every)(averaged, current, updates)

    return update
