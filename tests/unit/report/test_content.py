"""What the page's sentences, tables and plots hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauten.report import figures, summary, tables
from tauten.report.run import Entry, Run
from tauten.report.write import render
from tests.unit.report import sample


def trace(figure: dict[str, Any], name: str) -> dict[str, Any]:
    return next(found for found in figure["data"] if found["name"] == name)


def test_the_limits_are_judged_by_what_was_reached() -> None:
    held = summary.limits(Run(sample.sample()))
    assert [(limit.title, limit.held) for limit in held] == [
        ("Quality lost", True),
        ("Size on disk", True),
        ("Peak memory", True),
    ]
    broken = summary.limits(Run(sample.not_met()))
    assert [limit.held for limit in broken] == [False, False, False]
    assert all(limit.share > 1 for limit in broken)


def test_a_limit_whose_measure_is_missing_is_not_called_held() -> None:
    result = sample.sample()
    del result["best"]["measures"]["peak_memory_mib"]
    limit = summary.limits(Run(result))[-1]
    assert (limit.title, limit.reached, limit.held) == ("Peak memory", "–", False)


def test_a_worse_figure_is_said_to_be_worse() -> None:
    result = sample.sample()
    result["improvements"] = {}
    result["best"]["measures"]["latency_p50_ms"] = sample.measure(0.996, "ms")
    run = Run(result)
    assert "2.0 times slower" in summary.sentences(run)[0]
    speed = summary.headlines(run)[0]
    assert (speed.figure, speed.good) == ("2.0×", False)


def test_a_gain_in_quality_is_no_loss() -> None:
    result = sample.sample()
    result["test"]["drop_points"] = sample.measure(-0.4, "points")
    run = Run(result)
    assert "0.40 points gained on the test set" in summary.sentences(run)[0]
    assert next(it.figure for it in summary.headlines(run) if it.title == "Quality") == "+0.40"


def test_rows_compare_what_was_measured_and_leave_out_what_was_not() -> None:
    titles = [row.title for row in tables.comparisons(Run(sample.sample()))]
    assert titles[:3] == ["Quality", "Quality on the test set", "Size on disk"]
    assert [title for title in titles if title.startswith("Throughput")] == [
        f"Throughput, batch {batch}" for batch in (1, 8, 16, 32)
    ]
    assert [row.title for row in tables.comparisons(Run(sample.bare()))] == ["Quality", "Size on disk"]


def test_a_ratio_whose_interval_holds_one_is_neither_better_nor_worse() -> None:
    result = sample.sample()
    result["improvements"]["baseline"] = {
        "latency_p50_ms": sample.improvement(1.1, 0.9, 1.3, -0.1, "ms", ""),
        "latency_p95_ms": sample.improvement(0.5, 0.4, 0.6, 0.1, "ms", ""),
        "latency_p99_ms": sample.improvement(2.0, 1.9, 2.1, -0.1, "ms", ""),
    }
    rows = {row.title: row.changes[0][2] for row in tables.comparisons(Run(result))}
    assert rows["Latency, median (p50)"] is None
    assert rows["Latency, p95"] is False
    assert rows["Latency, p99"] is True


def test_the_shares_of_a_layer_are_of_the_largest() -> None:
    rows = {layer.name: layer for layer in tables.layers(Run(sample.sample()))}
    assert rows["conv3"].before_share == 1
    assert rows["conv2"].before_bytes == 64 * 32 * 9 * 4 + 64 * 4
    assert (rows["conv2"].before_bits, rows["conv2"].after_bits) == (32, 8)
    assert (rows["conv2"].before_shape, rows["conv2"].after_shape) == ("64 × 32 × 3 × 3", "32 × 32 × 3 × 3")
    assert 0.02 < rows["conv2"].zeros < 0.031


def test_a_layer_that_is_gone_keeps_its_row() -> None:
    result = sample.sample()
    result["best"]["layers"] = [layer for layer in result["best"]["layers"] if layer["name"] != "conv1"]
    rows = {layer.name: layer for layer in tables.layers(Run(result))}
    assert (rows["conv1"].after_bytes, rows["conv1"].after_shape) == (0, "")


def test_the_history_names_what_was_left_alone() -> None:
    best = Run(sample.sample()).best
    assert best is not None
    first, second, third = tables.history(best)
    assert (first.name, second.name, third.name) == ("prune.structured", "distill.recover", "quantize.post_training")
    assert ("fc1", "a reshape mixes its channels") in first.refused
    assert ("ratio", "0.5") in first.parameters
    assert ("channels removed", "112") in first.notes


def test_the_plots_hold_every_candidate_once() -> None:
    run = Run(sample.sample())
    for figure in figures.figures(run):
        names = [text.split("<b>")[1].split("</b>")[0] for found in figure["data"] for text in found.get("text", ())]
        assert sorted(names) == sorted(
            [entry.name for entry in run.candidates] + [run.baseline.name, run.engine_baseline.name]
        )


def test_the_budget_is_drawn_where_it_ends() -> None:
    size = figures.figures(Run(sample.sample()))[0]
    floor, edge = size["layout"]["shapes"]
    assert floor["y0"] == floor["y1"] == pytest.approx(98.33 - 0.5)
    assert edge["x0"] == edge["x1"] == 50_000


def test_a_latency_budget_brings_the_plot_of_what_it_binds() -> None:
    latency = figures.figures(Run(sample.not_met()))[1]
    assert latency["id"] == "latency_p95_ms"
    assert latency["layout"]["shapes"][-1]["x0"] == 0.05


def test_a_metric_that_is_better_low_is_drawn_with_better_up() -> None:
    result = sample.sample()
    result["metric"] = {"name": "error", "unit": "%", "better": "lower"}
    for entry in (result["baseline"], result["engine_baseline"], result["best"], *result["candidates"]):
        score = entry["measures"]["quality"]["value"]
        entry["measures"]["quality"] = sample.measure(100 - score, "%", "lower")
    size = figures.figures(Run(result))[0]
    assert size["layout"]["yaxis"]["autorange"] == "reversed"
    assert size["layout"]["shapes"][0]["y0"] == pytest.approx(1.67 + 0.5)
    stairs = trace(size, "Best trade-offs")["y"]
    assert stairs == sorted(stairs, reverse=True)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 100)), min_size=1, max_size=30))
def test_the_staircase_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    result = sample.bare()
    template = result["candidates"][0]
    result["candidates"] = [
        {
            **template,
            "name": f"c{index}",
            "measures": {
                "size_bytes": sample.measure(x, "bytes", spread=0),
                "quality": sample.measure(y, "%", "higher", 0),
            },
        }
        for index, (x, y) in enumerate(points)
    ]
    stairs = trace(figures.figures(Run(result))[0], "Best trade-offs")
    found = set(zip(stairs["x"], stairs["y"], strict=True))
    beaten = {(x, y) for x, y in points for a, b in points if a <= x and b >= y and (a, b) != (x, y)}
    assert found == set(points) - beaten


def test_engines_are_told_with_what_was_measured_of_them_or_what_brings_them() -> None:
    onnx, openvino = tables.engines(Run(sample.sample()))
    assert (onnx.name, onnx.options, onnx.chosen) == ("onnx", "placement products", True)
    assert onnx.cells[0].sort == 0.0874
    assert openvino.cells[0].sort is None
    assert "tauten[openvino]" in openvino.reason
    result = sample.sample()
    del result["engines"]
    assert tables.engines(Run(result)) == []


def test_the_engine_is_that_of_the_untouched_model_beside_the_best() -> None:
    result = sample.sample()
    assert Run(result).engine == "onnx"
    result["engine_baseline"]["recipe"] = {"name": "engine_baseline", "passes": [], "lowering": "openvino"}
    assert Run(result).engine == "openvino"
    assert any("(openvino)" in text for text in summary.sentences(Run(result)))


def test_layers_in_a_higher_precision_are_told_with_the_reason() -> None:
    result = sample.sample()
    assert tables.mixed(Entry(result["best"])) is None
    layers = [{"path": "head", "precision": "float32", "noise": 0.25}, {"path": "first", "precision": "float32"}]
    result["best"]["mixed"] = {"base": "int8", "of": 3, "why": "int8 loses 3.00 points", "layers": layers}
    found = tables.mixed(Entry(result["best"]))
    assert found is not None
    assert found[0] == "int8 loses 3.00 points"
    assert [path for path, _ in found[1]] == ["head", "first"]
    assert "0.25 of their power" in found[1][0][1]
    assert "int8 loses 3.00 points." in render(result)
