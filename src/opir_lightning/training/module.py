"""The LightningModule: wiring only; net, loss, optimizer and schedule come in ready-made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from opir_lightning.errors import UserError
from opir_lightning.losses import LossTerms, RestorationLoss
from opir_lightning.metrics import published_crop, score
from opir_lightning.models import OPIR
from opir_lightning.types import Batch, Code, Restoration

TIME_GRACE = 0.1
STAGES = ("input", "coarse", "refined")


class Validated(NamedTuple):
    """What the validation of one batch found, for the callbacks: nothing has to be computed twice.

    Attributes:
        degraded, clean: ``(B, 3, H, W)``, cropped as the profile ``published`` demands.
        code: that ``degraded`` was restored with.
        restored: both stages and the map.
        psnr: ``(3, B)`` in dB, of the input, stage 1 and stage 2.
    """

    degraded: Tensor
    clean: Tensor
    code: Code
    restored: Restoration
    psnr: Tensor


class Trained(NamedTuple):
    """What the last training batch found, for the callbacks; detached, on the device.

    Attributes:
        loss: scalar, the mean over all processes: each of them knows the same.
        terms: scalars by name, of this process's own batch; ``loss`` is what they add up to.
    """

    loss: Tensor
    terms: dict[str, Tensor]


class RestorationModule(LightningModule):
    """Train a restoration network on batches of pairs, validate it on whole pictures.

    Args:
        net: the network.
        loss: named terms from a restoration, the clean pictures and the labels.
        optimizer: makes the optimizer from parameter groups.
        schedule: factor of the learning rate at a progress in [0, 1].
        task_lr_factor: the task parameters' learning rate, in units of the others'.
        task_code: ``blind``: the code is estimated (in training, the label replaces it where the data side says so);
            ``label``: it is always given.
        val_sets: names of the validation sets, in the order of the data side's loaders.
        config: of the run, plain values; it travels in the checkpoints.
    """

    def __init__(
        self,
        *,
        net: OPIR,
        loss: RestorationLoss,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        schedule: Callable[[float], float],
        task_lr_factor: float,
        task_code: Literal["blind", "label"],
        val_sets: Sequence[str],
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.make_optimizer, self.schedule = optimizer, schedule
        self.task_code, self.task_lr_factor, self.config = task_code, task_lr_factor, config
        self.val_sets = list(val_sets)
        self.trained: Trained | None = None
        self._gradient_norm: Tensor | None = None  # of the step under way, where somebody has measured it
        self._pictures: list[tuple[Tensor, Tensor]] = []  # of the validation under way: task and PSNR of every picture
        self.val_scores = nn.ModuleDict(
            {f"{stage}/{number}": MeanMetric() for stage in STAGES for number in range(len(self.val_sets))}
        )

    def on_train_epoch_start(self) -> None:
        # After a resume at the end of an epoch Lightning counts one step too many, and would log under its number.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def restore_batch(self, batch: Batch) -> Restoration:
        """The network's result for a training batch, told the tasks that it may be told."""
        given = batch.label_given if self.task_code == "blind" else torch.ones_like(batch.label_given)
        code = self.net.estimate_code(batch.degraded, torch.where(given, batch.task, -1), batch.heard)
        restored: Restoration = self.net(batch.degraded, code)
        return restored

    def batch_loss(self, batch: Batch) -> LossTerms:
        """Loss of a training batch; among the terms the ``loss`` itself and ``task_accuracy``, the share named rightly.

        A function of the batch's tensors and the weights alone, without a branch on their values: it can be recorded.
        """
        restored = self.restore_batch(batch)
        total, terms = self.loss(restored, batch.clean, batch.task)
        named = restored.task_logits.argmax(1) == batch.task
        return LossTerms(total, {"loss": total.detach(), **terms, "task_accuracy": named.float().mean()})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        total, terms = self.batch_loss(batch)
        values = self._over_processes({f"train/{name}": value for name, value in terms.items()})
        self.trained = Trained(values["train/loss"], {n: v for n, v in terms.items() if n != "task_accuracy"})
        self.log("train/loss", values.pop("train/loss"), prog_bar=True, batch_size=len(batch.task))
        self.log_dict(values, batch_size=len(batch.task))
        return total

    def _over_processes(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means of scalars over all processes, in one exchange: each of them sees only its part of a batch."""
        if self.trainer.world_size == 1:
            return values
        together = torch.stack([value.float() for value in values.values()])
        means = self.trainer.strategy.reduce(together, reduce_op="mean")
        return dict(zip(values, means.unbind(), strict=True))

    def on_validation_epoch_start(self) -> None:
        self._pictures = []

    def validation_step(  # type: ignore[override]
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> Validated:
        degraded, clean = published_crop(batch.degraded), published_crop(batch.clean)
        code = self.net.estimate_code(degraded, batch.task if self.task_code == "label" else None)
        restored = self.net(degraded, code)
        stages = []
        for stage, picture in (("input", degraded), ("coarse", restored.coarse), ("refined", restored.refined)):
            stages.append(score(picture, clean, profile="published")["psnr"])
            self._meter(stage, dataloader_idx).update(stages[-1])
        psnr = torch.stack(stages)
        self._pictures.append((batch.task, psnr))
        return Validated(degraded, clean, code, restored, psnr)

    def on_validation_epoch_end(self) -> None:
        means: dict[str, list[Tensor]] = {}
        for stage in STAGES:
            for number, name in enumerate(self.val_sets):
                meter = self._meter(stage, number)
                value = meter.compute()
                meter.reset()
                means.setdefault(stage, []).append(value)
                self.log(f"val/{name}/psnr" + ("" if stage == "refined" else f"_{stage}"), value, sync_dist=True)
        # An undamaged picture scores infinity as its own input: the mean would tell nothing.
        damaged = torch.isfinite(torch.stack(means["input"]))
        finite = {stage: torch.stack(values)[damaged] for stage, values in means.items()}
        self.log("val/psnr", finite["refined"].mean(), prog_bar=True, sync_dist=True)
        self.log("val/psnr_coarse", finite["coarse"].mean(), sync_dist=True)
        self.log("val/psnr_input", finite["input"].mean(), sync_dist=True)
        self._log_tasks()

    def _log_tasks(self) -> None:
        """PSNR, and gain over the input, by task: the mean over the pictures of all sets of a task."""
        if not self._pictures:
            return
        tasks = torch.cat([task for task, _ in self._pictures]).tolist()
        scores = torch.cat([psnr for _, psnr in self._pictures], 1).cpu()
        self._pictures = []
        for number, name in enumerate(self.net.tasks):
            found = scores[:, [index for index, task in enumerate(tasks) if task == number]]
            if found.shape[1]:
                self.log(f"val_task/{name}/psnr", found[2].mean(), sync_dist=True)
            found = found[:, torch.isfinite(found[0])]
            if found.shape[1]:
                self.log(f"val_task/{name}/gain", (found[2] - found[0]).mean(), sync_dist=True)

    def _meter(self, stage: str, number: int) -> MeanMetric:
        meter = self.val_scores[f"{stage}/{number}"]
        assert isinstance(meter, MeanMetric)
        return meter

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.make_optimizer(parameter_groups(self.net, self.task_lr_factor))
        except (TypeError, ValueError) as error:  # by which torch refuses a setting
            raise UserError(f"The optimizer cannot be made as `optimizer` has it: {error}.") from error
        scheduler = LambdaLR(optimizer, [self._rate(group["lr_factor"]) for group in optimizer.param_groups])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def measure_gradients(self, optimizer: Optimizer) -> Tensor:
        """L2 norm, a scalar, of the gradients of the step under way, before they are clipped.

        Whoever asks first measures; the others, and the clipping, take what was found.
        """
        if self._gradient_norm is None:
            gradients = [parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None]
            self._gradient_norm = nn.utils.get_total_norm(gradients)
        return self._gradient_norm

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm") and not scaled:
            # Lightning would measure the norm once more; and it refuses to clip for an optimizer in one pass under any
            # mixed precision, because it might unscale the gradients itself; in bfloat16 they are not scaled.
            norm = self.measure_gradients(optimizer)
            nn.utils.clip_grads_with_norm_(_parameters(optimizer), gradient_clip_val, norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self._gradient_norm = None

    def _rate(self, factor: float) -> Callable[[int], float]:
        return lambda step: factor * self.schedule(self.progress(step))

    def progress(self, step: int) -> float:
        """How much of the training is done, by steps or by its time limit, whichever is nearer to its end.

        With a time limit the schedule reaches its end on a slow machine too, instead of being cut off half-way. A
        machine that is fast enough by a tenth never feels the limit, so that its runs can be repeated exactly.
        """
        if self._trainer is None:
            return 0.0
        shares = [step / self.trainer.estimated_stepping_batches]
        for callback in getattr(self.trainer, "callbacks", []):
            if isinstance(callback, Timer) and callback.time_remaining() is not None:
                elapsed, remaining = callback.time_elapsed(), callback.time_remaining()
                share = elapsed / max(elapsed + (remaining or 0.0), 1e-9)
                shares.append((share - TIME_GRACE) / (1 - TIME_GRACE))
        return max(shares)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Plain data: the file loads with torch's safe default, and the net can be rebuilt from it alone.
        checkpoint["config"] = dict(self.config)
        checkpoint["model_settings"] = self.net.settings


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def parameter_groups(net: nn.Module, task_lr_factor: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels only; the task parameters without it and with a learning rate of their own.

    The task parameters are distances from the identity operator. Decaying their scales would pull them to no operator
    at all; and they have far to go: at a hundredth of the light the taps have to sum up to eight.
    """
    groups: dict[str, list[nn.Parameter]] = {"kernel": [], "plain": [], "task": []}
    for name, parameter in net.named_parameters():
        if name.startswith("task_parameters"):
            groups["task"].append(parameter)
        else:
            is_kernel = name.endswith(".weight") and parameter.ndim in (2, 4)
            groups["kernel" if is_kernel else "plain"].append(parameter)
    return [
        {"params": groups["kernel"], "lr_factor": 1.0},
        {"params": groups["plain"], "lr_factor": 1.0, "weight_decay": 0.0},
        {"params": groups["task"], "lr_factor": task_lr_factor, "weight_decay": 0.0},
    ]
