"""The page without a browser: what a visit does, what is refused, and what the command says."""

from __future__ import annotations

import asyncio
import importlib.util
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import small_network

from opir_lightning.errors import UserError
from opir_lightning.page import visit
from opir_lightning.page.__main__ import main
from opir_lightning.page.bounds import FULL, BoundedUploads, check_room
from opir_lightning.page.visit import look_at, restore_upload
from opir_lightning.picture_files import read_picture
from opir_lightning.pictures import eight_bit, operator_picture, scaled_down, to_pixels, uncertainty_overlay
from opir_lightning.restorer import Restorer
from opir_lightning.types import PixelOperator

MEGAPIXEL = 10**6


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    """A network whose result is brighter than its input, by an amount that depends on the task."""
    net = small_network(["none", "low_light"], brighter=[0.1, 0.2])
    return Restorer(net, device="cpu")


def upload(folder: Path, name: str = "mine.png", height: int = 20, width: int = 30) -> tuple[Path, np.ndarray]:
    pixels = np.random.default_rng(height).integers(40, 200, (height, width, 3), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name)
    return folder / name, pixels


def visited(restorer, path, folder, **more):
    return restore_upload(
        restorer, path, **{"task": "auto", "strength": 1.0, "folder": folder, "most_pixels": MEGAPIXEL, **more}
    )


def test_a_visit_yields_the_result_in_full_size_and_smaller_pictures_to_show(restorer, tmp_path, monkeypatch):
    monkeypatch.setattr(visit, "LONGEST", 15)
    path, pixels = upload(tmp_path / "in")
    view = visited(restorer, path, tmp_path / "out", task="low_light", strength=0.5)
    want = restorer.restore_pixels(pixels, task="low_light", strength=0.5)[0]
    assert view.result.name == "mine_restored.png"
    assert np.array_equal(read_picture(view.result).pixels, want)
    assert np.abs(want.astype(int) - pixels).min() > 10
    for file in (view.before, view.after, view.uncertainty):
        assert Image.open(file).size == (15, 10)
    shown = np.asarray(Image.open(view.after)).astype(int)
    assert np.abs(shown - scaled_down(want, 15)).mean() < 4  # it is a JPEG file
    assert view.words.startswith("30x20 pixels. It looks like: ")
    assert "low light" in view.words or "none" in view.words


def test_results_of_the_same_name_do_not_meet(restorer, tmp_path):
    one, other = upload(tmp_path / "a")[0], upload(tmp_path / "b", height=21)[0]
    views = [visited(restorer, path, tmp_path / "out") for path in (one, other, one)]
    assert len({file for view in views for file in view[:4]}) == 12


def test_a_click_meets_the_pixel_of_the_full_size(restorer, tmp_path, monkeypatch):
    monkeypatch.setattr(visit, "LONGEST", 15)
    path, pixels = upload(tmp_path / "in")
    seen = visited(restorer, path, tmp_path / "out", task="low_light", strength=0.5).seen
    for (x, y), (column, row) in {(0, 0): (1, 1), (14, 9): (29, 19), (7, 2): (15, 5), (99, -5): (29, 0)}.items():
        picture, words = look_at(restorer, seen, x, y, most_pixels=MEGAPIXEL)
        assert words.startswith(f"Column {column}, row {row},")
        operators = restorer.operators_at(pixels, row, column, task="low_light", strength=0.5)
        assert np.array_equal(picture, operator_picture(operators))
        assert f"the offsets are {', '.join(f'{value:.3f}' for value in operators[0].offset)}" in words


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG file, with nothing of its pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 10**6) + b"IDAT" + b"\x78\x9c"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_too_large_is_refused_before_it_is_decoded(restorer, tmp_path):
    headers = {
        "big.png": png_header(10_000, 10_000),
        "big.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 10_000, 10_000, 1, 24, 0, 0, 0, 0, 0, 0),
    }
    for name, header in headers.items():
        path = tmp_path / name
        path.write_bytes(header)
        with pytest.raises(UserError) as caught:
            visited(restorer, path, tmp_path / "out", most_pixels=24 * MEGAPIXEL)
        assert str(caught.value) == (f"'{name}': it has 100.0 megapixels (10000x10000), and at most 24 are taken here")
    path, _ = upload(tmp_path / "in")
    assert read_picture(path, most_pixels=600).pixels.shape == (20, 30, 3)
    with pytest.raises(UserError, match="megapixels"):
        read_picture(path, most_pixels=599)


