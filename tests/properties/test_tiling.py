"""However a picture is cut into tiles, they add up to it."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from opir_lightning.tiling import BLEND, Span, plan_tiles


def check_axis(spans: list[Span], length: int, tile: int | None, overlap: int, stride: int) -> None:
    shares = torch.zeros(length, dtype=torch.float64)
    for span in spans:
        shares[span.kept] += span.weights.double()
        assert 0 <= span.window.start <= span.kept.start < span.kept.stop <= span.window.stop <= length
        assert span.window.start % stride == 0
        # What is seen beyond what is kept: the overlap, or all that there is.
        assert span.window.start <= max(span.kept.start - overlap, 0)
        assert span.window.stop >= min(span.kept.stop + overlap, length)
        assert span.inner == slice(span.kept.start - span.window.start, span.kept.stop - span.window.start)
        if tile is not None:
            between_seams = span.kept.stop - span.kept.start - (span.before + span.after) // 2
            assert between_seams <= -(-tile // stride) * stride
        # Neighbours fade into each other in even steps, each a half from the seam's ends.
        if span.before:
            steps = (torch.arange(span.before) + 0.5) / span.before
            torch.testing.assert_close(span.weights[: span.before], steps)
    torch.testing.assert_close(shares, torch.ones_like(shares), rtol=0, atol=1e-6)
    assert spans[0].before == spans[-1].after == 0
    for above, below in itertools.pairwise(spans):
        assert above.after == below.before == above.kept.stop - below.kept.start
    if tile is None:
        assert len(spans) == 1
    if len(spans) > 1:
        # As far as the overlap and half of the shortest neighbours allow, and no farther than is needed.
        step, last = spans[1].kept.start + spans[1].before // 2, length - spans[-1].kept.start - spans[-1].before // 2
        assert spans[1].before == 2 * min(BLEND, overlap, step // 2, last // 2)


@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    tile=st.none() | st.integers(1, 300),
    overlap=st.integers(0, 150),
    stride=st.sampled_from([1, 2, 4, 8, 16, 32]),
)
def test_tiles_cover_each_pixel_once_and_see_their_surroundings(height, width, tile, overlap, stride):
    plan = plan_tiles(height, width, tile=tile, overlap=overlap, stride=stride)
    assert len(plan) == len(plan.rows) * len(plan.columns)
    check_axis(plan.rows, height, tile, overlap, stride)
    check_axis(plan.columns, width, tile, overlap, stride)
