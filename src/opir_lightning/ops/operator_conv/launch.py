"""Launching the Triton kernels: contiguous inputs, grids, outputs. Importing this module imports triton."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from opir_lightning.ops.operator_conv import kernels
from opir_lightning.ops.operator_conv.padding import fold

WARPS = 4
# Twice the threads: with more pixels a thread holds several neighbours of bf16 taps, and its image loads drift apart.
BLOCK = 2 * 32 * WARPS


def forward(image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int) -> Tensor:
    """``operator_conv`` without gradients; the number of tap groups is given."""
    image, taps = image.contiguous(), taps.contiguous()
    B, C, H, W = image.shape
    result = torch.empty((B, len(dilations), C, H, W), dtype=image.dtype, device=image.device)
    settings = _settings(taps, dilations, groups) | _padding(padding, taps, dilations, groups)
    _launch(kernels.forward_kernel, (image, taps, result), image.shape, H * W, _channels(C), settings)
    return result


def backward(
    grad: Tensor,
    image: Tensor,
    taps: Tensor,
    dilations: Sequence[int],
    padding: str,
    groups: int,
    need_image: bool,
    need_taps: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the image and of the taps, in their dtypes; None for one that is not needed. Deterministic."""
    grad, image, taps = grad.contiguous(), image.contiguous(), taps.contiguous()
    image_grad = _image_gradient(grad, image, taps, dilations, padding, groups) if need_image else None
    taps_grad = _taps_gradient(grad, image, taps, dilations, padding, groups) if need_taps else None
    return image_grad, taps_grad


def _image_gradient(
    grad: Tensor, image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int
) -> Tensor:
    B, C, H, W = image.shape
    margin = 0 if padding == "zeros" else _radius(taps, groups) * max(dilations)
    dtype = image.dtype if margin == 0 else torch.float32
    wide = torch.empty((B, C, H + 2 * margin, W + 2 * margin), dtype=dtype, device=image.device)
    settings = _settings(taps, dilations, groups) | {"MARGIN": margin}
    pixels = wide.shape[2] * wide.shape[3]
    _launch(kernels.image_gradient_kernel, (grad, taps, wide), image.shape, pixels, _channels(C), settings)
    return fold(wide, margin, padding, image.dtype)


def _taps_gradient(
    grad: Tensor, image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int
) -> Tensor:
    _, C, H, W = image.shape
    result = torch.empty(taps.shape, dtype=taps.dtype, device=taps.device)
    settings = _settings(taps, dilations, groups) | _padding(padding, taps, dilations, groups)
    channels = C if groups == 1 else _channels(C)
    _launch(kernels.taps_gradient_kernel, (grad, image, result), image.shape, H * W, channels, settings)
    return result


def _launch(
    kernel: Any, tensors: tuple[Tensor, ...], shape: Sequence[int], pixels: int, channels: int, settings: dict[str, Any]
) -> None:
    B, C, H, W = shape
    programs = triton.cdiv(pixels, BLOCK) * B * (C // channels)
    if programs == 0:
        return
    on_cuda = tensors[0].device.type == "cuda"
    with torch.cuda.device(tensors[0].device) if on_cuda else contextlib.nullcontext():
        # Explicit: Triton 3.10 no longer fuses multiply and add by default, which doubles the instructions.
        kernel[(programs,)](
            *tensors, C, H, W, **settings, CH=channels, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=True
        )


def _settings(taps: Tensor, dilations: Sequence[int], groups: int) -> dict[str, Any]:
    K = 2 * _radius(taps, groups) + 1
    return {"K": K, "DILATIONS": tuple(dilations), "SHARED": groups == 1}


def _padding(padding: str, taps: Tensor, dilations: Sequence[int], groups: int) -> dict[str, int]:
    """How indices are mapped; a single mirroring suffices, without a division, where the margin is below the size."""
    code = {"zeros": kernels.ZEROS, "replicate": kernels.REPLICATE, "reflect": kernels.MIRROR_ONCE}[padding]
    if padding == "reflect" and _radius(taps, groups) * max(dilations) >= min(taps.shape[2:]):
        code = kernels.MIRROR
    return {"PADDING": code.value}


def _radius(taps: Tensor, groups: int) -> int:
    return math.isqrt(taps.shape[1] // groups) // 2


def _channels(C: int) -> int:
    """Channels per program: they share the address arithmetic, and more than four would run out of registers."""
    return next(n for n in (4, 3, 2, 1) if C % n == 0)
