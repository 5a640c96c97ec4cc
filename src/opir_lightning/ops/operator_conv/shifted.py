"""The operator convolution as shifted multiply-adds: any device, no buffer of K*K copies, its own backward.

One ``addcmul_`` per tap and dilation on views of a widened image. The work goes tile by tile, so that the results of
all dilations stay in a core's cache while the taps stream by once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from opir_lightning.ops.operator_conv.padding import fold, widen

# Values of one image tile, per thread. torch splits an operation between threads from 32768 values on. Measured on one
# core with 2 MiB of L2, K = 3, four dilations, 3x512x512, forward: 22 ms at 8192, 9.5 at 49152, 13.6 untiled.
TILE = 49152


def forward(image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int) -> Tensor:
    """``operator_conv`` without gradients; the number of tap groups is given."""
    B, C, H, W = image.shape
    grid = _Grid(image, taps, dilations, groups)
    wide = widen(image, grid.margin, padding, grid.dtype)
    result = torch.empty((B, len(dilations), C, H, W), dtype=grid.dtype, device=image.device)
    planes = taps.contiguous().unflatten(1, (groups, -1))
    for tile in grid.tiles():
        samples, rows = tile
        sums = result[samples, :, :, rows].unbind(1)
        for t, tap in enumerate(_taps(planes[samples, :, :, rows], grid.dtype)):
            for total, view in zip(sums, grid.views(wide, tile, t), strict=True):
                if t == 0:
                    torch.mul(view, tap, out=total)
                else:
                    total.addcmul_(view, tap)
    return result.to(image.dtype)


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
    grid = _Grid(image, taps, dilations, groups)
    grad = grad.to(grid.dtype).contiguous()
    planes = taps.contiguous().unflatten(1, (groups, -1))
    wide = widen(image, grid.margin, padding, grid.dtype) if need_taps else None
    wide_grad = torch.zeros(grid.wide_shape, dtype=grid.dtype, device=image.device) if need_image else None
    taps_grad = torch.empty(taps.shape, dtype=taps.dtype, device=taps.device) if need_taps else None
    for tile in grid.tiles():
        samples, rows = tile
        upstream = grad[samples, :, :, rows].unbind(1)
        if wide_grad is not None:
            for t, tap in enumerate(_taps(planes[samples, :, :, rows], grid.dtype)):
                for part, view in zip(upstream, grid.views(wide_grad, tile, t), strict=True):
                    view.addcmul_(part, tap)
        if wide is not None and taps_grad is not None:
            targets = taps_grad.unflatten(1, (groups, -1))[samples, :, :, rows].unbind(2)
            direct = targets[0].dtype == grid.dtype and targets[0].shape == upstream[0].shape
            scratch = None if direct else torch.empty(upstream[0].shape, dtype=grid.dtype, device=image.device)
            for t, target in enumerate(targets):
                _correlate(upstream, grid.views(wide, tile, t), target, scratch)
    image_grad = fold(wide_grad, grid.margin, padding, image.dtype) if wide_grad is not None else None
    return image_grad, taps_grad


def _taps(planes: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """One tap of a tile after the other. Converted ones share a buffer: fresh memory costs more than the sums."""
    buffer = None if planes.dtype == dtype else torch.empty(planes[:, :, 0].shape, dtype=dtype, device=planes.device)
    for tap in planes.unbind(2):
        yield tap if buffer is None else buffer.copy_(tap)


def _correlate(upstream: Sequence[Tensor], views: Sequence[Tensor], target: Tensor, scratch: Tensor | None) -> None:
    """Write the gradient of one tap: upstream times image, summed over the dilations and the channels that share it.

    The sum grows in ``scratch`` where the target is narrower than the sum or has fewer channels.
    """
    total = target if scratch is None else scratch
    torch.mul(upstream[0], views[0], out=total)
    for part, view in zip(upstream[1:], views[1:], strict=True):
        total.addcmul_(part, view)
    if scratch is not None:
        target.copy_(total if target.shape == total.shape else total.sum(1, keepdim=True))


class _Grid:
    """Where every tap and dilation of one call reads in the widened image, tile by tile."""

    def __init__(self, image: Tensor, taps: Tensor, dilations: Sequence[int], groups: int) -> None:
        self.B, self.C, self.H, self.W = image.shape
        self.K = math.isqrt(taps.shape[1] // groups)
        self.dilations = dilations
        self.margin = self.K // 2 * max(dilations)
        self.wide_shape = (self.B, self.C, self.H + 2 * self.margin, self.W + 2 * self.margin)
        self.dtype = torch.promote_types(torch.promote_types(image.dtype, taps.dtype), torch.float32)
        self.on_cpu = image.device.type == "cpu"

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Slices of samples and rows: whole samples while several fit a tile, else strips of rows of one sample."""
        most = TILE * torch.get_num_threads() if self.on_cpu else self.B * self.C * self.H * self.W
        samples = max(1, most // (self.C * self.H * self.W))
        rows = self.H if samples > 1 else min(self.H, max(1, most // (self.C * self.W)))
        for b in range(0, self.B, samples):
            for h in range(0, self.H, rows):
                yield slice(b, min(b + samples, self.B)), slice(h, min(h + rows, self.H))

    def views(self, wide: Tensor, tile: tuple[slice, slice], t: int) -> list[Tensor]:
        """The tile as tap ``t`` sees it, one ``(b, C, h, W)`` view per dilation.

        ``as_strided`` takes 2 us and slicing 4, beside 12 for the arithmetic on a tile.
        """
        samples, rows = tile
        width, radius = self.wide_shape[3], self.K // 2
        size = (samples.stop - samples.start, self.C, rows.stop - rows.start, self.W)
        start = (
            wide.storage_offset() + samples.start * wide.stride(0) + (self.margin + rows.start) * width + self.margin
        )
        step = (t // self.K - radius) * width + t % self.K - radius
        return [wide.as_strided(size, wide.stride(), start + step * d) for d in self.dilations]
