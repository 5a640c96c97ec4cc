"""Task-aware parameters introduced after the operator prediction.

The predictor is shared by all tasks. Only here does the degradation's code enter: a small set of numbers per task
rescales and shifts what was predicted for every pixel, weighted by the code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opir_lightning.types import Code


class TaskAwareAffine(nn.Module):
    r"""Rescale and shift channels by numbers that belong to a task and depend on its severity.

    .. math:: y_k = x_k \cdot \sum_t c_t (a_{tk} + A_{tk} \cdot s) + \sum_t c_t (b_{tk} + B_{tk} \cdot s)

    with the task distribution :math:`c` and the severity vector :math:`s` of the code. Linear in ``x`` with
    coefficients that are constant over the picture, so it can be folded into the projection before it.

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
        """Scale and shift, ``(B, channels, 1, 1)`` each (B = 1 where the code is not read)."""
        if self.severity_weight is None or code is None:
            combined = self.weight.mean(0, keepdim=True)
        else:
            combined = torch.einsum("bt,tak->bak", code.task, self.weight)
            combined = combined + torch.einsum("bt,bs,tsak->bak", code.task, code.severity, self.severity_weight)
        return combined[:, 0, :, None, None], combined[:, 1, :, None, None]

    def forward(self, x: Tensor, code: Code | None) -> Tensor:
        scale, shift = self.coefficients(code)
        return x * scale + shift


class OperatorTaskParameters(nn.Module):
    """Turn a raw prediction into the operator of a task: taps, offsets, and the weights that mix the dilations.

    The taps are the identity operator plus the rescaled and shifted prediction, so a zero prediction changes nothing.
    They are not normalised: their sum is the local gain that haze and low light need.

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
        identity = torch.zeros(groups, kernel_size**2)
        identity[:, kernel_size**2 // 2] = 1
        self.register_buffer("identity", identity.view(1, -1, 1, 1), persistent=False)
        self.identity: Tensor

    @property
    def channels(self) -> int:
        """Channels that the projection has to deliver."""
        return self.affine.weight.shape[-1]

    def forward(self, raw: Tensor, code: Code | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """The operator of every pixel.

        Args:
            raw: ``(B, channels, H, W)``, taps first, then the three offsets if there are any.
            code: what the picture suffers from.

        Returns:
            taps ``(B, G·K², H, W)``, offsets ``(B, 3, H, W)`` or None, mixing weights ``(B or 1, D, 3)``.
        """
        operator = self.affine(raw, code)
        taps = operator[:, : self.taps] + self.identity
        offsets = operator[:, self.taps :] if self.offset else None
        if self.mix.shape[0] == 1 or code is None:
            mix = self.mix.mean(0, keepdim=True)
        else:
            mix = torch.einsum("bt,tdc->bdc", code.task, self.mix)
        return taps, offsets, mix
