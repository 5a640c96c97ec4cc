"""The registered operator in standard operations; see ``operator_conv/decomposition.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from opir_lightning.ops.operator_conv.decomposition import layers
from opir_lightning.ops.predict_and_apply.autograd import apply
from opir_lightning.ops.predict_and_apply.settings import Settings, project


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """The operator and the function that stands for it, for ``ExportedProgram.run_decompositions``."""
    return {apply._opoverload: decomposed}


def decomposed(
    image: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    mix: Tensor,
    kernel_size: int,
    groups: int,
    dilations: Sequence[int],
    padding: str,
    backend: str = "auto",
) -> Tensor:
    """``predict_and_apply`` for checked arguments, everything in float32 or wider; ``backend`` is not read.

    Returns:
        ``(B, C, H, W)`` in the dtype of ``image``, like every backend.
    """
    dtype = torch.float32
    for tensor in (image, features, weight, bias, mix):
        dtype = torch.promote_types(dtype, tensor.dtype)
    taps = Settings(kernel_size, groups, list(dilations), padding).taps
    prediction = project(features.to(dtype), weight.to(dtype), bias.to(dtype))
    parts = layers(image.to(dtype), prediction[:, :taps], dilations, padding, groups)
    mixed = [part * factor[..., None, None] for part, factor in zip(parts, mix.to(dtype).unbind(1), strict=True)]
    if prediction.shape[1] > taps:
        mixed.append(prediction[:, taps:])
    result = mixed[0]
    for part in mixed[1:]:
        result = result + part
    return result.to(image.dtype)
