"""What holds for every degradation: who decides the numbers, what severity means, what comes out."""

from __future__ import annotations

import inspect
import pickle
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from opir_lightning.degradations import Blur, Compose, Haze, Identity, Jpeg, LowLight, Noise, Rain
from opir_lightning.errors import UserError

SHAKE = {"motion_share": 0.0, "defocus_share": 0.0, "gaussian_share": 0.0}
ALIKE = {"roll_share": 0.0, "object_share": 0.0, "value_share": 0.0}


def measured_blur() -> Blur:
    """Kernels are read once: the file may be gone afterwards."""
    kernel = np.zeros((11, 11), np.uint8)
    kernel[2:9, 3], kernel[8, 3:9] = 200, 90
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(kernel).save(Path(folder, "kernel.png"))
        return Blur(**SHAKE, **ALIKE, measured_share=1.0, kernels=[folder])


def measured_rain() -> Rain:
    """As above."""
    clean = np.full((60, 80, 3), 60, np.uint8)
    rainy = clean.copy()
    rainy[:, 5::9], rainy[20:50, 8::14] = 120, 150
    with tempfile.TemporaryDirectory() as folder:
        for name, picture in (("input", rainy), ("target", clean)):
            Path(folder, name).mkdir()
            Image.fromarray(picture).save(Path(folder, name, "pair.png"))
        return Rain(measured_share=1.0, layers=[folder])


DAMAGING = {
    "noise": Noise(shot_share=0.0, camera_share=0.0),
    "sensor_noise": Noise(shot_share=1.0, camera_share=0.0),
    "camera_noise": Noise([0, 55], camera_sigma_255=[0, 25], shot_share=0.0, camera_share=1.0),
    "rain": Rain(),
    "measured_rain": measured_rain(),
    "haze": Haze(),
    "shake": Blur(**SHAKE, **ALIKE),
    "motion": Blur(**{**SHAKE, **ALIKE, "motion_share": 1.0}),
    "defocus": Blur(**{**SHAKE, **ALIKE, "defocus_share": 1.0}),
    "gaussian": Blur(**{**SHAKE, **ALIKE, "gaussian_share": 1.0}),
    "roll": Blur(**{**SHAKE, **ALIKE, "roll_share": 1.0}),
    "object": Blur(**{**SHAKE, **ALIKE, "object_share": 1.0}),
    "values": Blur(**{**SHAKE, **ALIKE, "value_share": 1.0}),
    "measured": measured_blur(),
    "low_light": LowLight(),
    "lamp": LowLight(lamp_share=1.0),
    "backlight": LowLight(backlit_share=1.0),
    "compose": Compose([Haze(), Blur(), Noise()]),
    "some": Compose([Blur(), LowLight()], shares=[0.5, 0.8]),
}
FILED = {"jpeg": Jpeg(Noise()), "some_jpeg": Jpeg(Blur(), share=0.5)}  # a file is one at severity 0 as well
ALL = {**DAMAGING, **FILED, "identity": Identity(), "trace": Identity([0.0, 2.0])}
SEVERE = [name for name in DAMAGING if name != "some"]  # it may leave out every step


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * float(torch.log10((a - b).square().mean() + 1e-12))


@pytest.mark.parametrize("name", ALL)
def test_the_generator_alone_decides(name, photo):
    clean, before = photo.clone(), photo.clone()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = ALL[name](clean, generator=seeded(5))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    random.seed(2)
    assert torch.equal(first, pickle.loads(pickle.dumps(ALL[name]))(clean, generator=seeded(5)))
    assert torch.equal(clean, before)


@pytest.mark.parametrize("name", SEVERE)
def test_one_generator_gives_new_damage_with_every_call(name, photo):
    generator = seeded()
    first, second = (DAMAGING[name](photo, generator=generator, severity=0.9) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ALL)
def test_result_is_a_file_of_eight_bits(name, photo):
    for severity in (None, 0.5, 1.0):
        result = ALL[name](photo, generator=seeded(3), severity=severity)
        assert result.shape == photo.shape
        assert result.dtype == torch.float32
        assert float(result.min()) >= 0
        assert float(result.max()) <= 1
        assert torch.allclose(result * 255, (result * 255).round(), atol=1e-3)


