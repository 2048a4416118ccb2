"""Lowering to ExecuTorch: answers as the module does, sizes that are planned for, and what XNNPACK left."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.errors import EngineError, LoweringError, MismatchError
from tauten.make.layers.quantized import Grid, QuantizedLayer
from tauten.make.lower import LOWERINGS
from tauten.make.lower._answers import hold_answers
from tauten.make.model.model import QuantizationPlan
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes.quantize.dynamic import Dynamic
from tauten.testing import tiny

from .lowered import TARGET, engine_of, lower, prepare


class Tokens(nn.Module):
    """Tokens ``(batch, length)`` with a mask, looked up, averaged and mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 8), nn.Embedding(32, 8)
        self.mix = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return self.mix((hidden * weight).sum(1) / weight.sum(1))


def tokens_task() -> Task:
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    data = [{"ids": draw.integers(0, 50, (16, length)), "mask": np.ones((16, length), np.int64)} for length in (12, 7)]
    specs = tuple(TensorSpec(name=name, shape=("batch", "length"), dtype="int64") for name in ("ids", "mask"))
    return Task(model=Tokens().eval(), inputs=specs, calibrate=[(inputs, None) for inputs in data])


def test_answers_as_the_module_does_for_other_lengths_and_batches(tmp_path: Path) -> None:
    task = tokens_task()
    model, _ = prepare(task)
    lowered = lower(task, engine="executorch")
    assert lowered.notes["largest_relative_difference"] < 1e-5
    assert lowered.notes["delegated"] > 2
    assert lowered.notes["not_delegated"]["aten::embedding.out"] == 2
    assert not lowered.weights
    engine = engine_of(lowered, tmp_path, "executorch")
    for inputs, _labels in task.calibrate:
        for rows in (1, 5, 16):
            few = {name: array[:rows, : 3 + rows % 4] for name, array in inputs.items()}
            expected, came = forward(model.module, model.inputs, model.outputs, few), engine(few)
            assert list(came) == list(expected)
            for name, array in expected.items():
                np.testing.assert_allclose(came[name], array, rtol=1e-4, atol=1e-5)
    assert engine.describe()["largest"] == {"batch": TARGET.batch, "length": 512}
    longer = {name: np.ones((1, 513), np.int64) for name in ("ids", "mask")}
    with pytest.raises(EngineError, match="dimension 'length' is"):
        engine(longer)


def sqnr(wanted: np.ndarray, came: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).mean() / np.square(wanted - came).mean()))


def test_static_int8_runs_every_product_in_xnnpack_in_int8(tmp_path: Path) -> None:
    """A decided grid holds: 4-bit codes of the last layer come out as they went in; the first layer stays in float."""
    task = tiny.cnn_task()
    model, context = prepare(task)
    module = copy.deepcopy(model.module)
    last = module[8]
    scale = last.weight.detach().abs().amax(dim=1) / 7
    grid = Grid(bits=4, axis=0, scale=scale)
    module[8] = QuantizedLayer(last, grid.encode(last.weight.detach()), grid, input_range=(0.0, 3.0))
    plan = QuantizationPlan(method="static", samples=48, calibration="percentile", layers={"0": "float32"})
    model = model.but(module=module, quantization=plan)
    lowered = LOWERINGS.get("executorch")(model, TARGET, context)
    notes = lowered.notes["quantization"]
    assert (notes["grids_decided"], notes["grids_held"], notes["left_in_float"]) == (1, 1, ["0"])
    engine = engine_of(lowered, tmp_path, "executorch")
    operations = engine.describe()["operations"]
    assert operations["int8"] == {"Conv2d": 1, "FullyConnected": 1}
    assert operations["int8_share_of_products"] == pytest.approx(2 / 3, abs=1e-3)
    inputs = task.calibrate[0][0]
    expected = forward(model.module, model.inputs, model.outputs, inputs)["output"]
    assert sqnr(expected, engine(inputs)["output"]) > 25


