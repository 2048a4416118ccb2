"""Plans weight by weight: what layers decided is in the artifact to the bit, and small weights take small room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tauten.artifact.layers import layers
from tauten.core.tensor import TensorSpec
from tauten.make.layers.quantized import Grid, QuantizedLayer
from tauten.make.lower import LOWERINGS, _quantize
from tauten.make.lower._half import upper_bits
from tauten.make.lower._quantize import saturating_products
from tauten.make.lower._quantize_weights import Weight, decided_weight
from tauten.make.lower.artifact import to_artifact
from tauten.make.lower.lowering import Lowered
from tauten.make.model.build import to_model
from tauten.make.model.model import QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.run.engines import load
from tauten.testing import tiny

from .lowered import TARGET


@pytest.fixture
def whole_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights use all of their 8 bits, as on a processor whose products cannot overflow, whatever this one's do."""
    monkeypatch.setattr("tauten.make.lower._quantize.saturating_products", lambda: (False, "said by the test"))


def carry_out(task: Task, placement: str = "auto", seed: int = 0, **plan: Any) -> Lowered:
    model = to_model(task).but(quantization=QuantizationPlan(**plan))
    context = Context(task, model.module, seed)
    return LOWERINGS.get("onnx")(model, TARGET, context, {"placement": placement})


def written(lowered: Lowered, folder: Path):
    made = to_artifact(lowered, folder / "artifact", name="test", engine="onnx", target=TARGET)
    assert sum(layer.bytes for layer in layers(made)) == made.manifest.weights_bytes
    return made


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def fixed(layer: nn.Module, bits: int, axis: int | None = 0, group: int = 0, shifted: bool = False, ends=(-4.0, 4.0)):
    """The layer with its weight on a grid that no quantizer of this package would choose."""
    weight = layer.weight.detach()
    limit = 2 ** (bits - 1) - 1
    if group:
        runs = nn.functional.pad(weight, (0, -weight.shape[1] % group)).unflatten(1, (-1, group))
        scale = runs.abs().amax(-1) / (limit * 0.9)
    else:
        others = [dim for dim in range(weight.dim()) if dim != axis]
        scale = weight.abs().amax(others) / (limit * 0.9) if axis is not None else weight.abs().max() / limit
    zero = torch.arange(scale.numel()).reshape(scale.shape).remainder(3).to(torch.int8) if shifted else None
    grid = Grid(bits, axis, scale, zero, group)
    return QuantizedLayer(layer, grid.encode(weight), grid, ends)


def mixed_task() -> Task:
    torch.manual_seed(0)
    module = nn.Sequential(
        fixed(nn.Conv2d(2, 8, 3, padding=1), 8), nn.ReLU(),
        fixed(nn.Conv2d(8, 8, 3, padding=1, groups=8), 4, ends=(0.0, 3.0)), nn.ReLU(),
        fixed(nn.ConvTranspose2d(8, 4, 2), 8, axis=1, ends=(0.0, 3.0)), nn.Flatten(),
        fixed(nn.Linear(324, 32), 4), nn.ReLU(), fixed(nn.Linear(32, 32), 8, axis=None, ends=(0.0, 2.0)),
    )  # fmt: skip
    specs = (TensorSpec(name="x", shape=("batch", 2, 8, 8)),)
    return Task(model=module.eval(), inputs=specs, calibrate=[numbers(64, 2, 8, 8)])


@pytest.mark.usefixtures("whole_bytes")
@pytest.mark.parametrize("placement", ["everything", "products"])
def test_what_layers_decided_is_in_the_artifact_to_the_bit(placement: str, tmp_path: Path) -> None:
    task = mixed_task()
    lowered = carry_out(task, placement, method="static")
    weights = written(lowered, tmp_path).weights()
    for name, layer in task.model.named_modules():
        if not isinstance(layer, QuantizedLayer):
            continue
        codes, came = layer.codes.numpy(), weights[f"{name}.weight"]
        assert came.dtype == np.int8
        assert np.array_equal(came, codes) or np.array_equal(came, codes.T)
        assert (f"{name}.weight" in lowered.four_bit) == (layer.bits == 4)
        assert lowered.layers[f"{name}.weight"] == name
    notes = lowered.notes["quantization"]
    assert notes["sqnr_to_module_db"]["output"] > 30
    assert list(notes["float"]) == ["4.weight"]
    assert "ConvTranspose" in notes["float"]["4.weight"]
    if placement == "products":
        graph = onnx.load_from_string(lowered.graph).graph
        held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.raw_data}
        (scale,) = [held[node.input[1]] for node in graph.node if node.input[0] == "x"]
        assert scale.item() == pytest.approx(8 / 255)


@pytest.mark.usefixtures("whole_bytes")
def test_dynamic_products_hold_what_layers_decided() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(fixed(nn.Linear(32, 32), 8, axis=None, ends=None), nn.ReLU(), nn.Linear(32, 32))
    specs = (TensorSpec(name="x", shape=("batch", 32)),)
    lowered = carry_out(Task(model=module, inputs=specs, calibrate=[numbers(64, 32)]), method="dynamic")
    assert np.array_equal(lowered.weights["0.weight"].T, module[0].codes.numpy())
    if not saturating_products()[0]:
        assert lowered.notes["quantization"]["sqnr_to_module_db"]["output"] > 35


