from __future__ import annotations

import pytest
import torch

from opir_lightning.degradations import linear_to_srgb, srgb_to_linear


@pytest.mark.parametrize(
    ("srgb", "light"),
    [(0.0, 0.0), (0.04, 0.04 / 12.92), (0.2, 0.033105), (0.5, 0.214041), (1.0, 1.0), (-0.01, -0.000774)],
)
def test_values_of_the_standard(srgb, light):
    assert float(srgb_to_linear(torch.tensor(srgb))) == pytest.approx(light, abs=1e-6)
    assert float(linear_to_srgb(torch.tensor(light))) == pytest.approx(srgb, abs=1e-5)


def test_there_and_back():
    levels = torch.arange(256) / 255
    assert torch.allclose(linear_to_srgb(srgb_to_linear(levels)), levels, atol=2e-6)
    assert bool((srgb_to_linear(levels).diff() > 0).all())
