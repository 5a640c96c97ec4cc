"""The calibration curve against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from opir_lightning.calibration import Calibration


def maps(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_bins_hold_mean_predicted_and_mean_true_error():
    calibration = Calibration()
    # Two pixels between 0.0100 and 0.0178, two between 0.178 and 0.316: four bins per decade.
    calibration.add(maps(0.011, 0.2, 0.012, 0.3), maps(0.03, 0.26, 0.01, 0.24))
    curve = calibration.curve()
    low, high = (bin_ for bin_ in curve if bin_.pixels)
    assert (low.low, low.high) == pytest.approx((10**-2, 10**-1.75))
    assert (low.pixels, low.predicted, low.true) == (2, pytest.approx(0.0115), pytest.approx(0.02))
    assert (high.low, high.high) == pytest.approx((10**-0.75, 10**-0.5))
    assert (high.pixels, high.predicted, high.true) == (2, pytest.approx(0.25), pytest.approx(0.25))
    # Errors of both signs cancel within a bin, and not between bins: (2 * 0.0085 + 2 * 0) / 4.
    assert calibration.error() == pytest.approx(0.00425, abs=1e-7)
    empty = next(bin_ for bin_ in curve if not bin_.pixels)
    assert math.isnan(empty.predicted)


def test_what_lies_beyond_the_bins_counts_in_the_outer_ones():
    calibration = Calibration()
    calibration.add(maps(1e-7, 1e-4, 5.0), maps(0.1, 0.3, 2.0))
    curve = calibration.curve()
    assert (curve[0].pixels, curve[0].true) == (2, pytest.approx(0.2))
    assert (curve[-1].pixels, curve[-1].predicted, curve[-1].true) == (1, 5.0, 2.0)
    assert sum(bin_.pixels for bin_ in curve) == 3


def test_pictures_add_up():
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.rand(1, 1, 9, 7, generator=generator), torch.rand(1, 1, 9, 7, generator=generator)) for _ in "ab"]
    parts = [Calibration(), Calibration()]
    whole = Calibration()
    for part, pair in zip(parts, pairs, strict=True):
        part.add(*pair)
        whole.add(*pair)
    assert parts[0].merged(parts[1]).curve()[-4:] == whole.curve()[-4:]
    assert parts[0].curve()[-1].pixels < whole.curve()[-1].pixels  # the parts stay as they are


def test_maps_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        Calibration().add(torch.rand(1, 1, 4, 4), torch.rand(1, 3, 4, 4))
