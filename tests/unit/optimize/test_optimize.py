"""The main job on a real, tiny model: every process, file and measurement here is real."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tauten
from tauten.artifact.read import read_artifact
from tauten.make.search.evaluator import Sampling
from tauten.make.search.recipe import Recipe, pass_from_json
from tauten.make.search.result import Entry
from tests.unit.optimize.task import Net, batches, task, unlabelled

INT8 = Recipe("int8", (pass_from_json({"pass": "quantize.post_training"}),))
CUT = Recipe(
    "cut",
    (
        pass_from_json({"pass": "prune.structured", "ratio": 0.5}),
        pass_from_json({"pass": "distill.recover", "epochs": 2}),
        pass_from_json({"pass": "quantize.post_training"}),
    ),
)
KEYS = {
    "quality",
    "size_bytes",
    "latency_mean_ms",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "throughput_per_s",
    "load_ms",
    "peak_memory_mib",
    "startup_ms",
}


optimize = partial(tauten.optimize, sampling=Sampling(seconds=0.1, starts=1))


class Watcher:
    """Keeps what a run says of itself, and may stop it."""

    def __init__(self, stop_after: int = 99) -> None:
        self.stages: list[str] = []
        self.made: list[tuple[str, bool]] = []
        self.entries: list[Entry] = []
        self.not_made: list[str] = []
        self._stop_after = stop_after

    def stage(self, text: str, left: int = 0) -> None:
        self.stages.append(text)

    def step(self, text: str, share: float) -> None:
        pass

    def found(self, entry: Entry, reused: bool) -> None:
        self.made.append((entry.name, reused))
        self.entries.append(entry)
        if len(self.made) == self._stop_after:
            raise KeyboardInterrupt

    def refused(self, name: str, reason: str) -> None:
        self.not_made.append(name)


def make_only(count: int, *given: Any, **settings: Any) -> Watcher:
    """A run that is stopped when ``count`` candidates are made and judged, before all are timed and weighed.

    For what is settled by then: most of a short run's time goes to the processes that time and weigh.
    """
    watcher = Watcher(stop_after=count)
    with pytest.raises(KeyboardInterrupt):
        optimize(*given, observer=watcher, **settings)
    return watcher


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[tauten.Result, Path]:
    out = tmp_path_factory.mktemp("out")
    return optimize(task(), budget=tauten.Budget(max_drop=5), level=[INT8, CUT], out=out), out


def test_a_run_hands_over_an_artifact_that_answers_as_it_was_measured(finished: tuple[tauten.Result, Path]) -> None:
    result, out = finished
    assert result.met
    assert result.best is not None
    engine = tauten.load(out / result.best.artifact)
    images = np.concatenate([images for images, _ in batches(128, 3)])
    labels = np.concatenate([labels for _, labels in batches(128, 3)])
    right = (engine({"image": images})["output"].argmax(1) == labels).mean() * 100
    assert result.test is not None
    assert right == pytest.approx(result.test.best.value)


def test_the_result_file_says_what_the_issue_names(finished: tuple[tauten.Result, Path]) -> None:
    result, out = finished
    document = json.loads((out / "result.json").read_text())
    assert tauten.Result.from_json(document) == result
    for entry in (document["baseline"], document["engine_baseline"], document["best"], *document["candidates"]):
        assert set(entry["measures"]) == KEYS
        assert set(entry["measures"]["throughput_per_s"]) == {"1", "8", "16", "32"}
        for key, measure in entry["measures"].items():
            for one in measure.values() if key == "throughput_per_s" else [measure]:
                assert one["low"] <= one["value"] <= one["high"]
                assert {"unit", "better"} <= set(one)
        assert read_artifact(out / entry["artifact"]).manifest.name == "blobs"
    assert set(document["front"]) <= {"int8", "cut"}
    assert document["improvements"]["baseline"]["size_bytes"]["ratio"] > 1


def test_sizes_are_those_of_the_files(finished: tuple[tauten.Result, Path]) -> None:
    result, out = finished
    for entry in (result.engine_baseline, *result.candidates):
        size = entry.measure("size_bytes")
        assert size is not None
        assert size.value == sum(path.stat().st_size for path in (out / entry.artifact).iterdir())
    baseline = result.baseline.measure("size_bytes")
    assert baseline is not None
    assert baseline.value == (out / "candidates/baseline/weights.safetensors").stat().st_size


def test_the_report_is_written_and_holds_the_winner(finished: tuple[tauten.Result, Path]) -> None:
    result, out = finished
    assert result.best is not None
    page = (out / "report.html").read_text()
    assert result.best.name in page


def test_the_same_run_again_makes_nothing_anew(finished: tuple[tauten.Result, Path]) -> None:
    _, out = finished
    before = {path: path.stat().st_mtime_ns for path in out.glob("candidates/*/weights.safetensors")}
    watcher = Watcher()
    again = optimize(task(), budget=tauten.Budget(max_drop=5), level=[INT8, CUT], out=out, observer=watcher)
    assert watcher.made == [("int8", True), ("cut", True)]
    assert "train the model" not in watcher.stages
    assert {path: path.stat().st_mtime_ns for path in out.glob("candidates/*/weights.safetensors")} == before
    assert again.met


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    make_only(1, task(), level=[INT8, CUT], out=tmp_path)
    assert not (tmp_path / "best").exists()
    watcher = make_only(2, task(), level=[INT8, CUT], out=tmp_path)
    assert watcher.made == [("int8", True), ("cut", False)]


def test_another_seed_or_target_takes_nothing_over(finished: tuple[tauten.Result, Path], tmp_path: Path) -> None:
    _, out = finished
    shutil.copytree(out / "candidates", tmp_path / "candidates")
    watcher = make_only(1, task(), level=[INT8], out=tmp_path, seed=1)
    assert watcher.made == [("int8", False)]


def test_a_damaged_candidate_is_made_again(finished: tuple[tauten.Result, Path], tmp_path: Path) -> None:
    _, out = finished
    for folder in ("candidates", ".state"):
        shutil.copytree(out / folder, tmp_path / folder)
    weights = tmp_path / "candidates" / "int8" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    watcher = make_only(1, task(), level=[INT8], out=tmp_path)
    assert watcher.made == [("int8", False)]
    read_artifact(tmp_path / "candidates" / "int8")


def test_nothing_within_the_budget_hands_over_nothing(finished: tuple[tauten.Result, Path], tmp_path: Path) -> None:
    _, out = finished
    for folder in ("candidates", ".state", "best"):
        shutil.copytree(out / folder, tmp_path / folder)
    result = optimize(task(), budget=tauten.Budget(max_bytes=100), level=[INT8, CUT], out=tmp_path)
    assert not result.met
    assert result.best is None
    assert result.nearest
    assert "No candidate holds the budget" in result.explanation
    assert not (tmp_path / "best").exists()
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["best"] is None
    assert document["improvements"] == {}


@pytest.mark.slow
def test_a_test_set_that_contradicts_is_not_overruled(tmp_path: Path) -> None:
    honest = task().fit(0)
    module = honest.build()

    def original(images: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    def metric(outputs: dict[str, Any], labels: Any) -> float:
        # On the validation data everyone is perfect; on the test set only who answers exactly as the original did.
        return 100.0 if np.isinf(labels).all() else 100.0 - 1000.0 * float(np.abs(outputs["output"] - labels).mean())

    easy = [(images, np.full((len(images), 2), np.inf)) for images, _ in batches(64, 2)]
    hard = [(images, original(images)) for images, _ in batches(64, 3)]
    changed = replace(honest, validate=easy, test=hard, metric=metric, epochs=0)
    result = optimize(changed, budget=tauten.Budget(max_drop=0.5), level=[INT8], out=tmp_path)
    assert result.candidates[0].within_budget
    assert result.test is not None
    assert result.test.drop_points.value > 0.5
    assert not result.met
    assert result.best is None
    assert "on the test set it loses" in result.explanation
    assert result.nearest == ("int8",)
    assert not (tmp_path / "best").exists()


def test_without_labels_a_fidelity_metric_compares_with_the_original(tmp_path: Path) -> None:
    result = optimize(unlabelled(), budget=tauten.Budget(max_drop=1.0), level=[INT8, CUT], out=tmp_path)
    quality = result.baseline.measure("quality")
    assert quality is not None
    assert quality.value == pytest.approx(100)
    assert result.quality_on == "calibrate"
    assert [refused.name for refused in result.refused] == ["cut"]
    assert "no train data" in result.refused[0].error
    best = result.candidates[0].measure("quality")
    assert best is not None
    assert 90 < best.value < 100


def test_a_metric_that_needs_labels_and_data_without_is_an_error_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(tauten.TaskError, match="validate"):
        optimize(replace(unlabelled(), metric="accuracy"), out=tmp_path, level=[INT8])


def test_a_module_that_the_user_holds_is_left_as_it_was(tmp_path: Path) -> None:
    brought = replace(task(), model=task().build())
    module = brought.build()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    make_only(2, brought, level=[INT8, CUT], out=tmp_path)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def _loader(generator: torch.Generator | None = None) -> torch.utils.data.DataLoader[Any]:
    images, labels = batches(128, 2, size=128)[0]
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    return torch.utils.data.DataLoader(pairs, batch_size=32, shuffle=True, generator=generator)


def test_drops_are_paired_on_a_loader_that_shuffles(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = replace(task(), model=Net().eval(), epochs=0, train=None, validate=_loader(), test=None)
    alike = replace(given, validate=batches(128, 2))  # the same samples, in order
    runs = [(given, tmp_path), (given, tmp_path), (alike, tmp_path / "2")]
    watched = [make_only(1, of, level=[Recipe("same")], out=out) for of, out in runs]
    assert [watcher.made for watcher in watched] == [[("same", False)], [("same", True)], [("same", False)]]
    drops = [watcher.entries[0].drop_points for watcher in watched]
    assert drops[0] is not None
    # An untrained network is right on about half: walks in two orders would disagree on many samples.
    assert drops[0].value == 0
    assert drops[0] == drops[1] == drops[2]


def test_a_source_that_differs_at_each_walk_is_told(tmp_path: Path) -> None:
    given = replace(task(), validate=_loader(torch.Generator().manual_seed(0)))
    with pytest.raises(tauten.TaskError, match="validate: its batches came in another order"):
        optimize(given, level=[Recipe("same")], out=tmp_path)


def test_half_a_point_is_no_default_where_a_point_is_not_a_percent(tmp_path: Path) -> None:
    for metric in ("mse", lambda outputs, labels: 1.0):
        with pytest.raises(tauten.ConfigError, match="budget: expected a limit"):
            optimize(replace(task(), metric=metric), level=[INT8], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_engines_are_raced_and_recipes_that_name_none_run_on_the_winner(tmp_path: Path) -> None:
    target = tauten.Target(name="here", engines=("onnx", "eager", "abacus"))
    level = [Recipe("fp32", lowering="auto"), replace(INT8, lowering="auto"), Recipe("pinned", lowering="eager")]
    budget = tauten.Budget(max_drop=5)
    result = optimize(task(), target, budget, level=level, engine="auto", out=tmp_path)
    by = {(row.engine, row.precision): row for row in result.engines if not row.options}
    assert by["onnx", "float32"].latency
    assert by["eager", "float32"].latency
    assert "runs in float" in by["eager", "int8"].reason
    assert by["eager", "int8"].latency is None
    assert not by["abacus", None].installed
    for precision in ("float32", "int8"):
        assert [row.chosen for row in result.engines if row.precision == precision].count(True) == 1
    chosen = {row.precision: row for row in result.engines if row.chosen}
    entries = {entry.name: entry for entry in result.candidates}
    assert entries["fp32"].recipe["lowering"] == chosen["float32"].engine
    assert entries["int8"].recipe["lowering"] == chosen["int8"].engine == "onnx"
    assert entries["int8"].recipe.get("options", {}) == chosen["int8"].options
    assert entries["pinned"].recipe["lowering"] == "eager"
    assert result.best is not None
    assert result.engine_baseline.recipe["lowering"] == result.best.recipe["lowering"]
    assert read_artifact(tmp_path / "candidates/fp32").manifest.recipe["name"] == "fp32"
    again = Watcher()
    repeated = optimize(task(), target, budget, level=level, engine="auto", out=tmp_path, observer=again)
    assert repeated.engines == result.engines
    assert again.made == [("fp32", True), ("int8", True), ("pinned", True)]


def test_an_engine_that_the_target_lacks_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(tauten.errors.ConfigError, match=r"expected auto or one of target server-cpu \(onnx, "):
        optimize(task(), engine="abacus", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
