"""Weight sharing: few values a layer, zeros stay, a budget is held, and values that learn."""

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
from tauten.errors import PassError, PluginError, RecipeError
from tauten.make.model.apply import apply
from tauten.make.model.build import build, to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes.compress._division import Point, divide, hull
from tauten.make.passes.compress._shared import Shared, Weight
from tauten.make.passes.compress._shared_learning import tied
from tauten.make.passes.compress._starts import cluster
from tauten.make.passes.compress.share import Share
from tauten.make.search.recipe import Recipe
from tauten.testing.tiny import encoder_task, residual_task


@cache
def problem() -> Task:
    """Which of three blobs in 8 dimensions a point is from; a trained network of 64 hidden units."""
    draw = np.random.default_rng(0)
    middles = draw.standard_normal((3, 8)) * 1.2
    labels = draw.integers(0, 3, 512)
    points = (middles[labels] + draw.standard_normal((512, 8))).astype(np.float32)
    data = [({"x": points[at : at + 64]}, labels[at : at + 64]) for at in range(0, 512, 64)]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    task = Task(
        model=module,
        inputs=(TensorSpec(name="x", shape=("batch", 8)),),
        calibrate=data[:2],
        train=data[:6],
        validate=data[6:],
        epochs=8,
        learning_rate=1e-2,
    )
    return task.fit(seed=0)


def start(task: Task) -> tuple[Model, Context]:
    model = to_model(task)
    return model, Context(task, build(task))


def share(task: Task, **parameters: Any) -> Model:
    model, context = start(task)
    return apply(Share(**parameters), model, context)


def distinct(tensor: torch.Tensor) -> int:
    return len(tensor.detach().unique())


def test_a_layer_has_as_many_values_as_was_said() -> None:
    task = problem()
    for parameters, most in (({}, 16), ({"clusters": 5}, 5), ({"bits": 3}, 8)):
        made = share(task, **parameters)
        assert distinct(made.module[0].weight) == distinct(made.module[2].weight) == most
        notes = made.history[-1].notes
        assert notes["layers"]["0.weight"]["clusters"] == most
        assert 0 < notes["layers"]["0.weight"]["bits"] <= np.log2(most)


def test_layers_may_say_otherwise() -> None:
    made = share(problem(), layers=(("0", 3), ("2.weight", 0)))
    assert distinct(made.module[0].weight) == 3
    assert distinct(made.module[2].weight) > 1000
    assert made.history[-1].notes["refused"]["2.weight"] == "layers says so"
    with pytest.raises(PassError, match=r"layers: nothing in \['7'\] can be shared"):
        share(problem(), layers=(("7", 3),))


def test_what_is_small_is_left_alone_and_named() -> None:
    made = share(problem(), clusters=256)
    assert made.history[-1].notes["refused"] == {"4.weight": "192 values would weigh as much as they spare"}
    assert torch.equal(made.module[4].weight, build(problem())[4].weight)
    specs = (TensorSpec(name="x", shape=("batch", 7)),)
    data = [np.ones((4, 7), np.float32)]
    made = share(
        Task(model=nn.Sequential(nn.Linear(7, 64), nn.Linear(64, 7), nn.Linear(7, 9)), inputs=specs, calibrate=data)
    )
    assert made.history[-1].notes["refused"] == {"2.weight": "63 numbers, too few to share"}


