"""Lowering to OpenVINO: in float and by each kind of plan, what the file holds, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tauten.core.target import Target
from tauten.core.tensor import TensorSpec
from tauten.errors import LoweringError, RecipeError
from tauten.make.layers.quantized import Grid, QuantizedLayer
from tauten.make.lower import LOWERINGS, _openvino_check
from tauten.make.lower import openvino as lowering
from tauten.make.lower.artifact import to_artifact
from tauten.make.lower.lowering import Lowered, Options
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.run.engines import load
from tauten.run.engines.engine import Engine
from tauten.testing import tiny
from tests.unit.lower.lowered import prepare

TARGET = Target(name="test", engine="openvino", batch=4)
INT8 = QuantizationPlan(method="static", samples=32)


@pytest.fixture(scope="module", autouse=True)
def once() -> Iterator[None]:
    """Each model's float graph is made once for all tests here."""
    made: dict[int, tuple[object, object]] = {}
    real = lowering.float_graph

    def kept(model: Model, context: Context) -> object:
        # The module is held with it, so that its identity is not another's later.
        if id(model.module) not in made:
            made[id(model.module)] = model.module, real(model, context)
        return made[id(model.module)][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "float_graph", kept)
        yield


@pytest.fixture(scope="module")
def pictures() -> tuple[Model, Context]:
    return prepare(tiny.cnn_task())


