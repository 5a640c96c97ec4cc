from __future__ import annotations

import pytest
import torch

from opir_lightning.degradations import linear_to_srgb, srgb_to_linear
from opir_lightning.degradations.colour import power


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


@pytest.mark.parametrize("exponent", [2.4, 1 / 2.4, 0.8, 1.4])
def test_powers_are_those_of_torch(exponent):
    values = torch.rand(3, 40, 41, generator=torch.Generator().manual_seed(0))
    values[0, 0, :2] = torch.tensor([0.0, 1.0])
    exact = (values.double() ** exponent).float()
    assert torch.allclose(power(values, exponent), exact, rtol=0, atol=1e-6)
    assert torch.equal(power(values[:, ::2, 1::3], exponent), power(values, exponent)[:, ::2, 1::3])
    assert torch.allclose(power(values.double(), exponent), values.double() ** exponent, rtol=1e-12)


def test_curves_have_gradients_where_they_are_asked_for():
    level = torch.tensor([0.5], requires_grad=True)
    srgb_to_linear(level).backward()
    assert float(level.grad) == pytest.approx(1 / 1.0803, rel=1e-3)
