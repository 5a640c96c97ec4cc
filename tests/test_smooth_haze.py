"""What is taken off a hazy picture varies slowly over it: no bands in its sky, and its drawing stays."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_networks import small_network

import opir_lightning
from opir_lightning import Restorer, restore
from opir_lightning.degradations import Haze
from opir_lightning.errors import UserError
from opir_lightning.smooth_haze import SmoothHaze, fit_affine
from opir_lightning.types import Code

DEMO = Path(opir_lightning.__file__).parent / "data" / "demo"


def texture(height: int, width: int) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def code(*shares: float) -> Code:
    task = torch.tensor([shares])
    return Code(task_logits=task.log(), task=task, severity=torch.zeros(1, 4))


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.from_pretrained("opir_tiny", device="cpu")


@pytest.fixture(scope="module")
def hazy() -> tuple[np.ndarray, np.ndarray]:
    """A free photograph in artificial haze, and as it is, ``(180, 240, 3)``."""
    picture = cv2.imread(str(DEMO / "heldout" / "bridge.jpg"), cv2.IMREAD_COLOR_RGB)
    clean = cv2.resize(picture, (240, 180), interpolation=cv2.INTER_AREA)
    image = torch.from_numpy(clean).permute(2, 0, 1)[None].float() / 255
    damage = Haze(glow_share=0.0)
    drawn = damage.draw(180, 240, generator=torch.Generator().manual_seed(1), severity=0.5)
    return (damage.apply(image, [drawn])[0] * 255).round().byte().permute(1, 2, 0).numpy(), clean


def test_an_affine_function_is_found():
    before = texture(40, 60)
    factors, added = torch.tensor([1.5, 2.0, 3.0])[:, None, None], torch.tensor([-0.2, 0.1, -0.5])[:, None, None]
    gain, offset = fit_affine(before, factors * before + added, reach=6)
    assert torch.allclose(gain, factors.expand_as(gain), atol=0.01)
    assert torch.allclose(offset, added.expand_as(offset), atol=0.01)


def test_no_contrast_is_lost_and_what_gets_darker_gains_some():
    before = 0.4 + 0.2 * texture(40, 60)
    gain, offset = fit_affine(before, 0.5 * before + 0.3, reach=40)  # as bright as before, half the contrast
    assert torch.allclose(gain, torch.ones_like(gain), atol=1e-3)
    assert (gain * before + offset).mean().item() == pytest.approx((0.5 * before + 0.3).mean().item(), abs=1e-3)
    flat = torch.full((3, 40, 60), 0.6)
    gain, offset = fit_affine(flat, torch.full((3, 40, 60), 0.2), reach=6)
    assert torch.allclose(gain, torch.full_like(gain, 0.8 / 0.4), atol=1e-3)  # where the air is white
    assert torch.allclose(gain * flat + offset, torch.full_like(flat, 0.2), atol=1e-3)
    gain, _ = fit_affine(torch.full((3, 9, 9), 0.97), torch.full((3, 9, 9), 0.2), reach=2)
    assert gain.max().item() == pytest.approx(4)
    gain, _ = fit_affine(flat, torch.full((3, 40, 60), 0.9), reach=6)
    assert torch.allclose(gain, torch.ones_like(gain), atol=1e-3)


@pytest.mark.parametrize("size", [(150, 200), (307, 611), (1, 1), (5, 900)])
def test_bands_vanish_and_what_varies_slowly_with_the_picture_stays(size):
    height, width = size
    image = 0.6 + 0.1 * (texture(height, width) - 0.5)
    slowly = torch.linspace(1, 2, width)
    clear = slowly * (image - 0.6) + torch.linspace(0.3, 0.6, height)[:, None]
    bands = 0.05 * torch.sign(torch.sin(torch.arange(height) * 6.28 / max(4, height / 16)))[:, None]
    air = SmoothHaze(height, width, share=1.0)
    rows = [slice(top, min(top + 64, height)) for top in range(0, height, 64)]
    for part in rows:
        air.watch(part, image[:, part], (clear + bands)[:, part])
    smooth = torch.cat([air.smooth(part, image[:, part], (clear + bands)[:, part]) for part in rows], dim=1)
    assert smooth.shape == image.shape
    if height > 100:
        assert (smooth - clear).square().mean() < 0.1 * bands.square().mean()
    at_once = SmoothHaze(height, width, share=1.0)
    at_once.watch(slice(0, height), image, clear + bands)
    assert torch.allclose(at_once.smooth(slice(0, height), image, clear + bands), smooth, atol=1e-5)


def test_the_share_of_haze_in_the_code_says_how_far_it_goes():
    tasks = ["none", "haze", "low_light"]
    assert SmoothHaze.of(tasks, code(0.5, 0.01, 0.49), 40, 60) is None
    assert SmoothHaze.of(["none", "rain"], code(0.5, 0.5), 40, 60) is None
    image, restored = texture(40, 60), texture(40, 60).flip(2)
    results = []
    for share in (0.5, 1.0):
        air = SmoothHaze.of(tasks, code(1 - share, share, 0.0), 40, 60)
        air.watch(slice(0, 40), image, restored)
        results.append(air.smooth(slice(0, 40), image, restored))
    assert torch.allclose(results[0], (results[1] + restored) / 2, atol=1e-6)
    assert not torch.allclose(results[1], restored, atol=0.1)


def test_a_hazy_photograph_comes_nearer_to_the_clear_one(restorer, hazy):
    picture, clean = hazy
    raw = restorer.restore_pixels(picture, task="haze", haze="raw")[0]
    smooth = restorer.restore_pixels(picture, task="haze")[0]
    exact = restorer(picture, task="haze").refined[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(raw - exact).max() <= 0.51
    error = [np.square(each.astype(float) - clean).mean() for each in (picture, raw, smooth)]
    assert error[2] < error[1] < error[0]
    tiled = restorer.restore_pixels(picture, task="haze", tile=64)[0]
    assert np.abs(tiled.astype(int) - smooth).max() <= 1
    deep = restorer.restore_pixels(picture.astype(np.uint16) * 257, task="haze")[0]
    assert np.abs(deep / 257 - smooth).max() <= 1


def test_nothing_else_changes(restorer, hazy):
    picture, _ = hazy
    assert np.array_equal(restorer.restore_pixels(picture, task="haze", strength=0)[0], picture)
    for task in ("noise", "rain"):
        raw = restorer.restore_pixels(picture, task=task, haze="raw")[0]
        assert np.array_equal(restorer.restore_pixels(picture, task=task)[0], raw)
    model = small_network(["none", "noise"])  # which knows no haze
    assert np.array_equal(Restorer(model, device="cpu").restore_pixels(picture)[0], picture)
    with pytest.raises(UserError, match="haze is 'thick'"):
        restorer.restore_pixels(picture, haze="thick")


def test_the_command_can_leave_it(restorer, hazy, tmp_path):
    picture, _ = hazy
    cv2.imwrite(str(tmp_path / "hazy.png"), picture[..., ::-1])
    for mode in ("smooth", "raw"):
        options = ["--weights", "opir_tiny", "--task", "haze", "--haze", mode, "--device", "cpu"]
        assert restore.main([str(tmp_path / "hazy.png"), "-o", str(tmp_path / mode), *options]) == 0
        written = cv2.imread(str(tmp_path / mode / "hazy.png"), cv2.IMREAD_COLOR_RGB)
        assert np.array_equal(written, restorer.restore_pixels(picture, task="haze", haze=mode)[0])
