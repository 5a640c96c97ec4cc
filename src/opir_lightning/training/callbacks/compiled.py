"""The predictor compiled while it trains."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from opir_lightning.models.predictor import OperatorPredictor
from opir_lightning.training.module import RestorationModule
from opir_lightning.types import Code

log = logging.getLogger(__name__)


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
