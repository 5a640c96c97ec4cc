"""Launching the Triton kernels: contiguous inputs, grids, outputs. Importing this module imports triton."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from opir_lightning.ops.operator_conv import kernels
from opir_lightning.ops.operator_conv.padding import fold


class Tile(NamedTuple):
    """What one program works on: a tile of pixels, and the warps that share it."""

    ROWS: int
    COLUMNS: int
    warps: int


# Counted in the machine code for sm_90 (default operator, bfloat16 taps): with two pixels a thread, the forward takes
# 656 instructions a pixel and 96 registers, 832 with one pixel; the gradient of the taps 660 and 72. The gradient of
# the image takes as many instructions with one pixel a thread as with two, and half of the 128 registers.
TILE = Tile(8, 32, warps=4)
IMAGE_GRADIENT_TILE = Tile(8, 32, warps=8)
# Up to here the loops over taps are unrolled: 5 to 25 % fewer instructions. Beyond, compilation takes minutes.
MOST_UNROLLED = 50  # K * K * D


def forward(image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int) -> Tensor:
    """``operator_conv`` without gradients; the number of tap groups is given."""
    image, taps = image.contiguous(), _samples_in_one_piece(taps)
    B, C, H, W = image.shape
    result = torch.empty((B, len(dilations), C, H, W), dtype=image.dtype, device=image.device)
    settings = _settings(taps, dilations, groups) | _unroll(taps, dilations, groups)
    settings |= {"PADDING": padding_code(padding, _reach(taps, dilations, groups), H, W)}
    sizes = (*image.shape, taps.stride(0))
    launch(kernels.forward_kernel, (image, taps, result), sizes, (H, W), _channels(C), TILE, settings)
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
    grad, image, taps = grad.contiguous(), image.contiguous(), _samples_in_one_piece(taps)
    image_grad = image_gradient(grad, image, taps, dilations, padding, groups) if need_image else None
    taps_grad = _taps_gradient(grad, image, taps, dilations, padding, groups) if need_taps else None
    return image_grad, taps_grad


def image_gradient(
    grad: Tensor, image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int
) -> Tensor:
    """The gradient of the image, in its dtype; all tensors contiguous, the taps at least sample by sample."""
    B, C, H, W = image.shape
    reach = _reach(taps, dilations, groups)
    # Reflection of a picture that is larger than the reach is folded by the kernel itself; what is rare, by the caller.
    folds = padding == "reflect" and reach < min(H, W)
    margin = 0 if padding == "zeros" or folds else reach
    dtype = image.dtype if margin == 0 else torch.float32
    wide = torch.empty((B, C, H + 2 * margin, W + 2 * margin), dtype=dtype, device=image.device)
    settings = _settings(taps, dilations, groups) | {"REACH": reach, "MARGIN": margin, "FOLD": folds}
    sizes = (*image.shape, taps.stride(0))
    launch(
        kernels.image_gradient_kernel,
        (grad, taps, wide),
        sizes,
        (wide.shape[2], wide.shape[3]),
        _channels(C),
        IMAGE_GRADIENT_TILE,
        settings,
    )
    return wide if margin == 0 else fold(wide, margin, padding, image.dtype)


def _taps_gradient(
    grad: Tensor, image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int
) -> Tensor:
    _, C, H, W = image.shape
    result = torch.empty(taps.shape, dtype=taps.dtype, device=taps.device)
    settings = _settings(taps, dilations, groups) | _unroll(taps, dilations, groups)
    settings |= {"PADDING": padding_code(padding, _reach(taps, dilations, groups), H, W)}
    channels = C if groups == 1 else _channels(C)
    sizes = (*image.shape, result.stride(0))
    launch(kernels.taps_gradient_kernel, (grad, image, result), sizes, (H, W), channels, TILE, settings)
    return result


def launch(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    sizes: tuple[int, int, int, int, int],
    area: tuple[int, int],
    channels: int,
    tile: Tile,
    settings: dict[str, Any],
) -> None:
    """Run a kernel of the form ``kernel(*tensors, C, H, W, taps_stride, **settings)``.

    Args:
        kernel: owns tiles of ``channels`` channels.
        tensors: its pointers.
        sizes: B, C, H, W, and the distance between the taps of two samples.
        area: height and width of what the tiles cover.
        channels: per program.
        tile: of a program.
        settings: the kernel's constants.
    """
    B, C = sizes[:2]
    programs = triton.cdiv(area[0], tile.ROWS) * triton.cdiv(area[1], tile.COLUMNS) * B * (C // channels)
    if programs == 0:
        return
    settings = {**settings, "CH": channels, "ROWS": tile.ROWS, "COLUMNS": tile.COLUMNS}
    on_cuda = tensors[0].device.type == "cuda"
    with torch.cuda.device(tensors[0].device) if on_cuda else contextlib.nullcontext():
        # Explicit: Triton 3.10 no longer fuses multiply and add by default, which doubles the instructions.
        kernel[(programs,)](*tensors, *sizes[1:], **settings, num_warps=tile.warps, enable_fp_fusion=True)


def padding_code(padding: str, reach: int, H: int, W: int) -> int:
    """How indices are mapped; a single mirroring suffices, without a division, where the reach is below the size."""
    code = {"zeros": kernels.ZEROS, "replicate": kernels.REPLICATE, "reflect": kernels.MIRROR_ONCE}[padding]
    return (kernels.MIRROR if padding == "reflect" and reach >= min(H, W) else code).value


def _samples_in_one_piece(taps: Tensor) -> Tensor:
    """Taps whose samples are contiguous each, as those cut out of a wider prediction are: no copy then."""
    _, _, H, W = taps.shape
    return taps if taps.stride()[1:] == (H * W, W, 1) else taps.contiguous()


def _settings(taps: Tensor, dilations: Sequence[int], groups: int) -> dict[str, Any]:
    return {"K": _size(taps, groups), "DILATIONS": tuple(dilations), "SHARED": groups == 1}


def _unroll(taps: Tensor, dilations: Sequence[int], groups: int) -> dict[str, bool]:
    return {"UNROLL": _size(taps, groups) ** 2 * len(dilations) <= MOST_UNROLLED}


def _reach(taps: Tensor, dilations: Sequence[int], groups: int) -> int:
    return _size(taps, groups) // 2 * max(dilations)


def _size(taps: Tensor, groups: int) -> int:
    return math.isqrt(taps.shape[1] // groups)


def _channels(C: int) -> int:
    """Channels per program: they share the address arithmetic, and more than four would run out of registers."""
    return next(n for n in (4, 3, 2, 1) if C % n == 0)
