"""The yardstick: PyTorch's operations from a document, without the user's code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.errors import LoweringError, MismatchError
from tauten.make.lower._document import Writer
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes.quantize.dynamic import Dynamic
from tauten.testing import tiny

from .lowered import engine_of, lower, prepare

TASKS = [tiny.cnn_task, tiny.residual_task, tiny.two_inputs_task, tiny.encoder_task]


def task_of(module: nn.Module) -> Task:
    specs = (TensorSpec(name="x", shape=("batch", 3)),)
    return Task(model=module, inputs=specs, calibrate=[np.ones((4, 3), np.float32)])


@pytest.mark.parametrize("make", TASKS, ids=lambda make: make.__name__)
def test_answers_as_the_module_does(make, tmp_path: Path) -> None:
    task = make()
    model, _ = prepare(task)
    engine = engine_of(lower(task, engine="eager"), tmp_path, "eager")
    for inputs, _labels in task.calibrate:
        for rows in (1, 5):
            few = {name: array[:rows] for name, array in inputs.items()}
            expected, came = forward(model.module, model.inputs, model.outputs, few), engine(few)
            assert list(came) == list(expected)
            for name, array in expected.items():
                np.testing.assert_allclose(came[name], array, rtol=1e-5, atol=1e-6)


def test_composite_operations_stay_whole() -> None:
    document = json.loads(lower(tiny.cnn_task(), engine="eager").graph)
    targets = [node["target"].split(".")[1] for node in document["nodes"]]
    block = ["conv2d", "batch_norm", "relu"]
    assert targets == [*block, "max_pool2d", *block, "flatten", "linear"]


def test_weights_ship_once_under_the_users_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    lowered = lower(task_of(Tied()), engine="eager")
    assert len(lowered.weights) == 3
    assert lowered.layers["first.bias"] == "first"


def test_no_grad_and_disabled_autocast_are_written_in_line(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = x * 2
            with torch.autocast("cpu", enabled=False):
                return x @ x.T[:, :2]

    lowered = lower(task_of(Wrapped()), engine="eager")
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert np.array_equal(engine_of(lowered, tmp_path, "eager")({"x": x})["output"], 2 * x @ (2 * x.T[:, :2]))


def test_channels_last_weights_stay_so(tmp_path: Path) -> None:
    task = tiny.cnn_task()
    task.model.to(memory_format=torch.channels_last)
    document = json.loads(lower(task, engine="eager").graph)
    assert {"weight": "4.weight", "memory_format": "channels_last"} in document["arguments"]


class Counting(nn.Module):
    """Changes a buffer in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        return x + self.seen


def test_an_operation_that_changes_a_weight_is_refused() -> None:
    with pytest.raises(LoweringError, match="writes into"):
        lower(task_of(Counting()), engine="eager")


def test_an_operation_that_is_not_pytorchs_own_is_refused() -> None:
    library = torch.library.Library("tauten_test", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
    library.impl("twice", lambda x: torch.empty_like(x), "Meta")

    class Custom(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.tauten_test.twice(x)

    with pytest.raises(LoweringError, match=r"tauten_test\.twice.*PyTorch's own"):
        lower(task_of(Custom()), engine="eager")


def test_bfloat16_weights_are_refused() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale.float()

    with pytest.raises(LoweringError, match="bfloat16, which NumPy lacks"):
        lower(task_of(Half()), engine="eager")


def test_a_quantization_plan_is_refused() -> None:
    with pytest.raises(LoweringError, match="float"):
        lower(tiny.cnn_task(), Dynamic(), engine="eager")


def test_says_where_a_fused_kernel_was_taken_apart() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    specs = (TensorSpec(name="x", shape=("batch", 5, 4)),)
    lowered = lower(Task(model=layer, inputs=specs, calibrate=[np.ones((4, 5, 4), np.float32)]), engine="eager")
    assert "fused" in lowered.notes["not_fused"]["self_attn"]


def test_a_difference_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Writer.write

    def corrupted(self):
        document, weights = real(self)
        return document, {**weights, "8.weight": weights["8.weight"] + 1}

    monkeypatch.setattr(Writer, "write", corrupted)
    with pytest.raises(MismatchError, match="output"):
        lower(tiny.cnn_task(), engine="eager")
