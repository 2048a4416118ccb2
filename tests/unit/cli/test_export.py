"""``tauten export``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

import tauten
from tauten.artifact.read import Artifact, read_artifact
from tauten.cli.main import app
from tauten.testing import tiny


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Int8, for ONNX Runtime."""
    task = tiny.cnn_task()
    return tauten.save(tauten.quantize(task), tmp_path_factory.mktemp("made") / "int8", task=task)


def inputs(artifact: Artifact) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {spec.name: draw.normal(0, 1, spec.concrete(3)).astype(spec.dtype) for spec in artifact.manifest.inputs}


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return done.exit_code, done.stdout + str(done.exception or "")


def test_an_onnx_file_runs_without_tauten(artifact: Artifact, tmp_path: Path) -> None:
    code, told = run(artifact.path, tmp_path / "model.onnx", "--json")
    assert code == 0
    assert json.loads(told)["bytes"] == (tmp_path / "model.onnx").stat().st_size
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    wanted = tauten.load(artifact)(inputs(artifact))
    for name, came in zip(wanted, session.run(list(wanted), inputs(artifact)), strict=True):
        np.testing.assert_array_equal(came, wanted[name])


def test_openvino_takes_over_an_onnx_artifact(artifact: Artifact, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: tauten[openvino]")
    code, told = run(artifact.path, tmp_path / "other", "--engine", "openvino")
    assert code == 0, told
    made = read_artifact(tmp_path / "other")
    assert made.manifest.engine == made.manifest.target.engine == "openvino"
    assert any(array.dtype == np.int8 for array in made.weights().values())
    wanted, came = (tauten.load(one)(inputs(artifact)) for one in (artifact, made))
    for name in wanted:
        np.testing.assert_allclose(came[name], wanted[name], atol=0.05 * np.abs(wanted[name]).max())
    code, told = run(made.path, tmp_path / "model.xml")
    assert code == 0, told
    # The runtime's own reader, on the files alone.
    compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(inputs(artifact))
    for name in wanted:
        np.testing.assert_allclose(found[name], came[name], atol=0.05 * np.abs(wanted[name]).max())


def test_what_cannot_be_converted_says_what_to_do(artifact: Artifact, tmp_path: Path) -> None:
    for arguments, said in (
        ((artifact.path, tmp_path / "x", "--engine", "executorch"), "tauten optimize TASK --engine executorch"),
        ((artifact.path, tmp_path / "x", "--engine", "onnx"), "already"),
        ((artifact.path, tmp_path / "model.pte"), "comes from an artifact for executorch"),
        ((artifact.path, tmp_path / "model.tflite"), "ends in .onnx, .xml, .pte"),
    ):
        code, told = run(*arguments)
        assert code != 0
        assert said in told
    assert not list(tmp_path.iterdir())


def test_answers_that_differ_leave_nothing_and_a_folder_that_is_there_stays(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: tauten[openvino]")
    monkeypatch.setattr("tauten.make.convert._LEAST_DB", 1000.0)
    code, told = run(artifact.path, tmp_path / "other", "--engine", "openvino")
    assert code != 0
    assert "expected answers as those of" in told
    assert not list(tmp_path.iterdir())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("precious")
    code, told = run(artifact.path, tmp_path / "other", "--engine", "openvino")
    assert "there already" in told
    assert (tmp_path / "other" / "mine").read_text() == "precious"


def test_a_file_that_is_there_stays(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("precious")
    code, told = run(artifact.path, tmp_path / "model.onnx")
    assert code != 0
    assert "there already" in told
    assert (tmp_path / "model.onnx").read_text() == "precious"
