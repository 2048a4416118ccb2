"""Lowering for PyTorch's compiler: one compiled int8 model, and what becomes of weights, grids and plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tauten.core.target import Target
from tauten.core.tensor import TensorSpec
from tauten.errors import LoweringError
from tauten.make.layers.quantized import Grid, QuantizedLayer
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.build import to_model
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes.quantize.dynamic import Dynamic
from tauten.run.engines import load
from tauten.testing import tiny

from .lowered import lower, prepare

TARGET = Target(name="test", engine="inductor", batch=1)


class Reused(nn.Module):
    """One ReLU called twice, a sum around a convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.relu, self.head = nn.ReLU(), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.first(x))
        x = self.relu(x + self.second(x))
        return self.head(x.mean((2, 3)))


def reused_task() -> tuple[Task, Model]:
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    data = [draw.standard_normal((32, 3, 8, 8)).astype(np.float32)]
    specs = (TensorSpec(name="x", shape=("batch", 3, 8, 8)),)
    task = Task(model=Reused().eval(), inputs=specs, calibrate=data)
    return task, to_model(task)


def test_int8_is_compiled_to_integer_arithmetic(tmp_path: Path) -> None:
    task, model = reused_task()
    plan = QuantizationPlan(method="static", samples=32, calibration="mse")
    context = Context(task, model.module)
    lowered = LOWERINGS.get("inductor")(model.but(quantization=plan), TARGET, context)
    kinds = {name: array.dtype.name for name, array in lowered.weights.items()}
    assert {name for name, kind in kinds.items() if kind == "int8"} == {"first.weight", "second.weight", "head.weight"}
    assert lowered.layers["head.weight_scale"] == "head"
    assert sum(array.nbytes for array in lowered.weights.values()) < 0.4 * sum(
        4 * tensor.numel() for tensor in model.module.parameters()
    )
    artifact = to_artifact(lowered, tmp_path / "a", name="test", engine="inductor", target=TARGET)
    engine = load(artifact)
    inputs = {"x": task.calibrate[0][:4]}
    expected = forward(model.module, model.inputs, model.outputs, inputs)["output"]
    graphs = counters["stats"]["unique_graphs"]
    torch.set_num_threads(2)  # as another engine might
    noise = engine(inputs)["output"] - expected
    torch.set_num_threads(1)
    assert counters["stats"]["unique_graphs"] == graphs, "it was compiled again"
    assert 10 * np.log10(np.square(expected).mean() / np.square(noise).mean()) > 25
    assert engine.describe()["operations"]["int8"]["convolution"] == 2


def test_a_decided_grid_holds_and_float_layers_stay_so() -> None:
    task, model = reused_task()
    head = model.module.head
    grid = Grid(bits=4, axis=0, scale=head.weight.detach().abs().amax(dim=1) / 7)
    codes = grid.encode(head.weight.detach())
    model.module.head = QuantizedLayer(head, codes, grid, input_range=(0.0, 2.0))
    plan = QuantizationPlan(method="static", samples=32, layers={"first": "float32"})
    lowered = LOWERINGS.get("inductor")(model.but(quantization=plan), TARGET, Context(task, model.module))
    assert np.array_equal(lowered.weights["head.weight"], codes.numpy())
    np.testing.assert_allclose(lowered.weights["head.weight_scale"], grid.scale.numpy())
    assert lowered.weights["first.weight"].dtype == np.float32
    assert lowered.notes["quantization"]["left_in_float"] == ["first"]


def test_dynamic_takes_linear_layers() -> None:
    lowered = lower(tiny.encoder_task(), Dynamic(), engine="inductor")
    assert sum(array.dtype == np.int8 for array in lowered.weights.values()) == 6
    assert lowered.weights["tokens.weight"].dtype == np.float32


def test_plans_of_other_arithmetic_and_devices_are_refused() -> None:
    model, context = prepare(tiny.cnn_task())
    with pytest.raises(LoweringError, match="to 8 bits"):
        LOWERINGS.get("inductor")(model.but(quantization=QuantizationPlan(method="weight_only")), TARGET, context)
    plan = QuantizationPlan(method="static")
    with pytest.raises(LoweringError, match="x86"):
        LOWERINGS.get("inductor")(model.but(quantization=plan), TARGET.model_copy(update={"device": "cuda"}), context)
