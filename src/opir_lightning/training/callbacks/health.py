"""Numbers by which a training is seen to be well: gradients, speed, waiting, memory."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psutil
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from opir_lightning.training.module import RestorationModule

GIB = 2**30


class TrainingHealth(Callback):
    """Log, every ``trainer.log_every_n_steps``, what a look at the losses does not tell.

    - ``health/gradient_norm``: L2 norm of the step's gradients before clipping.
    - ``health/learning_rate``: that the step is taken with, of the first group of parameters.
    - ``health/samples_per_second``: over all processes, since the last such line; validations are not counted.
    - ``health/data_wait``: share of that time in which the host waited for the loader, in [0, 1]. A GPU may have had
      something to do meanwhile.
    - ``health/memory_gib``: of this process and all that it has started, memory that they share counted once.
    - ``health/device_peak_gib``: largest memory that torch has had on a CUDA device so far.

    The memory is read in a thread, because the system walks through all pages for it; the line has what was found
    after the line before.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory")
        self._memory: Future[int] | None = None
        self._known = 0
        self._step: dict[str, Tensor | float] = {}  # of the step under way, if it is logged
        self._samples, self._since, self._waited, self._paused = 0, 0.0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._known, self._memory = memory_used(), None
        self._begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since += time.monotonic() - self._paused

    def on_before_optimizer_step(
        self,
        trainer: Trainer,
        pl_module: RestorationModule,  # type: ignore[override]
        optimizer: Optimizer,
    ) -> None:
        if trainer._logger_connector.should_update_logs:
            self._step = {
                "health/gradient_norm": pl_module.measure_gradients(optimizer),
                "health/learning_rate": float(optimizer.param_groups[0]["lr"]),
            }

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(batch.task)
        if not self._step:
            return
        passed = max(time.monotonic() - self._since, 1e-9)
        values = self._step
        values["health/samples_per_second"] = self._samples * trainer.world_size / passed
        waited = _waited(trainer)
        if waited is not None:
            values["health/data_wait"] = min(max(waited - self._waited, 0.0) / passed, 1.0)
        values["health/memory_gib"] = self._memory_used() / GIB
        if pl_module.device.type == "cuda":
            values["health/device_peak_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / GIB
        pl_module.log_dict(values)
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        self._step, self._samples, self._since = {}, 0, time.monotonic()
        self._waited = _waited(trainer) or 0.0

    def _memory_used(self) -> int:
        if self._memory is not None and self._memory.done():
            self._known, self._memory = self._memory.result(), None
        if self._memory is None:
            self._memory = self._worker.submit(memory_used)
        return self._known


def memory_used() -> int:
    """Bytes of this process and all that it has started; where the system says so, what they share counts once."""
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended meanwhile
            try:
                found = process.memory_full_info()
            except psutil.AccessDenied:
                found = process.memory_info()
            total += getattr(found, "pss", found.rss)
    return total


def _waited(trainer: Trainer) -> float | None:
    """Seconds that were spent waiting for the loader so far; None where it does not count them."""
    return getattr(trainer.train_dataloader, "waited", None)
