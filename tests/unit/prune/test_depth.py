"""Depth pruning: which blocks go, that the rest answers as it must, and that the written file is smaller for it."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import tauten
from tauten.core.tensor import TensorSpec
from tauten.errors import PassError, RecipeError
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes.prune.depth import Depth
from tauten.testing.tiny import cnn_task, residual_task
from tests.unit.prune import residuals

VECTOR = TensorSpec(name="vector", shape=("batch", 2))


def shorten(task: Task, **parameters: Any) -> Model:
    model = to_model(task)
    return apply(Depth(**parameters), model, Context(task, model.module))


def removed(model: Model) -> list[str]:
    return [entry["block"] for entry in model.history[-1].notes["removed"]]


def assert_same(model: Model, expected: nn.Module, task: Task) -> None:
    """On the data and on batches of other sizes."""
    inputs = next(iter(task.data("calibrate")))[0]
    for size in (1, 5, 12):
        cut = {name: array[:size] for name, array in inputs.items()}
        wanted = forward(expected, model.inputs, model.outputs, cut)
        for name, array in forward(model.module, model.inputs, model.outputs, cut).items():
            np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("gone", ["1", "2"])
def test_a_shorter_cnn_is_the_original_with_the_branch_at_zero(gone: str, in_place: bool) -> None:
    module = residuals.lively(residuals.convolutions(in_place=in_place))
    task = residuals.task(module, residuals.PICTURE)
    model = shorten(task, keep=tuple({"1", "2"} - {gone}))
    assert removed(model) == [gone]
    expected = copy.deepcopy(module)
    expected[int(gone)].factor = 0.0
    assert_same(model, expected, task)
    assert not list(model.module[int(gone)].parameters())


@pytest.mark.parametrize("first", [True, False], ids=["norm first", "norm last"])
@pytest.mark.parametrize(("name", "part"), [("attention", 0), ("narrow", 1)])
def test_a_shorter_transformer_is_the_original_with_the_branch_at_zero(name: str, part: int, first: bool) -> None:
    module = residuals.lively(residuals.Transformer(first=first))
    task = residuals.task(module, residuals.TOKENS)
    everything = removed(shorten(task, ratio=1.0))
    assert len(everything) == 4
    (gone,) = (block for block in everything if block.startswith("layers.1") and ("attention" in block) == (part == 0))
    model = shorten(task, keep=tuple(set(everything) - {gone}))
    expected = copy.deepcopy(module)
    expected.layers[1].factors[part] = 0.0
    assert_same(model, expected, task)
    shorter = {"tokens": np.ones((2, 3, 8), np.float32)}
    wanted = forward(expected, model.inputs, model.outputs, shorter)["output"]
    np.testing.assert_allclose(forward(model.module, model.inputs, model.outputs, shorter)["output"], wanted, rtol=1e-4)


@pytest.mark.parametrize("first", [True, False], ids=["norm first", "norm last"])
def test_pytorchs_own_encoder_layer_which_has_a_kernel_for_all_of_it(first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=first)
    module = residuals.lively(nn.Sequential(layer, nn.Linear(8, 2)))
    task = residuals.task(module, TensorSpec(name="tokens", shape=("batch", 5, 8)))
    model = shorten(task, keep=("0.linear1",))
    assert removed(model) == ["0.self_attn"]
    expected = copy.deepcopy(module)
    with torch.no_grad():
        expected[0].self_attn.out_proj.weight.zero_()
        expected[0].self_attn.out_proj.bias.zero_()
    assert_same(model, expected, task)
    assert len(removed(shorten(task, ratio=1.0))) == 2


def operations(model: Model, task: Task, folder: Path) -> tuple[Counter[str], int]:
    artifact = tauten.save(model, folder, task=task)
    graph = onnx.load(str(folder / "graph.onnx"), load_external_data=False)
    return Counter(node.op_type for node in graph.graph.node), artifact.size_bytes


@pytest.mark.parametrize("in_place", [False, True])
def test_the_written_file_loses_operations_and_weights(in_place: bool, tmp_path: Path) -> None:
    module = residuals.lively(residuals.convolutions(in_place=in_place))
    task = residuals.task(module, residuals.PICTURE)
    before, bytes_before = operations(to_model(task), task, tmp_path / "before")
    model = shorten(task, ratio=1.0)
    after, bytes_after = operations(model, task, tmp_path / "after")
    # Nothing is left of the two blocks, not even a sum with zeros.
    assert before["Conv"] == 7
    assert after["Conv"] == after["Relu"] == after["Gemm"] == 1
    assert sum(after.values()) == 5  # with a pool and a flattening
    notes = model.history[-1].notes
    lost = notes["parameters_before"] - notes["parameters_after"]
    assert lost == sum(entry["parameters"] for entry in notes["removed"]) > 0
    assert bytes_before - bytes_after > 2 * lost
    engine = tauten.load(tmp_path / "after")
    inputs = next(iter(task.data("calibrate")))[0]
    for size in (1, 7):
        given = {name: array[:size] for name, array in inputs.items()}
        wanted = forward(model.module, model.inputs, model.outputs, given)["output"]
        np.testing.assert_allclose(engine(given)["output"], wanted, rtol=1e-3, atol=1e-5)


def test_a_whole_layer_leaves_nothing_in_the_file(tmp_path: Path) -> None:
    module = residuals.lively(residuals.Transformer())
    task = residuals.task(module, residuals.TOKENS)
    after, _ = operations(shorten(task, ratio=1.0), task, tmp_path / "after")
    assert set(after) == {"ReduceMean", "Gemm"}


def test_the_least_important_block_goes_and_the_rest_is_measured_anew() -> None:
    """Shifts that add up: without the first, the second is worth more than the third."""
    module = nn.Sequential(residuals.Shift(1, 0), residuals.Shift(1.05, 0), residuals.Shift(0, 1.2), nn.Linear(2, 2))
    with torch.no_grad():
        module[3].weight.copy_(torch.eye(2))
    model = shorten(residuals.task(module, VECTOR), blocks=2)
    assert removed(model) == ["0", "2"]
    first, second = model.history[-1].notes["removed"]
    # The mean of |(1, 0)|² and of |(1, 1.2)|² over two outputs, in units of one variance.
    assert second["divergence"] / first["divergence"] == pytest.approx((1 + 1.2**2) / 1, rel=1e-4)
    divergences = model.history[-1].notes["divergences"]
    assert divergences["1"] < divergences["2"]


def test_a_share_of_the_blocks() -> None:
    module = nn.Sequential(*(residuals.Shift(number, 0) for number in (3, 1, 4, 2, 5)), nn.Linear(2, 2))
    task = residuals.task(module, VECTOR)
    assert removed(shorten(task, ratio=0.4)) == ["1", "3"]
    assert removed(shorten(task, ratio=0.01)) == ["1"]
    assert removed(shorten(task)) == ["1"]
    assert removed(shorten(task, blocks=2, keep=("1",))) == ["3", "0"]


def test_a_projection_is_refused_with_the_reason() -> None:
    model = shorten(residual_task())
    assert removed(model) == ["3"]
    assert "both sides of its sum have layers" in model.history[-1].notes["refused"]["4"]


def test_a_chain_is_refused() -> None:
    with pytest.raises(PassError, match="no residual block of the model can be removed: it has none"):
        shorten(cnn_task())


class Twice(nn.Module):
    """One block, used two times."""

    def __init__(self) -> None:
        super().__init__()
        self.block = residuals.Convolutions(4, in_place=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.block(self.block(image)).mean((2, 3))
        return answer


def test_layers_that_are_used_elsewhere_are_refused() -> None:
    with pytest.raises(PassError, match="block: its layers serve other parts of the model too"):
        shorten(residuals.task(residuals.lively(Twice()), residuals.PICTURE))


class Gated(nn.Module):
    """A branch that is a half where its layers give zero."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return vector + self.linear(vector).sigmoid()


