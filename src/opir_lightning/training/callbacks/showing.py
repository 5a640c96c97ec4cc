"""What the callbacks of a validation share: files in the run folder, and the same handed on to W&B where it is used."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning import Trainer
from PIL import Image

from opir_lightning.disk import room_for
from opir_lightning.files import replaced_atomically, write_atomically
from opir_lightning.training.callbacks.wandb_run import Table, WandbRun
from opir_lightning.training.checkpointing import on_full_disk


def show(trainer: Trainer, name: str, folder: Path, picture: Image.Image, table: Table) -> None:
    """Write ``step_<n>.png``, add rows to ``<name>.csv``, hand both to W&B.

    Where there is no room for them, the trainer's policy for a full disk decides, and W&B gets nothing.

    Args:
        trainer: with the step and the loggers.
        name: of the table, and of both at W&B.
        folder: of the files.
        picture: of this validation.
        table: of this validation; pictures among its values go to W&B only.
    """
    sheet = folder / f"step_{trainer.global_step:07d}.png"
    plain = [column for column, values in table.items() if not any(isinstance(v, Image.Image) for v in values)]
    rows = zip(*(table[column] for column in plain), strict=True)
    with room_for(sheet, on_full_disk(trainer), "the training goes on without this picture and its table."):
        with replaced_atomically(sheet) as temporary:
            # A third of the time, and the training waits for it.
            picture.save(temporary, format="PNG", compress_level=1)
        _add_rows(folder / f"{name}.csv", ["step", *plain], [[trainer.global_step, *row] for row in rows])
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                logger.log_shown(name, sheet, table, step=trainer.global_step)


def _add_rows(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    """Add the rows of one step; those of this and later steps, which a resumed run replaces, are taken out."""
    step, kept = rows[0][0], [columns]
    if path.exists():
        with path.open(newline="") as file:
            kept += [line for line in csv.reader(file) if line[0].isdigit() and int(line[0]) < step]
    text = io.StringIO()
    csv.writer(text).writerows([*kept, *rows])
    write_atomically(path, text.getvalue().encode())
