"""Low rank: factors that answer alike at full rank, only where something gets smaller, and layers as any other."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.core.tensor import TensorSpec
from tauten.errors import PassError, RecipeError
from tauten.make.layers.low_rank import LowRank as Thin
from tauten.make.model.apply import apply
from tauten.make.model.build import build, to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes.compress._factor import METHODS, decompose, power
from tauten.make.passes.compress._factor_inputs import Inputs
from tauten.make.passes.compress._factor_time import is_faster, one_call
from tauten.make.passes.compress.low_rank import LowRank
from tauten.make.passes.quantize._calibrate import Data
from tauten.testing.tiny import cnn_task, encoder_task

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2)},
    {"kernel_size": 3, "dilation": (1, 2), "padding": (2, 1), "bias": False},
    {"kernel_size": (5, 3), "padding": "same"},
    {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 0), "padding_mode": "circular"},
]


def moment(width: int, seed: int = 0) -> Inputs:
    """Rows that are longer in some directions than in others."""
    torch.manual_seed(seed)
    rows = torch.randn(4 * width, width) @ torch.diag(torch.linspace(0.1, 2, width)) + torch.randn(width)
    mean = rows.mean(0)
    return Inputs(mean, rows.T @ rows / len(rows) - torch.outer(mean, mean), len(rows))


def full(method: str, layer: Any) -> tuple[int, ...]:
    out, inside = layer.weight.shape[:2]
    kernel = layer.weight.shape[2:]
    if method == "tucker":
        return out, inside
    return (min(inside * kernel[0], out * kernel[1]) if method == "spatial" else min(out, layer.weight[0].numel()),)


@pytest.mark.parametrize("how", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("aware", [False, True])
def test_at_full_rank_factors_answer_as_the_layer(method: str, how: dict[str, Any], aware: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, **how)
    inputs = moment(layer.weight[0].numel()) if aware else None
    factoring = METHODS[method](layer, inputs)
    made = factoring.make(full(method, layer))
    x = torch.randn(2, 4, 11, 12)
    with torch.no_grad():
        assert torch.allclose(made(x), layer(x), atol=1e-4)
        assert torch.allclose(made.weight, layer.weight, atol=1e-4)
    assert factoring.lost(made.weight) < 1e-8
    assert all(type(part) is nn.Conv2d for part in made)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d])
@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_convolutions_of_other_dimensions(kind: Any, method: str) -> None:
    torch.manual_seed(0)
    layer = kind(4, 6, 3, stride=2, padding=1)
    x = torch.randn(2, 4, *[7] * (layer.weight.ndim - 2))
    made = METHODS[method](layer, None).make(full(method, layer))
    with torch.no_grad():
        assert torch.allclose(made(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_ranks_are_told_with_what_they_take_and_lose(method: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, padding=1)
    factoring = METHODS[method](layer, None)
    options = factoring.options()
    losses = [option.loss for option in options]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-9)
    for option in options[:: max(1, len(options) // 4)]:
        made = factoring.make(option.ranks)
        assert sum(part.weight.numel() for part in made) == option.numbers
        # Of Tucker's two ranks both errors are added, which is a bound.
        tell = factoring.lost(made.weight)
        assert tell <= option.loss + 1e-6
        assert method == "tucker" or tell == pytest.approx(option.loss, abs=1e-6)


@pytest.mark.parametrize("method", list(METHODS))
def test_knowing_the_inputs_loses_less_of_the_answers(method: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, padding=1)
    inputs = moment(54)
    aware, blind = METHODS[method](layer, inputs), METHODS[method](layer, None)
    ranks = (3, 3) if method == "tucker" else (4,)
    assert aware.lost(aware.make(ranks).weight) < aware.lost(blind.make(ranks).weight)


def test_a_linear_layer_keeps_the_best_of_what_is_read_and_its_mean() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 10)
    inputs = moment(12)
    made = METHODS["svd"](layer, inputs).make((4,))
    second = inputs.moment(centred=True)
    values = torch.linalg.svdvals(layer.weight.detach().double() @ torch.linalg.cholesky(second))
    off = power((layer.weight - made.weight).detach().double(), second)
    assert off == pytest.approx(float(values[4:].square().sum()), rel=1e-4)
    with torch.no_grad():
        assert torch.allclose(made(inputs.mean), layer(inputs.mean), atol=1e-4)


def test_a_table_becomes_a_thin_one_and_padding_stays_nothing() -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(80, 12, padding_idx=3)
    made = METHODS["svd"](layer, None).make((12,))
    ids = torch.arange(80)
    with torch.no_grad():
        assert torch.allclose(made(ids), layer(ids), atol=1e-5)
        assert not METHODS["svd"](layer, None).make((5,))(ids)[3].any()


def test_tall_matrices_decompose_as_others() -> None:
    torch.manual_seed(0)
    for shape in ((200, 9), (9, 200), (20, 9)):
        matrix = torch.randn(*shape, dtype=torch.float64)
        left, values, right = decompose(matrix)
        assert torch.allclose(left * values @ right, matrix, atol=1e-9)
        assert torch.allclose(values, torch.linalg.svdvals(matrix), atol=1e-9)


@cache
def thin_task() -> Task:
    """Layers whose weights are nearly of low rank, and one whose are not."""
    torch.manual_seed(0)

    def near(layer: Any, rank: int) -> Any:
        with torch.no_grad():
            matrix = layer.weight.flatten(1)
            made = (
                torch.randn(matrix.shape[0], rank)
                @ torch.randn(rank, matrix.shape[1])
                / (rank * matrix.shape[1]) ** 0.5
            )
            layer.weight.copy_((made + 0.005 * torch.randn_like(made)).reshape(layer.weight.shape))
        return layer

    module = nn.Sequential(
        near(nn.Conv2d(3, 32, 3, padding=1), 3), nn.ReLU(),
        near(nn.Conv2d(32, 32, 3, stride=2, padding=1), 4), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=8), nn.ReLU(), nn.Flatten(),
        near(nn.Linear(128, 64), 6), nn.ReLU(), nn.Linear(64, 4),
    )  # fmt: skip
    draw = np.random.default_rng(0)
    data = [
        ({"image": draw.standard_normal((32, 3, 8, 8)).astype(np.float32)}, draw.integers(0, 4, 32)) for _ in range(2)
    ]
    specs = (TensorSpec(name="image", shape=("batch", 3, 8, 8)),)
    return Task(model=module.eval(), inputs=specs, calibrate=data, train=data, validate=data)


def factor(task: Task, **parameters: Any) -> Model:
    model = to_model(task)
    return apply(LowRank(**parameters), model, Context(task, build(task)))


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def off(task: Task, made: Model) -> float:
    """The noise of the outputs over their power."""
    inputs = next(iter(task.data("calibrate")))[0]
    wanted = forward(build(task), made.inputs, made.outputs, inputs)["output"]
    return float(
        np.square(forward(made.module, made.inputs, made.outputs, inputs)["output"] - wanted).sum()
        / np.square(wanted).sum()
    )


def test_by_energy_layers_become_thin_where_that_is_smaller() -> None:
    task = thin_task()
    made = factor(task, energy=0.95)
    notes = made.history[-1].notes
    assert set(notes["layers"]) == {"0", "2", "7"}
    assert all(isinstance(made.module.get_submodule(path), Thin) for path in notes["layers"])
    for told in notes["layers"].values():
        assert told["numbers"][1] < told["numbers"][0]
        assert told["lost"] <= 0.05 + 1e-6
    assert notes["refused"]["4"] == "its 8 groups read different channels"
    assert "no rank that keeps 0.95 of its answers makes it smaller" in notes["refused"]["9"]
    assert notes["numbers"] == [numbers(build(task)), numbers(made.module)]
    assert off(task, made) < 0.1


@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_by_ratio_so_many_numbers_go(ratio: float) -> None:
    task = thin_task()
    made = factor(task, ratio=ratio)
    whole = sum(part.weight.numel() for index in (0, 2, 7, 9) for part in [build(task)[index]])
    left = sum(
        part.weight.numel()
        for index in (0, 2, 7, 9)
        for part in made.module[index].modules()
        if type(part) in (nn.Conv2d, nn.Linear)
    )
    assert (1 - ratio) * whole * 0.8 < left <= (1 - ratio) * whole


def test_what_data_say_loses_less_of_the_outputs() -> None:
    task = cnn_task()
    aware, blind = (off(task, factor(task, ratio=0.5, samples=samples)) for samples in (64, 0))
    assert aware < blind


@pytest.mark.parametrize("convolutions", ["svd", "spatial", "tucker"])
def test_a_method_can_be_asked_for(convolutions: Any) -> None:
    made = factor(thin_task(), ratio=0.6, convolutions=convolutions)
    layers = made.history[-1].notes["layers"]
    assert {layers[path]["method"] for path in ("0", "2") if path in layers} == {convolutions}


def test_ranks_are_multiples() -> None:
    made = factor(thin_task(), energy=0.9, round_to=8)
    ranks = [rank for told in made.history[-1].notes["layers"].values() for rank in told["ranks"]]
    assert ranks
    assert all(rank % 8 == 0 or rank == 3 for rank in ranks)  # 3 are all channels that there are


def test_by_latency_only_what_is_faster_is_taken() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(768, 1024), nn.ReLU(), nn.Linear(1024, 8))
    with torch.no_grad():
        module[0].weight.copy_(torch.randn(1024, 4) @ torch.randn(4, 768) / 50)
    data = [np.random.default_rng(0).standard_normal((8, 768)).astype(np.float32)]
    task = Task(model=module.eval(), inputs=(TensorSpec(name="x", shape=("batch", 768)),), calibrate=data)
    made = factor(task, energy=0.9, by="latency", round_to=4)
    notes = made.history[-1].notes
    before, after = notes["layers"]["0"]["milliseconds"]
    assert after < before
    assert "2" in notes["refused"]


def test_layers_are_timed_on_what_they_are_given() -> None:
    task = thin_task()
    model = to_model(task)
    layers = {path: model.module.get_submodule(path) for path in ("0", "2", "7", "9")}
    found = one_call(model.module, layers, Data(model, Context(task, build(task)), 1))
    assert torch.equal(found["0"], torch.from_numpy(next(iter(task.data("calibrate")))[0]["image"][:1]))
    with torch.no_grad():
        for path in ("2", "7", "9"):
            assert torch.allclose(found[path], model.module[: int(path)](found["0"]), atol=1e-6)


def test_faster_is_what_is_so_in_most_rounds_beside_the_other() -> None:
    layer = [1.0, 9.0, 1.0, 1.0, 9.0] * 3  # a machine that does other work now and then
    assert is_faster([0.8 * ms for ms in layer], layer)
    assert not is_faster([0.97 * ms for ms in layer], layer)
    assert not is_faster([0.5, 10.0, 0.5, 2.0, 5.0] * 3, layer)
    assert not is_faster(layer, layer)


def test_the_graph_answers_as_the_thin_layers(tmp_path: Any) -> None:
    task = thin_task()
    made = factor(task, ratio=0.6, convolutions="tucker")
    artifact = tauten.save(made, tmp_path / "thin", task=task)
    assert sum(array.size for array in artifact.weights().values()) <= numbers(made.module)
    inputs = next(iter(task.data("calibrate")))[0]
    answers = tauten.load(tmp_path / "thin")(inputs)
    wanted = forward(made.module, made.inputs, made.outputs, inputs)
    assert np.allclose(answers["output"], wanted["output"], atol=1e-4)


def test_recovery_and_quantization_take_the_thin_layers() -> None:
    task = thin_task()
    made = tauten.compress(task, "low_rank", ratio=0.7)
    again = tauten.recover(made, task=task, epochs=2)
    assert numbers(again.module) == numbers(made.module)
    notes = again.history[-1].notes
    assert notes["loss_after"] <= notes["loss_before"]
    small = tauten.quantize(again, task=task)
    assert any("." in path and path.split(".")[0] in "027" for path in small.history[-1].notes["layers"])


def test_an_encoder_with_tables_is_factored() -> None:
    task = encoder_task()
    made = factor(task, ratio=0.4)
    notes = made.history[-1].notes
    assert notes["layers"]
    assert notes["refused"]["places"].startswith("a table of 32 rows")


def test_an_encoder_of_pytorch_is_kept_from_its_fused_kernel() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
    data = [np.random.default_rng(0).standard_normal((4, 5, 16)).astype(np.float32)]
    task = Task(
        model=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval(),
        inputs=(TensorSpec(name="x", shape=("batch", 5, 16)),),
        calibrate=data,
    )
    made = factor(task, ratio=0.5)
    with torch.inference_mode():
        quick = made.module(torch.from_numpy(data[0]))
    slow = made.module(torch.from_numpy(data[0]))
    assert torch.allclose(quick, slow, atol=1e-5)
    assert any("linear1" in path for path in made.history[-1].notes["layers"])


def test_code_that_asks_a_layer_of_itself_gets_its_answers() -> None:
    layer = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=1)
    made = METHODS["spatial"](layer, None).make((4,))
    for asked in (made, copy.deepcopy(made)):
        assert (asked.stride, asked.kernel_size, asked.out_channels) == ((2, 1), (3, 5), 6)
        assert asked.bias.shape == (6,)
        assert asked.weight.dtype == torch.float32
        with pytest.raises(AttributeError, match="no attribute 'colour'"):
            _ = asked.colour


def test_zeros_of_pruning_are_not_filled() -> None:
    task = thin_task()
    sparse = tauten.prune(task, "magnitude", ratio=0.5)
    with pytest.raises(PassError, match="50 % of its weights are zero, which factors would fill"):
        tauten.compress(sparse, "low_rank", task=task, ratio=0.5)


def test_layers_that_are_kept() -> None:
    made = factor(thin_task(), ratio=0.5, keep=("2",))
    assert made.history[-1].notes["refused"]["2"] == "keep says so"
    with pytest.raises(PassError, match=r"keep: no layers \['nothing'\]"):
        factor(thin_task(), ratio=0.5, keep=("nothing",))


def test_what_cannot_become_so_small_is_refused_with_the_least() -> None:
    with pytest.raises(PassError, match=r"ratio: numbers of layers that can be factored: .* which is the least"):
        factor(thin_task(), ratio=0.999)
    with pytest.raises(PassError, match="no layer gets smaller"):
        factor(cnn_task(), energy=0.9999)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"energy": 0.9, "ratio": 0.5}, "not both"),
        ({"energy": 1.0}, "energy: expected a share above 0 and below 1"),
        ({"ratio": 1.0}, "ratio: expected 0 or more and below 1"),
        ({"by": "luck"}, "by: expected one of size, latency"),
        ({"convolutions": "cp"}, "convolutions: expected one of auto, svd, spatial, tucker"),
        ({"round_to": 0}, "round_to: expected 1 or more"),
    ],
)
def test_parameters_that_do_not_fit(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        LowRank(**parameters)