def test_a_branch_that_is_not_zero_without_its_layers_is_refused() -> None:
    with pytest.raises(PassError, match="differs by"):
        shorten(residuals.task(Gated(), VECTOR))


class Activation(nn.Module):
    """Sums with what they were computed from, but no layer in between."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.04 * x.pow(3)


def test_a_formula_is_no_block() -> None:
    module = nn.Sequential(nn.Linear(2, 2), Activation(), residuals.Shift(1, 1))
    model = shorten(residuals.task(module, VECTOR))
    assert removed(model) == ["2"]
    assert model.history[-1].notes["refused"] == {}


class Nested(nn.Module):
    """A block whose branch holds another."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inner, self.after = nn.Linear(2, 2), residuals.Shift(0.1, 0.1), nn.Linear(2, 2)

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return vector + self.after(self.inner(self.before(vector)))


def test_blocks_inside_blocks() -> None:
    module = residuals.lively(nn.Sequential(Nested(), nn.Linear(2, 2)))
    task = residuals.task(module, VECTOR)
    one = shorten(task)
    assert removed(one) == ["0.inner"]
    both = shorten(task, blocks=2)
    assert len(list(both.module[0].parameters())) == 0
    assert_same(both, module[1], task)


def test_the_original_is_untouched_and_comes_back_after_measuring() -> None:
    module = residuals.lively(residuals.convolutions())
    task = residuals.task(module, residuals.PICTURE)
    before = copy.deepcopy(module.state_dict())
    model = shorten(task, keep=("1",))
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    kept = model.module[1].state_dict()
    assert all(torch.equal(before[f"1.{name}"], tensor) for name, tensor in kept.items())


