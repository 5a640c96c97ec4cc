"""The registered operator in operations that every exchange format has: gathers, slices, products, sums.

An exported program keeps ``opir_lightning::operator_conv`` as one node, which only this package can run. With the
table below, ``ExportedProgram.run_decompositions`` replaces that node. Height and width may be symbolic: neither a
branch nor the number of operations depends on them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opir_lightning.ops.operator_conv.autograd import apply


def decomposition_table() -> dict[Any, Callable[..., Any]]:
    """The operator and the function that stands for it, for ``ExportedProgram.run_decompositions``."""
    return {apply._opoverload: decomposed}


def decomposed(
    image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int, backend: str = "auto"
) -> Tensor:
    """``operator_conv`` for checked arguments; ``backend`` is not read.

    Returns:
        ``(B, D, C, H, W)`` in the dtype of ``image``, like every backend; sums are in float32 or wider.
    """
    dtype = torch.promote_types(torch.promote_types(image.dtype, taps.dtype), torch.float32)
    return torch.stack(layers(image.to(dtype), taps.to(dtype), dilations, padding, groups), dim=1).to(image.dtype)


def layers(image: Tensor, taps: Tensor, dilations: Sequence[int], padding: str, groups: int) -> list[Tensor]:
    """The result for each dilation, ``(B, C, H, W)``, of arguments of one dtype, which is that of the sums.

    The picture is widened once; then one slice, one product and one sum per tap and dilation.
    """
    K = math.isqrt(taps.shape[1] // groups)
    radius = K // 2
    margin = radius * max(dilations)
    wide = _widen(image, margin, padding)
    columns = {shift: _shifted(wide, 3, shift, margin) for shift in _shifts(radius, dilations)}
    planes = taps.unflatten(1, (groups, K * K)).unbind(2)
    results = []
    for d in dilations:
        products = [
            _shifted(columns[(t % K - radius) * d], 2, (t // K - radius) * d, margin) * tap
            for t, tap in enumerate(planes)
        ]
        results.append(functools.reduce(torch.add, products))
    return results


def _shifts(radius: int, dilations: Sequence[int]) -> list[int]:
    return sorted({step * d for step in range(-radius, radius + 1) for d in dilations})


def _shifted(wide: Tensor, axis: int, shift: int, margin: int) -> Tensor:
    """The picture's part of a widened axis, ``shift`` further along.

    Each end is counted from the border nearest to it, so that neither depends on the size.
    """
    return wide[(slice(None),) * axis + (slice(margin + shift, (shift - margin) or None),)]


def _widen(image: Tensor, margin: int, padding: str) -> Tensor:
    """``padding.widen`` without a buffer that is written to piece by piece."""
    if margin == 0:
        return image
    if padding == "zeros":
        return F.pad(image, (margin,) * 4)
    for axis in (2, 3):
        image = image.index_select(axis, _sources(image.shape[axis], margin, padding, image.device))
    return image


def _sources(length: int, margin: int, padding: str, device: torch.device) -> Tensor:
    """Where each place of a widened axis reads from, ``(length + 2 * margin,)`` int64."""
    index, last = torch.arange(-margin, length + margin, device=device), length - 1
    if padding == "replicate":
        return index.clamp(0, last)
    period = torch.full((), 2 * last, dtype=torch.int64, device=device).clamp(min=1)  # a single pixel mirrors itself
    index = index.remainder(period)
    return torch.minimum(index, 2 * last - index)
