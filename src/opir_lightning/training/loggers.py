"""The CSV log of a run, through its resumes; the end of a W&B run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class CSVLog(CSVLogger):
    """Lightning's CSV log, which deletes the rows that it finds; this one keeps them where a run goes on.

    What was logged between the last checkpoint and the interruption comes again, and replaces the old rows.

    Args:
        save_dir, name, version: as of Lightning's.
        resume: the run's setting of this name; None: a new run, whose log replaces what is there.
    """

    def __init__(self, save_dir: str, name: str, version: str, resume: str | None = None) -> None:
        super().__init__(save_dir=save_dir, name=name, version=version)
        self.file = Path(self.log_dir) / "metrics.csv"
        self.earlier: list[dict[str, str]] = []
        if resume is not None and self.file.is_file():
            with self.file.open(newline="") as file:
                self.earlier = list(csv.DictReader(file))

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        super().log_hyperparams(params)
        self._write(self.earlier)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self.earlier:
            self._write([row for row in self.earlier if step is None or int(row["step"]) < step])
            self.earlier = []
        super().log_metrics(metrics, step)

    def _write(self, rows: list[dict[str, str]]) -> None:
        if not self.earlier:
            return
        with self.file.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.earlier[0]))
            writer.writeheader()
            writer.writerows(rows)
        self.experiment.metrics_keys = list(self.earlier[0])


def close_loggers(trainer: Trainer) -> None:
    """End the run of W&B, if there is one: the next training of the same process would go on in it."""
    if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
        import wandb

        wandb.finish()
