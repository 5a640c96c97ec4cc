"""Callbacks: averaged weights, picture panels, weights for handing around."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from opir_lightning.models.predictor import OperatorPredictor
from opir_lightning.pictures import panel, save_picture
from opir_lightning.training.module import RestorationModule
from opir_lightning.types import Code

log = logging.getLogger(__name__)


class ExponentialMovingAverage(WeightAveraging):
    """Exponential moving average of the weights; validated, saved and kept in place of the live ones.

    On a GPU an update makes the host wait for the device, so `every` is better larger than 1 there.

    Args:
        decay: share of the average that is kept per step. At the start it is less, ``(1 + n) / (10 + n)`` at step n:
            otherwise an average over 1,000 steps would after 2,000 still hold a seventh of the untrained weights.
        every: steps between two updates; the decay is raised to this power.
        after: steps before the first update; until then the average is the live weights' copy.
    """

    def __init__(self, *, decay: float = 0.999, every: int = 1, after: int = 0) -> None:
        # The foreach form: the per-tensor default took 3 ms a step for the some 200 small tensors of opir_tiny.
        super().__init__(use_buffers=True, multi_avg_fn=_warming_up(decay, every))
        self.every, self.after = every, after

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # It is made before the module is moved. Left on the CPU, every update copied every tensor there, one by one.
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that is resumed after its last step has no end of its training, and would keep the live weights.
        self._copy_average_to_current(pl_module)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx >= self.after and (step_idx + 1) % self.every == 0


def _warming_up(decay: float, every: int) -> Callable[[Any, Any, Any], None]:
    """Update all tensors of one kind at once, with a decay that rises to its value."""

    def update(averaged: Any, current: Any, updates: Any) -> None:
        steps = int(updates) * every
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)) ** every)(averaged, current, updates)

    return update


class CompiledPredictor(Callback):
    """The predictor compiled by ``torch.compile`` while it trains; it is validated and kept as it is.

    It is most of the network, has no branches that depend on data, and always sees crops of one size in training.
    Pictures of other sizes would be compiled for again. All compiling, that of the operator's kernels too, is done
    before the first step, and before a time limit begins to count.

    Args:
        batch_size: of the training, per device.
        crop: side of its crops in pixels.
    """

    def __init__(self, *, batch_size: int, crop: int) -> None:
        self.shape = (batch_size, 3, crop, crop)
        self._compiled: dict[OperatorPredictor, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: RestorationModule) -> None:  # type: ignore[override]
        log.info("Compiling; this takes a minute or two.")
        net = pl_module.net
        predictors = [module for module in net.modules() if isinstance(module, OperatorPredictor)]
        self._compiled = {predictor: torch.compile(predictor.forward, dynamic=False) for predictor in predictors}
        self._use(True)
        with trainer.precision_plugin.forward_context():
            image = torch.full(self.shape, 0.5, device=pl_module.device)
            task = torch.full((len(image), len(net.tasks)), 1 / len(net.tasks), device=pl_module.device)
            code = Code(task, torch.zeros(len(image), net.settings["severity_size"], device=pl_module.device), task)
            guidance = torch.ones_like(image[:, :1])
            results = []
            for stage in range(len(net.task_parameters)):
                operator = net.predict_operator(image, guidance, code, stage=stage)
                results.append(net.apply_operator(image, operator).mean())
        torch.stack(results).sum().backward()
        pl_module.zero_grad()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use(False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use(True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._use(False)

    def _use(self, compiled: bool) -> None:
        for predictor, forward in self._compiled.items():
            if compiled:
                predictor.forward = forward  # type: ignore[method-assign]
            else:
                predictor.__dict__.pop("forward", None)


class PicturePanels(Callback):
    """After each validation, one picture per validation set: degraded, stage 1, uncertainty, stage 2, clean.

    Args:
        folder: where the PNG files go.
        picture: which picture of each set.
        side: the top left square of this side in pixels is shown.
    """

    def __init__(self, *, folder: str, picture: int = 0, side: int = 256) -> None:
        self.folder, self.picture, self.side = Path(folder), picture, side
        self.rows: dict[str, list[Tensor]] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: RestorationModule,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx != self.picture or trainer.sanity_checking or not trainer.is_global_zero:
            return
        name = pl_module.val_sets[dataloader_idx]
        degraded, clean = (x[..., : self.side, : self.side] for x in (batch.degraded, batch.clean))
        with torch.no_grad():
            restored = pl_module.net(degraded)
        pictures = (degraded, restored.coarse, restored.uncertainty, restored.refined, clean)
        self.rows[name] = [picture[0].cpu() for picture in pictures]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.rows:
            return
        sheet = panel(self.rows, columns=("degraded", "stage 1", "uncertainty", "stage 2", "clean"))
        self.rows = {}
        save_picture(sheet, self.folder / f"step_{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/panel", [sheet], step=trainer.global_step)
