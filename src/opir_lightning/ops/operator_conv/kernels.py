"""The operator convolution in Triton: value, gradient of the image, gradient of the taps. Kernels only.

One program owns BLOCK neighbouring pixels of CH channels of one sample, as one-dimensional arrays: a [channels, pixels]
tile would make Triton move it through shared memory at every tap. The loops over taps stay loops: with four dilations
and three channels that is 80 registers and no spill on sm_90 for any K; with one of them unrolled it was 80 to 255 and
some spills. Base offsets are 64-bit (27 taps of 80 megapixels pass 2^31), offsets within one plane 32-bit. Every load
and store is masked to the pixels that exist. All sums are float32.
"""

# Tuples grow by concatenation here, the form that Triton compiles: neither linter nor type checker knows its rules.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated, misc"
from __future__ import annotations

import triton
import triton.language as tl

# What lies outside the image. MIRROR_ONCE is reflect for images larger than the margin, MIRROR for any size.
ZEROS = tl.constexpr(0)
REPLICATE = tl.constexpr(1)
MIRROR_ONCE = tl.constexpr(2)
MIRROR = tl.constexpr(3)


@triton.jit
def _inside(index, size, PADDING: tl.constexpr):
    """The place along one axis that ``index`` reads; for ZEROS as it is, to be masked."""
    if PADDING == REPLICATE:
        index = tl.minimum(tl.maximum(index, 0), size - 1)
    if PADDING == MIRROR_ONCE:
        index = tl.abs(index)
        index = tl.minimum(index, 2 * (size - 1) - index)
    if PADDING == MIRROR:
        period = tl.maximum(2 * (size - 1), 1)
        index = tl.abs(index) % period
        index = tl.minimum(index, tl.abs(2 * (size - 1) - index))
    return index


@triton.jit
def _source(y, x, valid, H, W, PADDING: tl.constexpr):
    """Offset within a plane that a pixel at row ``y`` and column ``x`` reads, and whether it reads at all."""
    if PADDING == ZEROS:
        valid = valid & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    return _inside(y, H, PADDING) * W + _inside(x, W, PADDING), valid