def test_more_values_lose_less() -> None:
    errors = [share(problem(), clusters=k).history[-1].notes["layers"]["2.weight"]["error"] for k in (2, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_zeros_stay_zeros_beside_the_clusters() -> None:
    task = problem()
    sparse = tauten.prune(task, "magnitude", ratio=0.7)
    made = tauten.compress(sparse, "share", task=task, bits=2, epochs=2)
    for index in (0, 2):
        before, after = sparse.module[index].weight, made.module[index].weight
        assert torch.equal(before == 0, after == 0)
        assert distinct(after) == 5
    assert made.history[-1].notes["layers"]["2.weight"]["zeros"] == pytest.approx(0.7, abs=0.01)


def test_embeddings_and_every_other_matrix_are_shared() -> None:
    made = share(encoder_task(), clusters=4)
    assert distinct(made.module.tokens.weight) == distinct(made.module.query.weight) == 4


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    module[2].weight = module[0].weight
    data = [np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)]
    task = Task(model=module, inputs=(TensorSpec(name="x", shape=("batch", 16)),), calibrate=data, train=data)
    made = share(task, clusters=4, epochs=1)
    assert made.module[2].weight is made.module[0].weight
    assert distinct(made.module[0].weight) == 4


@pytest.mark.parametrize("importance", ["inputs", "fisher"])
def test_importance_of_numbers_moves_outputs_less(importance: str) -> None:
    draw = np.random.default_rng(0)
    sizes = np.repeat([3.0, 0.03], 16)
    data = [(draw.standard_normal((64, 32)) * sizes).astype(np.float32) for _ in range(4)]
    torch.manual_seed(0)
    module = nn.Linear(32, 16)
    module.weight.data[:, 16:] *= 10  # large numbers that hardly anything depends on
    task = Task(model=module, inputs=(TensorSpec(name="x", shape=("batch", 32)),), calibrate=data)
    wanted = forward(module, task.inputs, ("output",), {"x": data[0]})["output"]
    off = {}
    for by in ("none", importance):
        made = share(task, clusters=4, importance=by)
        off[by] = np.square(forward(made.module, task.inputs, ("output",), {"x": data[0]})["output"] - wanted).mean()
    assert off[importance] < 0.9 * off["none"]


def test_a_budget_is_held_and_divided() -> None:
    task = problem()
    least = share(task, clusters=2).history[-1].notes["estimated_bytes"]
    for limit in (least + 300, 3000):
        notes = share(task, bytes=limit).history[-1].notes
        assert notes["estimated_bytes"] <= limit
        assert notes["estimated_bytes"] > 0.9 * limit
    found = share(task, bytes=least).history[-1].notes["estimated_bytes"]
    assert found == pytest.approx(least, abs=2)
    with pytest.raises(PassError, match=rf"bytes: expected at least {found:,} .* all other numbers\), got 100"):
        share(task, bytes=100)


def test_a_budget_moves_outputs_less_than_the_same_clusters_everywhere() -> None:
    task = problem()
    even = share(task, clusters=4)
    limit = even.history[-1].notes["estimated_bytes"]
    divided = share(task, bytes=limit)
    inputs = next(iter(task.data("validate")))[0]
    model, _ = start(task)
    wanted, *others = (forward(one.module, one.inputs, one.outputs, inputs)["output"] for one in (model, even, divided))
    errors = [float(np.square(other - wanted).mean()) for other in others]
    assert divided.history[-1].notes["estimated_bytes"] <= limit
    assert errors[1] <= 1.2 * errors[0]


def test_division_takes_the_cheapest_steps() -> None:
    curves = {
        "a": [Point(0, 100, 0.0), Point(1, 50, 1.0), Point(2, 10, 2.0), Point(3, 9, 1.5)],
        "b": [Point(0, 100, 0.0), Point(1, 50, 10.0)],
    }
    assert [point.choice for point in hull(curves["a"])] == [0, 3]
    assert {name: point.choice for name, point in divide(curves, 120, "bytes").items()} == {"a": 3, "b": 0}
    assert {name: point.choice for name, point in divide(curves, 200, "bytes").items()} == {"a": 0, "b": 0}
    assert {name: point.choice for name, point in divide(curves, 60, "bytes").items()} == {"a": 3, "b": 1}
    # What is left goes where it helps, on the hull or not.
    spare = {"a": [Point(0, 100, 0.0), Point(1, 80, 0.9), Point(2, 10, 1.0)]}
    assert divide(spare, 99, "bytes")["a"].choice == 1
    with pytest.raises(PassError, match="bytes: expected room for at least 59"):
        divide(curves, 58, "bytes")


def test_gradients_of_a_cluster_are_summed() -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(20, 15))
    parameter.data[0] = 0
    weight = Weight("w", parameter)
    one = Shared.of(weight, cluster(weight.line(), 4, "optimal", 0))
    one.put()
    factor = torch.randn(20, 15)
    with tied([one]):
        (parameter * factor).sum().backward()
    assert parameter.grad is not None
    sums = torch.zeros(5).index_add_(0, one.index.long(), factor.reshape(-1))
    sums[0] = 0
    assert torch.allclose(parameter.grad.reshape(-1) * one.counts().sqrt()[one.index.long()], sums[one.index.long()])
    # Its norm is that of the values' gradients, so that clipping it is clipping theirs.
    assert float(parameter.grad.norm()) == pytest.approx(float(sums.norm()), rel=1e-5)