def test_rows_of_groups_are_widened_as_they_are_looked_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(fixed(nn.Embedding(100, 24), 4, group=16, shifted=True, ends=None))
    specs = (TensorSpec(name="ids", shape=("batch",), dtype="int64"),)
    lowered = carry_out(Task(model=module, inputs=specs, calibrate=[np.arange(100)]), method="weight_only", bits=4)
    assert np.array_equal(lowered.weights["0.weight"], module[0].codes.numpy())
    assert lowered.notes["quantization"]["sqnr_to_module_db"]["output"] > 100
    assert "looked up" in lowered.notes["quantization"]["layers"]["0.weight"]["computed"]


def test_a_norm_that_was_folded_into_a_convolution_multiplies_its_scales() -> None:
    layer = fixed(nn.Conv2d(3, 4, 3), 4)
    factor = np.float32([0.5, 2.0, 1.0, 3.0])
    array = layer.weight.detach().numpy() * factor[:, None, None, None]
    weight = Weight("w", "", "conv", 0, (), True)
    found = decided_weight(array, weight, layer.grid, layer.codes)
    assert found is not None
    assert np.array_equal(found.codes, layer.codes.numpy())
    np.testing.assert_allclose(found.scale, layer.scale.numpy() * factor, rtol=1e-5)
    assert decided_weight(array[::-1] + 1, weight, layer.grid, layer.codes) is None


def test_groups_run_packed_and_mean_what_was_decided(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        fixed(nn.Linear(72, 40), 4, group=32, shifted=True, ends=None), nn.ReLU(),
        fixed(nn.Linear(40, 48), 8, group=16, ends=None), nn.ReLU(), fixed(nn.Linear(48, 7), 4, group=24, ends=None),
    )  # fmt: skip
    data = numbers(64, 72)
    task = Task(model=module, inputs=(TensorSpec(name="x", shape=("batch", 72)),), calibrate=[data])
    lowered = carry_out(task, method="weight_only", bits=4)
    made = written(lowered, tmp_path)
    packed = made.weights()["0.weight_packed"]
    both = np.stack([packed & 15, packed >> 4], axis=-1).reshape(40, -1)[:, :72].astype(int) - 8
    assert np.array_equal(both, module[0].codes.numpy())
    assert lowered.notes["quantization"]["sqnr_to_module_db"]["output"] > 35
    engine = load(made)
    assert engine.describe()["operations"]["int8"]["MatMulNBits"] == 2
    rows = {layer.weight: layer for layer in layers(made)}
    assert (rows["0.weight"].bits, rows["0.weight"].dtype, rows["0.weight"].name) == (4, "uint4", "0")
    assert (rows["4.weight"].bits, rows["4.weight"].dtype) == (4, "int4")


