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
    dtype = _sum_dtype(image, taps)
    tiles = Tiles(image, _size(taps, groups), dilations, TILE)
    wide = widen(image, tiles.margin, padding, dtype)
    result = torch.empty((B, len(dilations), C, H, W), dtype=dtype, device=image.device)
    planes = taps.unflatten(1, (groups, -1))
    for tile in tiles:
        samples, rows = tile
        sums = result[samples, :, :, rows].unbind(1)
        for t, tap in enumerate(_taps(planes[samples, :, :, rows], dtype)):
            for d, total in enumerate(sums):
                view = tiles.view(wide, tile, t, d)
                torch.mul(view, tap, out=total) if t == 0 else total.addcmul_(view, tap)
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
    dtype = _sum_dtype(image, taps)
    tiles = Tiles(image, _size(taps, groups), dilations, TILE)
    grad = grad.to(dtype).contiguous()
    planes = taps.unflatten(1, (groups, -1))
    wide = widen(image, tiles.margin, padding, dtype) if need_taps else None
    wide_grad = torch.zeros(tiles.wide_shape, dtype=dtype, device=image.device) if need_image else None
    taps_grad = torch.empty(taps.shape, dtype=taps.dtype, device=taps.device) if need_taps else None
    for tile in tiles:
        samples, rows = tile
        upstream = grad[samples, :, :, rows].unbind(1)
        if wide_grad is not None:
            for t, tap in enumerate(_taps(planes[samples, :, :, rows], dtype)):
                for d, part in enumerate(upstream):
                    tiles.view(wide_grad, tile, t, d).addcmul_(part, tap)
        if wide is not None and taps_grad is not None:
            targets = taps_grad.unflatten(1, (groups, -1))[samples, :, :, rows].unbind(2)
            direct = targets[0].dtype == dtype and targets[0].shape == upstream[0].shape
            scratch = None if direct else torch.empty(upstream[0].shape, dtype=dtype, device=image.device)
            for t, target in enumerate(targets):
                views = [tiles.view(wide, tile, t, d) for d in range(len(dilations))]
                _correlate(upstream, views, target, scratch)
    image_grad = fold(wide_grad, tiles.margin, padding, image.dtype) if wide_grad is not None else None
    return image_grad, taps_grad


def _sum_dtype(image: Tensor, taps: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(image.dtype, taps.dtype), torch.float32)


def _size(taps: Tensor, groups: int) -> int:
    return math.isqrt(taps.shape[1] // groups)


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


class Tiles:
    """The pieces of an image that are worked on one after the other, and where the taps read in the widened image.

    Args:
        image: ``(B, C, H, W)``.
        K: size of the operator.
        dilations: distances between its taps.
        most: values of one piece of the image, per thread of a CPU; on another device the image is one piece.
    """

    def __init__(self, image: Tensor, K: int, dilations: Sequence[int], most: int) -> None:
        self.B, self.C, self.H, self.W = image.shape
        self.K, self.dilations = K, dilations
        self.margin = K // 2 * max(dilations)
        self.wide_shape = (self.B, self.C, self.H + 2 * self.margin, self.W + 2 * self.margin)
        most = most * torch.get_num_threads() if image.device.type == "cpu" else image.numel()
        # Whole samples while several fit, else strips of rows of one sample.
        samples = max(1, min(self.B, most // (self.C * self.H * self.W)))
        self.largest = samples, self.H if samples > 1 else min(self.H, max(1, most // (self.C * self.W)))

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Slices of samples and of rows."""
        samples, rows = self.largest
        for b in range(0, self.B, samples):
            for h in range(0, self.H, rows):
                yield slice(b, min(b + samples, self.B)), slice(h, min(h + rows, self.H))

    def view(self, wide: Tensor, tile: tuple[slice, slice], t: int, d: int) -> Tensor:
        """The tile as tap ``t`` sees it at dilation number ``d``: ``(b, C, h, W)`` of the widened image."""
        samples, rows = tile
        first = wide.storage_offset() + samples.start * wide.stride(0) + rows.start * self.wide_shape[3]
        return self._view(wide, tile, t, d, first)

    def neighbourhood(self, wide: Tensor, tile: tuple[slice, slice]) -> Tensor:
        """All that the taps of a tile see: ``(b, C, h + 2 margin, W + 2 margin)``."""
        samples, rows = tile
        return wide[samples, :, rows.start : rows.stop + 2 * self.margin]

    def local_view(self, neighbourhood: Tensor, tile: tuple[slice, slice], t: int, d: int) -> Tensor:
        """As ``view``, in a contiguous tensor of the form of ``neighbourhood``."""
        return self._view(neighbourhood, tile, t, d, 0)

    def _view(self, wide: Tensor, tile: tuple[slice, slice], t: int, d: int, first: int) -> Tensor:
        # as_strided takes 2 us and slicing 4, beside 12 for the arithmetic on a tile.
        samples, rows = tile
        size = (samples.stop - samples.start, self.C, rows.stop - rows.start, self.W)
        dy, dx = (t // self.K - self.K // 2) * self.dilations[d], (t % self.K - self.K // 2) * self.dilations[d]
        return wide.as_strided(size, wide.stride(), first + (self.margin + dy) * self.wide_shape[3] + self.margin + dx)
