"""The page of a comparison: what it says, its plots, its patterns, and that it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tauten.errors import ConfigError
from tauten.report import comparison, curves, patterns, render_comparison, write_comparison
from tauten.report.__main__ import main
from tauten.report.comparison import Comparison
from tauten.report.run import Entry
from tests.unit.report import compared
from tests.unit.report.sample import measure
from tests.unit.report.test_page import Reader

MAKERS = [compared.comparison, compared.lower_is_better, compared.refused, compared.crowded]


@pytest.mark.parametrize("make", MAKERS)
def test_a_page_is_whole_and_needs_nothing_from_elsewhere(make: Callable[[], dict[str, Any]]) -> None:
    read = Reader(render_comparison(make()))
    assert read.faults == []
    assert read.count("h1") == 1
    assert read.count("caption") == read.count("table")
    assert read.count("link") == read.count("img") == read.count("iframe") == 0
    for tag, attributes in read.tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith("#"), tag
    identifiers = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    jumps = {(attributes["href"] or "")[1:] for _, attributes in read.tags if "href" in attributes}
    assert jumps - {"plots", "patterns"} <= set(identifiers)
    assert "None" not in read.text


def test_what_was_found_is_said() -> None:
    text = Reader(render_comparison(compared.comparison())).text
    for part in (
        "11 of 12 could be made",
        "structured: at most 0.5 points lost up to 0.7, 6.9 times smaller; in measured time 3.18 times faster.",
        "no time saved outside the noise",
        "dynamic.early_exit: no point to leave at",
        "22 / 16 / 10 / 3 of 32 channels kept",
        "0.7: 70 % zeros",
        "prune.structured",
    ):
        assert part in text, part


def test_a_strategy_that_costs_too_much_everywhere_is_said_to() -> None:
    document = compared.comparison()
    for made in document["points"]:
        for stage in made["stages"].values():
            stage["drop_points"] = measure(3.0, "points")
    text = " ".join(comparison.sentences(Comparison(document)))
    assert "magnitude: loses 3.00 points or more at every ratio." in text


def test_points_of_a_metric_that_is_no_percentage_are_not_called_few() -> None:
    assert len(comparison.sentences(Comparison(compared.lower_is_better()))) == 1


def test_names_that_users_give_cannot_become_markup() -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    document = compared.comparison()
    document["task"] = hostile
    document["strategies"] = [hostile if name == "structured" else name for name in document["strategies"]]
    for made in document["points"]:
        if made["strategy"] == "structured":
            made["strategy"] = hostile
            made["refused"] = {"int8": hostile}
            for group in made["stages"]["cut"]["history"][0]["notes"]["groups"]:
                group["name"] = hostile
        for mask in made["masks"]:
            mask["layer"] = mask["weight"] = hostile
    read, usual = Reader(render_comparison(document)), Reader(render_comparison(compared.comparison()))
    assert read.faults == []
    assert read.count("script") == usual.count("script")
    assert read.count("img") == 0


def test_the_rows_hold_every_point_and_the_originals() -> None:
    found = Comparison(compared.comparison())
    rows = comparison.rows(found)
    assert [row.name for row in rows[:2]] == ["Original, PyTorch", "Original, onnx"]
    assert len(rows) == 2 + 12
    headings = comparison.columns(found)
    assert all(len(row.cells) == len(row.sort) == len(headings) for row in rows)
    structured = next(row for row in rows if row.name == "structured" and row.ratio == "0.5")
    told = dict(zip(headings, structured.cells, strict=True))
    assert told["Smaller"][0] == "3.03×"
    assert told["Quality after the cut"][0] == "97.58 %"
    assert told["Quality recovered"][0] == "98.27 %"
    assert rows[-1].cells[1][0] == "refused"


def test_the_curves_hold_each_stage_of_each_strategy() -> None:
    ratio, size, p50, p95 = curves.plots(Comparison(compared.comparison()))
    assert [figure["id"] for figure in (ratio, size, p50, p95)] == [
        "ratio", "size_bytes", "latency_p50_ms", "latency_p95_ms",
    ]  # fmt: skip
    lines = {trace["name"]: trace for trace in ratio["data"]}
    assert set(lines) == {
        "magnitude, right after the cut", "magnitude, recovered", "structured, right after the cut",
        "structured, recovered", "dynamic, right after the cut",
    }  # fmt: skip
    assert lines["structured, recovered"]["x"] == [0.3, 0.5, 0.7, 0.9]
    assert lines["dynamic, right after the cut"]["x"] == [0.3, 0.5, 0.7]
    assert lines["structured, recovered"]["line"]["dash"] != lines["structured, right after the cut"]["line"]["dash"]
    points = {trace["name"]: trace for trace in size["data"]}
    assert len(points["structured"]["x"]) == 4
    assert points["structured"]["x"] == sorted(points["structured"]["x"], reverse=True)
    assert {"Original, PyTorch", "Original, onnx"} <= set(points)


def test_no_two_of_many_strategies_look_alike() -> None:
    assert len({curves.look(number) for number in range(42)}) == 42


def test_an_error_is_drawn_with_better_up() -> None:
    for figure in curves.plots(Comparison(compared.lower_is_better())):
        assert figure["layout"]["yaxis"]["autorange"] == "reversed"


def test_kept_channels_have_a_row_a_ratio() -> None:
    found = Comparison(compared.comparison())
    cuts = [(f"{point.ratio:g}", point.stages["cut"]) for point in found.of("structured")]
    first = patterns.kept(cuts)[0]
    assert (first.name, first.labels) == ("conv1", ("0.3", "0.5", "0.7", "0.9"))
    assert [row.count("f") for row in first.rows] == [22, 16, 10, 3]
    assert all(len(row) == 32 for row in first.rows)


def test_a_group_that_was_not_cut_is_whole_and_a_wide_one_is_drawn_in_cells() -> None:
    def cut(kept: list[int] | None) -> Entry:
        groups = [] if kept is None else [{"name": "wide", "before": 960, "after": len(kept), "kept": kept}]
        return Entry({"history": [{"notes": {"groups": groups}}]})

    (found,) = patterns.kept([("a", cut(list(range(480)))), ("b", cut(None))])
    assert found.rows == ("f" * 48 + "0" * 48, "f" * patterns.CELLS)
    assert found.caption == "480 / 960 of 960 channels kept"


def test_notes_of_another_shape_draw_nothing() -> None:
    notes = {"groups": 4, "sensitivity": {"a": "high", "b": [[1]]}}
    entry = Entry({"history": [{"notes": notes}, {"notes": None}]})
    assert patterns.kept([("", entry)]) == patterns.sensitivity(entry) == []
    assert patterns.masks([("", [{"rows": ["0f", "f"]}, {"rows": ["xy"]}, {}])]) == []


def test_sensitivity_is_drawn_on_axes_that_all_groups_share() -> None:
    curve = patterns.Curve
    low, high = patterns.smalls([curve("a", ((0.0, 0.0), (0.5, 1.0))), curve("b", ((0.0, 0.0), (1.0, 4.0)))])
    assert low.dots[1][0] < high.dots[1][0]
    assert high.dots[1][1] < low.dots[1][1] < high.dots[0][1]


def test_the_command_makes_the_page_beside_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "compare.json").write_text(json.dumps(compared.refused()), "utf-8")
    assert main([str(tmp_path / "compare.json")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "compare.html")
    assert "0 of 12 could be made" in (tmp_path / "compare.html").read_text("utf-8")


def test_the_page_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "compare.html"
    write_comparison(compared.comparison(), path)
    first = path.read_text("utf-8")
    with pytest.raises(ConfigError, match="it lacks target"):
        write_comparison({"task": "digits"}, path)
    with pytest.raises(ConfigError, match="schema_version 1, got 7"):
        write_comparison({**compared.comparison(), "schema_version": 7}, path)
    assert path.read_text("utf-8") == first
    assert [file.name for file in path.parent.iterdir()] == ["compare.html"]
