"""Any degradation of any picture: a picture of the same size that the generator alone decides, worse with severity."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from opir_lightning.degradations import Blur, Compose, Haze, Identity, LowLight, Noise, Rain

ALL = {
    "noise": Noise(),
    "rain": Rain(),
    "haze": Haze(),
    "blur": Blur(),
    "low_light": LowLight(),
    "identity": Identity([0.0, 2.0]),
    "compose": Compose([Haze(), Noise()]),
    "some": Compose([Rain(), LowLight()], shares=[0.5, 0.5]),
}
each = pytest.mark.parametrize("name", ALL)
sides, seeds, severities = st.integers(1, 33), st.integers(0, 2**31), st.floats(0, 1)


def picture(height: int, width: int, seed: int) -> Tensor:
    """Of 8-bit steps, with flat parts, black and white."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(3, height, width, generator=generator) * 1.4 - 0.2
    return (values.clamp(0, 1) * 255).round() / 255


def degraded(name: str, clean: Tensor, seed: int, severity: float | None) -> Tensor:
    return ALL[name](clean, generator=torch.Generator().manual_seed(seed), severity=severity)


@each
@given(height=sides, width=sides, seed=seeds, severity=st.none() | severities)
def test_a_picture_comes_out_that_the_generator_alone_decides(name, height, width, seed, severity):
    clean = picture(height, width, seed)
    before = clean.clone()
    first = degraded(name, clean, seed, severity)
    torch.manual_seed(seed ^ 1)
    assert torch.equal(first, degraded(name, clean, seed, severity))
    assert torch.equal(clean, before)
    assert first.shape == clean.shape
    assert first.dtype == torch.float32
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1


@each
@given(height=sides, width=sides, seed=seeds)
def test_severity_zero_is_not_seen(name, height, width, seed):
    clean = picture(height, width, seed)
    assert float((degraded(name, clean, seed, 0.0) - clean).abs().max()) <= 1 / 255 + 1e-6


@pytest.mark.parametrize("name", ["noise", "haze", "blur", "low_light", "rain"])
@given(seed=seeds, low=st.floats(0, 0.6))
def test_damage_grows_with_severity(name, seed, low):
    """All else that is random stays the same; on the average over a few draws, for one may hit what is black."""
    clean = picture(32, 32, seed)

    def damage(severity: float) -> float:
        results = [degraded(name, clean, seed + number, severity) for number in range(4)]
        return sum(float((result - clean).square().mean()) for result in results)

    # A picture of noise has little more to lose once it is blurred.
    assert damage(low) <= damage(low + 0.4) * (1.1 if name == "blur" else 1)
