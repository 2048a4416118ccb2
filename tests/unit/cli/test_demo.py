"""The demo, whole: what a stranger runs first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
