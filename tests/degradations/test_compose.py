from __future__ import annotations

import pytest
import torch

from opir_lightning.degradations import Blur, Compose, Haze, Identity, Noise
from opir_lightning.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Scale:
    """Multiplies; remembers the severity it was given."""

    def __init__(self, factor: float, margin: int = 0) -> None:
        self.factor, self.margin, self.seen = factor, margin, []

    def __call__(self, clean, *, generator, severity=None):
        self.seen.append(severity)
        return clean * self.factor


class Halve(Scale):
    def __call__(self, clean, *, generator, severity=None):
        return (clean + 1) / 2


def test_steps_run_in_the_given_order_and_margins_add_up():
    clean = torch.full((3, 2, 2), 0.8)
    forth, back = Compose([Scale(0.5, 3), Halve(1.0, 4)]), Compose([Halve(1.0, 4), Scale(0.5, 3)])
    assert torch.allclose(forth(clean, generator=seeded()), torch.tensor(0.7))
    assert torch.allclose(back(clean, generator=seeded()), torch.tensor(0.45))
    assert forth.margin == 7


def test_severity_reaches_every_step():
    steps = [Scale(0.9), Scale(0.8)]
    Compose(steps)(torch.zeros(3, 2, 2), generator=seeded(), severity=0.3)
    Compose(steps)(torch.zeros(3, 2, 2), generator=seeded())
    assert [step.seen for step in steps] == [[0.3, None], [0.3, None]]


def test_shares_are_probabilities():
    compose = Compose([Scale(0.5), Scale(0.1)], shares=[0.3, 0.0])
    generator = seeded()
    values = [float(compose(torch.ones(3, 1, 1), generator=generator).max()) for _ in range(400)]
    assert set(values) == {0.5, 1.0}
    assert 90 < values.count(0.5) < 150


def test_wrong_shares_are_refused():
    with pytest.raises(UserError, match="share"):
        Compose([Scale(1.0)], shares=[0.5, 0.5])
    with pytest.raises(UserError, match="shares"):
        Compose([Scale(1.0)], shares=[2.0])


def test_haze_before_noise_is_not_noise_before_haze(photo):
    haze, noise = Haze(airlight=1.0, quantise=False), Noise(50, shot_share=0.0, quantise=False)
    flat = torch.full((3, 64, 64), 0.5)
    noise_last, haze_last = (
        Compose(steps)(flat, generator=seeded(), severity=1.0) for steps in ([haze, noise], [noise, haze])
    )
    # Haze over the noise hides it.
    assert float(haze_last.diff().std()) < 0.6 * float(noise_last.diff().std())
    assert Compose([haze, Blur([1, 9]), noise]).margin == 4


def test_no_step_taken_still_returns_a_copy(photo):
    result = Compose([Scale(0.5)], shares=[0.0])(photo, generator=seeded())
    assert torch.equal(result, photo)
    assert result.data_ptr() != photo.data_ptr()


def test_identity_is_exact_and_its_trace_invisible(photo):
    exact = Identity()(photo, generator=seeded())
    assert torch.equal(exact, photo)
    assert exact.data_ptr() != photo.data_ptr()
    grey = torch.full((3, 100, 100), 0.5)
    trace = Identity([0.0, 2.0], quantise=False)(grey, generator=seeded(), severity=0.5)
    assert 255 * float(trace.std()) == pytest.approx(1.0, abs=0.05)