def test_more_than_there_are_and_names_that_are_none() -> None:
    task = residuals.task(residuals.lively(residuals.convolutions()), residuals.PICTURE)
    with pytest.raises(PassError, match="3 blocks are to go, but only 2 can: 1, 2"):
        shorten(task, blocks=3)
    with pytest.raises(PassError, match="no residual block is in 'layer'"):
        shorten(task, keep=("layer",))
    with pytest.raises(PassError, match="every residual block is to stay"):
        shorten(task, keep=("1", "2"))


@pytest.mark.parametrize(
    "parameters",
    [{"blocks": 0}, {"ratio": 0.0}, {"ratio": 1.5}, {"blocks": 1, "ratio": 0.5}, {"samples": 0}, {"keep": "1"}],
)
def test_parameters_are_checked(parameters: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Depth.from_parameters(parameters)


def transformer(name: str) -> Task:
    """A model of ``transformers`` from a configuration, small."""
    import transformers as library

    small = {
        "num_labels": 3,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
    }
    draw = np.random.default_rng(0)
    ids = {"input_ids": draw.integers(0, 20, (4, 7))}
    spec = TensorSpec(name="input_ids", shape=("batch", 7), dtype="int64")
    torch.manual_seed(0)
    if name == "bert":
        module = library.BertForSequenceClassification(library.BertConfig(vocab_size=20, **small))
    elif name == "gpt2":
        config = library.GPT2Config(
            vocab_size=20,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=16,
            use_cache=False,
            bos_token_id=1,
            eos_token_id=2,
        )
        module = library.GPT2LMHeadModel(config)
    else:
        module = library.ViTForImageClassification(
            library.ViTConfig(image_size=6, patch_size=2, num_channels=4, **small)
        )
        ids = {"image": draw.standard_normal((4, 4, 6, 6)).astype(np.float32)}
        spec = residuals.PICTURE
    return Task(model=module.eval(), inputs=(spec,), calibrate=[ids], metric=lambda outputs, labels: 0.0)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        pytest.param(
            "bert",
            {f"bert.encoder.layer.{n}.{part}" for n in (0, 1) for part in ("attention", "intermediate")},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "gpt2", {f"transformer.h.{n}.{part}" for n in (0, 1) for part in ("attn", "mlp")}, marks=pytest.mark.slow
        ),
        ("vit", {f"vit.layers.{n}.{part}" for n in (0, 1) for part in ("attention", "mlp")}),
    ],
)
def test_models_of_transformers(name: str, blocks: set[str], tmp_path: Path) -> None:
    task = transformer(name)
    before, bytes_before = operations(to_model(task), task, tmp_path / "before")
    model = shorten(task, ratio=1.0)
    assert set(model.history[-1].notes["divergences"]) == set(removed(model)) == blocks
    after, bytes_after = operations(model, task, tmp_path / "after")
    assert after["MatMul"] + after["Gemm"] < before["MatMul"] + before["Gemm"] - 8
    assert after["Softmax"] == 0
    assert bytes_after < 0.6 * bytes_before
