"""Rain from pairs: what it adds to them is what it adds to other pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from opir_lightning.degradations import Rain
from opir_lightning.degradations.rain_layers import BRIGHTEST, DENSEST, Placed, cut, draw_places, lay, read_layers
from opir_lightning.errors import UserError

AS_IT_IS = Placed(number=0, enlarged=1.0, angle=0.0, mirrored=False, x=0.5, y=0.5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def save_pair(
    folder: Path, name: str, clean: np.ndarray, rain: np.ndarray, size: tuple[int, int] | None = None
) -> None:
    """``(H, W, 3)`` and ``(H, W)`` of 8 bits."""
    rainy = np.minimum(clean.astype(int) + rain[..., None], 255).astype(np.uint8)
    for part, picture in (("input", rainy), ("target", clean if size is None else cv2.resize(clean, size))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / part / f"{name}.png"), picture)


@pytest.fixture
def streaks() -> np.ndarray:
    """``(120, 160)``: slanted lines of 90 grey levels, some of them fainter."""
    rain = np.zeros((120, 160), np.uint8)
    for number in range(-100, 160, 23):
        cv2.line(rain, (number, 0), (number + 60, 119), 90 - number % 3 * 20, 2)
    return rain


@pytest.fixture
def pairs(tmp_path: Path, streaks: np.ndarray) -> Path:
    colours = np.random.default_rng(0).integers(0, 120, (120, 160, 3)).astype(np.uint8)
    colours[:60, :, 2] = 250  # what is lit in one colour has room for rain in the others
    save_pair(tmp_path, "one", colours, streaks)
    save_pair(tmp_path, "two [2]", colours, streaks[:, ::-1])
    return tmp_path


def test_a_layer_is_what_the_rain_has_added_in_any_colour(pairs, streaks):
    first, second = read_layers([pairs])
    assert np.allclose(first * 255, streaks, atol=0.01)
    assert np.allclose(second * 255, streaks[:, ::-1], atol=0.01)


def test_pairs_with_much_white_are_left_out(pairs, streaks):
    white = np.full((120, 160, 3), 40, np.uint8)
    white[:20] = 255
    save_pair(pairs, "white", white, streaks)
    assert len(read_layers([pairs])) == 2
    for name in ("one", "two [2]"):
        (pairs / "input" / f"{name}.png").unlink()
    with pytest.raises(UserError, match="much is white"):
        read_layers([pairs])


def test_folders_without_pairs_are_named(pairs, tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*no rainy pictures"):
        read_layers([tmp_path / "nowhere"])
    (pairs / "target" / "two [2].png").rename(pairs / "target" / "other.png")
    with pytest.raises(UserError, match=r"two \[2\]\.png' has no partner"):
        read_layers([pairs])
    (pairs / "target" / "two [2].jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"two \[2\]\.jpg' cannot be read"):
        read_layers([pairs])
    save_pair(pairs, "two [2]", np.zeros((120, 160, 3), np.uint8), np.zeros((120, 160), np.uint8), size=(80, 60))
    (pairs / "target" / "two [2].jpg").unlink()
    with pytest.raises(UserError, match="differ in size"):
        read_layers([pairs])
    with pytest.raises(UserError, match="layers names no folders"):
        Rain(measured_share=0.2)


def test_a_cut_is_the_layer_itself_and_can_be_mirrored_enlarged_and_turned(streaks):
    layer = streaks.astype(np.float32)
    assert np.allclose(cut(layer, AS_IT_IS, 120, 160), layer, atol=1e-3)
    assert np.allclose(cut(layer, AS_IT_IS._replace(mirrored=True), 120, 160), layer[:, ::-1], atol=1e-3)
    corner = cut(layer, AS_IT_IS._replace(x=0.0, y=1.0), 40, 50)
    assert np.allclose(corner, layer[80:, :50], atol=1e-3)
    soft = cv2.GaussianBlur(layer, (0, 0), 3)
    large = cut(soft, AS_IT_IS._replace(enlarged=2.0), 240, 320)
    assert np.allclose(cv2.resize(large, (160, 120), interpolation=cv2.INTER_AREA), soft, atol=2)
    spot = np.zeros((101, 101), np.float32)
    spot[50, 80] = 1
    turned = cut(spot, AS_IT_IS._replace(angle=10.0), 101, 101)
    row, column = np.unravel_index(turned.argmax(), turned.shape)
    assert np.hypot(row - 50, column - 50) == pytest.approx(30, abs=1)
    assert abs(row - 50) == pytest.approx(30 * np.sin(np.radians(10)), abs=1)


def test_rain_has_the_wanted_strength_where_the_layers_have_as_much(streaks):
    layers = [streaks.astype(np.float32) / 255]
    own = float(np.square(layers[0]).mean() ** 0.5)
    places = draw_places(np.random.default_rng(0), 1)
    assert len(places) == DENSEST
    assert not lay(layers, places, 100, 100, 0.0).any()
    for share in (0.2, 0.8, 1.2):
        rain = lay(layers, places, 100, 100, share * own)
        assert np.square(rain).mean() ** 0.5 == pytest.approx(share * own, rel=0.1)
    most = lay(layers, places, 100, 100, 1.0)
    assert most.max() > BRIGHTEST * layers[0].max()  # one lies before the other
    assert most.max() <= DENSEST * BRIGHTEST * layers[0].max() + 1e-5


@pytest.fixture
def grey() -> Tensor:
    return torch.rand(3, 90, 110, generator=seeded()) * 0.3


def test_rain_adds_the_layer_before_everything(pairs, grey):
    degrade = Rain(measured_share=1.0, layers=pairs, quantise=False)
    dark, light = (degrade(picture, generator=seeded(4), severity=0.3) - picture for picture in (grey, grey + 0.3))
    assert dark.max() > 0.2
    assert torch.allclose(dark, light, atol=1e-4)
    assert torch.allclose(dark[0], dark[2], atol=1e-4)
    drawn = degrade.draw(90, 110, generator=seeded(4), severity=0.3)
    assert torch.allclose(dark[0], 1 - torch.exp(-drawn.layer), atol=1e-4)


def test_the_share_of_rain_from_pairs(pairs, grey):
    some = Rain(measured_share=0.4, layers=[str(pairs)])
    fading = [some.draw(20, 20, generator=seeded(i)).fading for i in range(300)]
    assert np.mean([each == 0.0 for each in fading]) == pytest.approx(0.4, abs=0.08)
    unmeasured = Rain(layers=pairs)  # and without any, nothing of the drawn rain moves
    assert torch.equal(unmeasured(grey, generator=seeded(1)), Rain()(grey, generator=seeded(1)))