@pytest.mark.parametrize("method", ["static", "weight_only"])
def test_four_bits_take_half_the_bytes_of_eight(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 300), nn.ReLU(), nn.Linear(300, 64))
    specs = (TensorSpec(name="x", shape=("batch", 256)),)
    task = Task(model=module, inputs=specs, calibrate=[numbers(64, 256)])
    size = {}
    for bits in (4, 8):
        lowered = carry_out(task, method=method, bits=bits)
        made = written(lowered, tmp_path / str(bits))
        size[bits] = made.manifest.weights_bytes
        assert {layer.bits for layer in layers(made) if len(layer.shape) > 1} == {bits}
        assert lowered.notes["quantization"]["sqnr_db"]["output"] > {4: 15, 8: 35}[bits]
        load(made)({"x": numbers(3, 256)})
    assert size[4] < 0.53 * size[8]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 16)
        self.recur = kind(16, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.recur(self.words(ids))[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_weights_ship_once_in_eight_bits(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    torch.manual_seed(0)
    specs = (TensorSpec(name="ids", shape=("batch", 6), dtype="int64"),)
    data = np.arange(240).reshape(40, 6) % 100
    task = Task(model=Recurrent(kind).eval(), inputs=specs, calibrate=[data])
    lowered = carry_out(task, method="dynamic")
    names = {"recur.weight_ih_l0", "recur.weight_hh_l0"}
    assert {lowered.weights[name].dtype.name for name in names} == {"int8"}
    assert sum(array.nbytes for array in lowered.weights.values()) < 13500
    assert {lowered.layers[name] for name in {*names, "recur.bias_l0"}} == {"recur"}
    notes = lowered.notes["quantization"]
    assert names <= set(notes["int8"] if kind is nn.LSTM else notes["float"])
    assert notes["sqnr_db"]["output"] > 30
    ran = load(written(lowered, tmp_path)).describe()["operations"]
    assert ("DynamicQuantizeLSTM" in ran["int8"]) == (kind is nn.LSTM)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(100, 16), nn.Linear(16, 16)
        self.out = nn.Linear(16, 100, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.inner(self.words(ids))))


@pytest.mark.usefixtures("whole_bytes")
@pytest.mark.parametrize("plan", [{"method": "dynamic"}, {"method": "weight_only"}, {"method": "static", "bits": 16}])
def test_a_table_that_is_the_output_layer_too_ships_once(plan: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    specs = (TensorSpec(name="ids", shape=("batch", "length"), dtype="int64"),)
    task = Task(model=Tied(), inputs=specs, calibrate=[np.arange(360).reshape(40, 9) % 100])
    lowered = carry_out(task, **plan)
    assert [array.size for array in lowered.weights.values()].count(1600) == 1
    assert load(written(lowered, tmp_path))({"ids": np.arange(8).reshape(2, 4)})["output"].shape == (2, 4, 100)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_sixteen_bits_halve_the_file_and_what_overflows_stays(half: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(100, 32), nn.Linear(32, 32), nn.Linear(32, 32))
    with torch.no_grad():
        module[2].weight[0, 0] = 1e5
    specs = (TensorSpec(name="ids", shape=("batch",), dtype="int64"),)
    task = Task(model=module, inputs=specs, calibrate=[np.arange(100)])
    lowered = carry_out(task, method="weight_only", bits=16, half=half)
    kept = {name for name, array in lowered.weights.items() if array.dtype == np.float32}
    assert kept == ({"2.weight"} if half == "float16" else set())
    table = module[0].weight.detach().numpy()
    assert np.array_equal(
        lowered.weights["0.weight"], table.astype(np.float16) if half == "float16" else upper_bits(table)
    )
    layers_of = lowered.notes["quantization"]["layers"]
    assert ("float16 ends" in layers_of["2.weight"]["why"]) == (half == "float16")
    assert lowered.notes["quantization"]["sqnr_db"]["output"] > 45
    assert load(written(lowered, tmp_path))({"ids": np.arange(3)})["output"].dtype == np.float32


def test_a_bfloat16_is_the_nearest() -> None:
    numbers_ = np.concatenate([numbers(1000), np.float32([0, 1, -2.5, 1e30, 3.0e-39])])
    expected = torch.from_numpy(numbers_).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(upper_bits(numbers_), expected)


def test_each_layer_has_the_precision_that_the_plan_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3)))
    module = nn.Sequential(body, nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 32))
    specs = (TensorSpec(name="x", shape=("batch", 32)),)
    task = Task(model=module, inputs=specs, calibrate=[numbers(64, 32)])
    plan = {"0": "float32", "0.1": "float16", "2": "int4"}
    lowered = carry_out(task, method="static", layers=plan)
    stored = {name: what["stored"] for name, what in lowered.notes["quantization"]["layers"].items()}
    assert stored == {
        "0.0.weight": "float32", "0.1.weight": "float16", "0.2.weight": "float32", "2.weight": "int4",
        "3.weight": "int8",
    }  # fmt: skip
    kinds = {name: array.dtype.name for name, array in lowered.weights.items()}
    assert kinds == {
        "0.0.weight": "float32", "0.1.weight": "float16", "0.2.weight": "float32", "2.weight": "int8",
        "3.weight": "int8",
    }  # fmt: skip
    assert lowered.four_bit == {"2.weight"}
    assert lowered.notes["quantization"]["int8"] == ["2.weight", "3.weight"]
    written(lowered, tmp_path)


def test_beside_normalization_sums_read_what_was_not_rounded() -> None:
    """Of a value that a product and a sum read, only the product has it in 8 bits."""
    lowered = carry_out(tiny.encoder_task(), method="static")
    graph = onnx.load_from_string(lowered.graph).graph
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    normalized = [node.output[0] for node in graph.node if node.op_type == "LayerNormalization"]
    assert {"QuantizeLinear", "Add"} <= readers[normalized[0]]
    assert lowered.notes["quantization"]["sqnr_db"]["output"] > 38


class Shuffled:
    """Calibration data in another order each time that it is read, as a loader that shuffles gives it."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __iter__(self):
        order = torch.randperm(len(self.data)).numpy()
        yield from (self.data[order[start : start + 8]] for start in range(0, len(order), 8))


def test_a_loader_that_shuffles_calibrates_the_same_for_a_seed() -> None:
    specs = (TensorSpec(name="x", shape=("batch", 16)),)
    task = Task(model=nn.Linear(16, 16), inputs=specs, calibrate=Shuffled(numbers(256, 16)))
    model = to_model(task)
    state = torch.get_rng_state()
    first, same, other = (
        np.concatenate([batch["x"] for batch in _quantize._samples(model, Context(task, model.module, seed), 20)])
        for seed in (0, 0, 1)
    )
    assert len(first) == 20
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_decided_weights_lose_a_bit_where_sums_would_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_quantize, "saturating_products", lambda: (True, "test"))
    task = mixed_task()
    lowered = carry_out(task, method="static")
    assert np.abs(lowered.weights["0.weight"].astype(int)).max() <= 64
    assert np.array_equal(lowered.weights["2.weight"], task.model[2].codes.numpy())
    assert "saturate" in lowered.notes["quantization"]["layers"]["0.weight"]["why"]
