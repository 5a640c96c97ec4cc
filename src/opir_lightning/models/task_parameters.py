"""Task-aware parameters introduced after the operator prediction.

The predictor is shared by all tasks. Only here does the degradation's code enter: a small set of numbers per task
rescales and shifts what was predicted for every pixel, weighted by the code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from opir_lightning.types import Code


class TaskAwareAffine(nn.Module):
    r"""Rescale and shift channels by numbers that belong to a task and depend on its severity.

    .. math:: y_k = x_k \cdot \sum_t c_t (a_{tk} + A_{tk} \cdot s) + \sum_t c_t (b_{tk} + B_{tk} \cdot s)

    with the task distribution :math:`c` and the severity vector :math:`s` of the code.

    Args:
        tasks: number of tasks T; 1 makes the numbers common to all tasks, and the code is not read.
        severity_size: S.
        channels: number of channels of ``x``.
        scale: initial value of a; 1 passes ``x`` on, 0 starts with nothing of it. b, A and B start at 0.
    """

    def __init__(self, *, tasks: int, severity_size: int, channels: int, scale: float) -> None:
        super().__init__()
        self.tasks = tasks
        self.weight = nn.Parameter(torch.zeros(tasks, 2, channels))
        with torch.no_grad():
            self.weight[:, 0] = scale
        self.severity_weight = nn.Parameter(torch.zeros(tasks, severity_size, 2, channels)) if tasks > 1 else None

    def coefficients(self, code: Code | None) -> tuple[Tensor, Tensor]:
        """Scale and shift, ``(B, channels)`` each (B = 1 where the code is not read)."""
        if self.severity_weight is None or code is None:
            combined = self.weight.mean(0, keepdim=True)
        else:
            task, severity = code.task.to(self.weight.dtype), code.severity.to(self.weight.dtype)
            combined = torch.einsum("bt,tak->bak", task, self.weight)
            combined = combined + torch.einsum("bt,bs,tsak->bak", task, severity, self.severity_weight)
        return combined[:, 0], combined[:, 1]

    def forward(self, x: Tensor, code: Code | None) -> Tensor:
        """``(B, channels, H, W)`` to the same shape."""
        scale, shift = self.coefficients(code)
        return x * scale[..., None, None] + shift[..., None, None]


class OperatorProjection(NamedTuple):
    """What makes the operator of every pixel of a picture out of the pixel's features.

    Attributes:
        weight: ``(B, N, F)``, rows for the G·K² taps, then for the three offsets if there are any.
        bias: ``(B, N)``.
        mix: ``(B, D, 3)``, weights of the dilations per colour.
    """

    weight: Tensor
    bias: Tensor
    mix: Tensor


class OperatorTaskParameters(nn.Module):
    """Turn a prediction into the operator of a task: taps, offsets, and the weights that mix the dilations.

    The taps are the identity operator plus the rescaled and shifted prediction, so a zero prediction changes nothing.
    They are not normalised: their sum is the local gain that haze and low light need.

    The last step of the prediction is a pointwise projection of features. Scale and shift are constant over a picture
    and linear in what they act on, so they are folded into that projection: what comes out is the task's operator, and
    the task-blind prediction exists nowhere.

    Args:
        tasks: number of tasks T, or 1 for numbers common to all ("task parameters off").
        severity_size: S.
        kernel_size: K, odd.
        groups: G, 3 for one kernel per colour, 1 for one that the colours share.
        dilations: number of dilations D.
        offset: whether there are offsets.
        first_stage: later stages start at the identity operator, so that at first they do no harm.
    """

    def __init__(
        self,
        *,
        tasks: int,
        severity_size: int,
        kernel_size: int,
        groups: int,
        dilations: int,
        offset: bool,
        first_stage: bool,
    ) -> None:
        super().__init__()
        self.taps = groups * kernel_size**2
        self.offset, self.dilations = offset, dilations
        channels = self.taps + (3 if offset else 0)
        self.affine = TaskAwareAffine(
            tasks=tasks, severity_size=severity_size, channels=channels, scale=1.0 if first_stage else 0.0
        )
        self.mix = nn.Parameter(torch.full((tasks, dilations, 3), 1 / dilations))
        identity = torch.zeros(channels)
        identity[kernel_size**2 // 2 : self.taps : kernel_size**2] = 1
        self.register_buffer("identity", identity, persistent=False)
        self.identity: Tensor

    @property
    def channels(self) -> int:
        """Channels that the projection has to deliver."""
        return self.affine.weight.shape[-1]

    def forward(self, weight: Tensor, bias: Tensor, code: Code | None, *, batch: int) -> OperatorProjection:
        """The projection that the task makes of the task-blind one.

        Args:
            weight: ``(channels, F)`` of the projection: taps first, then the three offsets if there are any.
            bias: ``(channels,)`` of the projection.
            code: what the pictures suffer from.
            batch: B, the number of pictures.
        """
        # The bias holds the identity operator: bfloat16 there would be half a grey level of every pixel.
        with torch.autocast(weight.device.type, enabled=False):
            scale, shift = self.affine.coefficients(code)
            weights = (scale[..., None] * weight).expand(batch, -1, -1)
            biases = (scale * bias + shift + self.identity).expand(batch, -1)
            if self.mix.shape[0] == 1 or code is None:
                mix = self.mix.mean(0, keepdim=True)
            else:
                mix = torch.einsum("bt,tdc->bdc", code.task.to(self.mix.dtype), self.mix)
            return OperatorProjection(weights, biases, mix.expand(batch, -1, -1))
