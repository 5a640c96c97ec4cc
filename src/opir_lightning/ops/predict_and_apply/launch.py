"""Launching the fused Triton kernels. Importing this module imports triton."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from opir_lightning.ops.operator_conv import launch as operator_launch
from opir_lightning.ops.operator_conv.launch import Tile, padding_code
from opir_lightning.ops.predict_and_apply import kernels, strips
from opir_lightning.ops.predict_and_apply.settings import Settings, project
from opir_lightning.ops.predict_and_apply.strips import Gradients

# One pixel a thread: for sm_90, 71 to 128 registers for the default operator and for K = 5, 32 features (bfloat16).
TILE = Tile(8, 32, warps=8)
# All taps are unrolled: rows of the prediction times dilations. Beyond, one compilation takes minutes.
MOST_UNROLLED = 320
MOST_FEATURES = 64
MOST_CHANNELS = 4


def forward(image: Tensor, features: Tensor, weight: Tensor, bias: Tensor, mix: Tensor, settings: Settings) -> Tensor:
    """As ``predict_and_apply``, without gradients."""
    image, features, weight = image.contiguous(), features.contiguous(), _as_factor(weight, features)
    result = torch.empty_like(image)
    pointers = (image, features, weight, bias.contiguous(), mix.contiguous(), result)
    _launch(kernels.forward_kernel, pointers, image, weight, settings)
    return result


def backward(
    grad: Tensor,
    image: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    mix: Tensor,
    settings: Settings,
    needed: Sequence[bool],
) -> Gradients:
    """Gradients of image, features, weight, bias and mix, in their dtypes. Deterministic."""
    if features.dtype == torch.float32:
        # Products of float32 do not use the matrix units, and their operands do not fit into the registers.
        return strips.backward(grad, image, features, weight, bias, mix, settings, needed)
    need_image, need_features, need_weight, need_bias, need_mix = needed
    grad, image, features, mix_ = grad.contiguous(), image.contiguous(), features.contiguous(), mix.contiguous()
    factor, bias_ = _as_factor(weight, features), bias.contiguous()
    result = Gradients(None, None, None, None, None)
    if need_image:
        result = result._replace(image=_image_gradient(grad, image, features, factor, bias, mix, settings))
    if need_features:
        features_grad = torch.empty_like(features)
        _launch(kernels.features_gradient_kernel, (grad, image, factor, mix_, features_grad), image, factor, settings)
        result = result._replace(features=features_grad)
    parts = (len(image), _tiles(image))
    if need_weight or need_bias:
        weight_parts = image.new_empty((*parts, *weight.shape[1:]), dtype=torch.float32)
        bias_parts = image.new_empty((*parts, *bias.shape[1:]), dtype=torch.float32)
        weight_pointers = (grad, image, features, mix_, weight_parts, bias_parts)
        _launch(kernels.weight_gradient_kernel, weight_pointers, image, factor, settings)
        result = result._replace(weight=weight_parts.sum(1).to(weight.dtype), bias=bias_parts.sum(1).to(bias.dtype))
    if need_mix:
        mix_parts = image.new_empty((*parts, *mix.shape[1:]), dtype=torch.float32)
        mix_pointers = (grad, image, features, factor, bias_, mix_parts)
        _launch(kernels.mix_gradient_kernel, mix_pointers, image, factor, settings)
        result = result._replace(mix=mix_parts.sum(1).to(mix.dtype))
    return result


def why_not(image: Tensor, features: Tensor, weight: Tensor, settings: Settings) -> str | None:
    """Why the fused kernels do not take this input, which the unfused ones would; None if they do."""
    unrolled = weight.shape[1] * len(settings.dilations)
    if unrolled > MOST_UNROLLED:
        return f"{weight.shape[1]} rows at {len(settings.dilations)} dilations are more than the kernels unroll"
    if features.shape[1] > MOST_FEATURES:
        return f"{features.shape[1]} features are more than the {MOST_FEATURES} that fit into the registers"
    if image.shape[1] > MOST_CHANNELS:
        return f"{image.shape[1]} channels are more than the {MOST_CHANNELS} that fit into the registers"
    return None


def _image_gradient(
    grad: Tensor, image: Tensor, features: Tensor, weight: Tensor, bias: Tensor, mix: Tensor, settings: Settings
) -> Tensor:
    """A pixel's gradient needs its neighbours' taps: they are predicted and stored, for one sample at a time."""
    result = torch.empty_like(image)
    for b in range(len(image)):
        sample = slice(b, b + 1)
        prediction = project(features[sample].float(), weight[sample].float(), bias[sample].float())
        taps = prediction[:, : settings.taps]
        layers = grad[sample, None] * mix[sample, ..., None, None]
        result[sample] = operator_launch.image_gradient(
            layers, image[sample], taps, settings.dilations, settings.padding, settings.groups
        )
    return result


def _as_factor(weight: Tensor, features: Tensor) -> Tensor:
    """The weights as the products take them: in the dtype of the features."""
    return weight.to(features.dtype).contiguous()


def _tiles(image: Tensor) -> int:
    return triton.cdiv(image.shape[2], TILE.ROWS) * triton.cdiv(image.shape[3], TILE.COLUMNS)


def _launch(kernel: Any, tensors: tuple[Tensor, ...], image: Tensor, weight: Tensor, settings: Settings) -> None:
    B, C, H, W = image.shape
    programs = B * _tiles(image)
    if programs == 0:
        return
    _, N, F = weight.shape
    K, dilations = settings.kernel_size, tuple(settings.dilations)
    constants = {
        "C": C,
        "N": N,
        "F": F,
        "FP": max(16, triton.next_power_of_2(F)),
        "K": K,
        "DILATIONS": dilations,
        "PADDING": padding_code(settings.padding, K // 2 * max(dilations), H, W),
        "SHARED": settings.groups == 1,
        "ROWS": TILE.ROWS,
        "COLUMNS": TILE.COLUMNS,
    }
    on_cuda = image.device.type == "cuda"
    with torch.cuda.device(image.device) if on_cuda else contextlib.nullcontext():
        kernel[(programs,)](*tensors, H, W, **constants, num_warps=TILE.warps, num_stages=1, enable_fp_fusion=True)
