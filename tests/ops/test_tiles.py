"""The pieces that the plain forms work on: each part of the picture once, as many values at once as a core's cache."""

from __future__ import annotations

import pytest
import torch

from opir_lightning.ops.operator_conv.shifted import Tiles

WHOLE = slice(0, 4)


@pytest.mark.parametrize(
    ("batch", "most", "samples", "rows"),
    # A sample has 3 x 4 x 5 = 60 values, a row 15.
    [
        (5, 1000, [slice(0, 5)], [WHOLE]),
        (5, 300, [slice(0, 5)], [WHOLE]),
        (5, 299, [slice(0, 4), slice(4, 5)], [WHOLE]),
        (5, 120, [slice(0, 2), slice(2, 4), slice(4, 5)], [WHOLE]),
        (2, 119, [slice(0, 1), slice(1, 2)], [WHOLE]),
        (2, 60, [slice(0, 1), slice(1, 2)], [WHOLE]),
        (2, 59, [slice(0, 1), slice(1, 2)], [slice(0, 3), slice(3, 4)]),
        (1, 30, [slice(0, 1)], [slice(0, 2), slice(2, 4)]),
        (1, 29, [slice(0, 1)], [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)]),
        (1, 1, [slice(0, 1)], [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)]),  # a row is never cut
    ],
)
def test_pieces_are_whole_samples_or_whole_rows_as_many_as_fit(batch, most, samples, rows, monkeypatch):
    image = torch.empty(batch, 3, 4, 5)
    want = [(sample, row) for sample in samples for row in rows]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert list(Tiles(image, 3, (1,), most)) == want
    if most % 3 == 0:  # as much in three threads with a third for each
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        assert list(Tiles(image, 3, (1,), most // 3)) == want


@pytest.mark.parametrize("batch", [1, 4])
def test_elsewhere_than_on_a_cpu_there_is_one_piece(batch):
    image = torch.empty(batch, 3, 4, 5, device="meta")
    assert list(Tiles(image, 3, (1,), 1)) == [(slice(0, batch), WHOLE)]
