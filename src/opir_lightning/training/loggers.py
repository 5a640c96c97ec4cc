"""The CSV log of a run, through its resumes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from opir_lightning.disk import FullDiskPolicy, room_for
from opir_lightning.files import add_whole, replaced_atomically, write_atomically


class CSVLog(CSVLogger):
    """Lightning's CSV log, which deletes the rows that it finds; this one keeps them where a run goes on.

    What was logged between the last checkpoint and the interruption comes again, and replaces the old rows. A row is in
    the file as soon as it is logged, and whatever happens, the rows before it stay there.

    Args:
        save_dir, name, version: as of Lightning's.
        resume: the run's setting of this name; None: a new run, whose log replaces what is there.
        on_full_disk: ``stop``: a log that cannot be written ends the training; ``continue``: it is warned of, and its
            rows are written as soon as there is room.
    """

    def __init__(
        self,
        save_dir: str,
        name: str,
        version: str,
        resume: str | None = None,
        on_full_disk: FullDiskPolicy = "continue",
    ) -> None:
        super().__init__(save_dir=save_dir, name=name, version=version, flush_logs_every_n_steps=1)
        self.file = Path(self.log_dir) / "metrics.csv"
        self.goes_on, self.on_full_disk, self._failing = resume is not None, on_full_disk, False

    @property
    @rank_zero_experiment
    def experiment(self) -> _Rows:
        if self._experiment is None:
            self._experiment = _Rows(self.file, keep=self.goes_on)  # type: ignore[assignment]
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def save(self) -> None:
        consequence = "the training goes on, and the log is written when there is room."
        with room_for(self.file, self.on_full_disk, consequence, said=self._failing):
            self.experiment.save()
            self._failing = False
            return
        self._failing = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.on_full_disk = "continue"  # an error here would hide what has ended the training
        super().finalize(status)


class _Rows:
    """The rows of a log on their way into a file; where columns are new, it is written anew, and whole."""

    def __init__(self, file: Path, *, keep: bool) -> None:
        self.file, self.keep = file, keep
        self.metrics: list[dict[str, Any]] = []  # not in the file yet
        self.columns: list[str] | None = None  # of the file; None before the first row
        self.hparams: dict[str, Any] = {}
        self.is_described = True

    def log_hparams(self, params: Mapping[str, Any]) -> None:
        self.hparams.update(params)
        self.is_described = False

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.metrics.append({**values, "step": step})

    def save(self) -> None:
        if not self.is_described:
            with replaced_atomically(self.file.parent / "hparams.yaml") as temporary:
                save_hparams_to_yaml(temporary, self.hparams)
            self.is_described = True
        if not self.metrics:
            return
        names = set().union(*self.metrics)
        if self.columns is not None and names <= set(self.columns):
            add_whole(self.file, _lines(self.columns, self.metrics))
        else:
            earlier = read_rows(self.file) if self.keep or self.columns is not None else []
            if self.columns is None:
                earlier = [row for row in earlier if int(row["step"]) < self.metrics[0]["step"]]
            columns = sorted(names.union(*earlier))
            header = dict(zip(columns, columns, strict=True))
            write_atomically(self.file, _lines(columns, [header, *earlier, *self.metrics]))
            self.columns = columns
        self.metrics = []


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a log; without the last one where its writer was killed half-way."""
    if not file.is_file():
        return []
    with file.open(newline="") as opened:
        lines = opened.readlines()
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = list(csv.DictReader(lines))
    return [row for row in rows if None not in row and None not in row.values() and row["step"].isdigit()]


def _lines(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue().encode()