def test_dynamic_int8_takes_linear_layers_and_leaves_embeddings(tmp_path: Path) -> None:
    task = tokens_task()
    model, _ = prepare(task)
    engine = engine_of(lower(task, Dynamic(), engine="executorch"), tmp_path, "executorch")
    operations = engine.describe()["operations"]
    assert operations["int8"] == {"FullyConnected": 1}
    inputs = task.calibrate[0][0]
    expected = forward(model.module, model.inputs, model.outputs, inputs)
    for name, array in engine(inputs).items():
        assert sqnr(expected[name], array) > 25


def test_a_plan_of_other_arithmetic_is_refused() -> None:
    model, context = prepare(tiny.cnn_task())
    for plan in (QuantizationPlan(method="weight_only"), QuantizationPlan(method="static", bits=4)):
        with pytest.raises(LoweringError, match="to 8 bits"):
            LOWERINGS.get("executorch")(model.but(quantization=plan), TARGET, context)


class Strided(nn.Module):
    """Pictures ``(batch, 1, 160, 160)``: quantized, XNNPACK cannot change the batch of this convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.first(x)).mean((2, 3)))


@pytest.mark.slow
def test_what_does_not_run_with_an_open_batch_has_methods_for_fixed_ones(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    images = np.random.default_rng(0).standard_normal((4, 1, 160, 160)).astype(np.float32)
    images *= np.array([1, 2, 3, 4], np.float32)[:, None, None, None]
    spec = TensorSpec(name="x", shape=("batch", 1, 160, 160))
    model, context = prepare(Task(model=Strided().eval(), inputs=(spec,), calibrate=[images]))
    model = model.but(quantization=QuantizationPlan(method="static", samples=4))
    target = TARGET.model_copy(update={"batch": 4})
    lowered = LOWERINGS.get("executorch")(model, target, context)
    assert lowered.settings == {"batches": [1, 4]}
    assert "the program does not run" in lowered.notes["not_open"]
    assert "XNNExecutor" not in capfd.readouterr().err
    engine = engine_of(lowered, tmp_path, "executorch")
    described = engine.describe()
    assert (described["batches"], described["largest"]) == ([1, 4], {"batch": 4})
    assert described["operations"]["int8"] == {"DepthwiseConv2d": 1, "FullyConnected": 1}
    expected = forward(model.module, model.inputs, model.outputs, {"x": images})["output"]
    each = np.concatenate([engine({"x": images[row : row + 1]})["output"] for row in range(4)])
    assert sqnr(expected, each) > 25
    many = np.tile(images, (3, 1, 1, 1))
    for rows in (1, 2, 3, 4, 5, 7, 12):
        np.testing.assert_allclose(engine({"x": many[:rows]})["output"], np.tile(each, (3, 1))[:rows], atol=1e-6)
    with pytest.raises(EngineError, match="at least one row"):
        engine({"x": many[:0]})


class Mixing(nn.Module):
    """A row's answer depends on the others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class Summing(nn.Module):
    """One answer for all rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0)


def test_batches_are_not_fixed_where_rows_are_not_answered_alone() -> None:
    spec = TensorSpec(name="x", shape=("batch", 3))
    for module, rows, why in (
        (Mixing(), 4, "output: a row is answered otherwise alone than beside others"),
        (Mixing(), 1, "output: a row is answered otherwise alone than beside others"),
        (Summing(), 4, "output does not count rows"),
    ):
        model, context = prepare(
            Task(model=module, inputs=(spec,), calibrate=[np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) ** 2])
        )
        with pytest.raises(LoweringError, match=why):
            LOWERINGS.get("executorch")(model, TARGET, context, {"shapes": "fixed"})


def test_a_difference_is_an_error() -> None:
    task = tokens_task()
    model, _ = prepare(task)
    inputs = task.calibrate[0][0]

    def off(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = list(forward(model.module, model.inputs, model.outputs, arrays).values())
        return found if len(arrays["ids"]) > 1 else [array * 1.01 for array in found]

    with pytest.raises(MismatchError, match=r"output: the program differs from the module by 0.01 .*\(batch 1,"):
        hold_answers(off, model, inputs, "the program")
