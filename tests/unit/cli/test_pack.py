"""``tauten pack`` and ``tauten unpack``, and the verbs that take what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tauten.artifact.read import Artifact, read_artifact
from tauten.cli.main import app
from tauten.errors import ArtifactError
from tauten.testing.artifacts import tiny_artifact

WEIGHTS = {
    "conv.weight": (np.arange(-96, 96).reshape(8, 24) % 5 * 0.25).astype(np.float32),
    "conv.bias": np.zeros(8, np.float32),
}


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "tiny", weights=WEIGHTS)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_packed_file_is_inspected_evaluated_and_unpacked(artifact: Artifact, tmp_path: Path) -> None:
    packed = tmp_path / "model.tauten"
    told: dict[str, Any] = json.loads(run("pack", artifact.path, "-o", packed, "--codec", "arithmetic", "--json"))
    assert told == {
        "path": str(packed), "bytes": packed.stat().st_size, "artifact_bytes": artifact.size_bytes,
        "codec": "arithmetic",
    }  # fmt: skip
    seen = json.loads(run("inspect", packed, "--json"))
    assert seen["codec"] == "arithmetic"
    assert seen["size_bytes"] == packed.stat().st_size
    assert seen["files"]["manifest.json"] > 0
    assert seen["weights_total"]["elements"] == 200
    np.savez(tmp_path / "data.npz", image=np.zeros((4, 4), np.float32), labels=np.zeros(4, np.int64))
    judged = json.loads(run("evaluate", packed, "--data", tmp_path / "data.npz", "--no-latency", "--json"))
    assert judged["measures"]["quality"]["value"] == 100
    assert judged["measures"]["size_bytes"]["value"] == packed.stat().st_size
    told = json.loads(run("unpack", packed, "-o", tmp_path / "back", "--json"))
    assert told["verified"] is True
    assert told["bytes"] == read_artifact(tmp_path / "back").size_bytes


def test_people_read_one_line(artifact: Artifact, tmp_path: Path) -> None:
    packed = tmp_path / "model.tauten"
    assert run("pack", artifact.path, "-o", packed).startswith(f"{packed}: ")
    assert run("unpack", packed, "-o", tmp_path / "back").startswith(f"{tmp_path / 'back'}: ")


def test_a_damaged_file_writes_nothing(artifact: Artifact, tmp_path: Path) -> None:
    packed = tmp_path / "model.tauten"
    run("pack", artifact.path, "-o", packed)
    packed.write_bytes(packed.read_bytes()[:-1])
    done = CliRunner().invoke(app, ["unpack", str(packed), "-o", str(tmp_path / "back")])
    assert isinstance(done.exception, ArtifactError)
    assert not (tmp_path / "back").exists()


def test_inspect_tells_what_each_weight_takes(artifact: Artifact, tmp_path: Path) -> None:
    run("pack", artifact.path, "-o", tmp_path / "model.tauten", "--codec", "arithmetic")
    text = run("inspect", tmp_path / "model.tauten", "--no-profile")
    for part in ("entropy", "bits/w", "conv.weight", "2.32", "all "):
        assert part in text, part
    layer = json.loads(run("inspect", tmp_path / "model.tauten", "--no-profile", "--json"))["layers"][1]
    assert layer["weight"] == "conv.weight"
    assert layer["coded_bytes"] < layer["bytes"]
    assert 0 < layer["bits_per_weight"] < 32
