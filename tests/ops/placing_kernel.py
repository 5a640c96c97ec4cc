"""A kernel that tells where a program of the operator's kernels works; Triton wants it at the top of a module."""

from __future__ import annotations

import triton
import triton.language as tl

from opir_lightning.ops.operator_conv.kernels import owned_tile


@triton.jit
def place_kernel(pid_ptr, result_ptr, C, H, W):
    """First tap of the sample (9 taps a channel), and first pixel of the tile, of the program with the given number."""
    sample, channel, top, left = owned_tile(tl.load(pid_ptr), C, H, W, 3, 8, 32)
    tl.store(result_ptr, (sample * C + channel) * 9 * tl.cast(H * W, tl.int64))
    tl.store(result_ptr + 1, tl.cast(top * W + left, tl.int64))
