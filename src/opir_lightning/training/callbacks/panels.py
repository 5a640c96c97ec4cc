"""Pictures of every validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from PIL import Image
from torch import Tensor

from opir_lightning.errors import UserError
from opir_lightning.pictures import panel, to_pixels
from opir_lightning.training.callbacks.showing import show
from opir_lightning.training.module import RestorationModule, Validated
from opir_lightning.types import Batch

COLUMNS = ("degraded", "stage 1", "uncertainty", "stage 2", "clean")
SCORES = ("psnr_input", "psnr_coarse", "psnr_refined")


class PicturePanels(Callback):
    """After each validation, one picture per validation set: degraded, stage 1, uncertainty, stage 2, clean.

    With the PSNR of the whole picture at each stage and the task that the network named.

    Args:
        folder: where ``step_<n>.png`` and ``pictures.csv`` go.
        picture: which picture of each set.
        side: the top left square of this side in pixels is shown.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(self, *, folder: str, picture: int = 0, side: int = 256) -> None:
        if picture < 0 or side < 1:
            raise UserError(f"callbacks.panels has picture={picture} and side={side}; at least 0 and 1 are needed.")
        self.folder, self.picture, self.side = Path(folder), picture, side
        self.rows: list[tuple[dict[str, Any], list[Tensor]]] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: RestorationModule) -> None:  # type: ignore[override]
        self.rows = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: RestorationModule,  # type: ignore[override]
        outputs: Validated,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx != self.picture or trainer.sanity_checking or not trainer.is_global_zero:
            return
        restored, tasks, label = outputs.restored, pl_module.net.tasks, int(batch.task[0])
        values = {
            "set": pl_module.val_sets[dataloader_idx],
            "picture": batch.name[0],
            "task": tasks[label] if label >= 0 else "",
            "named": tasks[int(restored.task_logits[0].argmax())],
            **{name: round(float(value), 3) for name, value in zip(SCORES, outputs.psnr[:, 0], strict=True)},
        }
        pictures = (outputs.degraded, restored.coarse, restored.uncertainty, restored.refined, outputs.clean)
        self.rows.append((values, [picture[0, :, : self.side, : self.side].cpu() for picture in pictures]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: RestorationModule) -> None:  # type: ignore[override]
        if not self.rows:
            return
        sheet = panel({_label(values): pictures for values, pictures in self.rows}, columns=COLUMNS)
        table = {name: [values[name] for values, _ in self.rows] for name in self.rows[0][0]} | {
            name: [Image.fromarray(to_pixels(pictures[i])) for _, pictures in self.rows]
            for i, name in enumerate(COLUMNS)
        }
        self.rows = []
        show(trainer, "pictures", self.folder, sheet, table)


def _label(values: dict[str, Any]) -> str:
    before, coarse, refined = (f"{values[name]:.2f}" for name in SCORES)
    scores = f"PSNR {before}, stage 1 {coarse}, stage 2 {refined} dB"
    return f"{values['set']}: {values['picture']}   {scores}   (named: {values['named']})"
