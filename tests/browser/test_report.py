"""The page in a real browser: plots draw, the theme is followed, a phone fits, and the network is asked for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tauten.report import write_report
from tests.browser.chromium import NAMES, Page, chromium, find
from tests.unit.report import sample

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find() is None, reason=f"no Chromium: looked for {', '.join(NAMES)}"),
]
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
POINTS = "[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('.point').length)"


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
    # The file itself, and pictures that the page holds within.
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def made(tmp_path: Path, name: str = "sample") -> Path:
    path = tmp_path / "report.html"
    write_report(getattr(sample, name)(), path)
    return path


@pytest.mark.parametrize(
    ("name", "plots", "points"), [("sample", 2, 10), ("not_met", 2, 10), ("bare", 1, 3), ("empty", 0, 0)]
)
def test_every_plot_draws_every_point(page: Page, tmp_path: Path, name: str, plots: int, points: int) -> None:
    page.open(made(tmp_path, name))
    assert page.js(POINTS) == [points] * plots
    assert page.js("document.querySelector('h1').textContent") == "digits"


def test_plots_and_page_follow_the_theme(page: Page, tmp_path: Path) -> None:
    path = made(tmp_path)
    ink = "document.querySelector('.plot .ytick text').style.fill"
    page.open(path)
    light = page.js(f"[{BACKGROUND}, {ink}]")
    page.open(path, dark=True)
    dark = page.js(f"[{BACKGROUND}, {ink}]")
    assert light[0] != dark[0]
    assert light[1] != dark[1]


def test_a_dark_page_is_printed_light(page: Page, tmp_path: Path) -> None:
    page.open(made(tmp_path, "sample"))
    ink = "document.querySelector('.plot .ytick text').style.fill"
    light = page.js(ink)
    page.open(made(tmp_path), dark=True)
    page.js("dispatchEvent(new Event('beforeprint'))")
    assert page.js(ink) == light
    page.js("dispatchEvent(new Event('afterprint'))")
    assert page.js(ink) != light


@pytest.mark.parametrize("width", [360, 820, 1440])
def test_the_page_is_never_wider_than_the_window(page: Page, tmp_path: Path, width: int) -> None:
    page.open(made(tmp_path), width=width)
    assert page.js("document.documentElement.scrollWidth <= innerWidth")


def test_a_phone_shows_the_titles_of_the_axes_whole(page: Page, tmp_path: Path) -> None:
    page.open(made(tmp_path), width=390)
    inside = """[...document.querySelectorAll('.plot')].every(plot => {
        const frame = plot.getBoundingClientRect(), title = plot.querySelector('.xtitle').getBoundingClientRect();
        return frame.left <= title.left && title.right <= frame.right;
    })"""
    assert page.js(inside)


def test_a_heading_sorts_the_candidates_and_puts_what_is_missing_last(page: Page, tmp_path: Path) -> None:
    page.open(made(tmp_path))
    values = "[...document.querySelectorAll('.candidates tbody tr')].map(row => row.cells[8].dataset.sort ?? null)"
    press = "document.querySelectorAll('.candidates thead th')[8].querySelector('button').click()"
    page.js(press)
    up = page.js(values)
    page.js(press)
    down = page.js(values)
    for found, reverse in ((up, False), (down, True)):
        known = [float(value) for value in found if value is not None]
        assert known == sorted(known, reverse=reverse)
        assert found[len(known) :] == [None] * (len(found) - len(known))
    assert page.js("document.querySelector('[aria-sort]').textContent.trim()") == "Memory"


def test_what_a_reader_hears_is_there(page: Page, tmp_path: Path) -> None:
    page.open(made(tmp_path))
    labels = page.js("[...document.querySelectorAll('[role=img]')].map(plot => plot.getAttribute('aria-label'))")
    assert all("Scatter plot of 8 candidates." in label and "The chosen one: " in label for label in labels)
    assert page.js(
        "[...document.querySelectorAll('section')].every(it => it.ariaLabel || it.getAttribute('aria-labelledby'))"
    )


def test_a_name_that_is_markup_runs_nothing(page: Page, tmp_path: Path) -> None:
    result = sample.sample()
    hostile = "<img src=x onerror=\"document.title='owned'\">"
    result["task"] = hostile
    for entry in result["candidates"]:
        entry["name"] += hostile
        entry["violations"] = [hostile]
    path = tmp_path / "report.html"
    write_report(result, path)
    page.open(path)
    page.js("document.querySelector('.plot .point').dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))")
    assert page.js("document.title") != "owned"
    assert page.js("document.querySelectorAll('img').length") == 0
