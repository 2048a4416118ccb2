"""Magnitude pruning: exact counts, the smallest first, weights only."""

from __future__ import annotations

import copy
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.errors import PassError, RecipeError
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.make.passes.distill.recover import Recover
from tauten.make.passes.prune._smallest import lamp, zero_smallest
from tauten.make.passes.prune.magnitude import Magnitude
from tests.unit.train.problems import classify


def prune(module: nn.Module, step: Magnitude) -> Model:
    task = Task(
        model=module,
        inputs=(TensorSpec(name="input", shape=("batch", 6)),),
        calibrate=[np.ones((2, 6), dtype="float32")],
    )
    model = to_model(task)
    return apply(step, model, Context(task=task, reference=model.module))


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 20), nn.LayerNorm(20), nn.Linear(20, 4))
    with torch.no_grad():
        module[2].weight.mul_(10)
    return module


def zeros(tensor: torch.Tensor) -> int:
    return int((tensor == 0).sum())


def test_each_layer_loses_its_share() -> None:
    model = prune(network(), Magnitude(ratio=0.4))
    assert (zeros(model.module[0].weight), zeros(model.module[2].weight)) == (48, 32)
    assert SPARSE in model.facts
    assert model.history[0].notes == {"sparsity": 0.4, "layers": {"0.weight": 0.4, "2.weight": 0.4}, "held": []}


def test_together_the_layer_of_small_weights_loses_more() -> None:
    model = prune(network(), Magnitude(ratio=0.5, scope="global"))
    first, second = zeros(model.module[0].weight), zeros(model.module[2].weight)
    assert first + second == 100
    assert first / 120 > second / 80


def test_layer_adaptive_scores_do_not_see_how_a_layer_is_scaled() -> None:
    scaled = network()
    with torch.no_grad():
        scaled[2].weight.mul_(100)
    kept = [prune(module, Magnitude(ratio=0.5, scope="lamp")).module for module in (network(), scaled)]
    for index in (0, 2):
        assert torch.equal(kept[0][index].weight == 0, kept[1][index].weight == 0)
    assert zeros(kept[0][0].weight) + zeros(kept[0][2].weight) == 100


def test_layer_adaptive_scores_leave_each_layer_its_largest_weight() -> None:
    module = prune(network(), Magnitude(ratio=0.98, scope="lamp")).module
    assert [bool(module[index].weight.abs().max() > 0) for index in (0, 2)] == [True, True]


def test_layer_adaptive_scores_are_those_of_the_definition() -> None:
    weight = torch.tensor([3.0, -1.0, 2.0, 0.0])
    np.testing.assert_allclose(lamp(weight), [1.0, 1 / 14, 4 / 13, 0.0])


def test_biases_and_norms_stay() -> None:
    module = network()
    model = prune(module, Magnitude(ratio=0.9))
    for name in ("0.bias", "1.weight", "1.bias", "2.bias"):
        assert torch.equal(model.module.get_parameter(name), module.get_parameter(name))


def test_the_original_is_untouched() -> None:
    module = network()
    prune(module, Magnitude(ratio=0.9))
    assert zeros(module[0].weight) == 0


@given(
    st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=60),
    st.floats(0, 0.99),
)
def test_counts_are_exact_with_ties(numbers: list[float], ratio: float) -> None:
    weight = torch.tensor(numbers)
    zero_smallest([weight], ratio)
    expected = np.sort(np.abs(np.array(numbers, dtype="float32")))
    expected[: round(ratio * len(numbers))] = 0
    np.testing.assert_array_equal(np.sort(weight.abs().numpy()), expected)


@given(st.lists(st.lists(st.floats(-4, 4, width=16), max_size=30), min_size=1, max_size=4), st.floats(0, 0.99))
def test_together_the_smallest_of_all_go(layers: list[list[float]], ratio: float) -> None:
    weights = [torch.tensor(numbers) for numbers in layers]
    zero_smallest(weights, ratio)
    together = np.abs(np.array([number for numbers in layers for number in numbers], dtype="float32"))
    expected = np.sort(together)
    expected[: round(ratio * len(expected))] = 0
    np.testing.assert_array_equal(np.sort(torch.cat(weights).abs().numpy()), expected)


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=60), st.integers(0, 59))
def test_layer_adaptive_counts_are_exact(numbers: list[float], count: int) -> None:
    weight = torch.tensor([1 + abs(number) for number in numbers])
    count = min(count, len(numbers) - 1)
    zero_smallest([weight], count / len(numbers), lamp)
    assert zeros(weight) == count


