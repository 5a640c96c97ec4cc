"""Cut a picture into tiles whose results add up to the whole, seams included. Pure arithmetic: no model, no pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLEND = 8  # pixels on either side of a seam over which neighbours fade into each other


class Span(NamedTuple):
    """One tile along one axis.

    Attributes:
        window: what the model sees; starts at a multiple of the stride.
        kept: what this tile delivers; overlaps its neighbours' by twice the blend.
        before: pixels at the start of ``kept`` that are shared with the tile before.
        after: pixels at its end that are shared with the next one.
    """

    window: slice
    kept: slice
    before: int
    after: int

    @property
    def inner(self) -> slice:
        """``kept``, counted from the start of the window."""
        return slice(self.kept.start - self.window.start, self.kept.stop - self.window.start)

    @property
    def weights(self) -> Tensor:
        """``(kept,)`` float32: the share of this tile in each pixel; those of all tiles add up to 1."""
        weights = torch.ones(self.kept.stop - self.kept.start)
        if self.before:
            weights[: self.before] = _ramp(self.before)
        if self.after:
            weights[-self.after :] = 1 - _ramp(self.after)
        return weights


class Plan(NamedTuple):
    """All tiles of a picture: every row of tiles has the same columns."""

    rows: list[Span]
    columns: list[Span]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)


def plan_tiles(height: int, width: int, *, tile: int | None, overlap: int, stride: int) -> Plan:
    """Cut a picture into tiles.

    Args:
        height: of the picture, in pixels.
        width: of the picture.
        tile: largest side of the part between two seams, rounded up to a multiple of ``stride``; None for one tile. The
            sides are evened out, so that no tile is a sliver with much overlap.
        overlap: pixels that the model sees beyond what a tile delivers, rounded up to a multiple of ``stride``, less at
            the border. Without overlap there is no blending either.
        stride: all windows start at multiples of it, so that the model's grid lies as in the whole picture.
    """
    rows, columns = (_spans(length, tile, overlap, stride) for length in (height, width))
    return Plan(rows, columns)


def _spans(length: int, tile: int | None, overlap: int, stride: int) -> list[Span]:
    count = 1 if tile is None else -(-length // _round_up(tile, stride))
    step = _round_up(-(-length // count), stride)
    starts = list(range(0, length, step))
    # A tile shares at most half of itself with each neighbour, also the last one, which may be short.
    blend = min(BLEND, overlap, step // 2, (length - starts[-1]) // 2)
    margin = _round_up(overlap + blend, stride)
    spans = []
    for start in starts:
        stop = min(start + step, length)
        before, after = blend * (start > 0), blend * (stop < length)
        window = slice(max(start - margin, 0), min(stop + margin, length))
        spans.append(Span(window, slice(start - before, stop + after), 2 * before, 2 * after))
    return spans


def _ramp(length: int) -> Tensor:
    return (torch.arange(length) + 0.5) / length


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