@triton.jit
def _program(C, pixels, CH: tl.constexpr, BLOCK: tl.constexpr):
    """Sample, first channel (both 64-bit) and pixels of this program; the pixels of one plane come in a row."""
    blocks = tl.cdiv(pixels, BLOCK)
    pid = tl.program_id(0)
    bundle = (pid // blocks).to(tl.int64)  # of CH channels
    offsets = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    return bundle // (C // CH), bundle % (C // CH) * CH, offsets


@triton.jit
def forward_kernel(
    image_ptr,  # (B, C, H, W)
    taps_ptr,  # (B, G, K*K, H, W), G = 1 if SHARED else C
    result_ptr,  # (B, D, C, H, W)
    C,
    H,
    W,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
    CH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All dilations from one read of the taps."""
    D: tl.constexpr = len(DILATIONS)
    sample, channel, offsets = _program(C, H * W, CH, BLOCK)
    plane = tl.cast(H * W, tl.int64)
    valid = offsets < H * W
    y, x = offsets // W, offsets % W
    image_ptr += (sample * C + channel) * plane
    taps_ptr += (sample if SHARED else sample * C + channel) * (K * K) * plane

    sums = ()
    for _ in tl.static_range(D * CH):
        sums = sums + (tl.zeros((BLOCK,), dtype=tl.float32),)
    for u in range(K):
        for v in range(K):
            taps = ()
            for c in tl.static_range(1 if SHARED else CH):
                tap = tl.load(taps_ptr + c * (K * K) * plane + offsets, mask=valid, other=0.0)
                taps = taps + (tap.to(tl.float32),)
            taps_ptr += plane
            longer = ()
            for d in tl.static_range(D):
                shift_y, shift_x = (u - K // 2) * DILATIONS[d], (v - K // 2) * DILATIONS[d]
                source, exists = _source(y + shift_y, x + shift_x, valid, H, W, PADDING)
                for c in tl.static_range(CH):
                    value = tl.load(image_ptr + c * plane + source, mask=exists, other=0.0).to(tl.float32)
                    longer = longer + (sums[d * CH + c] + taps[0 if SHARED else c] * value,)
            sums = longer
    result_ptr += (sample * D * C + channel) * plane
    for d in tl.static_range(D):
        for c in tl.static_range(CH):
            total = sums[d * CH + c].to(result_ptr.dtype.element_ty)
            tl.store(result_ptr + (d * C + c) * plane + offsets, total, mask=valid)


@triton.jit
def image_gradient_kernel(
    grad_ptr,  # (B, D, C, H, W)
    taps_ptr,  # (B, G, K*K, H, W)
    result_ptr,  # (B, C, H + 2 MARGIN, W + 2 MARGIN)
    C,
    H,
    W,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    MARGIN: tl.constexpr,
    SHARED: tl.constexpr,
    CH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each place of the widened image gathers from the pixels that read it: no atomics, the same sum every time.

    The caller folds the margin back; with MARGIN = 0 what lies outside is dropped, which is the gradient for zeros.
    """
    D: tl.constexpr = len(DILATIONS)
    wide_H, wide_W = H + 2 * MARGIN, W + 2 * MARGIN
    sample, channel, offsets = _program(C, wide_H * wide_W, CH, BLOCK)
    plane = tl.cast(H * W, tl.int64)
    valid = offsets < wide_H * wide_W
    y, x = offsets // wide_W - MARGIN, offsets % wide_W - MARGIN
    grad_ptr += (sample * D * C + channel) * plane
    taps_ptr += (sample if SHARED else sample * C + channel) * (K * K) * plane

    sums = ()
    for _ in tl.static_range(CH):
        sums = sums + (tl.zeros((BLOCK,), dtype=tl.float32),)
    for u in range(K):
        for v in range(K):
            for d in tl.static_range(D):
                shift_y, shift_x = (u - K // 2) * DILATIONS[d], (v - K // 2) * DILATIONS[d]
                reader, exists = _source(y - shift_y, x - shift_x, valid, H, W, ZEROS)
                longer = ()
                for c in tl.static_range(CH):
                    if c == 0 or not SHARED:
                        tap = tl.load(taps_ptr + c * (K * K) * plane + reader, mask=exists, other=0.0).to(tl.float32)
                    grad = tl.load(grad_ptr + (d * C + c) * plane + reader, mask=exists, other=0.0).to(tl.float32)
                    longer = longer + (sums[c] + tap * grad,)
                sums = longer
            taps_ptr += plane
    wide_plane = tl.cast(wide_H * wide_W, tl.int64)
    result_ptr += (sample * C + channel) * wide_plane
    for c in tl.static_range(CH):
        total = sums[c].to(result_ptr.dtype.element_ty)
        tl.store(result_ptr + c * wide_plane + offsets, total, mask=valid)


@triton.jit
def taps_gradient_kernel(
    grad_ptr,  # (B, D, C, H, W)
    image_ptr,  # (B, C, H, W)
    result_ptr,  # (B, G, K*K, H, W)
    C,
    H,
    W,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
    CH: tl.constexpr,  # of C; all of C if SHARED
    BLOCK: tl.constexpr,
):
    """The gradients of all taps of a pixel: the upstream gradient is read once, each tap's gradient written once."""
    D: tl.constexpr = len(DILATIONS)
    sample, channel, offsets = _program(C, H * W, CH, BLOCK)
    plane = tl.cast(H * W, tl.int64)
    valid = offsets < H * W
    y, x = offsets // W, offsets % W
    grad_ptr += (sample * D * C + channel) * plane
    image_ptr += (sample * C + channel) * plane
    result_ptr += (sample if SHARED else sample * C + channel) * (K * K) * plane

    grads = ()
    for d in tl.static_range(D):
        for c in tl.static_range(CH):
            grad = tl.load(grad_ptr + (d * C + c) * plane + offsets, mask=valid, other=0.0)
            grads = grads + (grad.to(tl.float32),)
    for u in range(K):
        for v in range(K):
            sums = ()
            for _ in tl.static_range(1 if SHARED else CH):
                sums = sums + (tl.zeros((BLOCK,), dtype=tl.float32),)
            for d in tl.static_range(D):
                shift_y, shift_x = (u - K // 2) * DILATIONS[d], (v - K // 2) * DILATIONS[d]
                source, exists = _source(y + shift_y, x + shift_x, valid, H, W, PADDING)
                longer = ()
                for c in tl.static_range(CH):
                    value = tl.load(image_ptr + c * plane + source, mask=exists, other=0.0).to(tl.float32)
                    product = grads[d * CH + c] * value
                    if SHARED:
                        sums = (sums[0] + product,)
                    else:
                        longer = longer + (sums[c] + product,)
                if not SHARED:
                    sums = longer
            for c in tl.static_range(1 if SHARED else CH):
                total = sums[c].to(result_ptr.dtype.element_ty)
                tl.store(result_ptr + c * (K * K) * plane + offsets, total, mask=valid)
            result_ptr += plane
