"""Callbacks: averaged weights, picture panels, weights for handing around."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from opir_lightning.pictures import panel, save_picture
from opir_lightning.training.module import RestorationModule

log = logging.getLogger(__name__)


class ExponentialMovingAverage(WeightAveraging):
    """Exponential moving average of the weights; validated, saved and kept in place of the live ones.

    Args:
        decay: share of the average that is kept per step. At the start it is less, ``(1 + n) / (10 + n)`` at step n:
            otherwise an average over 1,000 steps would after 2,000 still hold a seventh of the untrained weights.
        every: steps between two updates; the decay is raised to this power.
        after: steps before the first update; until then the average is the live weights' copy.
    """

    def __init__(self, *, decay: float = 0.999, every: int = 1, after: int = 0) -> None:
        # The foreach form: the per-tensor default took 3 ms a step for the some 200 small tensors of opir_tiny.
        super().__init__(use_buffers=True, multi_avg_fn=_warming_up(decay, every))
        self.every, self.after = every, after

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx >= self.after and (step_idx + 1) % self.every == 0


def _warming_up(decay: float, every: int) -> Callable[[Any, Any, Any], None]:
    """Update all tensors of one kind at once, with a decay that rises to its value."""

    def update(averaged: Any, current: Any, updates: Any) -> None:
        steps = int(updates) * every
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)) ** every)(averaged, current, updates)

    return update


class PicturePanels(Callback):
    """After each validation, one picture per validation set: degraded, stage 1, uncertainty, stage 2, clean.

    Args:
        folder: where the PNG files go.
        picture: which picture of each set.
        side: the top left square of this side in pixels is shown.
    """

    def __init__(self, *, folder: str, picture: int = 0, side: int = 256) -> None:
        self.folder, self.picture, self.side = Path(folder), picture, side
        self.rows: dict[str, list[Tensor]] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: RestorationModule,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx != self.picture or trainer.sanity_checking or not trainer.is_global_zero:
            return
        name = pl_module.val_sets[dataloader_idx]
        degraded, clean = (x[..., : self.side, : self.side] for x in (batch.degraded, batch.clean))
        with torch.no_grad():
            restored = pl_module.net(degraded)
        pictures = (degraded, restored.coarse, restored.uncertainty, restored.refined, clean)
        self.rows[name] = [picture[0].cpu() for picture in pictures]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.rows:
            return
        sheet = panel(self.rows, columns=("degraded", "stage 1", "uncertainty", "stage 2", "clean"))
        self.rows = {}
        save_picture(sheet, self.folder / f"step_{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/panel", [sheet], step=trainer.global_step)
