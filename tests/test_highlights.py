"""Skies of pictures taken against the light stay: what dark pictures become brighter than white is compressed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opir_lightning.errors import UserError
from opir_lightning.highlights import KNEE, keep_highlights, white_point
from opir_lightning.models import OPIR
from opir_lightning.restorer import Restorer

LIFT = 0.4  # what the model below adds to a dark picture


@pytest.fixture(scope="module")
def model() -> OPIR:
    """Adds 0.4 to every pixel where low light is named, 0.5 for haze, and nothing otherwise."""
    torch.manual_seed(0)
    net = OPIR(
        tasks=["none", "haze", "low_light"],
        width=4,
        encoder_blocks=[1],
        middle_blocks=1,
        decoder_blocks=[1],
        features=4,
        code_crop=16,
    )
    with torch.no_grad():
        net.task_parameters[0].affine.weight[:, 1, -3:] = torch.tensor([[0.0], [0.5], [LIFT]])
    return net.eval()


@pytest.fixture
def against_the_light() -> np.ndarray:
    """``(90, 120, 3)``: shade at the bottom, above it a blue sky that grows brighter to the right."""
    rows, columns = np.mgrid[:90, :120]
    sky = np.stack([150 + columns * 0.7, 165 + columns * 0.6, 195 + columns * 0.4], axis=-1)
    return np.where((rows < 40)[..., None], sky, 20 + columns[..., None] / 4 + rows[..., None] / 8).astype(np.uint8)


def grey(*values: float) -> torch.Tensor:
    return torch.tensor(values).expand(3, 1, -1)


def test_what_is_brighter_than_white_keeps_its_order_and_its_colour_and_the_dark_half_is_untouched():
    levels = torch.linspace(-0.1, 1.4, 1501)
    restored = torch.stack([levels, 0.5 * levels, 0.8 * levels])[:, None]
    kept = keep_highlights(torch.zeros_like(restored), restored, white=1.3)
    below = levels <= KNEE
    assert torch.equal(kept[..., below], restored[..., below])
    assert (kept[0, 0].diff() > 0).all()
    assert kept[0, 0, levels <= 1.3].max() == pytest.approx(1, abs=1e-5)
    bright = ~below
    assert kept[1, 0, bright] == pytest.approx(0.5 * kept[0, 0, bright].numpy(), abs=1e-6)
    assert kept[2, 0, bright] == pytest.approx(0.8 * kept[0, 0, bright].numpy(), abs=1e-6)
    slope = kept[0, 0].diff() / levels.diff()
    assert (slope.diff().abs() < 0.01).all()  # no corner in which a band would show


def test_what_fits_is_left_as_it_is():
    restored = grey(0.2, 0.6, 0.99, 1.02)
    assert torch.equal(keep_highlights(0.5 * restored, restored, white=1.0), restored)


def test_a_lamp_that_the_network_makes_black_is_the_pictures_own():
    image = grey(0.9, 0.9, 0.9)
    restored = grey(0.75, 0.65, 0.1)
    restored = torch.cat([restored, restored[..., -1:].clone()], dim=-1)
    image = torch.cat([image, grey(0.9)], dim=-1)
    restored[2, 0, -1] = 0.95  # blue alone is left
    kept = keep_highlights(image, restored, white=0.9)
    assert kept[0, 0].tolist() == pytest.approx([0.75, 0.65 + 0.5 * 0.25, 0.9, 0.9], abs=1e-6)
    assert kept[2, 0, -1].item() == pytest.approx(0.9)


def test_the_white_point_is_that_of_the_whole_picture_and_of_dark_ones_only(model, against_the_light):
    restorer = Restorer(model, device="cpu")
    image = torch.from_numpy(against_the_light).permute(2, 0, 1)[None]
    codes = {task: restorer._code(image, task) for task in model.tasks}
    brightest = restorer(image, task="low_light").refined.amax(1).quantile(0.99).item()
    assert brightest > 1.2
    assert white_point(model, image, codes["low_light"]) == pytest.approx(brightest, abs=1e-3)
    assert white_point(model, image, codes["haze"]) is None
    assert white_point(model, image, codes["none"]) is None
    large = image.repeat_interleave(7, dim=2).repeat_interleave(7, dim=3)[..., 3:, 2:]  # a small copy is looked at
    assert white_point(model, large, codes["low_light"]) == pytest.approx(brightest, abs=0.02)
    half = white_point(model, image, codes["low_light"], strength=0.5)
    assert half == pytest.approx(brightest - LIFT / 2, abs=1e-3)


@pytest.mark.parametrize("levels", [np.uint8, np.uint16])
def test_the_sky_of_a_dark_picture_stays_in_its_file(model, against_the_light, levels):
    restorer = Restorer(model, device="cpu")
    top = np.iinfo(levels).max
    pixels = against_the_light.astype(levels) * (top // 255)
    clipped = restorer.restore_pixels(pixels, task="low_light", highlights="clip")[0]
    kept = restorer.restore_pixels(pixels, task="low_light")[0]
    exact = restorer(pixels, task="low_light").refined[0].clamp(0, 1).permute(1, 2, 0).numpy() * top
    assert np.abs(clipped - exact).max() <= 0.51
    sky, shade = slice(0, 40), slice(48, 90)
    assert (clipped[sky] == top).mean() > 0.9
    assert (kept[sky] == top).mean() < 0.05
    assert len(np.unique(kept[20])) > 40 > 5 > len(np.unique(clipped[20]))
    dark = clipped[shade] < 0.5 * top
    assert np.array_equal(kept[shade][dark], clipped[shade][dark])
    tiled = restorer.restore_pixels(pixels, task="low_light", tile=32, overlap=model.receptive_field)[0]
    assert np.abs(tiled.astype(int) - kept.astype(int)).max() <= 1 + top // 10_000


def test_other_damage_and_no_strength_are_not_touched(model, against_the_light):
    restorer = Restorer(model, device="cpu")
    for task in ("none", "haze"):
        kept, clipped = (
            restorer.restore_pixels(against_the_light, task=task, highlights=how)[0] for how in ("keep", "clip")
        )
        assert np.array_equal(kept, clipped)
    same = restorer.restore_pixels(against_the_light, task="low_light", strength=0)[0]
    assert np.array_equal(same, against_the_light)


def test_another_word_is_refused(model, against_the_light):
    with pytest.raises(UserError, match="highlights is 'burn'; use one of keep, clip"):
        Restorer(model, device="cpu").restore_pixels(against_the_light, highlights="burn")