def test_what_is_no_picture_is_named_without_its_folder(restorer, tmp_path):
    path = tmp_path / "text.png"
    path.write_text("no picture")
    with pytest.raises(UserError) as caught:
        visited(restorer, path, tmp_path / "out")
    assert str(caught.value) == "'text.png' cannot be read as a picture: its content is of no known kind."
    seen = visited(restorer, upload(tmp_path / "in")[0], tmp_path / "out").seen
    seen.upload.unlink()
    with pytest.raises(UserError, match=r"^There is no picture 'mine.png'\.$"):
        look_at(restorer, seen, 1, 1, most_pixels=MEGAPIXEL)


def test_the_overlay_is_half_brightness_half_colour():
    pixels = np.full((2, 3, 3), 100, np.uint8)
    uncertainty = torch.tensor([[[0.0, 0.05, 0.1], [0.2, 0.0, 0.0]]])
    colours = to_pixels(uncertainty).astype(int)
    assert np.array_equal(uncertainty_overlay(pixels, uncertainty), (colours + 101) // 2)
    assert colours[0, 0].sum() < colours[0, 1].sum() < colours[0, 2].sum()


def test_sixteen_bits_become_eight_by_rounding():
    assert eight_bit(np.array([0, 128, 129, 65535], np.uint16)).tolist() == [0, 0, 1, 255]
    assert eight_bit(np.array([7], np.uint8)).tolist() == [7]


def test_positive_taps_are_red_negative_ones_blue_and_colours_stand_side_by_side():
    kernel = torch.zeros(3, 3, 3)
    kernel[0, 1, 1], kernel[1, 0, 0], kernel[2, 2, 2] = 4.0, -4.0, 1.0  # a quarter of the largest: half the colour
    picture = np.asarray(operator_picture([PixelOperator(kernel, torch.zeros(3))]))
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    found = {tuple(map(int, colour)): int(count) for colour, count in zip(colours, counts, strict=True)}
    assert (found[255, 0, 0], found[0, 0, 255], found[255, 128, 128]) == (324, 324, 324)
    left = {name: np.argwhere((picture == name).all(2))[:, 1].min() for name in ((255, 0, 0), (0, 0, 255))}
    assert left[255, 0, 0] < left[0, 0, 255]  # for red before for green


def posted(app: BoundedUploads, path: str, length: int | None) -> list:
    """What an upload of so many bytes is answered; the app that takes it says 'taken'."""
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    sent = []

    async def send(message):
        sent.append(message.get("status", message.get("body")))

    asyncio.run(app({"type": "http", "method": "POST", "path": path, "headers": headers}, None, send))
    return sent


def test_uploads_are_refused_while_there_is_no_room_for_them(tmp_path):
    """Room for 100 bytes, of which a result has 40."""
    under_way = []

    async def taking(scope, receive, send):
        if scope["path"] == "/gradio_api/upload" and not under_way:  # while it comes, another one is asked for
            under_way.append(True)
            await app({**scope, "headers": [(b"content-length", b"11")]}, receive, send)
        await send({"body": "taken"})

    app = BoundedUploads(taking, folder=tmp_path, most=100)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "result.png").write_bytes(bytes(40))
    assert posted(app, "/gradio_api/upload", 50) == [507, FULL.encode(), "taken"]
    assert posted(app, "/gradio_api/upload", 60) == ["taken"]
    assert posted(app, "/gradio_api/upload", 61) == [507, FULL.encode()]
    assert posted(app, "/gradio_api/upload", None)[0] == 411
    assert posted(app, "/gradio_api/queue/join", 61) == ["taken"]
    check_room(tmp_path, 40)
    with pytest.raises(UserError, match="no room for more pictures"):
        check_room(tmp_path, 39)


def test_help_is_instant():
    code = (
        "import sys\nfrom opir_lightning.page.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit as leaving: status = leaving.code\n"
        "print(status, [name for name in ('torch', 'gradio', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([]) == 1
    assert capsys.readouterr().err == "error: The page needs Gradio: pip install 'opir-lightning[demo]'.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "0"], "'0' is not a number from 1 to 65535"),
        (["--port", "http"], "'http' is not a number from 1 to 65535"),
        (["--megapixels", "100"], "'100' is not a whole number from 1 to 64"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
    ],
)
def test_wrong_usage_is_named(arguments, said, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    assert said in capsys.readouterr().err
