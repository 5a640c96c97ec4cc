"""Predict and apply in one kernel: the taps are made from features where they are used and never go to memory.

One program owns tiles of pixels of one sample. A product on the matrix units gives 32 rows of the prediction for the
tile, spread over all threads; transposed and split five times by halves they are 32 arrays with one number a pixel,
and each thread holds those of its own pixels. That costs one pass through shared memory for every 32 rows (for sm_90:
3 barriers, some 60 instructions a pixel). The operator is then applied as in ``operator_conv``. The backward pass goes
the same way back: it makes the taps anew, joins the gradients of 32 rows into a matrix and multiplies it with the
weights and with the features.

Splitting by halves brings the rows in the order of their reversed bits, so the weights are loaded in that order.
Sums are float32; the factors of the products have the dtype of the features.
"""

# Tuples grow by concatenation here, the form that Triton compiles: neither linter nor type checker knows its rules.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated, misc"
from __future__ import annotations

import triton
import triton.language as tl

from opir_lightning.ops.operator_conv.kernels import load_neighbour, owned_tile, plane_size, tile_pixels, zero_sums

SIZES = ("H", "W")  # for the reason in operator_conv


@triton.jit
def _reversed_bits():
    """0 ... 31 with their five bits reversed; its own inverse."""
    r = tl.arange(0, 32)
    return ((r & 1) << 4) | ((r & 2) << 2) | (r & 4) | ((r & 8) >> 2) | (r >> 4)


@triton.jit
def _to_rows(matrix, PIXELS: tl.constexpr):
    """(32, PIXELS), rows in the order of reversed bits, as 32 arrays (PIXELS,) in their own order."""
    rows = (tl.reshape(tl.trans(matrix), (PIXELS, 2, 2, 2, 2, 2)),)
    for _ in tl.static_range(5):
        halves = ()
        for i in tl.static_range(len(rows)):
            first, second = tl.split(rows[i])
            halves = halves + (first, second)
        rows = halves
    return rows


