"""A kernel that tells where a program of the operator's kernels works; Triton wants it at the top of a module."""

from __future__ import annotations

import triton
import triton.language as tl

from opir_lightning.ops.operator_conv.kernels import owned_tile, plane_size


@triton.jit
def place_kernel(pid_ptr, result_ptr, C, H, W, taps_stride):
    """Where the program with the given number works: first tap of its sample, first pixel of its last channel, tile."""
    sample, channel, top, left = owned_tile(tl.load(pid_ptr), C, H, W, 3, 8, 32)
    tl.store(result_ptr, sample * taps_stride)
    tl.store(result_ptr + 1, (sample * C + channel + 2) * plane_size(H, W))
    tl.store(result_ptr + 2, tl.cast(top * W + left, tl.int64))
