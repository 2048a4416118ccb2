"""Inference in parts: in PyTorch, and around an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.core.target import Target
from tauten.core.tensor import TensorSpec
from tauten.errors import EngineError, MeasureError, PassError, RecipeError
from tauten.make.layers.micro_batches import MicroBatches
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.training.memory import resident_mib
from tauten.make.passes.device.micro_batches import MicroBatching
from tauten.run.engines import load
from tauten.run.engines._parts import InParts
from tauten.run.measure.rows import rows_within
from tauten.testing.tiny import encoder_task, two_inputs_task
from tests.unit.device.applied import alone, answer, change, task_of, worth_measuring

pytestmark = pytest.mark.skipif(resident_mib() is None, reason="this system does not tell how much memory is used")


def check_batches_are_divided_until_memory_holds() -> None:
    before, made, notes = change(MicroBatching(max_memory_mib=24, batch=2048), task_of(worth_measuring(), 8))
    # Two times 16 KiB a row are 64 MiB in all.
    assert 500 <= notes["rows"] <= 700
    assert notes["peak"]["rows"] == 2048
    assert notes["peak"]["before"]["work_mib"] > 60
    assert notes["peak"]["after"]["work_mib"] < 26
    assert notes["measured_mib"][str(notes["rows"])] <= 24
    inputs = {"x": np.random.default_rng(1).standard_normal((1001, 8)).astype(np.float32)}
    assert np.allclose(answer(made, inputs), answer(before, inputs), atol=1e-6)


def test_batches_are_divided_until_memory_holds() -> None:
    alone(check_batches_are_divided_until_memory_holds)


def test_where_one_sample_is_too_much_the_figures_are_told() -> None:
    with pytest.raises(PassError, match=r"needs \d\.\d MiB, and max_memory_mib allows 0.01 MiB"):
        change(MicroBatching(max_memory_mib=0.01), task_of(worth_measuring(), 8))


@pytest.mark.parametrize("make", [two_inputs_task, encoder_task])
def test_several_inputs_and_outputs_go_in_parts(make: Any) -> None:
    before, made, notes = change(MicroBatching(batch=3), make())
    assert notes["rows"] == 3
    inputs = next(iter(make().data("calibrate")))[0]
    wanted = forward(before.module, before.inputs, before.outputs, inputs)
    came = forward(made.module, made.inputs, made.outputs, inputs)
    assert all(np.allclose(came[name], array, atol=1e-6) for name, array in wanted.items())


def test_what_belongs_to_all_samples_is_given_to_each_part() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            return x * scale, [x.sum(1), (x + scale).T]

    whole, parts = Scaled(), MicroBatches(Scaled(), 3, (0, None), (0, 0, 1)).eval()
    given = torch.randn(7, 2), torch.tensor(2.0)
    wanted, came = whole(*given), parts(*given)
    assert torch.equal(came[0], wanted[0])
    assert torch.equal(came[1][0], wanted[1][0])
    assert torch.equal(came[1][1], wanted[1][1])


def test_training_sees_batches_whole() -> None:
    seen = []
    module = nn.BatchNorm1d(2)
    module.register_forward_hook(lambda layer, given, found: seen.append(len(found)))
    parts = MicroBatches(module, 2, (0,), (0,))
    parts.train()(torch.randn(5, 2))
    parts.eval()(torch.randn(5, 2))
    assert seen == [5, 1, 2, 2]


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0)


def test_answers_that_are_not_of_samples_are_refused() -> None:
    with pytest.raises(PassError, match=r"output \(4,\) does not count samples"):
        change(MicroBatching(), task_of(nn.Sequential(nn.Linear(4, 4), Mean()), 4))


@pytest.mark.parametrize("wrong", [{"max_memory_mib": 0.0}, {"batch": 0}])
def test_parameters_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        MicroBatching(**wrong)


def write(model: Model, task: tauten.Task, path: Path) -> Path:
    target = Target(name="here")
    lowered = LOWERINGS.get("onnx")(model, target, Context(task, model.module))
    to_artifact(lowered, path, name="a", engine="onnx", target=target)
    return path


def test_an_engine_answers_in_parts(tmp_path: Path) -> None:
    task = task_of(worth_measuring(), 8)
    before, made, _ = change(MicroBatching(max_memory_mib=100, batch=64), task)
    path = write(made, task, tmp_path / "a")
    engine = load(path)
    parts = InParts(engine, 300)
    inputs = {"x": np.random.default_rng(1).standard_normal((1001, 8)).astype(np.float32)}
    assert np.allclose(parts(inputs)["output"], answer(before, inputs), atol=1e-5)
    assert np.allclose(engine(inputs)["output"], answer(before, inputs), atol=1e-5)
    assert parts.describe()["rows_at_once"] == 300
    with pytest.raises(EngineError, match="at least one sample"):
        InParts(engine, 0)
    engine.outputs = (TensorSpec(name="output", shape=(4,)),)
    with pytest.raises(EngineError, match="output has no batch dimension"):
        InParts(engine, 3)
    with pytest.raises(MeasureError, match=r"a batch of one takes \d+\.\d MiB, and 1 MiB are allowed"):
        rows_within(path, inputs, 1, threads=1, most=4096)
    assert rows_within(path, inputs, 4096, threads=1, most=2) == 2