@pytest.mark.parametrize("kind", [Rain, Haze, Blur, LowLight])
def test_unquantised_result_has_steps_in_between_and_the_file_rounds_them(kind, photo):
    result = kind(quantise=False)(photo, generator=seeded(3), severity=0.7) * 255
    assert torch.equal(kind()(photo, generator=seeded(3), severity=0.7) * 255, result.round() / 255 * 255)
    assert float((result - result.round()).abs().mean()) > 0.05  # a whole-level picture has 0, a continuous one 0.25
    assert float(result.min()) >= 0
    assert float(result.max()) <= 255.0001


@pytest.mark.parametrize("name", [name for name in ALL if name not in FILED])
def test_severity_zero_changes_nothing_that_anybody_sees(name, photo):
    for seed in range(4):
        result = ALL[name](photo, generator=seeded(seed), severity=0.0)
        assert float((result - photo).abs().max()) <= 1 / 255 + 1e-6


@pytest.mark.parametrize("name", SEVERE)
def test_damage_begins_faint_and_grows_with_severity(name, photo):
    steps = (0.03, 0.1, 0.3, 0.6, 1.0)
    seeds = range(4)
    degrade = DAMAGING[name]
    scores = [[psnr(degrade(photo, generator=seeded(i), severity=s), photo) for i in seeds] for s in steps]
    means = [sum(row) / len(row) for row in scores]
    assert means == sorted(means, reverse=True)
    assert means[0] > 33  # hardly visible
    assert means[-1] < means[1] - 6


def test_unstated_severity_is_drawn_from_the_configured_range(photo):
    patch = photo[:, :32, :32]
    narrow, wide = Noise(50, severity=[0.4, 0.4]), Noise([0, 100], severity=[0.5, 0.5])
    assert torch.equal(narrow(patch, generator=seeded()), narrow(patch, generator=seeded(), severity=0.4))
    assert torch.equal(wide(patch, generator=seeded()), wide(patch, generator=seeded(), severity=0.5))
    flat, scores = torch.full((3, 32, 32), 0.5), []
    drawing = Noise([0, 55], shot_share=0.0, camera_share=0.0)
    generator = seeded()
    for _ in range(200):
        scores.append(255 * float(drawing(flat, generator=generator).std()))
    quarters = np.quantile(scores, [0.25, 0.5, 0.75])
    assert np.allclose(quarters, [13.75, 27.5, 41.25], atol=5)
    assert min(scores) < 2


@pytest.mark.parametrize(
    "name",
    ["rain", "haze", "shake", "object", "low_light", "lamp", "backlight", "sensor_noise", "camera_noise", "noise"],
)
def test_threads_do_not_change_the_result(name):
    clean = torch.rand(3, 190, 230, generator=seeded())  # 131,100 values: torch splits work from 32,768 on
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ALL[name](clean, generator=seeded(1), severity=0.8)
        torch.set_num_threads(2)
        assert torch.equal(alone, ALL[name](clean, generator=seeded(1), severity=0.8))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [name for name in ALL if getattr(ALL[name], "batched", False)])
def test_a_batch_is_its_pictures_one_by_one(name, photo):
    degrade = ALL[name]
    pictures = [photo[:, :37, 60 * i : 60 * i + 53] for i in range(3)]
    severities = [0.9, None, 0.0]
    draws = [degrade.draw(37, 53, generator=seeded(i), severity=s) for i, s in enumerate(severities)]
    batch = degrade.apply(torch.stack(pictures), pickle.loads(pickle.dumps(draws)))
    for i, severity in enumerate(severities):
        assert torch.equal(batch[i], degrade(pictures[i], generator=seeded(i), severity=severity))
    assert torch.equal(batch[1:], degrade.apply(torch.stack(pictures[1:]), draws[1:]))


@pytest.mark.parametrize("name", [name for name in ALL if getattr(ALL[name], "batched", False)])
def test_severity_does_not_move_what_else_is_drawn(name):
    states, seeds = [], []
    for severity in (None, 0.0, 0.4, 1.0):
        generator = seeded(7)
        drawn = ALL[name].draw(20, 30, generator=generator, severity=severity)
        states.append(generator.get_state())
        seeds.append(getattr(drawn, "noise_seed", None))
    assert all(torch.equal(states[0], state) for state in states)
    assert len(set(seeds)) == 1