def test_numbers_of_any_size_keep_their_order() -> None:
    weight = torch.tensor([1e-45, 0.0, -1e-40, 1e38, -3.0, 3.0000002, float("inf"), float("nan")])
    zero_smallest([weight], 0.625)
    assert zeros(weight) == 5
    assert weight[3] == torch.tensor(1e38)
    assert weight[6].isinf()
    assert weight[7].isnan()


def test_beyond_what_quantile_can_take_in_little_memory() -> None:
    half = 2**23 + 1
    layers = [torch.arange(part, 2 * half + part, 2, dtype=torch.int32).float() for part in (1, 2)]
    np.zeros(1)
    tracemalloc.start()
    zero_smallest(layers, 0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Odd numbers in one layer, even ones in the other; above 2**24 float32 has only each second one, which ties.
    assert sum(zeros(weight) for weight in layers) == half
    assert max(float(weight[: half // 2].max()) for weight in layers) == 0
    # What NumPy holds beside the weights: a mask of one layer and a part's digits, not all numbers at once.
    assert peak < 3 * half


def test_tied_weights_are_counted_once() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    module[1].weight = module[0].weight
    model = prune(module, Magnitude(ratio=0.5, scope="global"))
    assert zeros(model.module[0].weight) == 18
    assert model.module[1].weight is model.module[0].weight


def test_nothing_to_prune() -> None:
    with pytest.raises(PassError, match="no weights"):
        prune(nn.LayerNorm(6), Magnitude(ratio=0.5))


def test_biases_and_norms_go_by_choice_each_kind_by_itself() -> None:
    module = network()
    with torch.no_grad():
        module[1].weight.uniform_(1, 2)
    before = copy.deepcopy(module)
    model = prune(module, Magnitude(ratio=0.25, scope="global", include=("biases", "norms")))
    made = model.module
    assert torch.equal(made[0].weight, before[0].weight)
    assert zeros(made[0].bias) + zeros(made[2].bias) == 6
    # The layer norm's bias was zero already, and counts: 10 of its 20 are among the 10 smallest of 40.
    assert zeros(made[1].weight) == 0
    assert zeros(made[1].bias) == 20
    assert model.history[0].notes["held"] == ["0.bias", "2.bias", "1.weight", "1.bias"]


def test_zeros_in_biases_and_norms_survive_recovery_and_other_zeros_do_not() -> None:
    task = classify()
    model = to_model(task)
    with torch.no_grad():
        model.module[1].weight.uniform_(1, 2)
        model.module[1].bias.zero_()
    context = Context(task, model.module)
    sparse = apply(Magnitude(ratio=0.5, include=("weights", "biases")), model, context)
    recovered = apply(Recover(epochs=2), sparse, context).module
    for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
        made = sparse.module.get_parameter(name)
        assert zeros(made) == round(0.5 * made.numel())
        assert torch.equal(recovered.get_parameter(name) == 0, made == 0)
    # A norm's bias starts at zero of itself, and learns.
    assert zeros(recovered[1].bias) < 16


@pytest.mark.parametrize(
    "parameters",
    [
        {"ratio": 1.0}, {"ratio": -0.1}, {"ratio": 0.5, "scope": "block"}, {}, {"ratio": 0.5, "include": []},
        {"ratio": 0.5, "include": ["gains"]}, {"pattern": "2:4", "ratio": 0.6}, {"pattern": "2:4", "scope": "global"},
        {"pattern": "4:4"}, {"pattern": "0:4"}, {"pattern": "2/4"}, {"pattern": "32:128"},
        {"pattern": "2:4", "include": ["weights", "biases"]},
    ],
)  # fmt: skip
def test_parameters_are_checked(parameters: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        Magnitude.from_parameters(parameters)
