"""What happens to a step whose loss or gradient is not finite."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from opir_lightning.errors import UserError
from opir_lightning.training.bad_batches import draw_batch, save_batch
from opir_lightning.training.module import RestorationModule, Trained
from opir_lightning.types import Batch, Restoration

log = logging.getLogger(__name__)
NAMED = 4  # samples and sources in a message


class _Seen(NamedTuple):
    """A batch of a step, and what the training found on it."""

    batch: Batch
    batch_idx: int
    trained: Trained


class _Statistic(NamedTuple):
    """A running statistic of the network, and what it was before the batch and before the step under way."""

    now: Tensor
    before_batch: Tensor
    before_step: Tensor


class _Step(NamedTuple):
    """A step and whether it is finite, which on a GPU is known only later."""

    trainer: Trainer
    module: RestorationModule
    finite: Tensor  # on the CPU, once `ready` has come
    ready: torch.cuda.Event | None
    number: int
    epoch: int
    norm: Tensor
    seen: list[_Seen]


class FiniteSteps(Callback):
    """No step is taken along a loss or gradient that is NaN or infinite; its batch is kept for a look.

    Such a step changes no weight, no state of the optimizer, no average and no running statistic. Its samples are used
    up and the schedule goes on, so that a resumed run is the same run. It is judged by the norm of the gradients, which
    clipping needs anyway, and the loss over all processes: all of them decide alike.

    On a GPU the host does not wait for the verdict. An optimizer in one pass (``fused``) is told on the device to leave
    everything as it is, and the host reads the verdict of a step when it has queued the next one, or a checkpoint or
    the average wants to know it. With another optimizer it waits, once a step.

    Under the precision ``16-mixed`` infinite gradients are part of the method: they are left to its scaler, and only
    the loss is judged.

    Args:
        folder: for the batches: ``step_<n>.safetensors``, see `load_batch`, and a picture of it; n as in the log.
        policy: ``skip``: go on with the next batch, and stop only where the steps do not recover. One sample in a
            million that breaks a term should not cost the night that the training was to run, and as the order of the
            samples is fixed, it would break there again after every resume. ``stop``: end the training at once.
        in_a_row: stop after more skipped steps than this, one after the other: the weights are broken, not the batch.
        keep: at most this many batches, over all resumes.

    Raises:
        UserError: a setting is out of its range; in training, when it stops.
    """

    def __init__(
        self, *, folder: str, policy: Literal["skip", "stop"] = "skip", in_a_row: int = 10, keep: int = 8
    ) -> None:
        if policy not in ("skip", "stop"):
            raise UserError(f"callbacks.finite.policy is {policy!r}; it must be skip or stop.")
        if in_a_row < 0 or keep < 0:
            raise UserError(f"callbacks.finite has in_a_row={in_a_row} and keep={keep}; both must be at least 0.")
        self.folder, self.policy, self.in_a_row, self.keep = Path(folder), policy, in_a_row, keep
        self.skipped, self.row, self.last_was_skipped = 0, 0, False
        self._statistics: list[_Statistic] = []
        self._batch: tuple[Batch, int] | None = None
        self._seen: list[_Seen] = []
        self._step: _Step | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kept = pl_module.state_dict().keys()
        buffers = [buffer for name, buffer in pl_module.named_buffers() if name in kept]
        self._statistics = [_Statistic(buffer, buffer.clone(), buffer.clone()) for buffer in buffers]
        self._seen, self._step = [], None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        for statistic in self._statistics:
            statistic.before_batch.copy_(statistic.now)
            if not self._seen:
                statistic.before_step.copy_(statistic.now)
        self._batch = (batch, batch_idx)

    def on_after_backward(self, trainer: Trainer, pl_module: RestorationModule) -> None:  # type: ignore[override]
        assert self._batch is not None
        assert pl_module.trained is not None
        self._seen.append(_Seen(*self._batch, pl_module.trained))
        if trainer.accumulate_grad_batches > 1:
            # The other batches of the step would be restored by statistics of this one, and be blamed for it.
            finite = pl_module.trained.loss.isfinite()
            for statistic in self._statistics:
                statistic.now.copy_(torch.where(finite, statistic.now, statistic.before_batch))

    def on_before_optimizer_step(
        self,
        trainer: Trainer,
        pl_module: RestorationModule,  # type: ignore[override]
        optimizer: Optimizer,
    ) -> None:
        self.settle()
        norm = pl_module.measure_gradients(optimizer)
        finite = torch.stack([seen.trained.loss for seen in self._seen]).sum().isfinite()
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not scaled:
            finite = finite & norm.isfinite()
        ready = None
        if not scaled and can_leave_out(optimizer) and not waits(finite):
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            for statistic in self._statistics:
                statistic.now.copy_(torch.where(finite, statistic.now, statistic.before_step))
            finite = finite.to("cpu", non_blocking=norm.is_cuda)  # elsewhere there is nothing to wait for it by
            if norm.is_cuda:
                ready = torch.cuda.Event()
                ready.record()
        elif not finite:
            for parameter in pl_module.parameters():
                parameter.grad = None  # without one, an optimizer passes over it
            for statistic in self._statistics:
                statistic.now.copy_(statistic.before_step)
        place = trainer.global_step, trainer.current_epoch
        self._step = _Step(trainer, pl_module, finite, ready, *place, norm, self._seen)
        self._seen = []
        if ready is None and waits(norm):
            self.settle()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self.policy == "skip" and trainer._logger_connector.should_update_logs:
            self.settle()
            pl_module.log("health/skipped_steps", float(self.skipped))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.settle()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.settle()
        if self.skipped:
            log.warning(
                "%d of %d steps were skipped: their loss or gradient was not finite. Batches: %s.",
                *(self.skipped, trainer.global_step, self.folder),
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = [checkpoint["state_dict"], checkpoint.get("current_model_state", checkpoint["state_dict"])]
        finite = (torch.stack([value.isfinite().all() for value in state.values()]).all() for state in states)
        if not all(map(bool, finite)):
            raise UserError(
                f"After step {trainer.global_step} weights are not finite; no checkpoint was written, and those that "
                "are there are older. Lower optimizer.lr, or set trainer.gradient_clip_val."
            )

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return {"skipped": self.skipped, "row": self.row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.row = state_dict["skipped"], state_dict["row"]

    def settle(self) -> None:
        """Read the verdict on the last step, if nobody has yet, and do what has to be done.

        Raises:
            UserError: the training has to stop.
        """
        step, self._step = self._step, None
        if step is None:
            return
        if step.ready is not None:
            step.ready.synchronize()
        self.last_was_skipped = not bool(step.finite)
        if not self.last_was_skipped:
            self.row = 0
            return
        self.skipped, self.row = self.skipped + 1, self.row + 1
        found, kept = self._look_at(step)
        resume = "resume=RUN/checkpoints/last.ckpt, which is of an earlier step"
        if self.policy == "stop":
            raise UserError(
                f"{found}; the step was not taken. {kept} Go on with a lower optimizer.lr, or past such steps with "
                f"callbacks.finite.policy=skip, and {resume}."
            )
        if self.row > self.in_a_row:
            raise UserError(
                f"{found}; it is so for {self.row} steps in a row (callbacks.finite.in_a_row={self.in_a_row}), none of "
                f"which was taken. {kept} Go on with a lower optimizer.lr and {resume}."
            )
        if kept or self.skipped & (self.skipped - 1) == 0:  # then at 16, 32, 64, ...
            log.warning("%s; the step is skipped (%d so far). %s", found, self.skipped, kept)

    def _look_at(self, step: _Step) -> tuple[str, str]:
        """Keep the batches of a step; say what was found on them, and where they are."""
        broken = [seen for seen in step.seen if not math.isfinite(seen.trained.terms["loss"].item())]
        terms = {name: value.item() for seen in broken for name, value in seen.trained.terms.items()}
        names = sorted({name for name, value in terms.items() if not math.isfinite(value)} - {"loss"})
        if broken:
            what = f"the loss is not finite ({', '.join(names) or 'the sum of its terms'})"
        elif not all(math.isfinite(seen.trained.loss.item()) for seen in step.seen):
            return f"Step {step.number}: the loss of another process is not finite", ""
        else:
            what = f"the gradient is not finite (norm {step.norm.item():g}), the loss is"
        said, files = [], []
        for seen in broken or step.seen:
            sources, suspects, file = self._keep(step, seen)
            said += _named(seen.batch, sources, suspects)
            files += [str(file)] if file else []
        found = f"Step {step.number}: {what}; samples: {', '.join(said)}"
        return found, f"Kept: {', '.join(files)}." if files else ""

    def _keep(self, step: _Step, seen: _Seen) -> tuple[list[str], list[int], Path | None]:
        """Write a batch, if there is room; the sources of its samples, those that are to blame, and its file."""
        module, batch = step.module, seen.batch
        data: Any = step.trainer.datamodule  # type: ignore[attr-defined]
        numbers = data.sample_numbers(step.number, seen.batch_idx) if hasattr(data, "sample_numbers") else None
        tasks = [module.net.tasks[task] for task in batch.task.tolist()]
        sources = tasks if numbers is None else [data.source_of(number) for number in numbers]
        suspects = find_suspects(module, batch)
        part = f"_{seen.batch_idx}" if len(step.seen) > 1 else ""
        rank = f"_rank{step.trainer.global_rank}" if step.trainer.world_size > 1 else ""
        file = self.folder / f"step_{step.number:07d}{part}{rank}.safetensors"
        if not file.exists() and len(list(self.folder.glob(f"*{rank}.safetensors"))) >= self.keep:
            return sources, suspects, None
        about = {
            "step": step.number,
            "epoch": step.epoch,
            "batch_idx": seen.batch_idx,
            "terms": {name: value.item() for name, value in seen.trained.terms.items()},
            "gradient_norm": step.norm.item(),
            "sources": sources,
            "suspects": suspects,
            "settings": dict(module.config),
        }
        labels = [f"{name} ({source}, {task})" for name, source, task in zip(batch.name, sources, tasks, strict=True)]
        try:
            save_batch(file, batch, about, numbers)
            draw_batch(batch, labels, suspects).save(file.with_suffix(".png"))
        except OSError as error:  # a full disk is no reason to stop for
            log.warning("The batch of step %d could not be kept: %s.", step.number, error)
            return sources, suspects, None
        return sources, suspects, file


def was_skipped(trainer: Trainer) -> bool:
    """Whether the last step was left out; on a GPU the host waits for it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, FiniteSteps):
            callback.settle()
            return callback.last_was_skipped
    return False


