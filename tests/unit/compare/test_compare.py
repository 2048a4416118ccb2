"""Strategies side by side on a real, tiny model: every file and measurement here is real."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

import tauten
from tauten.artifact.read import read_artifact
from tauten.cli.compare import show
from tauten.make.search.compare import saving
from tauten.make.search.evaluator import Sampling
from tauten.make.search.improve import improvements
from tauten.make.search.recipe import pass_from_json
from tauten.make.search.result import Entry
from tests.unit.optimize.task import task, unlabelled
from tests.unit.optimize.test_optimize import Watcher
from tests.unit.search.entries import entry

compare = partial(tauten.compare, sampling=Sampling(seconds=0.05, starts=1))
Finished = tuple[tauten.Comparison, Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("out")
    return compare(task(), passes=["magnitude", "structured"], ratios=[0.5], recover=1, int8=True, out=out), out


def test_each_point_is_measured_at_each_stage_from_its_file(finished: Finished) -> None:
    found, out = finished
    assert [(point.strategy, point.ratio) for point in found.points] == [("magnitude", 0.5), ("structured", 0.5)]
    for point in found.points:
        assert list(point.stages) == ["cut", "recovered", "int8"]
        assert point.last == "int8"
        assert point.refused == {}
        for stage in point.stages.values():
            quality = read_artifact(out / stage.artifact).manifest.measures["quality"]
            assert stage.measure("quality") == quality
        shipped = point.shipped
        assert shipped is not None
        assert {"latency_p50_ms", "latency_p95_ms", "throughput_per_s", "size_bytes"} <= set(shipped.measures)
        size = sum(path.stat().st_size for path in (out / shipped.artifact).iterdir())
        original = found.engine_baseline.measure("size_bytes")
        assert original is not None
        assert point.compression["engine_baseline"] == pytest.approx(original.value / size)
    assert [record["name"] for record in found.points[1].stages["recovered"].history][:2] == [
        "prune.structured", "distill.recover",
    ]  # fmt: skip


def test_what_eight_bits_do_is_told_apart_from_what_the_cut_does(finished: Finished) -> None:
    found, _ = finished
    assert found.control is not None
    assert [step["pass"] for step in found.control.recipe["passes"]] == ["quantize.post_training"]
    for point in found.points:
        assert point.saving is not None
        ours = point.improvements["int8"]["latency_p50_ms"]
        assert (point.saving.ratio, point.saving.low) == (ours.ratio, ours.ratio_low)


def test_patterns_are_those_of_the_files(finished: Finished) -> None:
    found, _ = finished
    magnitude, structured = found.points
    assert {mask.layer for mask in magnitude.masks} == {"first", "second", "head"}
    assert all(0.45 < mask.zeros < 0.55 for mask in magnitude.masks)
    assert structured.masks == ()
    groups = structured.stages["cut"].history[0]["notes"]["groups"]
    assert all(len(group["kept"]) == group["after"] for group in groups)


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_of_any_width_shows_every_figure_whole(finished: Finished, width: int) -> None:
    found, out = finished
    page = Console(width=width, file=io.StringIO())
    show(page, found, out)
    text = page.file.getvalue()  # type: ignore[attr-defined]
    for point in found.points:
        assert point.saving is not None
        words = point.saving.text.split()
        assert all(word in text for word in (point.strategy, "0.5", *words))
        assert f"{point.compression['engine_baseline']:.3g}×" in text
    for part in ("PyTorch eager", "onnx fp32", "onnx int8", "recovered", "compare.html"):
        assert part in text


def test_everything_lies_in_the_folder(finished: Finished) -> None:
    found, out = finished
    assert tauten.Comparison.from_json(json.loads((out / "compare.json").read_text())) == found
    assert "structured" in (out / "compare.html").read_text("utf-8")
    assert {path.name for path in (out / "pictures").iterdir()} == {
        "compare-quality-ratio.png", "compare-quality-size.png", "compare-quality-latency.png",
        "compare-quality-latency-p95.png", "compare-masks-magnitude.png", "compare-kept-structured.png",
    }  # fmt: skip


def test_the_same_run_again_makes_nothing_anew(finished: Finished) -> None:
    _, out = finished
    watcher = Watcher(stop_after=4)  # all that is made and judged: what follows is measured anew in any case
    with pytest.raises(KeyboardInterrupt):
        compare(task(), passes=["magnitude", "structured"], ratios=[0.5], recover=1, out=out, observer=watcher)
    assert watcher.made == [
        ("magnitude-0.5", True), ("magnitude-0.5-recovered", True),
        ("structured-0.5", True), ("structured-0.5-recovered", True),
    ]  # fmt: skip
    assert "train the model" not in watcher.stages


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    given = unlabelled()
    settings = {"passes": ["magnitude", "structured"], "ratios": [0.5], "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        compare(given, **settings, observer=Watcher(stop_after=1))
    assert not (tmp_path / "compare.json").exists()
    watcher = Watcher()
    found = compare(given, **settings, observer=watcher)
    assert watcher.made == [("magnitude-0.5", True), ("structured-0.5", False)]
    # No train data: there is nothing to recover on, and the metric compares with the original.
    assert found.recover == 0
    assert found.metric["name"] == "cosine"
    assert [list(point.stages) for point in found.points] == [["cut"], ["cut"]]


def test_a_strategy_that_refuses_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    found = compare(unlabelled(), passes=["dynamic", "magnitude"], ratios=[0.5], recover=1, out=tmp_path)
    dynamic, magnitude = found.points
    assert dynamic.stages == {}
    assert dynamic.saving is None
    assert "no train data" in dynamic.refused["cut"]
    assert list(magnitude.stages) == ["cut"]
    assert "no train data" in magnitude.refused["recovered"]
    assert "no train data" in (tmp_path / "compare.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"passes": ["nonsense"]}, "passes: no strategy named 'nonsense'; there are .*prune.structured"),
        ({"passes": ["distill.recover"]}, "has no ratio or share to vary"),
        ({"passes": ["structured:criterion"]}, "expected NAME:parameter=value"),
        ({"passes": ["structured:criterion=loud"]}, "loud"),
        ({"passes": ["magnitude", "magnitude"]}, "expected strategies of different names"),
        ({"passes": []}, "expected strategies of different names"),
        ({"ratios": [0.5, 1.5]}, "ratios: expected different numbers between 0 and 1"),
        ({"ratios": [0.5, 0.5]}, "ratios: expected different numbers between 0 and 1"),
        ({"recover": -1}, "recover: expected 0 or more epochs, got -1"),
        ({"target": "gpu"}, "expected a device that the baselines run on"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(settings: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(tauten.ConfigError, match=said):
        compare(task(), **{"passes": ["magnitude"], "ratios": [0.5], "out": tmp_path / "out", **settings})
    assert not (tmp_path / "out").exists()


def judged(step: str, p50: float, zeros: float, original: Entry) -> tuple[str, bool, str]:
    layer = {"elements": 100, "zeros": zeros}
    ours = entry("ours", p50=p50, noise=0.01).model_copy(update={"layers": (layer,)})
    ours = ours.model_copy(update={"measures": {**ours.measures, "latency_mean_ms": ours.measures["latency_p50_ms"]}})
    parameter = {"share": 0.5} if step.startswith("dynamic") else {"ratio": 0.5}
    found = saving(pass_from_json({"pass": step, **parameter}), ours, improvements(ours, original), "onnx")
    return found.kind, found.arithmetic, found.text


def test_a_saving_is_what_was_measured() -> None:
    original = entry("original", p50=0.1, noise=0.01)
    original = original.model_copy(
        update={"measures": {**original.measures, "latency_mean_ms": original.measures["latency_p50_ms"]}}
    )
    assert judged("prune.structured", 0.05, 0.0, original) == ("time", False, "2 times faster")
    kind, arithmetic, text = judged("prune.magnitude", 0.1, 0.7, original)
    assert (kind, arithmetic) == ("none", True)
    assert "70 % of the weights are zero, and onnx multiplies by them all the same" in text
    assert judged("prune.structured", 0.099, 0.0, original)[0] == "none"
    kind, arithmetic, text = judged("dynamic.early_exit", 0.2, 0.0, original)
    assert (kind, arithmetic) == ("slower", True)
    assert "2 times slower: what it leaves out is arithmetic on paper" in text
