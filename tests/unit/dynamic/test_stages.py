"""An artifact in stages: what it holds, and that only rows which need more go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tauten
from tauten.artifact.manifest import Manifest
from tauten.artifact.read import Artifact
from tauten.artifact.write import write_artifact
from tauten.cli.main import app
from tauten.core.tensor import Array
from tauten.errors import ArtifactError, ConfigError, MismatchError
from tauten.make.layers.early_exit import EarlyExits
from tauten.make.model.model import QuantizationPlan
from tauten.make.model.run import forward
from tauten.run.engines import load
from tauten.run.engines.engine import Engine
from tauten.run.serve.model import ServedModel
from tauten.testing import engines
from tests.unit.dynamic.exits import artifact_of, encoder, first, leaving, residual


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Some rows leave at each of two exits, some stay to the end."""
    return artifact_of(*residual(), tmp_path_factory.mktemp("mixed"))


def test_the_engine_answers_as_the_module(mixed: Artifact) -> None:
    model, task = residual()
    engine = load(mixed)
    for count in (1, 5, 32):
        inputs = first(task, count)
        expected = forward(model.module, model.inputs, model.outputs, inputs)
        np.testing.assert_allclose(engine(inputs)["output"], expected["output"], atol=1e-5)
    assert all(stage["rows_left"] for stage in engine.describe()["stages"])


def test_all_may_stay_and_all_may_leave(tmp_path: Path) -> None:
    model, task = residual()
    inputs = first(task, 5)
    # The second threshold is below any confidence, the first above: what comes to the second exit leaves there.
    model = leaving(model, (0.0, 1.0), inputs)
    engine = load(artifact_of(model, task, tmp_path))
    for count in (1, 5):
        some = first(task, count)
        expected = forward(model.module, model.inputs, model.outputs, some)
        np.testing.assert_allclose(engine(some)["output"], expected["output"], atol=1e-5)
    assert [stage["rows_left"] for stage in engine.describe()["stages"]] == [0, 6, 0]


def test_a_row_does_not_depend_on_what_it_comes_with(mixed: Artifact) -> None:
    _alone_as_together(load(mixed))


def test_nor_does_it_in_int8(tmp_path: Path) -> None:
    model, task = residual()
    model = model.but(quantization=QuantizationPlan(method="static", samples=32))
    engine = load(artifact_of(model, task, tmp_path))
    _alone_as_together(engine)
    assert engine.describe()["operations"]["int8_share_of_products"] == 1