def can_leave_out(optimizer: Optimizer) -> bool:
    """Whether an optimizer, told so on the device by its ``found_inf``, leaves weights and state as they are."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def waits(scalar: Tensor) -> bool:
    """Whether its value is there as soon as the host asks: on a CPU nothing is gained by asking later."""
    return scalar.device.type == "cpu"


@torch.no_grad()
def find_suspects(module: RestorationModule, batch: Batch) -> list[int]:
    """Positions of the samples whose own loss, with the weights as they are, is not finite."""
    estimator = module.net.code_estimator
    mode = estimator.training
    estimator.eval()  # it would add the batch to its running statistics
    try:
        with module.trainer.precision_plugin.forward_context():
            restored = module.restore_batch(batch)
            alone = [
                module.loss(Restoration(*(value[place : place + 1] for value in restored)), *pair).total
                for place in range(len(batch.task))
                for pair in [(batch.clean[place : place + 1], batch.task[place : place + 1])]
            ]
    finally:
        estimator.train(mode)
    return [place for place, finite in enumerate(torch.stack(alone).isfinite().tolist()) if not finite]


def _named(batch: Batch, sources: list[str], suspects: list[int]) -> list[str]:
    """The suspects by name and source; where there are none, how many samples are of which source."""
    if suspects:
        said = [f"{batch.name[place]} of {sources[place]}" for place in suspects[:NAMED]]
        return [*said, f"{len(suspects) - NAMED} more"] if len(suspects) > NAMED else said
    return [f"{count} of {source}" for source, count in Counter(sources).most_common()]