@triton.jit
def _to_matrix(rows, PIXELS: tl.constexpr):
    """The inverse of ``_to_rows``."""
    for _ in tl.static_range(5):
        pairs = ()
        for i in tl.static_range(len(rows) // 2):
            pairs = pairs + (tl.join(rows[2 * i], rows[2 * i + 1]),)
        rows = pairs
    return tl.trans(tl.reshape(rows[0], (PIXELS, 32)))


@triton.jit
def _weights(weight_ptr, start, N: tl.constexpr, F: tl.constexpr, FP: tl.constexpr):
    """(32, FP) of the (N, F) weights from row ``start`` on, rows in the order of reversed bits, zeros past the end."""
    row, feature = start + _reversed_bits()[:, None], tl.arange(0, FP)[None, :]
    return tl.load(weight_ptr + row * F + feature, mask=(row < N) & (feature < F), other=0.0)


@triton.jit
def _prediction(weights, features, bias_ptr, start, N: tl.constexpr, PIXELS: tl.constexpr):
    """32 rows of ``weights @ features + bias`` from row ``start`` on, as arrays (PIXELS,) of float32."""
    products = _to_rows(tl.dot(weights, features, input_precision="ieee"), PIXELS)
    rows = ()
    for i in tl.static_range(32):
        if start + i < N:
            rows = rows + (products[i] + tl.load(bias_ptr + start + i).to(tl.float32),)
        else:
            rows = rows + (products[i],)
    return rows


@triton.jit
def _mix(mix_ptr, COUNT: tl.constexpr):
    mix = ()
    for i in tl.static_range(COUNT):
        mix = mix + (tl.load(mix_ptr + i).to(tl.float32),)
    return mix


@triton.jit
def _apply_tap(
    layers,
    tap,
    image_ptr,
    plane,
    y,
    x,
    H,
    W,
    n: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Row n of the prediction is a tap: add what it reads to the layers of its colours."""
    u, v = n % (K * K) // K - K // 2, n % K - K // 2
    longer = ()
    for d in tl.static_range(len(DILATIONS)):
        for c in tl.static_range(C):
            if SHARED or n // (K * K) == c:
                dy, dx = u * DILATIONS[d], v * DILATIONS[d]
                value = load_neighbour(image_ptr + c * plane, y + dy, x + dx, H, W, PADDING)
                longer = longer + (layers[d * C + c] + tap * value,)
            else:
                longer = longer + (layers[d * C + c],)
    return longer


@triton.jit
def _row_gradient(
    grads,
    mix,
    image_ptr,
    plane,
    y,
    x,
    H,
    W,
    n: tl.constexpr,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
):
    """The gradient of row n of the prediction: of a tap, of an offset, or zeros for a row that is not there."""
    total = tl.zeros_like(grads[0])
    if n < TAPS:
        u, v = n % (K * K) // K - K // 2, n % K - K // 2
        for d in tl.static_range(len(DILATIONS)):
            for c in tl.static_range(C):
                if SHARED or n // (K * K) == c:
                    dy, dx = u * DILATIONS[d], v * DILATIONS[d]
                    value = load_neighbour(image_ptr + c * plane, y + dy, x + dx, H, W, PADDING)
                    total += (grads[c] * mix[d * C + c]) * value
    elif n - TAPS < C:
        total = grads[n - TAPS]
    return total


@triton.jit
def _layers(
    image_ptr,
    features_ptr,
    weight_ptr,
    bias_ptr,
    sample,
    y,
    x,
    exists,
    H,
    W,
    C: tl.constexpr,
    N: tl.constexpr,
    F: tl.constexpr,
    FP: tl.constexpr,
    TAPS: tl.constexpr,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Predict the operator of each pixel and apply it: D * C layers, one for each dilation, and C offsets."""
    plane = plane_size(H, W)
    feature = tl.arange(0, FP)[:, None]
    place = (sample * F + feature) * plane + (y * W + x)[None, :]
    features = tl.load(features_ptr + place, mask=(feature < F) & exists[None, :], other=0.0)
    layers = zero_sums(len(DILATIONS) * C, exists.shape[0])
    offsets = zero_sums(C, exists.shape[0])
    for start in tl.static_range(0, N, 32):
        weights = _weights(weight_ptr + sample * N * F, start, N, F, FP)
        rows = _prediction(weights, features, bias_ptr + sample * N, start, N, exists.shape[0])
        for i in tl.static_range(32):
            if start + i < TAPS:
                layers = _apply_tap(
                    layers, rows[i], image_ptr, plane, y, x, H, W, start + i, C, K, DILATIONS, PADDING, SHARED
                )
            elif start + i < N:
                longer = ()
                for c in tl.static_range(C):
                    longer = longer + (rows[i] if start + i - TAPS == c else offsets[c],)
                offsets = longer
    return layers, offsets


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    image_ptr,  # (B, C, H, W)
    features_ptr,  # (B, F, H, W)
    weight_ptr,  # (B, N, F): taps (G, K*K) first, G = 1 if SHARED else C, then C offsets if N leaves room
    bias_ptr,  # (B, N)
    mix_ptr,  # (B, D, C)
    result_ptr,  # (B, C, H, W)
    H,
    W,
    C: tl.constexpr,
    N: tl.constexpr,
    F: tl.constexpr,
    FP: tl.constexpr,  # F rounded up for the matrix units
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    D: tl.constexpr = len(DILATIONS)
    TAPS: tl.constexpr = K * K * (1 if SHARED else C)
    sample, _, top, left = owned_tile(tl.program_id(0), C, H, W, C, ROWS, COLUMNS)
    y, x, exists = tile_pixels(top, left, H, W, ROWS, COLUMNS)
    plane = plane_size(H, W)
    layers, offsets = _layers(
        image_ptr + sample * C * plane, features_ptr, weight_ptr, bias_ptr, sample, y, x, exists, H, W,
        C, N, F, FP, TAPS, K, DILATIONS, PADDING, SHARED,
    )  # fmt: skip
    mix = _mix(mix_ptr + sample * D * C, D * C)
    result_ptr += sample * C * plane + (y * W + x)
    for c in tl.static_range(C):
        total = offsets[c]
        for d in tl.static_range(D):
            total += mix[d * C + c] * layers[d * C + c]
        tl.store(result_ptr + c * plane, total.to(result_ptr.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=SIZES)
def mix_gradient_kernel(
    grad_ptr,  # (B, C, H, W)
    image_ptr,  # (B, C, H, W)
    features_ptr,  # (B, F, H, W)
    weight_ptr,  # (B, N, F)
    bias_ptr,  # (B, N)
    parts_ptr,  # (B, tiles, D, C) float32
    H,
    W,
    C: tl.constexpr,
    N: tl.constexpr,
    F: tl.constexpr,
    FP: tl.constexpr,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The tile's share in the gradient of the mixing weights; the taps are predicted anew."""
    D: tl.constexpr = len(DILATIONS)
    TAPS: tl.constexpr = K * K * (1 if SHARED else C)
    sample, _, top, left = owned_tile(tl.program_id(0), C, H, W, C, ROWS, COLUMNS)
    y, x, exists = tile_pixels(top, left, H, W, ROWS, COLUMNS)
    plane = plane_size(H, W)
    layers, _ = _layers(
        image_ptr + sample * C * plane, features_ptr, weight_ptr, bias_ptr, sample, y, x, exists, H, W,
        C, N, F, FP, TAPS, K, DILATIONS, PADDING, SHARED,
    )  # fmt: skip
    grads = _grads(grad_ptr + sample * C * plane + (y * W + x), plane, exists, C)
    parts_ptr += tl.program_id(0).to(tl.int64) * D * C
    for d in tl.static_range(D):
        for c in tl.static_range(C):
            tl.store(parts_ptr + d * C + c, tl.sum(grads[c] * layers[d * C + c]))


@triton.jit
def _grads(grad_ptr, plane, exists, C: tl.constexpr):
    grads = ()
    for c in tl.static_range(C):
        grads = grads + (tl.load(grad_ptr + c * plane, mask=exists, other=0.0).to(tl.float32),)
    return grads


@triton.jit
def _prediction_gradient(
    grads,
    mix,
    image_ptr,
    y,
    x,
    H,
    W,
    start,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
):
    """(32, PIXELS): the gradient of 32 rows of the prediction from row ``start`` on, in the order of reversed bits."""
    plane = plane_size(H, W)
    rows = ()
    for i in tl.static_range(32):
        row = _row_gradient(grads, mix, image_ptr, plane, y, x, H, W, start + i, C, TAPS, K, DILATIONS, PADDING, SHARED)
        rows = rows + (row,)
    return _to_matrix(rows, y.shape[0])


# The gradients of features and of weights are two kernels, each with one tile a program. They are linear in what the
# other holds, so neither predicts taps; in one kernel, or with a loop over tiles, 255 registers did not suffice.


@triton.jit(do_not_specialize=SIZES)
def features_gradient_kernel(
    grad_ptr,  # (B, C, H, W)
    image_ptr,  # (B, C, H, W)
    weight_ptr,  # (B, N, F)
    mix_ptr,  # (B, D, C)
    result_ptr,  # (B, F, H, W)
    H,
    W,
    C: tl.constexpr,
    N: tl.constexpr,
    F: tl.constexpr,
    FP: tl.constexpr,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    D: tl.constexpr = len(DILATIONS)
    TAPS: tl.constexpr = K * K * (1 if SHARED else C)
    sample, _, top, left = owned_tile(tl.program_id(0), C, H, W, C, ROWS, COLUMNS)
    y, x, exists = tile_pixels(top, left, H, W, ROWS, COLUMNS)
    plane = plane_size(H, W)
    image_ptr += sample * C * plane
    place = y * W + x
    grads = _grads(grad_ptr + sample * C * plane + place, plane, exists, C)
    mix = _mix(mix_ptr + sample * D * C, D * C)
    total = tl.zeros((FP, ROWS * COLUMNS), dtype=tl.float32)
    for start in tl.static_range(0, N, 32):
        rows = _prediction_gradient(
            grads, mix, image_ptr, y, x, H, W, start, C, TAPS, K, DILATIONS, PADDING, SHARED
        ).to(weight_ptr.dtype.element_ty)
        weights = _weights(weight_ptr + sample * N * F, start, N, F, FP)
        total = tl.dot(tl.trans(weights), rows, total, input_precision="ieee")
    feature = tl.arange(0, FP)[:, None]
    result_ptr += (sample * F + feature) * plane + place[None, :]
    tl.store(result_ptr, total.to(result_ptr.dtype.element_ty), mask=(feature < F) & exists[None, :])


@triton.jit(do_not_specialize=SIZES)
def weight_gradient_kernel(
    grad_ptr,  # (B, C, H, W)
    image_ptr,  # (B, C, H, W)
    features_ptr,  # (B, F, H, W)
    mix_ptr,  # (B, D, C)
    weight_parts_ptr,  # (B, tiles, N, F) float32
    bias_parts_ptr,  # (B, tiles, N) float32
    H,
    W,
    C: tl.constexpr,
    N: tl.constexpr,
    F: tl.constexpr,
    FP: tl.constexpr,
    K: tl.constexpr,
    DILATIONS: tl.constexpr,
    PADDING: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The tile's share in the gradients of weights and bias; the caller sums the shares in their order."""
    D: tl.constexpr = len(DILATIONS)
    TAPS: tl.constexpr = K * K * (1 if SHARED else C)
    sample, _, top, left = owned_tile(tl.program_id(0), C, H, W, C, ROWS, COLUMNS)
    y, x, exists = tile_pixels(top, left, H, W, ROWS, COLUMNS)
    plane = plane_size(H, W)
    image_ptr += sample * C * plane
    place = y * W + x
    grads = _grads(grad_ptr + sample * C * plane + place, plane, exists, C)
    mix = _mix(mix_ptr + sample * D * C, D * C)
    feature = tl.arange(0, FP)
    features_ptr += (sample * F + feature[None, :]) * plane + place[:, None]
    ones = tl.full((ROWS * COLUMNS, 16), 1.0, features_ptr.dtype.element_ty)
    program = tl.program_id(0).to(tl.int64)
    for start in tl.static_range(0, N, 32):
        rows = _prediction_gradient(
            grads, mix, image_ptr, y, x, H, W, start, C, TAPS, K, DILATIONS, PADDING, SHARED
        ).to(features_ptr.dtype.element_ty)
        features = tl.load(features_ptr, mask=(feature[None, :] < F) & exists[:, None], other=0.0)
        n = start + _reversed_bits()[:, None]
        weight_place = weight_parts_ptr + (program * N + n) * F + feature[None, :]
        weights = tl.dot(rows, features, input_precision="ieee")
        tl.store(weight_place, weights, mask=(n < N) & (feature[None, :] < F))
        first = tl.arange(0, 16)[None, :]
        bias = tl.dot(rows, ones, input_precision="ieee")
        tl.store(bias_parts_ptr + program * N + n + first, bias, mask=(n < N) & (first == 0))
