"""Quantization plans carried out: what becomes int8, what stays float and why, and what it costs."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.errors import LoweringError, RecipeError
from tauten.make.lower import _quantize
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes.quantize.dynamic import Dynamic
from tauten.make.passes.quantize.post_training import PostTraining
from tauten.testing import tiny

from .lowered import engine_of, lower, prepare

GOLDEN = Path(__file__).parents[2] / "golden"


def operations(graph: bytes) -> list[str]:
    """One line a node: what it is and what it reads, with weights by name."""
    model = onnx.load_from_string(graph)
    tensors = {t.name: onnx.TensorProto.DataType.Name(t.data_type).lower() for t in model.graph.initializer}
    named = {t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    lines = []
    for node in model.graph.node:
        reads = [
            f"{name}:{tensors[name]}" if name in named else tensors.get(name) or makers.get(name) or name
            for name in node.input
        ]
        lines.append(f"{node.op_type}({', '.join(reads)})")
    return lines


def test_graph_of_a_static_int8_cnn_is_the_golden_one() -> None:
    """A change in what the quantizer does shows as a diff of ``tests/golden/cnn_int8.txt``."""
    came = "\n".join(operations(lower(tiny.cnn_task(), PostTraining()).graph)) + "\n"
    assert came == (GOLDEN / "cnn_int8.txt").read_text("utf-8")


@pytest.mark.parametrize("make", [tiny.cnn_task, tiny.residual_task], ids=lambda make: make.__name__)
def test_every_convolution_runs_in_int8(make, tmp_path: Path) -> None:
    task = make()
    lowered = lower(task, PostTraining())
    products = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in task.model.modules())
    notes = lowered.notes["quantization"]
    assert len(notes["int8"]) == products
    assert notes["float"] == {}
    ran = engine_of(lowered, tmp_path).describe()["operations"]
    assert ran["int8_share_of_products"] == 1.0
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "DequantizeLinear"} & set(ran["other"])


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_answers_stay_near_the_module(calibration: str, tmp_path: Path) -> None:
    task = tiny.cnn_task()
    model, _ = prepare(task)
    lowered = lower(task, PostTraining(calibration=calibration))
    assert lowered.notes["quantization"]["sqnr_db"]["output"] > 20
    inputs = {"image": task.calibrate[0][0]["image"]}
    expected = forward(model.module, model.inputs, model.outputs, inputs)["output"]
    came = engine_of(lowered, tmp_path)(inputs)["output"]
    assert np.abs(came - expected).max() < 0.2 * np.abs(expected).max()
    assert not np.array_equal(came, expected)


@pytest.mark.parametrize("calibration", ["percentile", "entropy"])
def test_calibration_cuts_what_lies_far_out(calibration: str) -> None:
    """One value in 150,000 is far out: the whole range follows it, the others do not."""
    data = np.random.default_rng(0).standard_normal((144, 1, 32, 32)).astype(np.float32)
    data[0, 0, 0, 0] = 400
    specs = (TensorSpec(name="x", shape=("batch", 1, 32, 32)),)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))
    task = Task(model=module, inputs=specs, calibrate=[data[40:], data[:40]])
    widest = {}
    for name in ("minmax", calibration):
        model = onnx.load_from_string(lower(task, PostTraining(calibration=name)).graph)
        inline = [tensor for tensor in model.graph.initializer if tensor.HasField("raw_data")]
        held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in inline}
        (scale,) = [held[node.input[1]] for node in model.graph.node if node.input[0] == "x"]
        widest[name] = float(scale)
    assert widest["minmax"] > 1.5
    assert widest[calibration] < 0.9 * widest["minmax"]


def test_samples_bound_what_is_calibrated_on() -> None:
    notes = lower(tiny.cnn_task(), PostTraining(samples=40)).notes["quantization"]
    assert notes["calibration_samples"] == 40


def test_weights_keep_their_names_and_no_float_copy_ships() -> None:
    lowered = lower(tiny.residual_task(), PostTraining())
    state = tiny.residual_task().model.state_dict()
    assert set(lowered.weights) <= set(state)
    assert {array.dtype.name for array in lowered.weights.values()} == {"int8"}
    assert set(lowered.layers) == set(lowered.weights)
    graph = onnx.load_from_string(lowered.graph).graph
    floats = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert all(len(tensor.dims) < 2 for tensor in floats)


def test_linear_layers_and_embeddings_become_dynamic_int8(tmp_path: Path) -> None:
    task = tiny.encoder_task()
    lowered = lower(task, Dynamic())
    notes = lowered.notes["quantization"]
    linear = {f"{name}.weight" for name, m in task.model.named_modules() if isinstance(m, nn.Linear)}
    assert set(notes["int8"]) == linear
    assert notes["embeddings"] == ["tokens.weight"]
    assert all("both sides are computed" in why for why in notes["float"].values())
    assert lowered.weights["tokens.weight"].dtype == np.int8
    assert notes["sqnr_db"]["output"] > 25
    ran = engine_of(lowered, tmp_path).describe()["operations"]
    assert sum(ran["int8"].values()) == len(linear)


def test_static_int8_of_a_transformer_leaves_sums_and_attention_in_float(tmp_path: Path) -> None:
    lowered = lower(tiny.encoder_task(), PostTraining())
    notes = lowered.notes["quantization"]
    assert len(notes["int8"]) == 6
    assert len(notes["float"]) == 2
    assert notes["sqnr_db"]["output"] > 20
    assert "QLinearAdd" not in engine_of(lowered, tmp_path).describe()["operations"]["int8"]


def test_dynamic_leaves_convolutions_in_float_and_says_why() -> None:
    notes = lower(tiny.cnn_task(), Dynamic()).notes["quantization"]
    assert notes["int8"] == ["8.weight"]
    assert set(notes["float"]) == {"0.weight", "4.weight"}
    assert all("faster in float" in why for why in notes["float"].values())


def test_an_embedding_row_has_its_own_scale() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(64, 8)
            with torch.no_grad():
                self.words.weight.mul_(torch.logspace(-4, 3, 64)[:, None])
                self.words.weight[7] = 0

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.words(ids)

    torch.manual_seed(0)
    module = Words()
    every = np.arange(64)
    specs = (TensorSpec(name="ids", shape=("batch",), dtype="int64"),)
    task = Task(model=module, inputs=specs, calibrate=[{"ids": every}])
    lowered = lower(task, Dynamic())
    rows = lowered.weights["words.weight"].astype(np.float32) * _inline(lowered.graph, (64, 1), lowered.weights)
    table = module.words.weight.detach().numpy()
    assert (np.abs(rows - table).max(axis=1) <= np.abs(table).max(axis=1) / 254 * 1.001).all()


def _inline(graph: bytes, shape: tuple[int, ...], weights) -> np.ndarray:
    held = [array for array in weights.values() if array.shape == shape]
    tensors = onnx.load_from_string(graph).graph.initializer
    inline = [onnx.numpy_helper.to_array(t) for t in tensors if t.HasField("raw_data") and tuple(t.dims) == shape]
    (found,) = [*held, *inline]
    return found


def test_answers_lost_in_noise_are_refused() -> None:
    class Far(nn.Module):
        """A difference of two numbers whose distance is far below one 8-bit step."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1, bias=False)
            with torch.no_grad():
                self.first.weight.copy_(torch.tensor([1.0, 1.0001, 5000.0, 5000.0]).reshape(4, 1, 1, 1))
                self.first.bias.zero_()
                self.second.weight.copy_(torch.tensor([1.0, -1.0, 0.0, 0.0]).reshape(1, 4, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    specs = (TensorSpec(name="x", shape=("batch", 1, 4, 4)),)
    data = np.random.default_rng(0).standard_normal((32, 1, 4, 4)).astype(np.float32)
    with pytest.raises(LoweringError, match="lost in noise"):
        lower(Task(model=Far(), inputs=specs, calibrate=[data]), PostTraining())


def test_seven_bits_where_sums_would_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_quantize, "saturating_products", lambda: (True, "test"))
    lowered = lower(tiny.cnn_task(), PostTraining())
    assert max(np.abs(array.astype(int)).max() for array in lowered.weights.values()) <= 64
    assert lowered.notes["quantization"]["reduce_range"] == {"value": True, "why": "test"}


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "flags : avx2 avx512_vnni", False),
        ("x86_64", "flags : avx2 avx_vnni", False),
        ("AMD64", "flags : avx2 avx512f", True),
        ("aarch64", "Features : asimd", False),
        ("x86_64", None, True),
    ],
)
def test_which_processors_saturate(
    machine: str, flags: str | None, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: Path, *_: object) -> str:
        if flags is None:
            raise FileNotFoundError
        return flags

    monkeypatch.setattr(_quantize.platform, "machine", lambda: machine)
    monkeypatch.setattr(_quantize.Path, "read_text", read)
    value, why = _quantize.saturating_products()
    assert value is saturates
    assert why


def test_prints_nothing_and_notes_are_json(capfd: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)
    lowered = lower(tiny.cnn_task(), PostTraining(calibration="entropy"))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
    assert json.loads(json.dumps(dict(lowered.notes))) == lowered.notes


def test_values_that_break_a_rule_are_refused() -> None:
    with pytest.raises(RecipeError, match="samples"):
        PostTraining(samples=0)
    with pytest.raises(RecipeError, match="calibration"):
        PostTraining.from_parameters({"calibration": "guess"})
    with pytest.raises(RecipeError, match="samples"):
        PostTraining.from_parameters({"samples": -1})


def test_last_sums_are_handed_out_in_float() -> None:
    model = onnx.load_from_string(lower(tiny.cnn_task(), PostTraining()).graph)
    makers = {name: node for node in model.graph.node for name in node.output}
    assert makers["output"].op_type == "Gemm"
    assert Counter(node.op_type for node in model.graph.node)["Conv"] == 2
