"""Models lowered to ONNX: they answer as the module does, in any batch, and ship nothing they need not."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.errors import LoweringError, MismatchError
from tauten.make.lower import LOWERINGS
from tauten.make.lower import _float as lowering
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.search.recipe import pass_from_json
from tauten.testing import tiny

from .lowered import TARGET, engine_of, lower, prepare

TASKS = [tiny.cnn_task, tiny.residual_task, tiny.two_inputs_task, tiny.encoder_task]


@pytest.mark.parametrize("make", TASKS, ids=lambda make: make.__name__)
def test_answers_as_the_module_in_any_size(make, tmp_path: Path) -> None:
    task = make()
    model, _ = prepare(task)
    engine = engine_of(lower(task), tmp_path)
    draw = np.random.default_rng(5)
    for batch, length in ((1, 2), (3, 9), (33, 32)):
        inputs = {}
        for spec in task.inputs:
            shape = spec.concrete(batch, length=length)
            inputs[spec.name] = (
                draw.integers(0, 90, shape) if spec.dtype == "int64" else draw.standard_normal(shape).astype(np.float32)
            )
        if "mask" in inputs:
            inputs["mask"] = np.minimum(inputs["mask"], 1)
            inputs["mask"][:, 0] = 1
        expected = forward(model.module, model.inputs, model.outputs, inputs)
        came = engine(inputs)
        assert list(came) == list(expected)
        for name, array in expected.items():
            assert came[name].dtype == array.dtype
            np.testing.assert_allclose(came[name], array, rtol=1e-4, atol=1e-5)


def test_specs_name_the_dimensions_that_vary() -> None:
    lowered = lower(tiny.two_inputs_task())
    assert lowered.outputs == (
        TensorSpec(name="scores", shape=("batch", 3)),
        TensorSpec(name="sure", shape=("batch",), dtype="bool"),
    )
    graph = onnx.load_from_string(lowered.graph).graph
    dims = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert dims == {"left": ["batch", 6], "right": ["batch", 4]}


def test_a_size_that_depends_on_a_named_one_has_a_name_of_its_own() -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x], dim=1)

    specs = (TensorSpec(name="x", shape=("batch", "length")),)
    lowered = lower(Task(model=Doubled(), inputs=specs, calibrate=[np.ones((4, 3), np.float32)]))
    assert lowered.outputs == (TensorSpec(name="output", shape=("batch", "d_output_1")),)


def test_weights_leave_the_graph_under_the_users_names() -> None:
    lowered = lower(tiny.encoder_task())
    state = tiny.encoder_task().model.state_dict()
    assert set(lowered.weights) <= set(state)
    assert {"tokens.weight", "query.weight", "wide.weight"} <= set(lowered.weights)
    assert lowered.layers["wide.weight"] == "wide"
    graph = onnx.load_from_string(lowered.graph).graph
    kept = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert all(np.prod(tensor.dims) < 256 for tensor in kept)


def test_nothing_ships_that_only_the_maker_needed() -> None:
    model = onnx.load_from_string(lower(tiny.residual_task()).graph)
    assert not model.metadata_props
    assert not model.graph.value_info
    for node in model.graph.node:
        assert (list(node.metadata_props), node.doc_string, node.name) == ([], "", "")
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read


def test_tied_weights_ship_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)))

    specs = (TensorSpec(name="x", shape=("batch", 8)),)
    lowered = lower(Task(model=Tied(), inputs=specs, calibrate=[np.ones((4, 8), np.float32)]))
    assert len(lowered.weights) == 1


def test_a_table_that_is_the_output_layer_too_ships_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
            self.out.weight = self.words.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(torch.tanh(self.words(ids)))

    module = Tied()
    ids = np.arange(36).reshape(4, 9)
    specs = (TensorSpec(name="ids", shape=("batch", 9), dtype="int64"),)
    lowered = lower(Task(model=module, inputs=specs, calibrate=[ids]))
    assert [array.shape for array in lowered.weights.values()] == [(40, 16)]
    wanted = module(torch.from_numpy(ids)).detach().numpy()
    assert np.allclose(engine_of(lowered, tmp_path)({"ids": ids})["output"], wanted, atol=1e-5)


def test_a_short_vector_leaves_the_graph_where_a_codec_spares_its_bytes() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 100), nn.Linear(100, 100))
    with torch.no_grad():
        module[0].bias.copy_(torch.randint(-4, 5, (100,)) / 32)
    specs = (TensorSpec(name="x", shape=("batch", 8)),)
    lowered = lower(Task(model=module, inputs=specs, calibrate=[np.ones((4, 8), np.float32)]))
    assert sorted(lowered.weights) == ["0.bias", "0.weight", "1.weight"]


def test_the_same_module_gives_the_same_bytes() -> None:
    assert lower(tiny.cnn_task()).graph == lower(tiny.cnn_task()).graph


def test_says_nothing_and_leaves_logging_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    level, handlers = logging.getLogger("torch.onnx").level, list(logging.getLogger().handlers)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        lower(tiny.cnn_task())
    assert not seen
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx").level == level
    assert logging.getLogger().handlers == handlers


def test_a_module_that_cannot_be_exported_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    specs = (TensorSpec(name="x", shape=("batch", 3)),)
    with pytest.raises(LoweringError, match=r"torch\.export"):
        lower(Task(model=Branching(), inputs=specs, calibrate=[np.ones((4, 3), np.float32)]))


@pytest.mark.parametrize(
    ("make", "weight", "operation", "module"),
    [
        (tiny.residual_task, "3.conv2.weight", "aten._native_batch_norm_legit_no_training.default", "3.norm2"),
        (tiny.cnn_task, "8.weight", "aten.linear.default", "8"),
        (tiny.encoder_task, "places.weight", "aten.embedding.default", "places"),
        (tiny.two_inputs_task, "right.bias", "aten.linear.default", "right"),
    ],
)
def test_a_mismatch_names_the_first_operation_that_differs(
    make, weight: str, operation: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lowering.to_onnx

    def corrupted(exported, inputs):
        graph, program = real(exported, inputs)
        for tensor in graph.graph.initializer:
            if tensor.name == f"module.{weight}":
                array = onnx.numpy_helper.to_array(tensor) + 1
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
                return graph, program
        raise AssertionError(f"no {weight}")

    monkeypatch.setattr(lowering, "to_onnx", corrupted)
    with pytest.raises(MismatchError) as caught:
        lower(make())
    assert f"first operation that differs is {operation}" in str(caught.value)
    assert f"in module {module})" in str(caught.value)


def test_a_batch_that_was_not_exported_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that holds a size of the example as a constant is right for that batch alone."""
    real = lowering.to_onnx

    def fixed(exported, inputs):
        graph, program = real(exported, inputs)
        for tensor in graph.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype == np.int64 and array.tolist() == [-1, 256]:
                constant = np.array([16, 256])
                tensor.CopyFrom(onnx.numpy_helper.from_array(constant, tensor.name))
        return graph, program

    monkeypatch.setattr(lowering, "to_onnx", fixed)
    with pytest.raises(LoweringError, match=r"\(1, 1, 8, 8\)"):
        lower(tiny.cnn_task())


