"""A border is copied and folded in a few runs of neighbouring places: each costs a call, whatever its length."""

from __future__ import annotations

import pytest

from opir_lightning.ops.operator_conv.padding import _border


@pytest.mark.parametrize(
    ("size", "margin", "padding", "lengths"),
    [
        (9, 4, "zeros", []),
        (9, 4, "reflect", [4, 4]),
        (9, 8, "reflect", [8, 8]),
        (1, 5, "reflect", [5, 5]),
        (9, 4, "replicate", [4, 4]),
        (3, 12, "replicate", [12, 12]),
        # Places -12 ... -1 read 0 1 2 3, 2 1 0, 1 2 3, 2 1; and 4 ... 15 read 2 1 0, 1 2 3, 2 1 0, 1 2 3.
        (4, 12, "reflect", [4, 3, 3, 2, 3, 3, 3, 3]),
    ],
)
def test_a_side_is_one_run_until_the_mirror_turns(size, margin, padding, lengths):
    assert [run.length for run in _border(size, margin, padding)] == lengths