def _alone_as_together(engine: Engine) -> None:
    inputs = first(residual()[1], 32)
    together = engine(inputs)["output"]
    alone = np.concatenate([engine({"image": inputs["image"][row : row + 1]})["output"] for row in range(32)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    counts = [stage["rows_left"] for stage in engine.describe()["stages"]]
    assert sum(counts) == 64
    assert all(counts)


def test_later_stages_see_only_rows_that_did_not_leave(mixed: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = residual()
    inputs = first(task, 10)
    engine = load(mixed)
    asked: list[int] = []
    run = onnxruntime.InferenceSession.run

    def count(session: Any, names: list[str], arrays: dict[str, Array], options: Any = None) -> Any:
        asked.append(len(next(iter(arrays.values()))))
        return run(session, names, arrays, options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", count)
    engine(inputs)
    sure = _sure(model.module, inputs)
    leave = int((sure >= model.module.thresholds[0].item()).sum())
    left = [stage["rows_left"] for stage in engine.describe()["stages"]]
    assert 0 < left[0] == leave < 10
    assert asked == [10, 10 - left[0], 10 - left[0] - left[1]]
    asked.clear()
    surest = int(np.argmax(sure))
    engine({"image": inputs["image"][surest : surest + 1]})
    assert asked == [1], "a row that leaves at once costs the first stage alone"


def _sure(module: EarlyExits, inputs: dict[str, Array]) -> Array:
    with torch.no_grad():
        scores, _ = module.all_scores(torch.from_numpy(inputs["image"]))
    return torch.softmax(scores[0] / module.temperatures[0], dim=1).amax(dim=1).numpy()


def test_a_mask_and_lengths_go_on_with_the_rows(tmp_path: Path) -> None:
    model, task = encoder()
    engine = load(artifact_of(model, task, tmp_path))
    for inputs, _ in task.data("validate"):  # of two lengths
        expected = forward(model.module, model.inputs, model.outputs, inputs)
        np.testing.assert_allclose(engine(inputs)["output"], expected["output"], atol=1e-5)
    assert all(stage["rows_left"] for stage in engine.describe()["stages"])


def test_each_weight_is_held_once(mixed: Artifact) -> None:
    module = residual()[0].module
    kernels = {name for name, tensor in module.named_parameters() if tensor.ndim == 4}
    assert kernels <= set(mixed.weights())
    assert mixed.manifest.weights_bytes <= sum(tensor.nbytes for tensor in module.state_dict().values())
    graphs = [stage.graph for stage in mixed.manifest.stages]
    assert graphs == ["graph.onnx", "graph_2.onnx", "graph_3.onnx"]
    assert all(mixed.manifest.files[name] < 4000 for name in graphs)


def test_it_is_an_engine_like_any(mixed: Artifact, tmp_path: Path) -> None:
    for index, check in enumerate(engines.CHECKS):
        folder = tmp_path / str(index)
        folder.mkdir()
        check(mixed, folder)


def test_it_is_served_like_any(mixed: Artifact) -> None:
    model = ServedModel.load(mixed)  # which runs it some times with one row

    def left() -> int:
        return sum(stage["rows_left"] for stage in model.engine.describe()["stages"])

    before = left()
    assert before > 0
    inputs, _ = next(iter(residual()[1].data("test")))
    model.engine(inputs)
    assert left() - before == len(inputs["image"])


def test_inspect_and_evaluate_tell_of_it(mixed: Artifact, tmp_path: Path) -> None:
    model, task = residual()
    shown = CliRunner().invoke(app, ["inspect", str(mixed.path)], catch_exceptions=False).stdout
    assert "Stages" in shown
    assert "probability" in shown
    inputs, labels = next(iter(task.data("test")))
    np.savez(tmp_path / "data.npz", labels=labels, **inputs)
    told = CliRunner().invoke(
        app, ["evaluate", str(mixed.path), "--data", str(tmp_path / "data.npz"), "--json"], catch_exceptions=False
    )
    stages = json.loads(told.stdout)["engine"]["stages"]
    assert [stage["at"] for stage in stages] == [*model.module.paths, None]
    assert sum(stage["rows_left"] for stage in stages) == len(labels)


class Compares(nn.Module):
    """A classifier that looks at the mean of the batch, as no model should."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.low(x))
        scores: torch.Tensor = self.high(hidden - hidden.mean(dim=0))
        return scores


def test_a_model_that_compares_samples_is_refused(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    data = [({"x": draw.normal(size=(16, 4)).astype(np.float32)}, draw.integers(0, 3, 16))]
    task = tauten.Task(
        model=Compares().eval(),
        inputs=(tauten.TensorSpec(name="x", shape=("batch", 4)),),
        calibrate=data,
        train=data,
        validate=data,
    )
    exits = EarlyExits(task.build(), {"low": nn.Linear(8, 3)}).eval()
    model = tauten.Model(exits, task.inputs, ("output",))
    with pytest.raises(MismatchError, match="does the model compare the samples of a batch"):
        artifact_of(model, task, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda stages: stages[:1], "expected each stage but the last"),
        (lambda stages: [{**stages[0], "decides": ""}, *stages[1:]], "expected each stage but the last"),
        (lambda stages: stages[1:], "a graph file of its own for each stage"),
        (lambda stages: [stages[0], stages[0], stages[2]], "a graph file of its own for each stage"),
    ],
)
def test_a_manifest_whose_stages_do_not_follow_is_refused(change: Any, told: str, mixed: Artifact) -> None:
    document = mixed.manifest.to_json()
    with pytest.raises(ConfigError, match=told):
        Manifest.from_json({**document, "stages": change(document["stages"])})


def test_stages_in_another_order_are_refused(mixed: Artifact, tmp_path: Path) -> None:
    files = {name: (mixed.path / name).read_bytes() for name in mixed.manifest.files}
    names = [stage.graph for stage in mixed.manifest.stages]
    swapped = {**files, names[1]: files[names[2]], names[2]: files[names[1]]}
    lying = write_artifact(tmp_path / "lying", mixed.manifest, swapped)
    with pytest.raises(ArtifactError, match=r"which no stage before it gives|expected it to give"):
        load(lying)
    missing = {name: data for name, data in files.items() if name != names[2]}
    with pytest.raises(ConfigError, match="expected files"):
        write_artifact(tmp_path / "missing", mixed.manifest, missing)
