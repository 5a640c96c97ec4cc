"""The page in a real browser, headless: needs Playwright and a Chromium that is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]

from opir_lightning.comparison.report import Options, compare  # noqa: E402

PATIENCE = 180_000  # milliseconds, for machines that have other things to do


@pytest.fixture(scope="module")
def opened(sweep, tmp_path_factory) -> Iterator:
    """The page of the sweep, opened from its file; it may ask for nothing and complain of nothing."""
    folder = tmp_path_factory.mktemp("comparison")
    compare([sweep], Options(folder, pictures=2))
    asked, said = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto((folder / "index.html").as_uri())
        yield page
        browser.close()
    assert [url for url in asked if not url.startswith("data:")] == [(folder / "index.html").as_uri()]
    assert said == []


def column(page, table: int, number: int) -> list[str]:
    rows = page.locator("table").nth(table).locator("tbody tr")
    return [rows.nth(i).locator("th, td").nth(number).inner_text() for i in range(rows.count())]


def test_every_image_shows_and_is_described(opened):
    images = opened.locator("img")
    assert images.count() == 4 + 2 * 8
    for index in range(images.count()):
        image = images.nth(index)
        assert image.evaluate("element => element.decode().then(() => element.naturalWidth)") > 50
        assert len(image.get_attribute("alt")) > 10


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
