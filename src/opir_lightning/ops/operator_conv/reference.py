"""The definition of the operator convolution in plain torch: the oracle of every other backend, never optimised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reference(image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int, K: int) -> Tensor:
    r"""Compute :math:`y_{bdchw} = \sum_{uv} t_{b,\,g(c)K^2+uK+v,\,hw}\; x_{b,c,\,h+(u-r)d,\,w+(v-r)d}` literally.

    Arguments and result as in ``operator_conv``, with the number of tap groups and the operator's size given. Sums are
    in float32 or wider (float64 stays float64), and every gradient, of any order, comes from autograd.
    """
    H, W = image.shape[-2:]
    wide = torch.promote_types(torch.promote_types(image.dtype, taps.dtype), torch.float32)
    x, t = image.to(wide), taps.to(wide).unflatten(1, (groups, K * K))
    layers = []
    for d in dilations:
        layer = torch.zeros_like(x, memory_format=torch.contiguous_format)
        for u in range(K):
            rows, row_inside = _source(H, (u - K // 2) * d, padding, x.device)
            for v in range(K):
                columns, column_inside = _source(W, (v - K // 2) * d, padding, x.device)
                shifted = x[:, :, rows][:, :, :, columns] * (row_inside[:, None] & column_inside)
                layer = layer + t[:, :, u * K + v] * shifted
        layers.append(layer)
    return torch.stack(layers, dim=1).to(image.dtype)


def _source(size: int, shift: int, padding: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each pixel of an axis reads from when it looks ``shift`` further, and whether that place counts.

    ``reflect`` mirrors at both ends without repeating them, as often as needed (period 2(size-1)), so that it is
    defined for every size; numpy.pad's reflect does the same.
    """
    index = torch.arange(size, device=device) + shift
    inside = (index >= 0) & (index < size)
    if padding == "reflect" and size > 1:
        index = index.remainder(2 * (size - 1))
        index = torch.minimum(index, 2 * (size - 1) - index)
    return index.clamp(0, size - 1), inside if padding == "zeros" else torch.ones_like(inside)
