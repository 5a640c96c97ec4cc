"""The page in a real browser, headless: needs Playwright and a Chromium that is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

from opir_lightning.comparison.report import Options, compare  # noqa: E402

PATIENCE = 180_000  # milliseconds, for machines that have other things to do


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def page_of(runs: Path, folder: Path, browser) -> Iterator:
    """The page of a comparison, opened from its file; it may ask for nothing and complain of nothing."""
    compare([runs], Options(folder, pictures=2))
    asked, said = [], []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto((folder / "index.html").as_uri())
    yield page
    page.close()
    assert [url for url in asked if not url.startswith("data:")] == [(folder / "index.html").as_uri()]
    assert said == []


@pytest.fixture(scope="module")
def opened(sweep, browser, tmp_path_factory) -> Iterator:
    with page_of(sweep, tmp_path_factory.mktemp("comparison"), browser) as page:
        yield page


def column(page, table: int, number: int) -> list[str]:
    rows = page.locator("table").nth(table).locator("tbody tr")
    return [rows.nth(i).locator("th, td").nth(number).inner_text() for i in range(rows.count())]


def assert_images_show(page, count: int) -> None:
    """Each is described, too."""
    images = page.locator("img")
    assert images.count() == count
    for index in range(count):
        image = images.nth(index)
        assert image.evaluate("element => element.decode().then(() => element.naturalWidth)") > 50
        assert len(image.get_attribute("alt")) > 10


def test_every_image_shows_and_is_described(opened):
    assert_images_show(opened, 4 + 2 * 8)


def test_a_table_sorts_by_a_click_and_by_the_keyboard(opened):
    scores = 2  # the tables before it: groups, what differs
    button = opened.locator("table").nth(scores).get_by_role("button", name="noise")
    header = opened.locator("table").nth(scores).locator("th[scope=col]").nth(3)
    button.click()
    assert header.get_attribute("aria-sort") == "descending"
    falling = [float(text.split()[0]) for text in column(opened, scores, 3)]
    assert falling == sorted(falling, reverse=True)
    button.focus()
    opened.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert [float(text.split()[0]) for text in column(opened, scores, 3)] == falling[::-1]
    assert opened.locator("table").nth(scores).locator("tfoot tr").count() == 1
    opened.locator("table").nth(scores).get_by_role("button", name="group").click()
    assert column(opened, scores, 0) == ["kernel_size=3", "kernel_size=5"]
    assert header.get_attribute("aria-sort") == "none"


def test_a_search_shows_its_plots_and_its_trials_sort_by_value_and_by_state(searched, browser, tmp_path):
    with page_of(searched, tmp_path, browser) as page:
        assert page.locator("h2").first.inner_text() == "Search demo"
        assert_images_show(page, 5 + 3)  # of the search; bars of PSNR and SSIM, PSNR against MACs
        head = page.locator("table").first
        head.get_by_role("button", name="val/psnr").click()
        assert column(page, 0, 2) == ["23.750", "22.500", "21.000", "20.000", "18.250", "–", "–", "–"]
        head.get_by_role("button", name="val/psnr").click()
        assert column(page, 0, 2)[:5] == ["18.250", "20.000", "21.000", "22.500", "23.750"]
        head.get_by_role("button", name="state").click()
        states = column(page, 0, 1)
        assert states == sorted(states)
        head.get_by_role("button", name="trial").click()
        assert column(page, 0, 0) == [str(number) for number in range(8)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_by_day_and_night(opened, scheme):
    """The contrast that WCAG asks of text: 4.5."""
    opened.emulate_media(color_scheme=scheme)
    contrasts = opened.evaluate(
        """() => {
          const light = (colour) => {
            const part = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
            const [r, g, b] = part.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ground = (element) => {
            for (let e = element; e; e = e.parentElement) {
              const colour = getComputedStyle(e).backgroundColor;
              if (colour !== "rgba(0, 0, 0, 0)") return colour;
            }
            return "rgb(255, 255, 255)";
          };
          return [...document.querySelectorAll("h1, p, th, td, a, li, figcaption, footer, .best")].map((e) => {
            const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          });
        }"""
    )
    assert len(contrasts) > 50
    assert min(contrasts) >= 4.5
