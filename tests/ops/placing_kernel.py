"""A kernel that tells where a program of the operator's kernels works; Triton wants it at the top of a module."""

from __future__ import annotations

import triton
import triton.language as tl

from opir_lightning.ops.operator_conv.kernels import owned_tile, plane_size


@triton.jit
def place_kernel(pid_ptr, result_ptr, C, H, W, taps_stride, side):
    """Where the program with the given number works: first tap of its sample, first pixel of its last channel, tile.

    And where the plane of tap 40 of an image of ``side`` x ``side`` pixels begins.
    """
    sample, channel, top, left = owned_tile(tl.load(pid_ptr), C, H, W, 3, 8, 32)
    tl.store(result_ptr, sample * taps_stride)
    tl.store(result_ptr + 1, (sample * C + channel + 2) * plane_size(H, W))
    tl.store(result_ptr + 2, tl.cast(top * W + left, tl.int64))
    tl.store(result_ptr + 3, 40 * plane_size(side, side))
