"""Registration with torch: one operator for the value, one for the gradients: for compile, autocast and export.

Backends other than the reference are reached through here only. Saved tensors are read, never written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from opir_lightning.ops.operator_conv import shifted


def forward(image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int, backend: str) -> Tensor:
    """``operator_conv`` for checked arguments, without a gradient; ``backend`` is "shifted" or "triton"."""
    return _backend(backend).forward(image, taps, dilations, padding, groups)


@torch.library.custom_op("opir_lightning::operator_conv", mutates_args=())
def apply(image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int, backend: str) -> Tensor:
    """`forward`, registered with torch."""
    return forward(image, taps, dilations, padding, groups, backend)


@apply.register_fake
def _(image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int, backend: str) -> Tensor:
    B, C, H, W = image.shape
    return image.new_empty((B, len(dilations), C, H, W))


@torch.library.custom_op("opir_lightning::operator_conv_backward", mutates_args=())
def apply_backward(
    grad: Tensor,
    image: Tensor,
    taps: Tensor,
    dilations: Sequence[int],
    padding: str,
    groups: int,
    backend: str,
    need_image: bool,
    need_taps: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the image and of the taps. One that is not needed is not computed and comes back without elements.

    It has no derivative of its own: a second derivative through it is refused by autograd.
    """
    image_grad, taps_grad = _backend(backend).backward(
        grad, image, taps, dilations, padding, groups, need_image, need_taps
    )
    return image.new_empty(0) if image_grad is None else image_grad, taps.new_empty(
        0
    ) if taps_grad is None else taps_grad


@apply_backward.register_fake
def _(
    grad: Tensor,
    image: Tensor,
    taps: Tensor,
    dilations: Sequence[int],
    padding: str,
    groups: int,
    backend: str,
    need_image: bool,
    need_taps: bool,
) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape if need_image else (0,)), taps.new_empty(taps.shape if need_taps else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, taps, *ctx.settings = inputs
    ctx.save_for_backward(image, taps)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    image, taps = ctx.saved_tensors
    need_image, need_taps = ctx.needs_input_grad[:2]
    image_grad, taps_grad = apply_backward(grad, image, taps, *ctx.settings, need_image, need_taps)
    return image_grad if need_image else None, taps_grad if need_taps else None, None, None, None, None


apply.register_autograd(_gradients, setup_context=_save)


def _backend(name: str) -> ModuleType:
    if name == "shifted":
        return shifted
    from opir_lightning.ops.operator_conv import launch  # imports triton, which not every machine has

    return launch
