"""``tauten optimize --max-bytes``: candidates that are coded, and recipes that aim at the limit."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import tauten
from tauten.artifact.read import read_artifact
from tauten.cli.main import app
from tauten.make.search.levels import find_level
from tests.unit.optimize import layers
from tests.unit.optimize.test_optimize import INT8, Watcher, make_only
from tests.unit.optimize.test_optimize import optimize as quick

FILE = Path(layers.__file__)
ORIGIN = FILE.read_text("utf-8")
"""As the command reads it, so that both go on in one folder."""
optimize = partial(quick, layers.task(), origin=ORIGIN)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[tauten.Result, Path]:
    """One candidate that is not coded, and the folder in which runs go on."""
    out = tmp_path_factory.mktemp("sizes")
    return optimize(budget=tauten.Budget(max_drop=50), level=[INT8], out=out), out


def test_what_is_over_the_limit_is_coded_and_answers_the_same_bit_for_bit(plain: tuple[tauten.Result, Path]) -> None:
    first, out = plain
    (entry,) = first.candidates
    whole = entry.measure("size_bytes")
    assert whole is not None
    limit = int(whole.value) - 600
    watcher = Watcher()
    result = optimize(budget=tauten.Budget(max_bytes=limit), level=[INT8], out=out, observer=watcher)
    assert result.met
    assert result.best is not None
    assert result.best.name == "int8-zstd"
    assert result.best.recipe["codec"] == "zstd"
    assert watcher.made == [("int8-zstd", False)]
    coded, before = read_artifact(out / "best"), read_artifact(out / "candidates" / "int8")
    assert coded.manifest.codec == "zstd"
    assert coded.size_bytes <= limit
    assert coded.manifest.key != before.manifest.key
    inputs = {"x": np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)}
    np.testing.assert_array_equal(tauten.load(coded)(inputs)["output"], tauten.load(before)(inputs)["output"])
    # Notes weigh much where bytes are few: the run keeps them, with all measures.
    assert not any(record.notes for record in coded.manifest.history)
    assert any(record["notes"] for record in result.best.history)
    assert set(result.best.measures) == set(entry.measures)
    assert len(coded.manifest.measures) < len(before.manifest.measures)
    for name in ("size_bytes", "load_ms", "peak_memory_mib"):
        assert coded.manifest.measures[name].value > 0
    assert "coded by zstd" in (out / "report.html").read_text()
    again = make_only(1, layers.task(), origin=ORIGIN, budget=tauten.Budget(max_bytes=limit), level=[INT8], out=out)
    assert again.made == [("int8-zstd", True)]
    assert again.entries[0].history == result.best.history


@pytest.mark.slow
def test_a_level_finds_the_best_quality_at_a_size(
    plain: tuple[tauten.Result, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = plain
    some = ("sized-rounded", "sized-shared", "int8")  # of the level's recipes, which take a second or two each
    monkeypatch.setattr(
        "tauten.make.search.optimize.find_level",
        lambda *given, **named: tuple(recipe for recipe in find_level(*given, **named) if recipe.name in some),
    )
    result = optimize(budget=tauten.Budget(max_bytes="9KB"), level="low", out=out)
    assert result.met, result.explanation
    assert result.best is not None
    assert sum(path.stat().st_size for path in (out / "best").iterdir()) <= 9000
    held = [entry for entry in result.candidates if entry.within_budget]
    assert result.best.drop_points is not None
    assert result.best.drop_points.value == min(entry.drop_points.value for entry in held if entry.drop_points)
    names = {entry.name for entry in held}
    assert names & {"sized-rounded", "sized-rounded-2", "sized-rounded-3"}
    assert names & {"sized-shared", "sized-shared-2", "sized-shared-3"}
    assert tauten.load(out / "best")({"x": np.zeros((1, 64), np.float32)})["output"].shape == (1, 10)


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["optimize", f"{FILE}:task", *map(str, arguments)])
    return done.exit_code, done.stdout


def test_a_size_that_nothing_has_ends_with_3_and_the_nearest(
    plain: tuple[tauten.Result, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = plain
    monkeypatch.setattr("tauten.make.search.optimize.optimize", quick)  # which measures for less long
    (tmp_path / "int8.json").write_text(json.dumps([INT8.to_json()]))
    asked = ("--level", tmp_path / "int8.json", "--codec", "arithmetic", "--out", out)
    code, printed = run("--max-bytes", "2KB", *asked)
    assert code == 3, printed
    told = " ".join(printed.split())
    assert "The budget is not met" in told
    assert "The nearest is int8: size" in told
    assert "alone take about" in told
    assert not (out / "best").exists()
    # A codec that is asked for is that of every candidate, and no other candidate than the plain one of that name.
    assert read_artifact(out / "candidates" / "int8").manifest.codec == "arithmetic"


def test_a_codec_that_is_not_there_is_told_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(tauten.ConfigError, match="codec: expected one of auto"):
        optimize(level=[INT8], codec="zip", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_recipes_of_a_size_and_they_can_be_given_back(tmp_path: Path) -> None:
    code, printed = run("--max-bytes", "1.5MiB", "--level", "low", "--dry-run", "--json")
    assert code == 0
    recipes: list[dict[str, Any]] = json.loads(printed)
    assert {recipe["name"] for recipe in recipes if recipe.get("codec") == "arithmetic"} >= {"sized-shared"}
    (tmp_path / "own.json").write_text(printed)
    code, again = run("--max-bytes", "1.5MiB", "--level", tmp_path / "own.json", "--dry-run", "--json")
    assert json.loads(again) == recipes
    _, people = run("--max-bytes", "1.5MiB", "--level", "low", "--dry-run")
    assert "code by arithmetic" in people
