"""The demo, whole: what a stranger runs first; and with less to train, so that a budget is not met."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tauten.cli.main import app
from tauten.core.target import Budget
from tauten.make.search.evaluator import Sampling
from tauten.make.search.result import Result


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_trains_optimizes_for_two_budgets_serves_and_tells_the_truth(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "tauten.cli.main", "demo", "--out", str(out), "--seconds", "0.5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    accurate = Result.from_json(json.loads((out / "accurate" / "result.json").read_text()))
    assert accurate.met
    assert document["accurate"]["best"] == accurate.best.name if accurate.best else False
    assert accurate.test is not None
    assert accurate.test.drop_points.value <= 0.5
    assert accurate.improvements["baseline"]["size_bytes"].ratio >= 10
    small = Result.from_json(json.loads((out / "small" / "result.json").read_text()))
    assert small.best is not None
    size = small.best.measure("size_bytes")
    assert size is not None
    assert size.value == sum(path.stat().st_size for path in (out / "small" / "best").iterdir()) <= 50_000
    # The second budget is another answer from the same candidates, as they are or coded.
    known = {entry.name for entry in accurate.candidates}
    coded = {f"{name}-{codec}" for name in known for codec in ("zstd", "huffman", "arithmetic")}
    assert {entry.name for entry in small.candidates} <= known | coded
    assert done.stderr.count("from an earlier run") >= 1
    assert document["load"]["requests"] > 0
    assert document["load"]["errors"] == {}
    assert (out / "accurate" / "report.html").is_file()
    assert (out / "digits.py").is_file()


@pytest.mark.slow
def test_with_one_epoch_and_one_recipe_it_serves_what_it_made_and_says_which_budget_is_not_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = tmp_path / "package" / "examples" / "digits.py"
    example.parent.mkdir(parents=True)
    whole = (files("tauten") / "examples" / "digits.py").read_text("utf-8")
    example.write_text(whole.replace("epochs=22", "epochs=1"), "utf-8")
    assert example.read_text("utf-8") != whole
    monkeypatch.setattr("tauten.cli.demo.files", lambda package: tmp_path / "package")
    monkeypatch.setattr("tauten.cli.demo.RECIPES", ("int8",))
    monkeypatch.setattr("tauten.cli.demo.ACCURATE", Budget(max_drop=50))
    short = Sampling(seconds=0.05, starts=1)
    monkeypatch.setattr("tauten.make.search.evaluator.Sampling", lambda **_: short)
    out = tmp_path / "demo"
    done = CliRunner().invoke(app, ["demo", "--out", str(out), "--seconds", "0.5", "--json"])
    assert done.exit_code == 3, done.output
    document = json.loads(done.stdout)
    assert document["accurate"]["met"]
    assert not document["small"]["met"]
    assert (document["accurate"]["best"], document["small"]["best"]) == ("int8", None)
    assert document["load"]["requests"] > 0
    assert document["load"]["errors"] == {}
    assert (out / "accurate" / "best" / "manifest.json").is_file()
    assert not (out / "small" / "best").exists()
    # What the second budget asks for is made of what the first one left.
    made = {entry["name"] for entry in json.loads((out / "small" / "result.json").read_text())["candidates"]}
    assert made <= {"int8", "int8-zstd", "int8-huffman", "int8-arithmetic"}
    assert (out / "digits.py").read_text("utf-8") == example.read_text("utf-8")
