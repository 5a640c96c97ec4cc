"""Skies of pictures taken against the light stay: what dark pictures become brighter than white is compressed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import small_network

from opir_lightning.errors import UserError
from opir_lightning.highlights import BEYOND, KNEE, Tone, keep_highlights, measure_tone
from opir_lightning.models import OPIR
from opir_lightning.restorer import Restorer

LIFT = 0.4  # what the model below adds to a dark picture


@pytest.fixture(scope="module")
def model() -> OPIR:
    """Adds 0.4 to every pixel where low light is named, 0.5 for haze, and nothing otherwise."""
    net = small_network(["none", "haze", "low_light"], brighter=[0.0, 0.5, LIFT])
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
    refined = torch.stack([levels, 0.5 * levels, 0.8 * levels])[:, None]
    kept = keep_highlights(torch.zeros_like(refined), 0.5 * refined, refined, Tone(white=1.3, begins=0.6, level=0.9))
    below = levels <= KNEE
    assert torch.equal(kept[..., below], refined[..., below])
    assert (kept[0, 0].diff() > 0).all()
    assert kept[0, 0, levels <= 1.3].max() == pytest.approx(1, abs=1e-5)
    bright = ~below
    assert kept[1, 0, bright] == pytest.approx(0.5 * kept[0, 0, bright].numpy(), abs=1e-6)
    assert kept[2, 0, bright] == pytest.approx(0.8 * kept[0, 0, bright].numpy(), abs=1e-6)
    slope = kept[0, 0].diff() / levels.diff()
    assert (slope.diff().abs() < 0.01).all()  # no corner in which a band would show


def test_what_fits_is_left_as_it_is():
    refined = grey(0.2, 0.6, 0.99, 1.02)
    tone = Tone(white=1.0, begins=0.6, level=0.9)
    assert torch.equal(keep_highlights(0.5 * refined, refined, refined, tone), refined)


def test_where_stage_1_is_far_beyond_white_the_picture_is_drawn_on_from_the_tone():
    low, high = BEYOND
    image = torch.stack([torch.linspace(0, 1, 101), torch.linspace(0, 0.5, 101), torch.linspace(0, 0.8, 101)])[:, None]
    tone = Tone(white=1.2, begins=0.4, level=0.8)
    wild = torch.randn(3, 1, 101, generator=torch.Generator().manual_seed(0))
    kept = keep_highlights(image, torch.full_like(image, high + 0.01), wild, tone)
    assert kept[0, 0, [0, 20, 40, 70, 100]].tolist() == pytest.approx([0, 0.4, 0.8, 0.9, 1.0], abs=1e-5)
    assert torch.allclose(kept[1], 0.5 * kept[0], atol=1e-6)
    assert torch.allclose(kept[2], 0.8 * kept[0], atol=1e-6)
    believed = keep_highlights(image, torch.full_like(image, low), image, tone._replace(white=1.0))
    assert torch.equal(believed, image)
    half = keep_highlights(image, torch.full_like(image, (low + high) / 2), image, tone._replace(white=1.0))
    assert torch.allclose(half, (kept + image) / 2, atol=1e-5)


def test_the_tone_is_that_of_the_whole_picture_and_of_dark_ones_only(model, against_the_light):
    restorer = Restorer(model, device="cpu")
    image = torch.from_numpy(against_the_light).permute(2, 0, 1)[None]
    codes = {task: restorer._code(image, task) for task in model.tasks}
    brightest = restorer(image, task="low_light").refined.amax(1).quantile(0.99).item()
    tone = measure_tone(model, image, codes["low_light"])
    assert brightest > 1.2
    assert tone.white == pytest.approx(brightest, abs=1e-3)
    assert tone.begins == pytest.approx(BEYOND[0] - LIFT, abs=0.06)  # the model adds as much to it
    assert tone.begins < tone.level < 1
    assert measure_tone(model, image, codes["haze"]) is None
    assert measure_tone(model, image, codes["none"]) is None
    large = image.repeat_interleave(7, dim=2).repeat_interleave(7, dim=3)[..., 3:, 2:]  # a small copy is looked at
    assert measure_tone(model, large, codes["low_light"]) == pytest.approx(tone, abs=0.03)
    half = measure_tone(model, image, codes["low_light"], strength=0.5)
    assert half.white == pytest.approx(brightest - LIFT / 2, abs=1e-3)


def test_of_what_cannot_be_believed_no_tone_is_taken(model):
    restorer = Restorer(model, device="cpu")
    image = torch.full((1, 3, 64, 64), 0.1)
    image[..., :32] = 1.1  # a lamp: beyond all doubt when the model has added its part
    tone = measure_tone(model, image, restorer._code(image.clamp(0, 1), "low_light"))
    assert tone.white == pytest.approx(0.1 + LIFT, abs=1e-3)
    assert tone.begins == pytest.approx(0.99)
    dark = measure_tone(model, torch.full((1, 3, 8, 8), 0.1), restorer._code(image.clamp(0, 1), "low_light"))
    assert dark.white == pytest.approx(0.1 + LIFT, abs=1e-3)
    one = measure_tone(model, torch.full((1, 3, 1, 1), 0.1), restorer._code(image.clamp(0, 1), "low_light"))
    assert one.white == 1.0


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
