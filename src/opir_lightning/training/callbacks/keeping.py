"""When a training writes which checkpoint."""

from __future__ import annotations

from copy import deepcopy

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from opir_lightning.training.checkpointing import CheckpointFiles


class LastCheckpoint(ModelCheckpoint):
    """The checkpoint to go on from; a training that is told to end (SIGTERM) writes one more, where it stands.

    Not in a validation, which works with other weights, and not in several processes, which may be told at different
    steps: there the last one counts. Arguments as of Lightning's.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        is_told = isinstance(exception, SIGTERMException) and trainer.training and trainer.world_size == 1
        if is_told and self._last_global_step_saved != trainer.global_step:
            self.best_model_path = self.format_checkpoint_name({})
            trainer.save_checkpoint(self.best_model_path)


class BestCheckpoint(ModelCheckpoint):
    """The checkpoint of the best validation. One that could not be written does not count as the best.

    Arguments as of Lightning's.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before = deepcopy(self.state_dict())
        super().on_validation_end(trainer, pl_module)
        files = trainer.strategy.checkpoint_io
        # Only the first process writes, and all have to agree on what the best is.
        failed = isinstance(files, CheckpointFiles) and self.best_model_path in files.failed
        if trainer.strategy.broadcast(failed):
            self.load_state_dict(before)
