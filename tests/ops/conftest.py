"""What the tests of the operators must not hand to one another."""

from __future__ import annotations

import pytest

from opir_lightning.ops.operator_conv import padding


@pytest.fixture(autouse=True)
def _no_borders_are_kept():
    """The places that a border reads from are worked out anew in each test, not found as an earlier test left them."""
    padding._border.cache_clear()
