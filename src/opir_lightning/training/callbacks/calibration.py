"""Whether the uncertainty map means what it says."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, Trainer

from opir_lightning.calibration import Calibration
from opir_lightning.charts import calibration_picture
from opir_lightning.training.callbacks.showing import show
from opir_lightning.training.module import RestorationModule, Validated
from opir_lightning.types import Batch


class UncertaintyCalibration(Callback):
    """After each validation, the true error of stage 1 over the predicted one, and ``val/calibration_error``.

    Nothing where the model has no map (``model.uncertainty=off``).

    Args:
        folder: where ``step_<n>.png`` and ``calibration.csv`` go.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)
        self.sets: dict[str, Calibration] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: RestorationModule) -> None:  # type: ignore[override]
        self.sets = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: RestorationModule,  # type: ignore[override]
        outputs: Validated,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if pl_module.net.uncertainty == "off":
            return
        error = (outputs.restored.coarse - outputs.clean).abs().mean(1, keepdim=True)  # as the map is trained
        calibration = self.sets.setdefault(pl_module.val_sets[dataloader_idx], Calibration())
        calibration.add(outputs.restored.uncertainty, error)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: RestorationModule) -> None:  # type: ignore[override]
        sets, self.sets = self.sets, {}
        if not sets or trainer.sanity_checking:
            return
        together = Calibration()
        for calibration in sets.values():
            together = together.merged(calibration)
        pl_module.log("val/calibration_error", together.error(), sync_dist=True)
        if trainer.is_global_zero:
            curves = {name: calibration.curve() for name, calibration in {"all": together, **sets}.items()}
            rows = [
                (name, *(float(f"{value:.4g}") if isinstance(value, float) else value for value in bin_))
                for name, curve in curves.items()
                for bin_ in curve
                if bin_.pixels
            ]
            names = ("set", "low", "high", "pixels", "predicted", "true")
            table = {name: [row[i] for row in rows] for i, name in enumerate(names)}
            show(trainer, "calibration", self.folder, calibration_picture(curves), table)
