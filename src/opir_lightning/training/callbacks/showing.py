"""What the callbacks of a validation share: files in the run folder, and the same handed on to W&B where it is used."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning import Trainer
from PIL import Image

from opir_lightning.training.callbacks.wandb_run import Table, WandbRun


def show(trainer: Trainer, name: str, folder: Path, picture: Image.Image, table: Table) -> None:
    """Write ``step_<n>.png``, add rows to ``<name>.csv``, hand both to W&B.

    Args:
        trainer: with the step and the loggers.
        name: of the table, and of both at W&B.
        folder: of the files.
        picture: of this validation.
        table: of this validation; pictures among its values go to W&B only.
    """
    sheet = folder / f"step_{trainer.global_step:07d}.png"
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(sheet, compress_level=1)  # a third of the time, and the training waits for it
    plain = [column for column, values in table.items() if not any(isinstance(v, Image.Image) for v in values)]
    rows = zip(*(table[column] for column in plain), strict=True)
    path = folder / f"{name}.csv"
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["step", *plain])
        writer.writerows([trainer.global_step, *row] for row in rows)
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            logger.log_shown(name, sheet, table, step=trainer.global_step)
