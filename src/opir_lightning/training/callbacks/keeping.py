"""When a training writes which checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from opir_lightning.training.checkpointing import CheckpointFiles


class LastCheckpoint(ModelCheckpoint):
    """The checkpoint to go on from: after each epoch and its validation, and every ``every_n_train_steps`` if given.

    A training that is told to end (SIGTERM) writes one more after the step it is at. Not after the last step of an
    epoch and not in a validation: a training that goes on from there has no validation of that epoch. And not in
    several processes, which may be told at different steps. There the one before counts. Arguments as of Lightning's.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        has_stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # gradients are not kept
        if trainer.received_sigterm and has_stepped and trainer.world_size == 1:
            self._save_now(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._save_now(trainer)

    def _save_now(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class BestCheckpoint(ModelCheckpoint):
    """The checkpoint of the best validation. One that could not be written does not count as the best.

    Arguments as of Lightning's.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._undone_if_not_written(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._undone_if_not_written(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    @contextmanager
    def _undone_if_not_written(self, trainer: Trainer) -> Iterator[None]:
        before = deepcopy(self.state_dict())
        yield
        files = trainer.strategy.checkpoint_io
        # Only the first process writes, and all have to agree on what the best is.
        if trainer.strategy.broadcast(isinstance(files, CheckpointFiles) and self.best_model_path in files.failed):
            self.load_state_dict(before)