def test_progress_is_told() -> None:
    model, context = prepare(tiny.cnn_task())
    told: list[str] = []
    LOWERINGS.get("onnx")(model, TARGET, replace(context, progress=lambda what, _: told.append(what)))
    assert told == ["export", "compare"]


class _Unlucky(nn.Module):
    """Operations inside get the names that the user gives to inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)

    def forward(self, relu: torch.Tensor) -> dict[str, torch.Tensor]:
        first = torch.relu(self.one(relu))
        second = torch.relu(self.two(first))
        return {"linear": second, "relu_1": first, "linear_1": second + first}


def test_names_that_operations_have_too_stay_the_users(tmp_path: Path) -> None:
    inputs = [np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)]
    task = Task(model=_Unlucky(), inputs=(TensorSpec(name="relu", shape=("batch", 4)),), calibrate=inputs)
    model, _ = prepare(task)
    expected = forward(model.module, model.inputs, model.outputs, {"relu": inputs[0]})
    came = engine_of(lower(task), tmp_path)({"relu": inputs[0]})
    assert list(came) == ["linear", "relu_1", "linear_1"]
    for name, array in expected.items():
        np.testing.assert_allclose(came[name], array, rtol=1e-4, atol=1e-6)


class _Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.recur = nn.LSTM(6, 8, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.recur(self.embed(tokens))[0]


def test_a_dimension_that_the_model_fixes_is_named_with_what_to_do(tmp_path: Path) -> None:
    tokens = [np.arange(36, dtype=np.int64).reshape(4, 9) % 20]
    for length, works in (("time", False), (9, True)):
        spec = TensorSpec(name="tokens", shape=("batch", length), dtype="int64")
        task = Task(model=_Tagger(), inputs=(spec,), calibrate=tokens)
        if works:
            assert engine_of(lower(task), tmp_path)({"tokens": tokens[0]})["output"].shape == (4, 9, 8)
        else:
            with pytest.raises(LoweringError, match=r"tokens: dimension 'time' is declared to vary.* declare it as 9"):
                lower(task)


def test_bfloat16_weights_are_refused() -> None:
    half = pass_from_json({"pass": "device.half", "dtype": "bfloat16"})
    with pytest.raises(LoweringError, match="is bfloat16, which NumPy lacks; use float16"):
        lower(tiny.encoder_task(), half)
