"""Registration with torch: one operator for the value, one for the gradients: for compile, autocast and export."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from opir_lightning.ops.predict_and_apply import strips
from opir_lightning.ops.predict_and_apply.settings import Settings


def forward(
    image: Tensor, features: Tensor, weight: Tensor, bias: Tensor, mix: Tensor, settings: Settings, backend: str
) -> Tensor:
    """``predict_and_apply`` for checked arguments, without a gradient; ``backend`` is "shifted" or "triton"."""
    return _backend(backend).forward(image, features, weight, bias, mix, settings)


@torch.library.custom_op("opir_lightning::predict_and_apply", mutates_args=())
def apply(
    image: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    mix: Tensor,
    kernel_size: int,
    groups: int,
    dilations: Sequence[int],
    padding: str,
    backend: str,
) -> Tensor:
    """`forward`, registered with torch."""
    settings = Settings(kernel_size, groups, list(dilations), padding)
    return forward(image, features, weight, bias, mix, settings, backend)


@apply.register_fake
def _(image: Tensor, *rest: Any) -> Tensor:
    return image.new_empty(image.shape)


@torch.library.custom_op("opir_lightning::predict_and_apply_backward", mutates_args=())
def apply_backward(
    grad: Tensor,
    image: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    mix: Tensor,
    kernel_size: int,
    groups: int,
    dilations: Sequence[int],
    padding: str,
    backend: str,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five tensors. One that is not needed is not computed and comes back without elements.

    It has no derivative of its own: a second derivative through it is refused by autograd.
    """
    settings = Settings(kernel_size, groups, list(dilations), padding)
    tensors = (image, features, weight, bias, mix)
    found = _backend(backend).backward(grad, *tensors, settings, needed)
    image_grad, features_grad, weight_grad, bias_grad, mix_grad = (
        like.new_empty(0) if value is None or not need else value
        for value, like, need in zip(found, tensors, needed, strict=True)
    )
    return image_grad, features_grad, weight_grad, bias_grad, mix_grad


@apply_backward.register_fake
def _(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    needed = arguments[-1]
    return tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip(arguments[:5], needed, strict=True))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:5])
    found = apply_backward(grad, *ctx.saved_tensors, *ctx.settings, needed)
    return *(value if need else None for value, need in zip(found, needed, strict=True)), *[None] * 5


apply.register_autograd(_gradients, setup_context=_save)


def _backend(name: str) -> ModuleType:
    if name == "shifted":
        return strips
    from opir_lightning.ops.predict_and_apply import launch  # imports triton, which not every machine has

    return launch
