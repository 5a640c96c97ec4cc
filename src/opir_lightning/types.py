"""The few types that every layer shares. Plain torch; nothing here knows of training or configuration."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from torch import Tensor


class Task(StrEnum):
    """The standard degradations; their values are the names used in configs, files and tables.

    ``NONE`` is the undamaged picture: a class of its own, so that a model can learn to leave it alone.
    A model's own list of task names decides the order of its classes, and may hold names beyond these.
    """

    NONE = "none"
    NOISE = "noise"
    RAIN = "rain"
    HAZE = "haze"
    BLUR = "blur"
    LOW_LIGHT = "low_light"


class Batch(NamedTuple):
    """Pairs of pictures as the data side hands them out.

    Attributes:
        degraded: ``(B, 3, H, W)`` float32 RGB in [0, 1].
        clean: ``(B, 3, H, W)`` float32 RGB in [0, 1].
        task: ``(B,)`` int64, index into the list of task names of the run.
        label_given: ``(B,)`` bool, whether the task-aligned code may be used for this sample in training.
        heard: ``(B,)`` float32: negative, the code is estimated from all crops of a sample; in [0, 1], from one alone,
            at this place in their order.
        name: one name per sample, for reports and pictures.
    """

    degraded: Tensor
    clean: Tensor
    task: Tensor
    label_given: Tensor
    heard: Tensor
    name: list[str]


class Code(NamedTuple):
    """What a picture suffers from, as the task-aware parameters see it.

    Attributes:
        task: ``(B, T)`` distribution over the tasks, sums to 1.
        severity: ``(B, S)`` in (-1, 1), a short learned description of how much and in which way.
        task_logits: ``(B, T)`` what the estimator said, also where a label was given.
    """

    task: Tensor
    severity: Tensor
    task_logits: Tensor


class PixelOperator(NamedTuple):
    """What one stage does at one pixel, its dilations added up to one kernel.

    Colour c of the result is ``(kernel[c] * around[c]).sum() + offset[c]``, with the S x S pixels around the pixel that
    the stage starts from.

    Attributes:
        kernel: ``(3, S, S)`` taps per colour, S = 2 * (K // 2) * largest dilation + 1; not normalised.
        offset: ``(3,)`` in image units; zeros where the model has none.
    """

    kernel: Tensor
    offset: Tensor


class Restoration(NamedTuple):
    """Everything a restoration yields.

    Attributes:
        coarse: ``(B, 3, H, W)`` result of stage 1, not clamped.
        uncertainty: ``(B, 1, H, W)`` strictly positive, in image units: the expected absolute error of ``coarse``.
        refined: ``(B, 3, H, W)`` result of stage 2 (of stage 1 where the model has one stage), not clamped.
        task_logits: ``(B, T)`` estimate of the degradation, before the softmax.
    """

    coarse: Tensor
    uncertainty: Tensor
    refined: Tensor
    task_logits: Tensor
