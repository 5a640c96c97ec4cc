"""Tell a search how a training is doing, and stop it where the search says so."""

from __future__ import annotations

from typing import Protocol

from lightning import Callback, LightningModule, Trainer

from opir_lightning.errors import UserError


class Trial(Protocol):
    """What is needed of a trial of Optuna."""

    def report(self, value: float, step: int) -> None: ...

    def should_prune(self) -> bool: ...


class PruneTrial(Callback):
    """After each validation report a metric to the trial; end the training if it lags behind those before.

    Optuna's integration package has such a callback, and would be a further dependency for these lines.

    Args:
        trial: of the search.
        metric: name under which the module logs it.

    Raises:
        UserError: the module logs no such metric.
    """

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric, self.validations = trial, metric, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self.metric not in trainer.callback_metrics:
            raise UserError(f"The run has no '{self.metric}'; it has {', '.join(sorted(trainer.callback_metrics))}.")
        self.trial.report(float(trainer.callback_metrics[self.metric]), self.validations)
        self.validations += 1
        if self.trial.should_prune():
            from optuna import TrialPruned

            raise TrialPruned
