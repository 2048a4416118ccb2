"""Widths from measured latency on a real, tiny model: artifacts are written and timed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

import tauten
from tauten.artifact.read import read_artifact
from tauten.make.search.adaptation import Pace
from tauten.make.search.evaluator import Sampling
from tauten.make.search.workspace import Workspace
from tests.unit.optimize.task import unlabelled
from tests.unit.optimize.test_optimize import Watcher

adapt = partial(tauten.adapt, sampling=Sampling(seconds=0.05, starts=1), pace=Pace(step=0.25, trials=4, percentile=50))


def test_trials_are_artifacts_that_are_timed_once_and_the_cut_goes_into_a_recipe(tmp_path: Path) -> None:
    watcher = Watcher()
    found = adapt(unlabelled(), max_latency_ms=1e-6, out=tmp_path, observer=watcher)
    assert not found.met
    assert found.trials == 4
    assert [name for name, _ in watcher.made][:2] == ["adapt-whole", "adapt-groups"]
    assert not any(reused for _, reused in watcher.made)
    for name, _ in watcher.made:
        assert "quality" in read_artifact(tmp_path / "candidates" / name).manifest.measures
    assert tauten.Adapted.from_json(json.loads((tmp_path / "adapt.json").read_text())) == found
    assert {name for name, _ in found.ratios} <= {"first.weight", "second.weight"}
    assert (found.cut is None) == (not found.taken)
    again = Watcher()
    repeated = adapt(unlabelled(), max_latency_ms=1e-6, out=tmp_path, observer=again)
    assert again.made == [(name, True) for name, _ in watcher.made]
    assert repeated.model_copy(update={"seconds": found.seconds}) == found


def test_a_limit_that_holds_cuts_nothing(tmp_path: Path) -> None:
    found = adapt(unlabelled(), max_latency_ms=1e6, out=tmp_path)
    assert found.met
    assert found.cut is None
    assert found.trials == 1
    assert found.measure == "latency_p50_ms"
    (trial,) = (tmp_path / ".state").glob("trial-*.json")
    trial.write_text(trial.read_text()[:-9])
    assert Workspace(tmp_path).load_trial(trial.stem.removeprefix("trial-")) is None


def test_a_limit_that_cannot_be_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(tauten.ConfigError, match="max_latency_ms: expected a number above 0"):
        adapt(unlabelled(), max_latency_ms=0, out=tmp_path / "out")
    for strategy, said in (
        ("adapt", "expected a budget with max_latency_ms"),
        ("magic", "expected one of adapt, listed"),
    ):
        with pytest.raises(tauten.ConfigError, match=said):
            tauten.optimize(unlabelled(), budget=tauten.Budget(max_drop=1), strategy=strategy, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
