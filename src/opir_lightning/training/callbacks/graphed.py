"""Forward and backward pass of a training step, recorded once and replayed as one CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from opir_lightning.errors import UserError
from opir_lightning.losses import LossTerms
from opir_lightning.models.degradation_code import Standardise
from opir_lightning.training.module import RestorationModule
from opir_lightning.types import Batch

log = logging.getLogger(__name__)
WARM_UP = 3  # passes before the recording, as PyTorch's notes on CUDA graphs ask for


class Recording(NamedTuple):
    """A step that can be replayed.

    Attributes:
        replay: computes all below anew, from what lies in ``inputs`` and the weights.
        inputs: the tensors of a batch, to be overwritten.
        total: scalar loss.
        values: of the terms, one vector.
        gradients: of the loss by each parameter; None where there is none.
    """

    replay: Callable[[], None]
    inputs: Sequence[Tensor]
    total: Tensor
    values: Tensor
    gradients: Sequence[Tensor | None]


class GraphedStep(Callback):
    """Network, losses and their gradients replayed as a CUDA graph while training.

    A step issues some 3,000 kernels, and of a small network most are done before the host has issued the next: the GPU
    is idle for half of the time. Recorded, they are one call. What is computed is the same.

    The step is recorded when the running statistics of the code are complete (until then they change from step to
    step). A batch of another shape than the recorded one is computed as usual.

    Raises:
        UserError: at the start of a training that is not one on a single CUDA device, or whose gradients a scaler has
            to know.
    """

    def __init__(self) -> None:
        self._recording: Recording | None = None
        self._names: list[str] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = trainer.strategy.root_device.type
        if device != "cuda" or trainer.world_size > 1:
            raise UserError(
                f"cuda_graph=true needs one CUDA device, and this training is on {trainer.world_size} of kind {device}."
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise UserError("cuda_graph=true cannot scale gradients; set trainer.precision=bf16-mixed or 32-true.")

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: RestorationModule,  # type: ignore[override]
        batch: Batch,
        batch_idx: int,
    ) -> None:
        statistics = [part for part in pl_module.modules() if isinstance(part, Standardise)]
        if self._recording is not None or not all(part.complete for part in statistics):
            return
        self._recording = record(self._step_of(trainer, pl_module), batch[:-1], _learned(pl_module))
        pl_module.batch_loss = lambda batch: self._replay(pl_module, batch)  # type: ignore[method-assign]
        log.info("The training step is recorded, and replayed from now on.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.__dict__.pop("batch_loss", None)
        self._recording = None

    def _step_of(self, trainer: Trainer, module: RestorationModule) -> Callable[..., tuple[Tensor, Tensor]]:
        def step(degraded: Tensor, clean: Tensor, task: Tensor, given: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
            # Left after each pass, autocast forgets its copies of the weights: in every replay they are made anew.
            with trainer.precision_plugin.forward_context():
                batch = Batch(degraded, clean, task, given, heard, name=[])
                total, values = RestorationModule.batch_loss(module, batch)
            self._names = list(values)
            return total, torch.stack([value.float() for value in values.values()])

        return step

    def _replay(self, module: RestorationModule, batch: Batch) -> LossTerms:
        recording = self._recording
        assert recording is not None
        if batch.degraded.shape != recording.inputs[0].shape:
            return RestorationModule.batch_loss(module, batch)
        for place, value in zip(recording.inputs, batch[:-1], strict=True):
            place.copy_(value)
        total, values = replay(recording, _learned(module))
        return LossTerms(total, dict(zip(self._names, values.unbind(), strict=True)))


def _learned(module: RestorationModule) -> list[Tensor]:
    return [parameter for parameter in module.net.parameters() if parameter.requires_grad]


def replay(recording: Recording, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Loss and values for what lies in the recording's inputs; the loss can be differentiated by the parameters.

    Args:
        recording: of these parameters.
        parameters: in the order of the recording.
    """
    total, values = _Replayed.apply(recording, *parameters)
    return total, values


class _Replayed(torch.autograd.Function):
    """The recorded loss as a function of the weights; its gradients are there as soon as it is."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        recording.replay()
        ctx.gradients = recording.gradients
        # Copies: the next replay writes where these lie, and they are read later than that.
        values = recording.values.clone()
        ctx.mark_non_differentiable(values)
        return recording.total.clone(), values

    @staticmethod
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        there = [gradient for gradient in ctx.gradients if gradient is not None]
        scaled = iter(torch._foreach_mul(there, factor))
        return None, *(None if gradient is None else next(scaled) for gradient in ctx.gradients)


def record(
    step: Callable[..., tuple[Tensor, Tensor]], batch: Sequence[Tensor], parameters: Sequence[Tensor]
) -> Recording:
    """Run a step a few times, then record it.

    Args:
        step: loss and values from tensors like those of ``batch``.
        batch: with these it is run.
        parameters: what it is differentiated by.
    """
    inputs = [value.clone() for value in batch]

    def run() -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
        total, values = step(*inputs)
        return total.detach(), values.detach(), torch.autograd.grad(total, parameters, allow_unused=True)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):  # whatever is compiled, chosen by timing or allocated once is so before the recording
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Of this thread alone: the loader's pins memory meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        total, values, gradients = run()
    return Recording(graph.replay, inputs, total, values, gradients)