def test_values_that_learn_stay_few_and_lose_less() -> None:
    task = problem()
    model, context = start(task)
    plain, learnt = apply(Share(bits=1), model, context), apply(Share(bits=1, epochs=12), model, context)
    notes = learnt.history[-1].notes
    assert notes["kept"] == "trained"
    assert notes["scores"]["trained"] >= notes["scores"]["shared"]
    assert notes["loss_after"] < notes["loss_before"]
    for index in (0, 2):
        weight = learnt.module[index].weight
        assert distinct(weight) == 2
        assert not torch.equal(weight, plain.module[index].weight)
        # Which number is which value does not change.
        assert torch.equal(weight == weight.max(), plain.module[index].weight == plain.module[index].weight.max())


def test_training_that_loses_is_undone() -> None:
    task = problem()
    model, context = start(task)
    plain = apply(Share(bits=3), model, context)
    hopeless = Share(bits=3, epochs=1, learning_rate=30.0)
    made = apply(hopeless, model, context)
    assert made.history[-1].notes["kept"] == "shared"
    for name, parameter in made.module.named_parameters():
        assert torch.equal(parameter, plain.module.get_parameter(name)), name


def test_it_trains_only_where_it_is_asked_to() -> None:
    assert not Recipe("one", (Share(),)).trains
    assert Recipe("one", (Share(epochs=1),)).trains
    task = problem()
    without = Task(model=build(task), inputs=task.inputs, calibrate=task.calibrate)
    assert share(without, clusters=4).history
    with pytest.raises(PassError, match="no train data"):
        share(without, epochs=1)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"clusters": 1}, "clusters: expected 2 to 4096, got 1"),
        ({"clusters": 4, "bits": 2}, "bits: expected one of clusters, bits and bytes alone, beside clusters"),
        ({"start": "best"}, "start: expected one of optimal, linear"),
        ({"layers": (("a", 1),)}, "layers: expected each name once"),
        ({"epochs": -1}, "epochs: expected 0 or more"),
        ({"samples": 0}, "samples: expected 1 or more"),
    ],
)
def test_parameters_that_do_not_fit(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Share(**parameters)


def test_a_model_without_matrices_is_refused() -> None:
    module = nn.LayerNorm(4).eval()
    data = [np.ones((2, 4), np.float32)]
    task = Task(model=module, inputs=(TensorSpec(name="x", shape=("batch", 4)),), calibrate=data)
    with pytest.raises(PassError, match="no weights to share"):
        share(task)


def test_the_file_holds_the_few_values(tmp_path: Any) -> None:
    task = residual_task()
    made = tauten.compress(task, "share", bits=3)
    artifact = tauten.save(made, tmp_path / "shared", task=task)
    few = 0
    for name, array in artifact.weights().items():
        if array.ndim == 4 and array.size >= 256:
            few += 1
            assert len(np.unique(array)) <= 8, name
    assert few >= 3
    answers = tauten.load(tmp_path / "shared")({"image": np.ones((2, 1, 8, 8), np.float32)})
    wanted = forward(
        copy.deepcopy(made.module), made.inputs, made.outputs, {"image": np.ones((2, 1, 8, 8), np.float32)}
    )
    assert np.allclose(answers["output"], wanted["output"], atol=1e-4)


def test_a_method_that_there_is_not_is_told_with_those_that_there_are() -> None:
    with pytest.raises(PluginError, match=r"no method 'squeeze': there are low_rank, rate, rate_distortion, share"):
        tauten.compress(problem(), "squeeze")
