"""Models that come as ONNX files: read as hostile, quantized and measured without any code of theirs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tauten
from tauten.artifact.read import read_artifact
from tauten.cli.main import app
from tauten.core.target import Target
from tauten.core.tensor import Arrays
from tauten.errors import RecipeError, TaskError
from tauten.make.model.build import to_model
from tauten.make.model.imported import onnx_task, read_onnx
from tauten.make.model.pass_ import Context
from tauten.make.search.builder import CandidateBuilder
from tauten.make.search.evaluator import Sampling
from tauten.make.search.recipe import Recipe, pass_from_json

SHORT = Sampling(seconds=0.05, starts=1)


def model(batch: str | int = "n", opset: int = 18, channels: int = 8) -> ModelProto:
    """Convolution, ReLU, mean over the planes, linear: ``x (batch, 3, 8, 8) -> y (batch, 4)``."""
    draw = np.random.default_rng(0)
    weights = {
        "conv": draw.normal(0, 0.3, (channels, 3, 3, 3)).astype(np.float32),
        "head": draw.normal(0, 0.5, (channels, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["c"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "head"], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def samples(count: int = 48) -> Arrays:
    return {"x": np.random.default_rng(1).normal(0, 1, (count, 3, 8, 8)).astype(np.float32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(model(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_its_task_answers_as_the_file_does(path: Path) -> None:
    task = onnx_task(path, samples())
    assert task.inputs == (tauten.TensorSpec(name="x", shape=("batch", 3, 8, 8)),)
    assert (task.name, task.outputs, task.metric) == ("net", ("y",), "agreement")
    artifact = tauten.save(task, path.parent / "saved")
    wanted = onnx.reference.ReferenceEvaluator(onnx.load(path)).run(None, samples(5))[0]
    came = tauten.load(artifact)(samples(5))["y"]
    np.testing.assert_allclose(came, wanted, atol=1e-5)


@pytest.mark.parametrize("method", ["post_training", "dynamic", "weight_only"])
def test_it_is_quantized_as_others_are(path: Path, method: str) -> None:
    task = onnx_task(path, samples())
    artifact = tauten.save(tauten.quantize(task, method), path.parent / method, task=task)
    assert any(array.dtype == np.int8 for array in artifact.weights().values())
    wanted = tauten.load(tauten.save(task, path.parent / "float"))(samples(20))["y"]
    noise = tauten.load(artifact)(samples(20))["y"] - wanted
    assert np.square(noise).sum() < 0.02 * np.square(wanted).sum()


def test_what_needs_the_code_of_the_model_refuses_it(path: Path) -> None:
    task = onnx_task(path, samples())
    with pytest.raises(tauten.TautenError):
        tauten.prune(task, ratio=0.5)
    for engine in ("eager", "inductor"):
        with pytest.raises(tauten.LoweringError, match="came as an ONNX file"):
            tauten.save(task, path.parent / engine, target=tauten.Target(name="here", engine=engine))


@pytest.mark.parametrize("name", ["prune.depth", "distill.recover", "device.half"])
def test_a_recipe_that_needs_the_code_is_refused_before_it_runs(path: Path, name: str) -> None:
    task = onnx_task(path, samples())
    untouched = to_model(task)
    builder = CandidateBuilder(untouched, Target(name="any"), Context(task, untouched.module))
    said = rf"^{name} needs the model's PyTorch code, and it came as an ONNX file$"
    static = pass_from_json({"pass": "quantize.post_training"})
    with pytest.raises(RecipeError, match=said):
        builder.check(Recipe("code", (pass_from_json({"pass": name}),)))
    builder.check(Recipe("int8", (static,)))


def test_a_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    onnx.save(model(batch=2), tmp_path / "net.onnx")
    task = onnx_task(tmp_path / "net.onnx", samples(7))
    assert task.inputs[0].shape == (2, 3, 8, 8)
    assert [len(arrays["x"]) for arrays, _ in task.data("calibrate")] == [2]


def test_labels_make_quality_accuracy(path: Path) -> None:
    task = onnx_task(path, samples(), labels=np.zeros(48, np.int64))
    assert task.metric == "accuracy"
    assert all(labels is not None for _, labels in task.data("validate"))


def test_an_old_opset_is_converted(tmp_path: Path) -> None:
    onnx.save(model(opset=11), tmp_path / "old.onnx")
    module, _ = read_onnx(tmp_path / "old.onnx")
    assert module.proto().opset_import[0].version >= 13


def broken(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    odd = model()
    odd.opset_import.append(helper.make_opsetid("evil.corp", 1))
    low = model()
    low.graph.node.append(helper.make_node("QuantizeLinear", ["y", "s", "z"], ["q"]))
    low.graph.initializer.extend(
        [numpy_helper.from_array(np.array(1, np.float32), "s"), numpy_helper.from_array(np.array(0, np.uint8), "z")]
    )
    outside = model()
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    found = {"odd": odd, "low": low, "outside": outside}
    for name, one in found.items():
        (tmp_path / f"{name}.onnx").write_bytes(one.SerializeToString())
    (tmp_path / "noise.onnx").write_bytes(b"\x08\x01not a model at all")
    (tmp_path / "empty.onnx").write_bytes(b"")
    said = {
        "odd": "evil.corp",
        "low": "quantized already",
        "outside": "expected an ONNX model",
        "noise": "expected an ONNX model",
        "empty": "expected an ONNX model",
        "missing": "no such file",
    }
    return {name: (tmp_path / f"{name}.onnx", text) for name, text in said.items()}


@pytest.mark.parametrize("name", ["odd", "low", "outside", "noise", "empty", "missing"])
def test_a_file_that_is_none_is_told_in_a_line(name: str, tmp_path: Path) -> None:
    path, said = broken(tmp_path)[name]
    with pytest.raises(TaskError, match=said):
        read_onnx(path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"y": np.zeros((4, 3, 8, 8), np.float32)}, "expected \\['x'\\]"),
        ({"x": np.zeros((4, 3, 9, 8), np.float32)}, "expected shape"),
        ({"x": np.zeros((4, 3, 8, 8))}, "expected dtype float32"),
        ({"x": np.zeros((0, 3, 8, 8), np.float32)}, "samples"),
    ],
)
def test_samples_that_do_not_fit(path: Path, given: Arrays, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        onnx_task(path, given)


def test_the_command_makes_a_measured_artifact(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauten.make.search.optimize.optimize", partial(tauten.optimize, sampling=SHORT))
    np.savez(tmp_path / "samples.npz", **samples())
    level = tmp_path / "level.json"
    level.write_text(json.dumps([{"name": "int8", "passes": [{"pass": "quantize.post_training"}]}]))
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app,
        ["optimize", str(path), "--calibrate", str(tmp_path / "samples.npz"), "--level", str(level), "--out", str(out),
         "--max-drop", "50", "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["baseline"]["recipe"]["lowering"] == "onnx"
    assert "not in PyTorch" in result["caveats"][0]
    assert read_artifact(out / "best").manifest.name == "net"
    missing = CliRunner().invoke(app, ["optimize", str(path), "--out", str(out)])
    assert "--calibrate FILE.npz" in str(missing.exception)
