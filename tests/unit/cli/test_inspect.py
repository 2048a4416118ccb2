"""``tauten inspect``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tauten.artifact.read import read_artifact
from tauten.artifact.write import write_measures
from tauten.cli.main import app
from tauten.core.measure import Measure
from tauten.core.record import Record
from tauten.testing.artifacts import tiny_artifact

LATENCY = Measure(value=1.25, low=1.0, high=2.0, unit="ms", better="lower", on="1 thread")
RECORD = Record(name="prune.structured", parameters={"ratio": 0.5}, seed=7, seconds=1.5, before="a", after="b")
RECIPE = {"name": "half", "passes": [{"pass": "prune.structured", "ratio": 0.5}], "lowering": "onnx"}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    weights = {"conv.weight": np.array([[0, 1], [0, 2]], np.float32), "head.weight": np.ones((2, 2), np.float32)}
    made = tiny_artifact(tmp_path / "tiny", weights=weights, history=(RECORD,), recipe=RECIPE)
    return write_measures(made, {"latency_p50_ms": LATENCY, "throughput_per_s.8": LATENCY}).path


def inspect(path: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["inspect", str(path), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_json_tells_everything(artifact: Path) -> None:
    found: dict[str, Any] = json.loads(inspect(artifact, "--json"))
    assert found["name"] == "tiny"
    assert found["verified"] is True
    assert found["size_bytes"] == sum(entry.stat().st_size for entry in artifact.iterdir())
    assert found["files"] == {entry.name: entry.stat().st_size for entry in artifact.iterdir()}
    assert set(found["checksums"]) == {"graph.bin", "weights.safetensors", "manifest.json"}
    assert found["measures"]["latency_p50_ms"] == LATENCY.to_json()
    assert found["measures"]["throughput_per_s"]["8"] == LATENCY.to_json()
    assert found["recipe"] == RECIPE
    assert found["history"][0]["parameters"] == {"ratio": 0.5}
    assert found["inputs"][0]["shape"] == ["batch", 4]
    assert [(layer["name"], layer["zeros"], layer["bytes"]) for layer in found["layers"]] == [
        ("conv", 0.5, 16),
        ("head", 0.0, 16),
    ]


def test_people_read_it_as_tables(artifact: Path) -> None:
    text = " ".join(inspect(artifact).split())
    for part in (
        "tiny",
        "engine null",
        "half: prune.structured(ratio=0.5)",
        "(batch, 4)",
        "1.25 ms",
        "1 to 2",
        "prune.structured",
        "conv.weight",
        "50.0%",
        "sha256 of all 3 files agree",
    ):
        assert part in text, part


def test_how_the_engine_is_asked_to_run_it_is_told(tmp_path: Path) -> None:
    told = {"batches": [1, 16], "precision": "bf16", "padding": {"mask": "m", "multiple": 8}}
    made = tiny_artifact(tmp_path / "tiny", settings=told)
    assert "settings batches 1, 16; padding mask=m, multiple=8; precision bf16" in " ".join(inspect(made.path).split())


def test_a_narrow_terminal_shows_every_figure_whole(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Measure(value=111_916, low=100_032, high=118_435, unit="1/s", better="higher", on="1 thread, 10 rounds")
    write_measures(read_artifact(artifact), {"throughput_per_s.32": wide, "latency_mean_ms": LATENCY})
    monkeypatch.setenv("COLUMNS", "60")
    text = inspect(artifact)
    assert "100,032 to 118,435" in text
    assert "111,916 1/s" in text
    assert max(map(len, text.splitlines())) <= 60
    monkeypatch.setenv("COLUMNS", "100")
    assert "1 thread, 10 rounds" in inspect(artifact)


def test_what_would_steer_a_terminal_is_spelled_out(tmp_path: Path) -> None:
    made = tiny_artifact(
        tmp_path / "tiny", created="\x1b[2J[bold red]x", recipe={"name": "\u202eevil\n", "passes": [1]}
    )
    text = inspect(made.path)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J[bold red]x" in text


def test_an_artifact_without_recipe_measures_or_layers_is_shown(tmp_path: Path) -> None:
    assert "no passes" in inspect(tiny_artifact(tmp_path / "tiny", weights={}).path)


@pytest.mark.parametrize("name", ["graph.bin", "weights.safetensors", "manifest.json", "SHA256SUMS"])
def test_a_damaged_artifact_is_one_clear_line(artifact: Path, name: str) -> None:
    path = artifact / name
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = subprocess.run(
        [sys.executable, "-m", "tauten.cli.main", "inspect", str(artifact)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert name in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_inspect_imports_neither_torch_nor_an_engine(artifact: Path) -> None:
    code = (
        "import sys, tauten.cli.main as m\n"
        "sys.argv = ['tauten', 'inspect', sys.argv[1], '--json']\n"
        "try:\n    m.main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "odd = {'torch', 'onnxruntime', 'tauten.make.model'} & set(sys.modules)\n"
        "assert not odd, odd\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(artifact)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
