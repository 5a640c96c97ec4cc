"""The operator convolution in Triton: value, gradient of the image, gradient of the taps. Kernels only.

One program owns a tile of ROWS x COLUMNS pixels of CH channels of one sample, as one-dimensional arrays: a [channels,
pixels] tile would make Triton move it through shared memory at every tap. A tile and not a run of pixels, so that the
neighbourhood that it reads is small and stays in the first-level cache; COLUMNS of at least 32, so that a warp reads
one line.

Small operators are unrolled, and then the compiler finds the common rows and columns of the taps' places itself; for
large ones that would be thousands of instructions, so the loops over taps stay loops. For the gradient of the image,
which reads a tap for every dilation, unrolling gained 5 % of the instructions and cost seconds of compilation.

Base offsets are 64-bit (27 taps of 80 megapixels pass 2^31), offsets within one plane 32-bit. What lies past the
image's edge is clamped to it, so that loads need no mask; every store is masked to the pixels that exist. All sums are
float32.
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

# Sizes vary from picture to picture: a kernel compiled anew for each kind of size would cost seconds every time.
SIZES = ("C", "H", "W", "taps_stride")


@triton.jit
def inside(index, size, PADDING: tl.constexpr):
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
def load_neighbour(pointer, y, x, H, W, PADDING: tl.constexpr):
    """The values of one plane at row ``y`` and column ``x``, which may lie outside, as float32."""
    place = inside(y, H, PADDING) * W + inside(x, W, PADDING)
    if PADDING == ZEROS:
        value = tl.load(pointer + place, mask=(y >= 0) & (y < H) & (x >= 0) & (x < W), other=0.0)
    else:
        value = tl.load(pointer + place)
    return value.to(tl.float32)


@triton.jit
def owned_tile(pid, C, H, W, CH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sample and first channel (both 64-bit), first row and first column of the tile of program ``pid``."""
    across = tl.cdiv(W, COLUMNS)
    tiles = across * tl.cdiv(H, ROWS)
    bundle = (pid // tiles).to(tl.int64)  # of CH channels
    tile = pid % tiles
    return bundle // (C // CH), bundle % (C // CH) * CH, tile // across * ROWS, tile % across * COLUMNS


@triton.jit
def plane_size(H, W):
    """Pixels of a plane, 64-bit: what it is multiplied with soon passes 2^31."""
    return tl.cast(H, tl.int64) * W


@triton.jit
def tile_pixels(top, left, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row and column of each pixel of a tile, those past the edge moved onto it; and which pixels exist."""
    pixel = tl.arange(0, ROWS * COLUMNS)
    y, x = top + pixel // COLUMNS, left + pixel % COLUMNS
    return tl.minimum(y, H - 1), tl.minimum(x, W - 1), (y < H) & (x < W)


@triton.jit
def zero_sums(COUNT: tl.constexpr, PIXELS: tl.constexpr):
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.zeros((PIXELS,), dtype=tl.float32),)
    return sums


@triton.jit
def _forward_tap(
    sums,
    image_ptr,
    taps_ptr,
    plane,
    y,
    x,
    u,
    v,
    H,
    W,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
    CH: tl.constexpr,
):
    """Add what tap (u, v) reads at every dilation to the sums: one read of the tap."""
    taps = ()
    for c in tl.static_range(1 if SHARED else CH):
        tap = tl.load(taps_ptr + (c * (K * K) + u * K + v) * plane + (y * W + x))
        taps = taps + (tap.to(tl.float32),)
    longer = ()
    for d in tl.static_range(len(DILATIONS)):
        dy, dx = (u - K // 2) * DILATIONS[d], (v - K // 2) * DILATIONS[d]
        for c in tl.static_range(CH):
            value = load_neighbour(image_ptr + c * plane, y + dy, x + dx, H, W, PADDING)
            longer = longer + (sums[d * CH + c] + taps[0 if SHARED else c] * value,)
    return longer


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    image_ptr,  # (B, C, H, W)
    taps_ptr,  # (B, G, K*K, H, W), G = 1 if SHARED else C
    result_ptr,  # (B, D, C, H, W)
    C,
    H,
    W,
    taps_stride,  # from sample to sample
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
    UNROLL: tl.constexpr,
    CH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """All dilations from one read of the taps."""
    D: tl.constexpr = len(DILATIONS)
    sample, channel, top, left = owned_tile(tl.program_id(0), C, H, W, CH, ROWS, COLUMNS)
    y, x, exists = tile_pixels(top, left, H, W, ROWS, COLUMNS)
    plane = plane_size(H, W)
    image_ptr += (sample * C + channel) * plane
    taps_ptr += sample * taps_stride + (0 if SHARED else channel) * (K * K) * plane
    sums = zero_sums(D * CH, ROWS * COLUMNS)
    if UNROLL:
        for u in tl.static_range(K):
            for v in tl.static_range(K):
                sums = _forward_tap(
                    sums, image_ptr, taps_ptr, plane, y, x, u, v, H, W, K, DILATIONS, PADDING, SHARED, CH
                )
    else:
        for u in range(K):
            for v in range(K):
                sums = _forward_tap(
                    sums, image_ptr, taps_ptr, plane, y, x, u, v, H, W, K, DILATIONS, PADDING, SHARED, CH
                )
    result_ptr += (sample * D * C + channel) * plane
    for d in tl.static_range(D):
        for c in tl.static_range(CH):
            total = sums[d * CH + c].to(result_ptr.dtype.element_ty)
            tl.store(result_ptr + (d * C + c) * plane + (y * W + x), total, mask=exists)


@triton.jit
def _image_gradient_tap(
    sums,
    grad_ptr,
    taps_ptr,
    plane,
    y,
    x,
    counts,
    u,
    v,
    C,
    H,
    W,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    SHARED: tl.constexpr,
    CH: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add what the pixels that read (y, x) through tap (u, v), at any dilation, send back."""
    for d in tl.static_range(len(DILATIONS)):
        reader_y, reader_x = y - (u - K // 2) * DILATIONS[d], x - (v - K // 2) * DILATIONS[d]
        place = reader_y * W + reader_x
        reads = counts & (reader_y >= 0) & (reader_y < H) & (reader_x >= 0) & (reader_x < W) if MASKED else None
        longer = ()
        for c in tl.static_range(CH):
            grad = _load(grad_ptr + (d * C + c) * plane + place, reads, MASKED)
            if c == 0 or not SHARED:
                tap = _load(taps_ptr + (c * (K * K) + u * K + v) * plane + place, reads, MASKED)
            longer = longer + (sums[c] + tap * grad,)
        sums = longer
    return sums


@triton.jit
def _load(pointers, mask, MASKED: tl.constexpr):
    value = tl.load(pointers, mask=mask, other=0.0) if MASKED else tl.load(pointers)
    return value.to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def image_gradient_kernel(
    grad_ptr,  # (B, D, C, H, W)
    taps_ptr,  # (B, G, K*K, H, W)
    result_ptr,  # (B, C, H + 2 MARGIN, W + 2 MARGIN)
    C,
    H,
    W,
    taps_stride,  # from sample to sample
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    REACH: tl.constexpr,  # of the operator
    MARGIN: tl.constexpr,
    FOLD: tl.constexpr,
    SHARED: tl.constexpr,
    CH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Each pixel gathers from the pixels that read it: no atomics, the same sum every time.

    FOLD: reflect for images larger than the operator's reach. A pixel near an edge also gathers for its mirror images,
    at most two on each axis, that lie within reach of the edge. MARGIN > 0: the image widened by MARGIN, for the caller
    to fold. Neither: what lies outside is dropped, which is the gradient for zeros.
    """
    D: tl.constexpr = len(DILATIONS)
    wide_H, wide_W = H + 2 * MARGIN, W + 2 * MARGIN
    sample, channel, top, left = owned_tile(tl.program_id(0), C, wide_H, wide_W, CH, ROWS, COLUMNS)
    y, x, exists = tile_pixels(top, left, wide_H, wide_W, ROWS, COLUMNS)
    plane, wide_plane = plane_size(H, W), plane_size(wide_H, wide_W)
    grad_ptr += (sample * D * C + channel) * plane
    taps_ptr += sample * taps_stride + (0 if SHARED else channel) * (K * K) * plane
    result_ptr += (sample * C + channel) * wide_plane + (y * wide_W + x)
    y, x = y - MARGIN, x - MARGIN
    top, left = top - MARGIN, left - MARGIN
    sums = zero_sums(CH, ROWS * COLUMNS)
    at_top, at_bottom = top <= REACH, top + ROWS >= H - REACH
    at_left, at_right = left <= REACH, left + COLUMNS >= W - REACH
    if at_top | at_bottom | at_left | at_right:
        # Mirrored before the first row or column (-1), not at all (0), after the last (1).
        first_y, last_y = (tl.where(at_top, -1, 0), tl.where(at_bottom, 1, 0)) if FOLD else (0, 0)
        first_x, last_x = (tl.where(at_left, -1, 0), tl.where(at_right, 1, 0)) if FOLD else (0, 0)
        for vertical in range(first_y, last_y + 1):
            for horizontal in range(first_x, last_x + 1):
                at_y = tl.where(vertical == 0, y, tl.where(vertical < 0, -y, 2 * (H - 1) - y))
                at_x = tl.where(horizontal == 0, x, tl.where(horizontal < 0, -x, 2 * (W - 1) - x))
                # The edge itself is not repeated: it is its own mirror image.
                counts = exists & ((vertical == 0) | (at_y != y)) & ((horizontal == 0) | (at_x != x))
                for u in range(K):
                    for v in range(K):
                        sums = _image_gradient_tap(
                            sums, grad_ptr, taps_ptr, plane, at_y, at_x, counts, u, v, C, H, W,
                            K, DILATIONS, SHARED, CH, True,
                        )  # fmt: skip
    else:
        for u in range(K):
            for v in range(K):
                sums = _image_gradient_tap(
                    sums, grad_ptr, taps_ptr, plane, y, x, exists, u, v, C, H, W, K, DILATIONS, SHARED, CH, False
                )
    for c in tl.static_range(CH):
        tl.store(result_ptr + c * wide_plane, sums[c].to(result_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _taps_gradient_tap(
    grads,
    image_ptr,
    result_ptr,
    plane,
    y,
    x,
    exists,
    u,
    v,
    H,
    W,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
    CH: tl.constexpr,
):
    """Write the gradient of tap (u, v), summed over the dilations and the channels that share it."""
    sums = zero_sums(1 if SHARED else CH, exists.shape[0])
    for d in tl.static_range(len(DILATIONS)):
        dy, dx = (u - K // 2) * DILATIONS[d], (v - K // 2) * DILATIONS[d]
        longer = ()
        for c in tl.static_range(CH):
            value = load_neighbour(image_ptr + c * plane, y + dy, x + dx, H, W, PADDING)
            product = grads[d * CH + c] * value
            if SHARED:
                sums = (sums[0] + product,)
            else:
                longer = longer + (sums[c] + product,)
        if not SHARED:
            sums = longer
    for c in tl.static_range(1 if SHARED else CH):
        total = sums[c].to(result_ptr.dtype.element_ty)
        tl.store(result_ptr + (c * (K * K) + u * K + v) * plane + (y * W + x), total, mask=exists)


@triton.jit(do_not_specialize=SIZES)
def taps_gradient_kernel(
    grad_ptr,  # (B, D, C, H, W)
    image_ptr,  # (B, C, H, W)
    result_ptr,  # (B, G, K*K, H, W)
    C,
    H,
    W,
    taps_stride,  # from sample to sample
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
    UNROLL: tl.constexpr,
    CH: tl.constexpr,  # of C; all of C if SHARED
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of all taps of a pixel: the upstream gradient is read once, each tap's gradient written once."""
    D: tl.constexpr = len(DILATIONS)
    sample, channel, top, left = owned_tile(tl.program_id(0), C, H, W, CH, ROWS, COLUMNS)
    y, x, exists = tile_pixels(top, left, H, W, ROWS, COLUMNS)
    plane = plane_size(H, W)
    grad_ptr += (sample * D * C + channel) * plane + (y * W + x)
    image_ptr += (sample * C + channel) * plane
    result_ptr += sample * taps_stride + (0 if SHARED else channel) * (K * K) * plane
    grads = ()
    for d in tl.static_range(D):
        for c in tl.static_range(CH):
            grads = grads + (tl.load(grad_ptr + (d * C + c) * plane).to(tl.float32),)
    if UNROLL:
        for u in tl.static_range(K):
            for v in tl.static_range(K):
                _taps_gradient_tap(
                    grads, image_ptr, result_ptr, plane, y, x, exists, u, v, H, W, K, DILATIONS, PADDING, SHARED, CH
                )
    else:
        for u in range(K):
            for v in range(K):
                _taps_gradient_tap(
                    grads, image_ptr, result_ptr, plane, y, x, exists, u, v, H, W, K, DILATIONS, PADDING, SHARED, CH
                )
