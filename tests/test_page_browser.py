"""The page in a real browser, headless: needs Gradio, Playwright and a Chromium that is installed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs Gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

from opir_lightning.data.sources import EMBEDDED  # noqa: E402
from opir_lightning.page.visit import Seen, look_at  # noqa: E402
from opir_lightning.picture_files import read_picture  # noqa: E402
from opir_lightning.restorer import Restorer  # noqa: E402

WEIGHTS = "opir_tiny"
PATIENCE = 180  # seconds, for machines that have other things to do
UPLOAD = "#upload input[type=file]"


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """A page of its own; at the end it must close, and leave nothing behind."""
    temporary = tmp_path_factory.mktemp("temporary")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "opir_lightning.page", "--weights", WEIGHTS, "--megapixels", "2"]
    with subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
    ) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert f"http://127.0.0.1:{port} " in said, said + server.stdout.read()
        yield f"http://127.0.0.1:{port}/"
        server.send_signal(signal.SIGTERM)
        rest = server.communicate(timeout=PATIENCE)[0]
    assert server.returncode == 0
    assert "Traceback" not in rest
    assert not list(temporary.glob("opir-page-*"))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        # No name has an address for this browser but that of the machine itself.
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, address) -> Iterator:
    """Open the page as one more visitor; at the end nobody's browser may have asked another server for anything."""
    contexts, asked = [], []

    def open_page():
        context = browser.new_context(viewport={"width": 1280, "height": 1100})
        context.set_default_timeout(1000 * PATIENCE)
        context.on("request", lambda request: asked.append(request.url))
        contexts.append(context)
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector(UPLOAD, state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.from_pretrained(WEIGHTS, device="cpu")


def noisy(path: Path, photograph: str, height: int, width: int) -> Path:
    with Image.open(EMBEDDED / "heldout" / f"{photograph}.jpg") as opened:
        clean = np.asarray(opened.convert("RGB"), float)[:height, :width]
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    Image.fromarray((clean + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def words_with(page, part: str) -> str:
    """What came out, once it says this."""
    page.wait_for_function("part => document.querySelector('#words textarea').value.includes(part)", arg=part)
    return page.input_value("#words textarea")


def downloaded(page, folder: Path) -> np.ndarray:
    with page.expect_download() as download:
        page.locator("#result").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return read_picture(path).pixels


def shown(page) -> str:
    return page.locator("#uncertainty img").get_attribute("src")


def another_than(page, old: str) -> None:
    """Wait until the page shows another picture."""
    page.wait_for_function("old => (document.querySelector('#uncertainty img')?.src ?? old) !== old", arg=old)


def changed(page, change) -> None:
    """Do what makes the page restore anew, and wait until it has."""
    old = shown(page)
    change()
    another_than(page, old)


def choose(page, task: str) -> None:
    page.locator("#task input").click()
    page.get_by_role("option", name=task, exact=True).click()


def close_to(result: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal but for rounding: another number of threads sums in another order."""
    return result.shape == wanted.shape and np.abs(result.astype(int) - wanted).max() <= 1


def test_a_visit(visit, restorer, tmp_path):
    page = visit()
    path = noisy(tmp_path / "noisy.png", "bridge", 150, 200)
    pixels = read_picture(path).pixels
    page.set_input_files(UPLOAD, path)
    assert "It looks like: noise" in words_with(page, "200x150 pixels")
    assert close_to(downloaded(page, tmp_path), restorer.restore_pixels(pixels)[0])

    changed(page, lambda: choose(page, "low light"))
    brighter = restorer.restore_pixels(pixels, task="low_light")[0]
    assert np.abs(brighter.astype(int) - restorer.restore_pixels(pixels)[0]).mean() > 3
    assert close_to(downloaded(page, tmp_path), brighter)

    def half() -> None:
        page.locator("#strength input[type=number]").fill("0.5")
        page.locator("#strength input[type=number]").press("Enter")
        page.locator("#strength input[type=number]").blur()

    changed(page, half)
    halfway = restorer.restore_pixels(pixels, task="low_light", strength=0.5)[0]
    assert close_to(downloaded(page, tmp_path), halfway)

    picture = page.locator("#uncertainty img")
    box = picture.bounding_box()
    x, y = 60, 120
    picture.click(position={"x": (x + 0.5) * box["width"] / 200, "y": (y + 0.5) * box["height"] / 150})
    page.wait_for_function("document.querySelector('#numbers textarea').value !== ''")
    drawn, numbers = look_at(restorer, Seen(path, "low_light", 0.5, 1.0), x, y, most_pixels=10**6)
    assert numbers.startswith(f"Column {x}, row {y},")
    told = page.input_value("#numbers textarea")
    said, wanted = (list(map(float, re.findall(r"-?\d+\.\d+", text))) for text in (told, numbers))
    assert told.startswith(f"Column {x}, row {y},")
    assert said == pytest.approx(wanted, abs=2e-3)
    page.wait_for_selector("#operator img")
    natural = "element => element.decode().then(() => [element.naturalWidth, element.naturalHeight])"
    assert tuple(page.locator("#operator img").evaluate(natural)) == drawn.size


def test_the_slider_uncovers_what_was_before(visit, tmp_path):
    page = visit()
    page.set_input_files(UPLOAD, noisy(tmp_path / "noisy.png", "bridge", 150, 200))
    words_with(page, "200x150 pixels")
    page.wait_for_timeout(1000)  # it slides in
    middle = page.locator("#pair").screenshot()
    handle = page.locator("#pair .outer").bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 150, y, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    moved = page.locator("#pair .outer").bounding_box()
    assert moved["x"] == pytest.approx(handle["x"] + 150, abs=3)
    assert page.locator("#pair").screenshot() != middle


def test_what_cannot_be_restored_is_named_and_the_next_picture_is(visit, address, tmp_path):
    page = visit()
    huge, text, heavy = (tmp_path / name for name in ("huge.png", "text.png", "heavy.png"))
    Image.new("RGB", (10_000, 10_000)).save(huge)
    text.write_text("This is no picture.")
    heavy.write_bytes(bytes(17 * 10**6))
    for file, said in (
        (huge, "'huge.png': it has 100.0 megapixels (10000x10000), and at most 2 are taken here"),
        (text, "'text.png' cannot be read as a picture: its content is of no known kind"),
    ):
        page.set_input_files(UPLOAD, file)
        assert words_with(page, said).startswith("This cannot be restored: ")
        page.locator("#upload button[aria-label=Clear]").click()
        page.wait_for_function("document.querySelector('#words textarea').value === ''")
        page.wait_for_selector(UPLOAD, state="attached")
    page.set_input_files(UPLOAD, heavy)
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    with heavy.open("rb") as file:  # past the browser, which has just refused to send it
        answer = page.request.post(
            f"{address}gradio_api/upload",
            multipart={"files": {"name": "heavy.png", "mimeType": "image/png", "buffer": file.read()}},
        )
    assert answer.status == 413
    again = visit()
    again.set_input_files(UPLOAD, noisy(tmp_path / "noisy.png", "bridge", 64, 80))
    words_with(again, "80x64 pixels")


def test_two_visitors_at_once_get_their_own_pictures(visit, restorer, tmp_path):
    pages = [visit(), visit()]
    names = [("bridge", 160, 208), ("friends", 200, 120)]
    folders = [tmp_path / name for name, _, _ in names]
    for folder in folders:
        folder.mkdir()
    paths = [noisy(folder / "mine.png", *name) for folder, name in zip(folders, names, strict=True)]
    for page, path in zip(pages, paths, strict=True):
        page.set_input_files(UPLOAD, path)
    for page, (_, height, width) in zip(pages, names, strict=True):
        words_with(page, f"{width}x{height} pixels")
    before = [shown(page) for page in pages]
    for page in pages:  # both ask again before either is answered
        choose(page, "low light")
    for page, path, folder, old in zip(pages, paths, folders, before, strict=True):
        another_than(page, old)
        wanted = restorer.restore_pixels(read_picture(path).pixels, task="low_light")[0]
        assert close_to(downloaded(page, folder), wanted)
