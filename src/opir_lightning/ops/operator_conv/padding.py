"""Widening an image by a margin, and the adjoint of that: folding a margin back. Any size from 1x1 up.

``F.pad`` reflects only by less than the image's size, and its backward sums with atomics on CUDA, so its gradients
differ from run to run. Here both directions are a handful of slice operations in a fixed order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Padding = Literal["reflect", "zeros", "replicate"]
PADDINGS: tuple[str, ...] = get_args(Padding)


class _Run(NamedTuple):
    """``length`` neighbouring positions of a widened axis that read ``source``, ``source + step``, ..."""

    start: int
    source: int
    length: int
    step: int


def widen(image: Tensor, margin: int, padding: str, dtype: torch.dtype) -> Tensor:
    """Widen ``(B, C, H, W)`` by ``margin`` on all four sides, as contiguous ``dtype``.

    The result may be the image itself when there is nothing to do: read it, never write to it.
    """
    if margin == 0:
        return image.to(dtype).contiguous()
    B, C, H, W = image.shape
    shape = (B, C, H + 2 * margin, W + 2 * margin)
    wide = (torch.zeros if padding == "zeros" else torch.empty)(shape, dtype=dtype, device=image.device)
    rows = wide.narrow(2, margin, H)
    rows.narrow(3, margin, W).copy_(image)
    for run in _border(W, margin, padding):
        rows.narrow(3, run.start, run.length).copy_(_read(rows, 3, margin, run))
    for run in _border(H, margin, padding):
        wide.narrow(2, run.start, run.length).copy_(_read(wide, 2, margin, run))
    return wide


def fold(wide: Tensor, margin: int, padding: str, dtype: torch.dtype) -> Tensor:
    """Adjoint of ``widen``: add each margin position to the pixel that it was read from. Overwrites ``wide``."""
    H, W = wide.shape[2] - 2 * margin, wide.shape[3] - 2 * margin
    for run in _border(H, margin, padding):
        _add(wide, 2, margin, run)
    rows = wide.narrow(2, margin, H)
    for run in _border(W, margin, padding):
        _add(rows, 3, margin, run)
    if margin == 0 and wide.dtype == dtype:
        return wide
    # Its own memory even where the middle is contiguous as it stands, as in a single pixel.
    return torch.empty((*wide.shape[:2], H, W), dtype=dtype, device=wide.device).copy_(rows.narrow(3, margin, W))


@lru_cache(maxsize=4096)
def _border(size: int, margin: int, padding: str) -> tuple[_Run, ...]:
    """The margin's positions as runs; one per side unless the margin exceeds the size. None for zeros."""
    if padding == "zeros":
        return ()
    runs: list[_Run] = []
    for start in [*range(margin), *range(margin + size, size + 2 * margin)]:
        source = _source(start - margin, size, padding)
        last = runs[-1] if runs and runs[-1].start + runs[-1].length == start else None
        step = source - (last.source + last.step * (last.length - 1)) if last else 0
        if last and abs(step) <= 1 and (last.length == 1 or step == last.step):
            runs[-1] = last._replace(length=last.length + 1, step=step)
        else:
            runs.append(_Run(start, source, 1, 0))
    return tuple(runs)


def _source(index: int, size: int, padding: str) -> int:
    if padding == "replicate" or size == 1:
        return min(max(index, 0), size - 1)
    index %= 2 * (size - 1)
    return min(index, 2 * (size - 1) - index)


def _place(wide: Tensor, axis: int, margin: int, run: _Run) -> Tensor:
    """The pixels a run reads, lowest first; a run of step 0 reads a single one."""
    first = min(run.source, run.source + run.step * (run.length - 1))
    return wide.narrow(axis, margin + first, run.length if run.step else 1)


def _read(wide: Tensor, axis: int, margin: int, run: _Run) -> Tensor:
    place = _place(wide, axis, margin, run)
    return place.flip(axis) if run.step < 0 else place


def _add(wide: Tensor, axis: int, margin: int, run: _Run) -> None:
    part = wide.narrow(axis, run.start, run.length)
    if run.step == 0:
        part = part.sum(axis, keepdim=True)
    elif run.step < 0:
        part = part.flip(axis)
    _place(wide, axis, margin, run).add_(part)