@pytest.mark.parametrize("name", ALL)
def test_tiny_odd_and_strided_pictures(name, photo):
    ALL[name](torch.full((3, 1, 1), 0.5), generator=seeded(), severity=1.0)
    ALL[name](photo[:, :5, :3], generator=seeded(), severity=1.0)  # far smaller than a blur kernel
    view = photo.permute(1, 2, 0).contiguous().permute(2, 0, 1)[:, 3:40, 5:77]
    assert not view.is_contiguous()
    strided = ALL[name](view, generator=seeded(), severity=0.8)
    assert torch.equal(strided, ALL[name](view.contiguous(), generator=seeded(), severity=0.8))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(1, 3, 8, 8), "shape"),
        (torch.zeros(8, 8, 3), "shape"),
        (torch.zeros(3, 0, 8), "shape"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "float32"),
        (torch.zeros(3, 8, 8, dtype=torch.float64), "float32"),
        (torch.full((3, 8, 8), 200.0), "divide"),
        (torch.full((3, 8, 8), float("nan")), "nan"),
    ],
)
def test_wrong_pictures_are_refused(name, wrong, said):
    with pytest.raises(ValueError, match=said):
        ALL[name](wrong, generator=seeded())


@pytest.mark.parametrize("name", ["noise", "rain", "haze", "shake", "low_light", "identity"])
@pytest.mark.parametrize("severity", [-0.1, 1.5, float("nan")])
def test_wrong_severity_is_refused(name, severity, photo):
    with pytest.raises(UserError, match="severity"):
        ALL[name](photo[:, :8, :8], generator=seeded(), severity=severity)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Noise, {"sigma_255": [0, 0.2]}, r"sigma_255=51"),
        (Noise, {"sigma_255": [0, 300]}, "between 0 and 255"),
        (Noise, {"sigma_255": [1, 2, 3]}, "two numbers"),
        (Noise, {"sigma_255": "loud"}, "two numbers"),
        (Noise, {"severity": [0, 2]}, "severity"),
        (Rain, {"angle": [-80, 0]}, "angle"),
        (Rain, {"veil_share": 1.2}, "veil_share"),
        (Rain, {"measured_share": 0.1}, "layers"),
        (Haze, {"beta": -1}, "beta"),
        (Haze, {"airlight": [0.7, 255]}, "airlight"),
        (Haze, {"glow_share": 2}, "glow_share"),
        (Blur, {"size": [0, 9]}, "size"),
        (Blur, {"motion_share": 0.6, "defocus_share": 0.6}, "add up"),
        (Blur, {"measured_share": 0.1}, "kernels"),
        (Blur, {"object_share": -0.1}, "object_share"),
        (Blur, {"roll": [0, 11]}, "roll"),
        (Noise, {"shot_share": 0.8, "camera_share": 0.3}, "add up"),
        (Noise, {"camera_sigma_255": [0, 0.5]}, "sigma_255=127.5"),
        (Noise, {"luma_share": [0, 2]}, "luma_share"),
        (LowLight, {"lamp": [0.5, 2]}, "lamp"),
        (LowLight, {"lit_stops": [0, 2]}, "lit_stops"),
        (LowLight, {"exposure": [1.0, 0.0]}, "exposure"),
        (Identity, {"sigma_255": 10}, "sigma_255"),
        (Compose, {"steps": []}, "at least one"),
        (Jpeg, {"degradation": Identity(), "quality": [0, 90]}, "quality"),
        (Jpeg, {"degradation": Identity(), "share": 2}, "share"),
        (Jpeg, {"degradation": {"sigma_255": 5}}, r"sigma_255.*needs a degradation"),
    ],
)
def test_wrong_settings_are_refused_with_their_name(kind, settings, said):
    with pytest.raises(UserError, match=said):
        kind(**settings)


RANGES = [
    (kind, name)
    for kind in (Identity, Noise, Rain, Haze, Blur, LowLight, Jpeg)
    for name, parameter in inspect.signature(kind).parameters.items()
    if parameter.annotation == "Range"
]


@pytest.mark.parametrize(("kind", "name"), RANGES, ids=lambda value: getattr(value, "__name__", value))
def test_the_ends_of_a_range_in_the_wrong_order_are_refused(kind, name):
    first, second = inspect.signature(kind).parameters[name].default
    more = {"degradation": Identity()} if kind is Jpeg else {}
    if first == second:  # Identity's noise
        second += 1
    kind(**more, **{name: [first, second]})
    kind(**more, **{name: [first, first]})
    with pytest.raises(UserError, match=rf"^{name} is .*; its first end must not be (more|less) than its second\.$"):
        kind(**more, **{name: [second, first]})


def test_all_ranges_are_among_them():
    assert len(RANGES) > 40
