"""Task-aware parameters introduced after the operator prediction.

The predictor is shared by all tasks. Only here does the degradation's code enter: a small set of numbers per task
rescales and shifts what was predicted for every pixel, weighted by the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opir_lightning.types import Code

SUM_SHARE = 0.1  # what a predicted change of all taps of a kernel counts, against one of a single tap


class TaskAware(nn.Module):
    r"""Numbers that belong to a task and depend on its severity: :math:`\sum_t c_t (a_t + A_t \cdot s)`.

    c is the task distribution and s the severity vector of the code; a and A start at 0.

    Args:
        tasks: number of tasks T; 1 makes the numbers common to all tasks, and the code is not read.
        severity_size: S.
        shape: of the numbers.
    """

    def __init__(self, *, tasks: int, severity_size: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tasks, *shape))
        self.severity_weight = nn.Parameter(torch.zeros(tasks, severity_size, *shape)) if tasks > 1 else None

    def numbers(self, code: Code | None) -> Tensor:
        """``(B, *shape)`` (B = 1 where the code is not read)."""
        if self.severity_weight is None or code is None:
            return self.weight.mean(0, keepdim=True)
        task, severity = code.task.to(self.weight.dtype), code.severity.to(self.weight.dtype)
        return torch.einsum("bt,t...->b...", task, self.weight) + torch.einsum(
            "bt,bs,ts...->b...", task, severity, self.severity_weight
        )


class TaskAwareAffine(TaskAware):
    """Rescale and shift channels by numbers that belong to a task and depend on its severity.

    Args:
        tasks, severity_size: see `TaskAware`.
        channels: number of channels of ``x``.
        scale: initial factor; 1 passes ``x`` on, 0 starts with nothing of it. The shift starts at 0.
    """

    def __init__(self, *, tasks: int, severity_size: int, channels: int, scale: float) -> None:
        super().__init__(tasks=tasks, severity_size=severity_size, shape=(2, channels))
        with torch.no_grad():
            self.weight[:, 0] = scale

    def coefficients(self, code: Code | None) -> tuple[Tensor, Tensor]:
        """Scale and shift, ``(B, channels)`` each (B = 1 where the code is not read)."""
        scale, shift = self.numbers(code).unbind(1)
        return scale, shift

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

    def towards_identity(self, strength: float, identity: Tensor) -> OperatorProjection:
        """The taps interpolated between the identity operator and these, the offsets between zero and these.

        Args:
            strength: 0 for the identity, 1 for this operator.
            identity: ``(N,)``, the identity operator in the place of the bias.
        """
        return OperatorProjection(self.weight * strength, torch.lerp(identity, self.bias, strength), self.mix)


class OperatorTaskParameters(nn.Module):
    r"""Turn a prediction into the operator of a task: taps, offsets, and the weights that mix the dilations.

    .. math:: \Theta = e^{\gamma} (1 + D(a x + b)), \qquad \beta = e^{\gamma} (a x + b)

    with the prediction x, the identity operator 1, and per task a and b for every channel and :math:`\gamma` for every
    colour. A zero prediction changes nothing. The taps are not normalised: their sum is the local gain that haze and
    low light need.

    The gain is a factor of its own, in logarithms, because it has far to go (at a hundredth of the light to eight)
    while the shape of a kernel has not: were it left to the taps, learning rates that reach it would shake the
    brightness of every picture. For the same reason D lessens the mean of the taps of a kernel to `SUM_SHARE`, and the
    mixing weights always sum up to 1: the gradient of a kernel's sum is the error times the brightness, and drowns
    those of its shape, the error times differences of neighbours. Without D the operators of five tasks stayed nearly
    the same all over a picture; with it they varied ten times as much after as many steps.

    The last step of the prediction is a pointwise projection of features. All of the above is constant over a picture
    and linear in what it acts on, so it is folded into that projection: what comes out is the task's operator, and
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
        self.kernel_size, self.groups, self.offset, self.dilations = kernel_size, groups, offset, dilations
        channels = self.taps + (3 if offset else 0)
        self.affine = TaskAwareAffine(
            tasks=tasks, severity_size=severity_size, channels=channels, scale=1.0 if first_stage else 0.0
        )
        self.gain = TaskAware(tasks=tasks, severity_size=severity_size, shape=(groups,))
        self.mix = TaskAware(tasks=tasks, severity_size=severity_size, shape=(dilations, 3))
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
            gain = self._gain(code)
            weights = gain[..., None] * self._damped(scale[..., None] * weight)
            biases = gain * (self._damped((scale * bias + shift)[..., None])[..., 0] + self.identity)
            mix = self.mix.numbers(code)
            mix = mix - mix.mean(1, keepdim=True) + 1 / self.dilations
            return OperatorProjection(
                weights.expand(batch, -1, -1), biases.expand(batch, -1), mix.expand(batch, -1, -1)
            )

    def _damped(self, rows: Tensor) -> Tensor:
        """``(B, channels, F)`` to the same shape: the mean over the taps of each kernel lessened to `SUM_SHARE`."""
        taps = rows[:, : self.taps].unflatten(1, (self.groups, self.kernel_size**2))
        taps = taps - (1 - SUM_SHARE) * taps.mean(2, keepdim=True)
        return torch.cat([taps.flatten(1, 2), rows[:, self.taps :]], dim=1)

    def _gain(self, code: Code | None) -> Tensor:
        """Factor of each channel, ``(B, channels)`` (B = 1 where the code is not read)."""
        gain = self.gain.numbers(code).exp()
        taps = gain.repeat_interleave(self.kernel_size**2, dim=1)
        return torch.cat([taps, gain.expand(-1, 3)], dim=1) if self.offset else taps
