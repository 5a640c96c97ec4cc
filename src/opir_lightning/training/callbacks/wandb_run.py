"""Weights & Biases: online, offline or off, and never a reason for a training to stop."""

from __future__ import annotations

import logging
import math
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from opir_lightning.checkpoints import load_model, read_header, save_weights
from opir_lightning.errors import UserError

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Table = Mapping[str, Sequence[Any]]  # values by column, all equally many; a value may be a picture

STEP = "trainer/global_step"
# What a run's summary keeps of a metric, by the first of these that its name begins with.
SUMMARIES = (
    ("train/task_accuracy", "max,last"),
    ("val/calibration_error", "min,last"),
    ("train/", "min,last"),
    ("val/", "max,last"),
    ("val_task/", "max,last"),
    ("health/samples_per_second", "mean,last"),
    ("health/data_wait", "mean,last"),
    ("health/", "max,last"),
)
PATIENCE = 3  # failures one after the other, after which W&B is left alone
LOGIN_SECONDS = 60  # in a terminal W&B asks for an account where it knows none
FINISH_SECONDS = 600  # what is not uploaded by then stays in the run folder, for `wandb sync`


def close_loggers(trainer: Trainer) -> None:
    """End the run of W&B, if there is one: the next training of the same process would go on in it."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            logger.close()


class WandbRun(Logger):
    """One run at W&B: configuration, metrics, pictures, tables and weights.

    Whatever W&B raises, at its beginning or later, is said once, and the training goes on: every number, picture and
    table is in the run folder as well. A run that could not begin is not tried again; one that fails while it logs is
    left alone after three failures one after the other.

    Args:
        project: at W&B.
        save_dir: where W&B keeps its files.
        name: of the run.
        group: what this run has in common with its repetitions.
        tags: of the run.
        entity: user or team at W&B; None: the account's own.
        job_type: of the run.
        id: of a run to go on with; None begins a new one.
        offline: keep everything in ``save_dir``; ``wandb sync`` uploads it later. The environment variable
            ``WANDB_MODE`` (online, offline, disabled) says the same without a setting.
        weights: when weights become an artifact, with the aliases ``best``, ``last`` and ``step-<n>``: at the ``end``,
            ``each`` time that a checkpoint is saved, or ``off``.

    Raises:
        UserError: ``weights`` is something else.
    """

    _open: ClassVar[Any] = None  # the run that this process opened last: a multirun trains several times

    def __init__(
        self,
        *,
        project: str,
        save_dir: str,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        entity: str | None = None,
        job_type: str = "train",
        id: str | None = None,
        offline: bool = False,
        weights: Literal["end", "each", "off"] = "end",
    ) -> None:
        super().__init__()
        if weights not in ("end", "each", "off"):
            raise UserError(f"logger.wandb.weights is {weights!r}; it must be end, each or off.")
        self._project, self._save_dir, self._id, self.weights = project, save_dir, id, weights
        self._arguments: dict[str, Any] = {
            "project": project,
            "save_dir": save_dir,
            "id": id,
            "name": name,
            "group": group,
            "tags": list(tags),
            "entity": entity,
            "job_type": job_type,
            **({"mode": "offline"} if offline else {}),
        }
        self._logger: WandbLogger | None = None
        self._failures, self._warned, self._given_up = 0, False, False
        self._checkpoints: dict[str, ModelCheckpoint] = {}  # by alias: what writes them
        self._sent: dict[str, float] = {}
        self._defined: set[str] = set()

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str | None:
        return self._id if self._logger is None else self._logger.version

    @property
    def save_dir(self) -> str:
        return self._save_dir

    @property
    def experiment(self) -> Any:
        """The run as W&B knows it; None where it could not begin."""
        self._attempt(lambda logger: None)
        return None if self._logger is None else self._logger.experiment

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._attempt(lambda logger: logger.log_hyperparams(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        def action(logger: WandbLogger) -> None:
            # One by one: of two patterns that fit a name, W&B takes any, and Lightning has defined "*".
            for name in metrics.keys() - self._defined:
                summary = next((kept for start, kept in SUMMARIES if name.startswith(start)), None)
                if summary is not None:
                    logger.experiment.define_metric(name, step_metric=STEP, step_sync=True, summary=summary)
                self._defined.add(name)
            logger.log_metrics(metrics, step)

        self._attempt(action)

    def log_shown(self, name: str, picture: Path, table: Table, *, step: int) -> None:
        """A picture file and a table of one validation, as ``pictures/<name>`` and ``tables/<name>``."""

        def action(logger: WandbLogger) -> None:
            import wandb

            # W&B would compress pictures itself, three times as long for files a tenth smaller.
            with tempfile.TemporaryDirectory() as folder:

                def value_or_picture(value: Any) -> Any:
                    if isinstance(value, float) and not math.isfinite(value):
                        return None  # JSON knows no infinity
                    if not isinstance(value, Image.Image):
                        return value
                    file = Path(folder) / f"{secrets.token_hex(8)}.png"
                    value.save(file, compress_level=1)
                    return wandb.Image(str(file))

                rows = [[value_or_picture(value) for value in row] for row in zip(*table.values(), strict=True)]
                shown = {
                    f"pictures/{name}": wandb.Image(str(picture)),
                    f"tables/{name}": wandb.Table(columns=list(table), data=rows),
                }
                logger.experiment.log({**shown, STEP: step})

        self._attempt(action)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        if self.weights == "off":
            return
        self._checkpoints["last" if checkpoint_callback.monitor is None else "best"] = checkpoint_callback
        if self.weights == "each":
            self._attempt(self._send_weights)

    def finalize(self, status: str) -> None:
        # The run is left open: closing it waits for its upload, and the report of the training must not. Whatever
        # `close_loggers` does not close, W&B does when the process ends.
        if self._logger is not None:
            self._attempt(self._send_weights)

    def close(self) -> None:
        """End the run, once everything is uploaded; a later training of the process has one of its own."""
        if self._logger is not None:
            self._attempt(lambda logger: logger.experiment.finish())
            self._given_up = True

    def _attempt(self, action: Callable[[WandbLogger], Result]) -> Result | None:
        """Do something with W&B, which may fail; nothing where it has failed too often, and on other ranks."""
        if self._given_up or getattr(rank_zero_only, "rank", 0) != 0:
            return None
        try:
            result = action(self._begun())
        except Exception as error:
            self._failures += 1
            self._given_up = self._logger is None or self._failures >= PATIENCE
            if not self._warned:
                self._warned = True
                log.warning(
                    "W&B failed and the training goes on without it; every number and picture is in %s. (%s: %s)",
                    self._save_dir,
                    type(error).__name__,
                    error,
                )
            return None
        self._failures = 0
        return result

    def _begun(self) -> WandbLogger:
        if self._logger is not None:
            return self._logger
        import wandb

        if wandb.run is not None and wandb.run is WandbRun._open:
            wandb.finish()
        settings = wandb.Settings(login_timeout=LOGIN_SECONDS, finish_timeout=FINISH_SECONDS)
        logger = WandbLogger(**self._arguments, settings=settings)
        WandbRun._open = logger.experiment
        self._logger = logger
        return logger

    def _send_weights(self, logger: WandbLogger) -> None:
        """The weights of the checkpoints that have changed; those of one step are one artifact."""
        import wandb

        by_step: dict[int, tuple[dict[str, float], Path, dict[str, Any]]] = {}
        for alias, callback in self._checkpoints.items():
            path, score = Path(callback.best_model_path), callback.best_model_score
            if not path.is_file():  # the disk was full
                continue
            written = path.stat().st_mtime
            if self._sent.get(alias) == written:
                continue
            step = int(read_header(path).metadata["step"])
            times, _, metadata = by_step.setdefault(step, ({}, path, {"step": step}))
            times[alias] = written
            if alias == "best" and score is not None:
                metadata["val/psnr"] = float(score)
        for step, (times, path, metadata) in sorted(by_step.items()):
            artifact = wandb.Artifact(f"weights-{logger.experiment.id}", type="model", metadata=metadata)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.safetensors"
                with torch.random.fork_rng(devices=[]):  # building a net draws numbers that the training may want
                    net, _ = load_model(path)
                save_weights(file, net, metadata)
                artifact.add_file(str(file))
            logger.experiment.log_artifact(artifact, aliases=[*times, f"step-{step}"])
            self._sent |= times