@pytest.fixture(scope="module")
def matrices() -> tuple[Model, Context]:
    """Two linear layers, of which OpenVINO reads weights of 8 and 4 bits as they lie."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 24))
    data = [np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)]
    return prepare(Task(model=module, inputs=(TensorSpec(name="x", shape=("batch", 64)),), calibrate=data))


def lower(what: tuple[Model, Context], plan: QuantizationPlan | None = None, **options: str) -> Lowered:
    model, context = what
    return LOWERINGS.get("openvino")(model.but(quantization=plan), TARGET, context, options)


def engine_of(lowered: Lowered, folder: Path) -> Engine:
    return load(to_artifact(lowered, folder / "artifact", name="test", engine="openvino", target=TARGET))


def test_answers_as_the_module_for_any_length(tmp_path: Path) -> None:
    model, context = prepare(tiny.encoder_task())
    lowered = lower((model, context), shapes="fixed")
    assert lowered.settings["batches"] == []  # the length is open
    engine = engine_of(lowered, tmp_path)
    for inputs, _ in context.task.data("calibrate"):
        wanted = forward(model.module, model.inputs, model.outputs, inputs)["output"]
        np.testing.assert_allclose(engine(inputs)["output"], wanted, rtol=1e-4, atol=1e-5)


def test_weights_leave_the_document_under_the_users_names(pictures: tuple[Model, Context]) -> None:
    lowered, again = lower(pictures), lower(pictures)
    assert set(lowered.weights) == {"constants", "0.weight", "4.weight", "8.weight"}
    assert lowered.layers == {"0.weight": "0", "4.weight": "4", "8.weight": "8"}
    assert lowered.graph == again.graph
    assert lowered.settings == {"precision": "f32", "batches": [], "rounds_inputs": False, "padding": None}


@pytest.mark.parametrize("placement", ["products", "everything", "nncf"])
def test_a_static_plan_runs_in_int8(
    placement: str, pictures: tuple[Model, Context], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lowered = lower(pictures, INT8, placement=placement, shapes="fixed")
    assert capfd.readouterr() == ("", "")
    assert lowered.notes["quantization"]["sqnr_db"]["output"] > 30
    assert lowered.settings["batches"] == [1, 4]
    engine = engine_of(lowered, tmp_path)
    assert engine.describe()["operations"]["int8_share_of_products"] == 1.0
    inputs, _ = next(iter(pictures[1].task.data("calibrate")))
    products = [time for time in engine.profile(inputs, 1) if time.kind in ("Convolution", "FullyConnected")]
    assert {time.precision for time in products} == {"int8"}
    codes = "8.weight_quantized" if placement == "nncf" else "8.weight"
    assert (lowered.weights[codes].dtype, lowered.layers[codes]) == (np.int8, "8")


def test_layers_that_the_plan_leaves_in_float_stay_so(pictures: tuple[Model, Context]) -> None:
    plan = INT8.model_copy(update={"layers": {"8": "float32"}})
    lowered = lower(pictures, plan, placement="nncf")
    assert lowered.weights["8.weight"].dtype == np.float32
    assert list(lowered.notes["quantization"]["in_float"].values()) == ["the plan leaves it in float"]


@pytest.mark.parametrize(
    ("plan", "kind", "least"),
    [
        ({"method": "dynamic"}, "int8", 35),
        ({"method": "weight_only"}, "int8", 35),
        ({"method": "weight_only", "bits": 4, "granularity": "group", "group": 16}, "int8", 15),
        ({"method": "weight_only", "bits": 4, "granularity": "group", "group": 48}, "int8", 15),
        ({"method": "weight_only", "bits": 16}, "float16", 40),
        ({"method": "weight_only", "bits": 16, "half": "bfloat16"}, "uint16", 40),
    ],
)
def test_weights_are_stored_in_fewer_bits(
    plan: dict[str, object], kind: str, least: float, matrices: tuple[Model, Context], tmp_path: Path
) -> None:
    lowered = lower(matrices, QuantizationPlan(**plan))
    weights = {name: array for name, array in lowered.weights.items() if name.startswith("0.weight")}
    codes = weights["0.weight" if plan.get("bits") == 16 else "0.weight_quantized"]
    assert codes.dtype == kind
    assert ("0.weight_quantized" in lowered.four_bit) == (plan.get("bits") == 4)
    assert lowered.notes["quantization"]["sqnr_db"]["output"] > least
    engine = engine_of(lowered, tmp_path)
    assert engine.describe()["precision"] in ("bfloat16", "float32")
    assert engine({"x": np.zeros((3, 64), np.float32)})["output"].shape == (3, 24)


@pytest.mark.parametrize("group", [0, 16])
def test_grids_that_are_decided_are_kept_exactly(group: int, matrices: tuple[Model, Context], tmp_path: Path) -> None:
    model, context = matrices
    module = nn.Sequential(*(layer for layer in model.module))
    weight = module[0].weight.detach()
    shape = (64, 64 // group) if group else (64,)
    scale = torch.linspace(0.02, 0.04, int(np.prod(shape))).reshape(shape)
    grid = Grid(4, 0, scale, torch.full(shape, 1, dtype=torch.int8), group)
    codes = grid.encode(weight)
    module[0] = QuantizedLayer(nn.Linear(64, 64), codes, grid)
    decided = model.but(module=module.eval())
    lowered = lower((decided, context), QuantizationPlan(method="weight_only"), precision="f32")
    assert np.array_equal(lowered.weights["0.weight_quantized"].reshape(64, 64), codes.numpy())
    assert "0.weight_quantized" in lowered.four_bit
    inputs = next(iter(context.task.data("calibrate")))[0]
    plain = model.but(module=nn.Sequential(module[0], *list(module)[1:]))
    wanted = forward(plain.module, model.inputs, model.outputs, inputs)["output"]
    came = engine_of(lowered, tmp_path)(inputs)["output"]
    assert np.abs(came - wanted).max() < 0.02 * np.abs(wanted).max()  # the second layer is rounded to 8 bits
    with pytest.raises(LoweringError, match="decided"):
        lower((decided, context), INT8, placement="nncf")


def test_bfloat16_is_asked_for_where_it_helps(
    pictures: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lowering, "has_bfloat16", lambda: False)
    assert lower(pictures, INT8).settings["precision"] == "f32"
    assert not any(options.get("precision") == "bf16" for options in lowering.lower.choices(TARGET, quantized=True))
    lowered = lower(pictures, precision="bf16")
    assert lowered.notes["quantization"]["sqnr_db"]["output"] > 30
    monkeypatch.setattr("tauten.run.engines.openvino.has_bfloat16", lambda: False)
    described = engine_of(lowered, tmp_path).describe()
    assert described["precision"] == "float32"
    assert "bfloat16" in described["fallbacks"][0]


def test_a_graph_that_openvino_cannot_compile_is_refused(
    pictures: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its rewrites for low precision fail with some placements."""
    real = _openvino_check.compile_model
    calls = []

    def failing(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("Exception from src/somewhere.cpp:1:\nAddTransformation END: GatherTransformation END\n")
        return real(*arguments)

    monkeypatch.setattr(_openvino_check, "compile_model", failing)
    with pytest.raises(LoweringError, match=r"placement everything.*AddTransformation END"):
        lower(pictures, INT8, placement="everything")


def test_what_fails_as_it_was_placed_by_itself_is_placed_at_products(
    pictures: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lowering.measure_noise
    calls = []

    def lost(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise LoweringError("OpenVINO: the answers are lost in noise")
        return real(*arguments)

    monkeypatch.setattr(lowering, "measure_noise", lost)
    notes = lower(pictures, INT8).notes
    assert notes["placement_auto"] == "OpenVINO: the answers are lost in noise"
    assert notes["quantization"]["placement"] == "products"
    assert notes["quantization"]["sqnr_db"]["output"] > 20
    calls.clear()
    with pytest.raises(LoweringError, match="lost in noise"):
        lower(pictures, INT8, placement="everything")


def test_a_graph_that_answers_otherwise_is_refused(
    pictures: tuple[Model, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lowering.write_graph

    def corrupted(*arguments: object) -> object:
        written = real(*arguments)
        weights = {**written.weights, "8.weight": written.weights["8.weight"] + 1}
        return replace(written, weights=weights)

    monkeypatch.setattr(lowering, "write_graph", corrupted)
    with pytest.raises(LoweringError, match="output: OpenVINO's graph differs"):
        lower(pictures)


@pytest.mark.parametrize(
    ("plan", "options"),
    [
        (None, {"placement": "products"}),
        (QuantizationPlan(method="weight_only"), {"placement": "nncf"}),
        (QuantizationPlan(method="static", bits=4), {"placement": "nncf"}),
    ],
)
def test_options_that_do_not_go_with_a_plan_are_refused(
    plan: QuantizationPlan | None, options: Options, pictures: tuple[Model, Context]
) -> None:
    with pytest.raises(LoweringError, match="static"):
        lower(pictures, plan, **options)


def test_choices_are_options() -> None:
    for quantized in (False, True):
        choices = lowering.lower.choices(TARGET, quantized)
        assert choices[0] == {}
        assert len(choices) <= 5
        assert len({tuple(sorted(lowering.lower.chosen(options).items())) for options in choices}) == len(choices)
    with pytest.raises(RecipeError, match="placement"):
        lowering.lower.chosen({"placement": "somewhere"})
