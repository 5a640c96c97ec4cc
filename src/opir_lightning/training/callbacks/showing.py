"""What the callbacks of a validation share: files in the run folder, and the same handed on to W&B where it is used."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

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
    _add_rows(folder / f"{name}.csv", ["step", *plain], [[trainer.global_step, *row] for row in rows])
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            logger.log_shown(name, sheet, table, step=trainer.global_step)


def _add_rows(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    """Add the rows of one step; those of this and later steps, which a resumed run replaces, are taken out."""
    step, kept = rows[0][0], [columns]
    is_later = False
    if path.exists():
        with path.open(newline="") as file:
            lines = list(csv.reader(file))[1:]
        kept += [line for line in lines if int(line[0]) < step]
        is_later = len(kept) == len(lines) + 1
    with path.open("a" if is_later else "w", newline="") as file:
        csv.writer(file).writerows(rows if is_later else [*kept, *rows])
