"""The page of a comparison in a real browser: curves and heat maps are drawn, in both themes, on every width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tauten.report import write_comparison, write_report
from tests.browser.chromium import NAMES, Page, chromium, find
from tests.unit.report import compared
from tests.unit.report.test_pictures import patterned

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find() is None, reason=f"no Chromium: looked for {', '.join(NAMES)}"),
]
POINTS = "[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('.point').length)"
SHADES = """[...document.querySelectorAll('canvas.cells')].map(canvas => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const seen = new Set();
    for (let at = 0; at < data.length; at += 4) seen.add(data.slice(at, at + 4).join());
    return [...seen];
})"""
"""The colours of each heat map."""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as found:
        yield found


@pytest.fixture(autouse=True)
def _nothing_went_wrong(page: Page) -> Iterator[None]:
    page.problems.clear()
    page.requests.clear()
    yield
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def made(tmp_path: Path, name: str = "comparison") -> Path:
    path = tmp_path / "compare.html"
    write_comparison(getattr(compared, name)(), path)
    return path


def test_every_curve_and_every_heat_map_is_drawn(page: Page, tmp_path: Path) -> None:
    page.open(made(tmp_path))
    # Two stages of two strategies at four ratios and three points of the third; then eleven points and two originals.
    assert page.js(POINTS) == [19, 13, 13, 13]
    shades = page.js(SHADES)
    assert len(shades) == 2 * 4 + len(compared.GROUPS)
    assert all(2 <= len(colours) <= 16 for colours in shades)
    assert page.js("document.querySelectorAll('.curves polyline').length") == len(compared.GROUPS)


def test_heat_maps_follow_the_theme_and_are_printed_light(page: Page, tmp_path: Path) -> None:
    path = made(tmp_path)
    page.open(path)
    light = page.js(SHADES)
    page.open(path, dark=True)
    dark = page.js(SHADES)
    assert all(not set(one) & set(other) for one, other in zip(light, dark, strict=True))
    page.js("dispatchEvent(new Event('beforeprint'))")
    assert page.js(SHADES) == light
    page.js("dispatchEvent(new Event('afterprint'))")
    assert page.js(SHADES) == dark


@pytest.mark.parametrize("name", ["comparison", "lower_is_better", "refused", "crowded"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_is_never_wider_than_the_window(page: Page, tmp_path: Path, name: str, width: int) -> None:
    page.open(made(tmp_path, name), width=width)
    assert page.js("document.documentElement.scrollWidth <= innerWidth")


def test_a_phone_shows_no_tick_over_another(page: Page, tmp_path: Path) -> None:
    page.open(made(tmp_path), width=390)
    apart = """[...document.querySelectorAll('.plot')].every(plot => {
        const boxes = [...plot.querySelectorAll('.xtick text')].map(text => text.getBoundingClientRect());
        boxes.sort((a, b) => a.left - b.left);
        return boxes.every((box, at) => at === 0 || boxes[at - 1].right <= box.left);
    })"""
    assert page.js(apart)


def test_what_a_reader_hears_is_there(page: Page, tmp_path: Path) -> None:
    page.open(made(tmp_path))
    labels = page.js("[...document.querySelectorAll('[role=img]')].map(it => it.getAttribute('aria-label'))")
    assert len(labels) == 4 + 2 * 4 + 2 * len(compared.GROUPS)
    assert all(labels)
    assert "conv1: 22 / 16 / 10 / 3 of 32 channels kept." in labels


def test_the_report_of_a_run_draws_what_its_best_leaves_out(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(patterned(), path)
    page.open(path)
    shades = page.js(SHADES)
    assert len(shades) == len(compared.GROUPS) + 1
    assert all(len(colours) >= 2 for colours in shades)
