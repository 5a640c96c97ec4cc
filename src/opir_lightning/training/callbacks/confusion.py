"""Which task the network names for pictures of which task."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning import Callback, Trainer
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from opir_lightning.charts import confusion_picture
from opir_lightning.training.callbacks.showing import show
from opir_lightning.training.callbacks.wandb_run import Table
from opir_lightning.training.module import RestorationModule, Validated
from opir_lightning.types import Batch


class TaskConfusion(Callback):
    """After each validation, the confusion matrix of the named tasks over all its pictures, and ``val/task_accuracy``.

    Pictures of sets whose task the network does not know are left out.

    Args:
        folder: where ``step_<n>.png`` and ``confusion.csv`` go.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)
        self.answers: list[Tensor] = []  # (2, B) each: true and named, on the device until the end

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: RestorationModule) -> None:  # type: ignore[override]
        self.answers = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: RestorationModule,  # type: ignore[override]
        outputs: Validated,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.answers.append(torch.stack([batch.task, outputs.restored.task_logits.argmax(1)]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: RestorationModule) -> None:  # type: ignore[override]
        if not self.answers:
            return
        true, named = torch.cat(self.answers, 1).cpu()
        self.answers = []
        known = true >= 0
        if trainer.sanity_checking or not known.any():
            return
        tasks = pl_module.net.tasks
        # The functional form: every rank validates all pictures, and the metric would add them up over the ranks.
        counts = confusion_matrix(true[known], named[known], len(tasks))
        pl_module.log("val/task_accuracy", counts.diagonal().sum() / counts.sum(), sync_dist=True)
        if trainer.is_global_zero:
            pairs = [(t, n) for t in range(len(tasks)) for n in range(len(tasks))]
            table: Table = {
                "true": [tasks[t] for t, _ in pairs],
                "named": [tasks[n] for _, n in pairs],
                "pictures": [int(counts[pair]) for pair in pairs],
            }
            show(trainer, "confusion", self.folder, confusion_picture(counts, tasks), table)


def confusion_matrix(true: Tensor, named: Tensor, tasks: int) -> Tensor:
    """Pictures by true task (row) and named task (column), ``(T, T)`` int64.

    Args:
        true, named: ``(N,)`` int64 in [0, T).
        tasks: T.
    """
    if tasks == 1:  # which torchmetrics calls no classification
        return torch.tensor([[len(true)]])
    return multiclass_confusion_matrix(named, true, num_classes=tasks)
