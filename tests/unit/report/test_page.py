"""The page as a file: whole, self-contained, safe with hostile names, readable by machines that read to people."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tauten.errors import ConfigError
from tauten.report import render, write_report
from tauten.report.__main__ import main
from tests.unit.report import sample

VOID = {"meta", "link", "br", "hr", "img", "input"}
MAKERS = [sample.sample, sample.not_met, sample.bare, sample.empty, sample.many]


class Reader(HTMLParser):
    """Every tag with its attributes, the text outside scripts and styles, and tags that do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.faults: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.faults += [f"{tag} never closes" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> out of order")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("make", MAKERS)
def test_a_page_is_whole_and_needs_nothing_from_elsewhere(make: Callable[[], dict[str, Any]]) -> None:
    page = render(make())
    read = Reader(page)
    assert read.faults == []
    assert read.count("h1") == 1
    assert read.count("caption") == read.count("table")
    assert read.count("link") == read.count("img") == read.count("iframe") == 0
    for tag, attributes in read.tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    identifiers = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    jumps = {(attributes["href"] or "")[1:] for _, attributes in read.tags if "href" in attributes}
    assert jumps <= set(identifiers)
    assert page.count("plotly.js v") == (0 if make is sample.empty else 1)
    assert "None" not in read.text
    assert "nan" not in read.text.lower().split()


def test_names_that_users_give_cannot_become_markup() -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    result = sample.sample()
    result["task"] = result["explanation"] = result["refused"][0]["error"] = hostile
    result["environment"] = {hostile: hostile}
    result["metric"]["name"] = hostile
    result["target"]["engine"] = hostile
    for entry in (result["best"], *result["candidates"]):
        entry["name"] = entry["name"] + hostile
        entry["violations"] = [hostile]
        entry["layers"] = [{**layer, "name": hostile} for layer in entry["layers"]]
        entry["history"] = [{**record, "name": hostile, "notes": {hostile: hostile}} for record in entry["history"]]
    read, usual = Reader(render(result)), Reader(render(sample.sample()))
    assert read.faults == []
    assert read.count("script") == usual.count("script")
    assert read.count("img") == 0
    assert hostile in " ".join(read.words)


def test_the_figures_are_json_that_a_browser_reads() -> None:
    page = render(sample.sample())
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found
    assert [figure["id"] for figure in json.loads(found[1])] == ["size_bytes", "latency_p50_ms"]


def test_what_was_found_is_said() -> None:
    text = Reader(render(sample.sample())).text
    for part in (
        "Budget held",
        "8.1 times faster and 14.5 times smaller",
        "0.20 points lost on the test set",
        "97.58 %",
        "46.2 KB of 50.0 KB allowed",
        "structured-0.9-int8",
        "output holds numbers that are not finite",
        "a reshape mixes its channels",
        "drop 5.23 > 0.50 points",
        "7.8 to 8.5",
        "Example CPU at 2.60 GHz",
    ):
        assert part in text, part


def test_a_run_that_did_not_hold_its_budget_never_looks_as_if_it_did() -> None:
    text = Reader(render(sample.not_met())).text
    assert "Budget not met" in text
    assert "Budget held" not in text
    assert "chosen" not in text
    assert "Optimized" not in text
    assert "Nearest" in text
    assert "6,330 bytes too large" in text


def test_the_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(sample.bare(), path)
    first = path.read_text("utf-8")
    with pytest.raises(ConfigError, match="it lacks"):
        write_report({"task": "digits"}, path)
    assert path.read_text("utf-8") == first
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_result_of_another_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="schema_version 1, got 7"):
        render({**sample.sample(), "schema_version": 7})


def test_a_bound_that_json_cannot_hold_is_told(tmp_path: Path) -> None:
    result = sample.sample()
    result["improvements"]["baseline"]["startup_ms"] = sample.improvement(1, 1, 1, 0, "ms", "") | {
        "ratio": "Infinity", "ratio_low": 2.0, "ratio_high": "Infinity",
    }  # fmt: skip
    assert "countless" in Reader(render(result)).text


def test_the_command_makes_the_page_beside_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text(json.dumps(sample.sample()), "utf-8")
    assert main([str(tmp_path / "result.json")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "Budget held" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}'])
def test_the_command_refuses_what_is_no_result(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text(text, "utf-8")
    assert main([str(tmp_path / "result.json")]) == 2
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
