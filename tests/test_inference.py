"""Tiles add up to the whole picture, and every kind of input means the same picture."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import small_network

import opir_lightning
from opir_lightning.checkpoints import save_weights
from opir_lightning.errors import UserError
from opir_lightning.inference import (
    AUTO_TILE,
    SMALLEST_TILE,
    choose_device,
    choose_tile,
    exact_float32,
    restore_bands,
    restore_tiled,
)
from opir_lightning.memory import Scratch, free_memory, out_of_memory
from opir_lightning.models import OPIR
from opir_lightning.picture_files import to_rgb
from opir_lightning.restorer import Restorer
from opir_lightning.tiling import plan_tiles


@pytest.fixture(scope="module")
def model() -> OPIR:
    """A small network in which everything is at work: blocks, both stages, the code. At its start it is an identity."""
    net = small_network(["none", "noise", "haze"])
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("scale1", "scale2")):
                parameter.fill_(0.7)
            elif "task_parameters" in name or "projection" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """``(1, 3, 101, 122)``: smooth and dark on the left, noisy and bright on the right: its parts have other codes."""
    gen = torch.Generator().manual_seed(1)
    ramp = torch.linspace(0, 0.8, 122).expand(1, 3, 101, 122)
    noise = torch.rand(1, 3, 101, 122, generator=gen) * torch.linspace(0, 0.2, 122)
    return ramp + noise


def largest_difference(a, b) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap", "stride"),
    [
        (101, 122, 32, 8, 4),
        (1, 1, 16, 16, 8),
        (7, 300, 50, 3, 8),
        (64, 64, 64, 0, 4),
        (65, 64, 64, 5, 4),
        (33, 20, None, 9, 8),
    ],
)
def test_the_shares_of_tiles_add_up_and_windows_lie_on_the_grid(height, width, tile, overlap, stride):
    plan = plan_tiles(height, width, tile=tile, overlap=overlap, stride=stride)
    for spans, length in zip(plan, (height, width), strict=True):
        total = torch.zeros(length)
        for span in spans:
            total[span.kept] += span.weights
            window, kept = span.window, span.kept
            assert window.start % stride == 0
            assert window.start == 0 or kept.start - window.start >= overlap
            assert window.stop == length or window.stop - kept.stop >= overlap
            assert window.start + span.inner.start == kept.start
            assert window.start + span.inner.stop == kept.stop
        assert (total - 1).abs().max() < 1e-6
    assert tile is not None or len(plan) == 1


def test_tiles_are_even():
    kept = [span.kept for span in plan_tiles(8, 264, tile=128, overlap=0, stride=8).columns]
    assert [part.stop - part.start for part in kept] == [88, 88, 88]  # not 128, 128, 8


def test_tiles_fade_into_each_other(model, picture):
    """With too small an overlap tiles differ where they meet: a step there would be seen, a slope is not."""
    whole = restore_tiled(model, picture, tile=None).refined
    rough, smooth = (restore_tiled(model, picture, tile=64, overlap=overlap).refined for overlap in (0, 8))
    steps = [(result - whole).diff(dim=3)[..., 63].abs().mean() for result in (rough, smooth)]
    assert steps[1] < steps[0] / 4


@pytest.mark.parametrize("tile", [17, 40, 64])
def test_a_tiled_result_equals_the_whole_where_the_overlap_covers_the_receptive_field(model, picture, tile):
    whole = restore_tiled(model, picture, tile=None)
    with torch.no_grad():
        assert largest_difference(whole, model(picture)) <= 1e-6
    tiled = restore_tiled(model, picture, tile=tile, overlap=model.receptive_field)
    assert largest_difference(tiled, whole) <= 1e-5
    # The same with too small an overlap, or with a code of each tile's own, is far off: the test above can fail.
    assert largest_difference(restore_tiled(model, picture, tile=tile, overlap=0), whole) > 1e-2
    corner = model.estimate_code(picture[..., :tile, :tile])
    assert largest_difference(restore_tiled(model, picture, tile=None, code=corner)[:3], whole[:3]) > 1e-3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (3, 2), (37, 5)])
def test_any_size_is_restored(model, height, width):
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))
    whole = restore_tiled(model, image, tile=None)
    assert whole.refined.shape == whole.coarse.shape == image.shape
    assert whole.uncertainty.shape == (2, 1, height, width)
    assert largest_difference(restore_tiled(model, image, tile=8, overlap=model.receptive_field), whole) <= 1e-5
    for index in range(2):  # a batch is restored picture by picture
        assert (
            largest_difference(
                restore_tiled(model, image[index : index + 1], tile=None), (x[index : index + 1] for x in whole)
            )
            <= 1e-5
        )


def test_a_given_code_or_task_is_used_and_progress_is_told(model, picture):
    free = restore_tiled(model, picture, tile=64)
    steps = []
    told = restore_tiled(model, picture, tile=64, task=2, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert largest_difference(told[:3], free[:3]) > 1e-3
    code = model.estimate_code(picture, torch.tensor([2]))
    assert largest_difference(restore_tiled(model, picture, tile=64, code=code), told) == 0


def test_between_tiles_the_callers_grad_mode_is_untouched(model, picture):
    code = model.estimate_code(picture)
    for _ in restore_bands(model, picture, tile=64, code=code):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_wrong_tiles_and_tensors_are_errors(model, picture):
    for arguments in ({"tile": 0}, {"tile": 8, "overlap": -1}):
        with pytest.raises(ValueError, match="tile must be positive"):
            restore_tiled(model, picture, **arguments)
    for wrong in (picture[0], picture[:, :1], picture[..., :0]):
        with pytest.raises(ValueError, match="at least one pixel"):
            restore_tiled(model, wrong, tile=None)


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("weights", ["opir_tiny", "opir_small"])
def test_tiles_of_the_packaged_weights_equal_the_whole_on_photographs(weights, device):
    """With the overlap of 128 pixels that is used, which is less than the receptive field."""
    restorer = Restorer.from_pretrained(weights, device=device)
    photographs = sorted((Path(opir_lightning.__file__).parent / "data" / "demo" / "heldout").glob("*.jpg"))
    for path, damage in zip(photographs[:3], ("dark", "noisy", "hazy"), strict=True):
        pixels = np.array(Image.open(path).convert("RGB"))[:640, :900].astype(np.float32) / 255
        noise = np.random.default_rng(0).normal(0, 25 / 255, pixels.shape)
        damaged = {"dark": pixels * 0.15, "noisy": pixels + noise, "hazy": 0.4 * pixels + 0.5}[damage]
        damaged = (damaged.clip(0, 1) * 255).round().astype(np.uint8)
        # "raw": smoothing what haze takes would smooth away what is looked for here.
        whole = restorer.restore_pixels(damaged, tile=None, haze="raw")[0].astype(int)
        for tile in (128, 256, 512):
            tiled = restorer.restore_pixels(damaged, tile=tile, haze="raw")[0].astype(int)
            assert np.abs(tiled - whole).max() <= 1, (path.name, tile)
            assert (tiled != whole).mean() < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["opir_tiny", "opir_small"])
def test_a_gpu_restores_photographs_as_the_cpu_does(weights, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    exact_float32()
    photograph = Path(opir_lightning.__file__).parent / "data" / "demo" / "heldout" / "friends.jpg"
    pixels = np.array(Image.open(photograph).convert("RGB"))[:400, :500]
    on_cpu, on_gpu = (Restorer.from_pretrained(weights, device=device) for device in ("cpu", "cuda"))
    for damaged in ((pixels * 0.15).astype(np.uint8), (pixels * 0.4 + 128).astype(np.uint8)):
        want, got = (restorer.restore_pixels(damaged)[0].astype(int) for restorer in (on_cpu, on_gpu))
        assert np.abs(got - want).max() <= 1
        assert (got != want).mean() < 0.01


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this process compiles kernels for its GPU; run with -m gpu")
def test_tiles_restored_by_the_kernels_of_a_gpu_are_those_of_the_cpu():
    """Under Triton's interpreter, so on a small part; windows of several sizes, at all borders, on and off the grid."""
    pytest.importorskip("triton", reason="the package 'triton' is not installed")
    photograph = Path(opir_lightning.__file__).parent / "data" / "demo" / "heldout" / "friends.jpg"
    damaged = (np.array(Image.open(photograph).convert("RGB"))[100:161, 100:183] * 0.3).astype(np.uint8)
    on_cpu, by_kernels = (Restorer.from_pretrained("opir_tiny", device="cpu") for _ in range(2))
    by_kernels.model.backend = "triton"
    for tile in (None, 32, 48, 64):
        want, sure = on_cpu.restore_pixels(damaged, tile=tile, overlap=12, haze="raw")
        got, also_sure = by_kernels.restore_pixels(damaged, tile=tile, overlap=12, haze="raw")
        assert np.abs(got.astype(int) - want).max() <= 1, tile
        assert (got != want).mean() < 0.001
        np.testing.assert_allclose(also_sure, sure, atol=1e-4)
    assert np.abs(want.astype(int) - damaged).mean() > 10  # something was done


