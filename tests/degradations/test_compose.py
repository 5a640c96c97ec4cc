from __future__ import annotations

from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from opir_lightning.degradations import Blur, Compose, Haze, Identity, LowLight, Noise
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
    haze, noise = Haze(airlight=1.0, quantise=False), Noise(50, shot_share=0.0, camera_share=0.0, quantise=False)
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


def test_a_function_is_a_step_too(photo):
    def invert(clean, *, generator, severity):
        return 1 - clean

    compose = Compose([invert, Noise(20)])
    assert not compose.batched
    assert compose.margin == 0
    noisy = compose(photo, generator=seeded(), severity=1.0)
    assert float((noisy - (1 - photo)).abs().mean()) < 0.1
    assert Compose([Blur(), Noise()]).batched


def test_only_the_last_step_rounds_whatever_the_steps_say(photo):
    blur = Blur(9, noise_255=0.0)
    compose = Compose([blur, Identity(quantise=False)])
    result = compose(photo, generator=seeded()) * 255
    assert float((result - result.round()).abs().mean()) > 0.05
    assert blur.quantise  # the caller's own is left alone
    # A file is rounded even where the last step was left out.
    rounded = Compose([blur, Noise()], shares=[1.0, 0.0])(photo, generator=seeded()) * 255
    assert torch.allclose(rounded, rounded.round(), atol=1e-3)
    assert float((rounded / 255 - photo).abs().mean()) > 0.005


def test_the_depth_goes_to_the_steps_that_take_it():
    compose = Compose([Haze(1.0, airlight=1.0, tint=0.0), Identity()])
    assert compose.takes_depth
    assert not Compose([Noise()]).takes_depth
    depth = torch.ones(16, 16)
    depth[:, 8:] = 3.0
    hazy = compose(torch.zeros(3, 16, 16), generator=seeded(), severity=1.0, depth=depth)
    assert float(hazy[:, :, 8:].min()) > float(hazy[:, :, :8].max()) + 0.1


def test_each_picture_of_a_batch_has_its_own_steps():
    compose = Compose([LowLight(severity=1.0), Identity()], shares=[0.5, 1.0])
    generator = seeded(1)
    draws = [compose.draw(8, 8, generator=generator) for _ in range(12)]
    dark = compose.apply(torch.full((12, 3, 8, 8), 0.8), draws).mean((1, 2, 3)) < 0.5
    assert dark.tolist() == [draw[0] is not None for draw in draws]
    assert 0 < int(dark.sum()) < 12


def test_mixtures_of_the_configuration_are_made_of_its_degradations():
    path = Path(__file__).resolve().parents[2] / "conf" / "degradations" / "default.yaml"
    nodes = OmegaConf.create({"degradations": OmegaConf.load(path)})["degradations"]
    mixtures = [name for name, node in nodes.items() if node._target_.endswith("Compose")]
    assert len(mixtures) >= 6
    for name in mixtures:
        mixture = hydra.utils.instantiate(nodes[name], _convert_="all")
        kinds = "_".join(type(step).__name__ for step in mixture.steps)
        assert kinds.replace("LowLight", "Low_Light").lower() == name
        assert [step.quantise for step in mixture.steps] == [False] * (len(mixture.steps) - 1) + [True]
        assert mixture.batched