def test_every_kind_of_input_means_the_same_picture(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    restorer = Restorer(model, device="cpu")
    want = restorer(tensor.float()[None] / 255)
    kinds = (
        tensor,
        tensor / 255,
        pixels,
        pixels / 255,
        Image.fromarray(pixels),
        tmp_path / "p.png",
        str(tmp_path / "p.png"),
    )
    for image in kinds:
        assert largest_difference(restorer(image), want) <= 1e-6
    assert largest_difference(restorer((pixels / 255).astype(">f8")), want) <= 1e-6  # of the other byte order
    grey = restorer(pixels[..., 0])
    assert largest_difference(grey, restorer(np.stack([pixels[..., 0]] * 3, axis=2))) == 0


def test_eight_bit_results_are_the_rounded_float_results(model, picture):
    pixels = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
    restorer = Restorer(model, device="cpu")
    want = restorer(pixels)
    refined, uncertainty = restorer.restore_pixels(pixels, tile=48, overlap=model.receptive_field, haze="raw")
    rounded = (want.refined[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(refined.astype(float) - rounded).max() <= 1  # the last bit may round to the other side
    assert (refined == rounded).mean() > 0.999
    assert np.abs(uncertainty - want.uncertainty[0, 0].numpy()).max() < 1e-3
    as_image = restorer.restore_image(Image.fromarray(pixels), haze="raw")
    assert as_image.mode == "RGB"
    assert np.array_equal(np.asarray(as_image), rounded)


def test_tasks_go_by_name(model, picture):
    restorer = Restorer(model, device="cpu")
    free = restorer(picture)
    assert largest_difference(restorer(picture, task="auto"), free) == 0
    haze = restorer(picture, task="haze")
    assert largest_difference(haze, restore_tiled(model, picture, tile=None, task=2)) == 0
    assert largest_difference(haze[:3], free[:3]) > 1e-3
    with pytest.raises(UserError, match="knows no task 'snow'; it knows none, noise, haze"):
        restorer(picture, task="snow")


def test_input_that_is_no_picture_is_named(model):
    restorer = Restorer(model, device="cpu")
    image = torch.rand(3, 8, 8)
    for wrong, reason in (
        (image * 255, "divide 8-bit values by 255"),
        (image * torch.nan, "must be in"),
        ((image * 255).long(), "these are torch.int64"),
        (image[:2], r"this one is \(2, 8, 8\)"),
        (image[..., :0], "not empty"),
        (np.zeros((8, 8, 4), np.uint8), r"must be \(H, W, 3\)"),
        (np.full((8, 8, 3), None), "must be of numbers, and this one is of object"),
        ([[0.5]], "was expected, and this is of the type 'list'"),
    ):
        with pytest.raises(UserError, match=reason):
            restorer(wrong)


def test_a_missing_or_broken_file_is_named(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    restorer = Restorer(model, device="cpu")
    with pytest.raises(UserError, match=r"There is no picture '.*gone\.png'"):
        restorer(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"broken\.png' cannot be read as a picture"):
        restorer(tmp_path / "broken.png")


def test_pictures_of_other_modes_become_upright_8_bit_rgb():
    ramp = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    turned = Image.fromarray(ramp)
    turned.getexif()[0x0112] = 6  # the camera was held upright: shown a quarter turn clockwise
    assert np.array_equal(to_rgb(turned)[..., 0], np.rot90(ramp, -1))
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    for image in (Image.fromarray(ramp), deep, Image.fromarray(ramp.astype(np.int32) * 257)):
        assert np.array_equal(to_rgb(image), np.stack([ramp] * 3, axis=2))
    edges = np.array([[0, 128, 129, 65280, 65535]], np.uint16)  # to the nearest of 255 levels, not the high byte
    assert to_rgb(Image.fromarray(edges))[0, :, 0].tolist() == [0, 0, 1, 254, 255]
    with pytest.raises(UserError, match="floating-point values"):
        to_rgb(Image.fromarray(ramp.astype(np.float32)))
    with pytest.raises(UserError, match="beyond 16 bits"):
        to_rgb(Image.fromarray(ramp.astype(np.int32) * 1000))


def test_threads_share_a_restorer(model):
    gen = torch.Generator().manual_seed(3)
    images = [torch.rand(3, 20 + 3 * i, 33, generator=gen) for i in range(8)]
    restorer = Restorer(model, device="cpu")
    want = [restorer(image, tile=16) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda image: restorer(image, tile=16), images), want, strict=True):
            assert largest_difference(got, expected) <= 1e-6


def test_from_pretrained_is_the_saved_model_in_evaluation_mode(model, picture, tmp_path):
    save_weights(tmp_path / "m.safetensors", model, {"step": 7})
    restorer = Restorer.from_pretrained(tmp_path / "m.safetensors", device="cpu")
    assert restorer.tasks == ("none", "noise", "haze")
    assert restorer.metadata == {"step": 7}
    assert largest_difference(restorer(picture), Restorer(model, device="cpu")(picture)) == 0
    assert not restorer.model.training


def test_automatic_tiles_begin_beyond_a_megapixel():
    assert choose_tile("auto", 1024, 1024) is None
    assert choose_tile("auto", 1024, 1025) == AUTO_TILE
    assert choose_tile(None, 5000, 5000, fitting=100) is None
    assert choose_tile(96, 10, 10, fitting=100) == 96


def test_automatic_tiles_fit_into_the_memory_that_is_free(model, monkeypatch):
    assert choose_tile("auto", 500, 500, fitting=250_000) is None
    assert choose_tile("auto", 500, 500, fitting=249_999) == 128  # windows of 384, with an overlap of 128 on every side
    assert choose_tile("auto", 5000, 5000, fitting=384**2 - 1) == 64
    assert choose_tile("auto", 5000, 5000, fitting=1) == SMALLEST_TILE
    restorer = Restorer(model, device="cpu")
    monkeypatch.setattr("opir_lightning.restorer.free_memory", lambda device: 2 * 400 * 300 * model.memory_per_pixel)
    assert restorer.choose_tile("auto", 400, 300) is None
    assert 128 + 2 * model.receptive_field <= 60_000**0.5 < 256 + 2 * model.receptive_field < 120_000**0.5
    assert restorer.choose_tile("auto", 400, 301) == 256
    assert restorer.choose_tile("auto", 400, 300, batch=2) == 128
    assert restorer.choose_tile("auto", 400, 301, overlap=100) == 128  # larger windows, so smaller tiles


def test_that_torch_finds_no_memory_is_understood():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**44)
    assert out_of_memory(failed.value)
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("sizes do not match"))


def test_scratch_that_is_not_used_any_more_gives_its_room_back(tmp_path):
    scratch = Scratch(tmp_path)
    arrays = [scratch.empty((1000, 1000), np.uint8) for _ in range(3)]
    arrays[0][:] = 7
    scratch.release()
    assert (arrays[0] == 7).all()
    before = len(scratch)
    arrays[1] = scratch.empty((10, 10), np.uint8)
    del arrays[2]
    assert (before, len(scratch)) == (3, 2)


def test_memory_that_is_free_is_no_more_than_a_containers_limit_leaves(tmp_path):
    machine = free_memory(torch.device("cpu"), cgroup=tmp_path)
    assert machine > 2**20
    for name, value in (("memory.max", "1000000"), ("memory.current", "400000")):
        (tmp_path / name).write_text(f"{value}\n")
    assert free_memory(torch.device("cpu"), cgroup=tmp_path) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu"), cgroup=tmp_path) > 2**20


def test_the_network_in_a_short_type_is_nearly_the_same_and_strength_0_exactly(model, picture):
    pixels = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
    exact, short = (Restorer(model, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    difference = largest_difference(short(picture).refined, exact(picture).refined)
    assert 0 < difference < 0.05
    assert short(picture).refined.dtype == torch.float32
    assert np.array_equal(short.restore_pixels(pixels, strength=0)[0], pixels)
    with pytest.raises(UserError, match="no dtype 'int8'; use one of float32, bfloat16, float16"):
        Restorer(model, device="cpu", dtype="int8")


def test_an_unusable_device_is_named(monkeypatch):
    with pytest.raises(UserError, match="no kind of device 'gpu'"):
        choose_device("gpu")
    for kind in ("meta", "xpu"):
        with pytest.raises(UserError, match=f"Nothing here runs on the device '{kind}'"):
            choose_device(kind)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        assert choose_device("cuda:1") == torch.device("cuda:1")
        with pytest.raises(UserError, match="torch finds 2, the last is cuda:1"):
            choose_device("cuda:2")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no usable GPU"):
            choose_device("cuda")
        assert choose_device("auto") == torch.device("cpu")


def test_importing_the_package_and_loading_a_model_import_nothing_heavy(tmp_path):
    code = (
        "import sys, opir_lightning as o\n"
        "assert not {'torch', 'numpy', 'importlib.metadata'} & set(sys.modules), 'heavy'\n"
        "assert o.__version__[0].isdigit() and 'Restorer' in dir(o)\n"
        "from opir_lightning import *\n"
        "assert Restorer.__module__ == 'opir_lightning.restorer' and OPIR and score and load_model and Task\n"
        "assert not {'lightning', 'hydra', 'omegaconf', 'wandb'} & set(sys.modules), 'layers'\n"
        "net = OPIR(tasks=['none'], width=4, encoder_blocks=[1], middle_blocks=1, decoder_blocks=[1])\n"
        "save_weights(sys.argv[1], net)\n"
        "assert load_model(sys.argv[1])[0].tasks == ('none',)\n"
        "assert not {'torch._dynamo', 'sympy', 'triton'} & set(sys.modules), 'the compiler, seconds of imports'\n"
        "try:\n    o.nothing\nexcept AttributeError:\n    print('fine')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_strength_leads_from_the_picture_to_its_restoration(model, picture):
    pixels = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
    restorer = Restorer(model, device="cpu")
    assert np.array_equal(restorer.restore_pixels(pixels, strength=0, tile=48)[0], pixels)
    full = restorer(picture)
    assert largest_difference(restorer(picture, strength=1), full) == 0
    steps = [restorer(picture, strength=strength).refined for strength in (0, 0.25, 0.5, 0.75, 0.999999)]
    assert (steps[-1] - full.refined).abs().max() < 1e-4
    away = [(step - picture).square().mean().item() for step in steps]
    assert away == sorted(away)
    assert away[1] > 0
    # Both operators are weakened, and the second acts on what the first has left: that is not a mixture of pictures.
    assert (steps[2] - (picture + full.refined) / 2).abs().max() > 1e-3
    # With one stage it is, because an operator is linear.
    half = restorer(picture, strength=0.5).coarse
    assert (half - (picture + full.coarse) / 2).abs().max() < 1e-5
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="strength must be in"):
            restorer(picture, strength=wrong)


def test_the_code_of_a_large_picture_is_read_from_its_crops_alone(model, picture):
    for size in ((101, 122), (16, 16), (17, 90), (9, 122), (9, 12)):
        image = picture[..., : size[0], : size[1]]
        want = model.estimate_code(image)
        told = []
        handle = model.register_forward_pre_hook(lambda _, arguments: told.append(arguments[1]))  # noqa: B023
        restore_tiled(model, image, tile=16)
        handle.remove()
        assert told
        assert all(largest_difference(code, want) < 1e-5 for code in told)
