from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import tauten
from tauten.errors import PassError, RecipeError
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Context
from tauten.make.passes import PASSES
from tauten.make.passes.distill._losses import soft_targets, values_error
from tauten.make.passes.distill.recover import Recover
from tauten.make.search.recipe import pass_from_json
from tests.unit.train.problems import FEATURES, POINT, classify, clouds, in_batches, network, unlabelled


def damaged(model: Model) -> Model:
    """The model with two thirds of its first layer gone."""
    module = network()
    module.load_state_dict(model.module.state_dict())
    with torch.no_grad():
        module[0].weight[torch.arange(FEATURES * 16).reshape(16, FEATURES) % 3 != 0] = 0
    return model.but(module=module.eval())


def recover(task: tauten.Task, **parameters: Any) -> tuple[Model, Model, Model]:
    """The trained model, the damaged one, and the one that was recovered from it."""
    original = to_model(task)
    broken = damaged(original)
    return original, broken, apply(Recover(**parameters), broken, Context(task, original.module))


def distance(one: Model, other: Model) -> float:
    """Mean squared difference of two models' outputs on points that neither has seen."""
    points = torch.as_tensor(clouds(200, 7)[0])
    with torch.no_grad():
        return float((one.module(points) - other.module(points)).square().mean())


@pytest.fixture(scope="module")
def task() -> tauten.Task:
    return classify(epochs=6).fit(0)


def without_labels(task: tauten.Task, **fields: Any) -> tauten.Task:
    return classify(**{"model": task.model, "train": unlabelled(160, 0), "validate": None, **fields})


@pytest.mark.parametrize("distill", [True, False])
def test_it_wins_back_what_was_lost(task: tauten.Task, distill: bool) -> None:
    recovered = recover(task, distill=distill)[2]
    points, labels = clouds(200, 7)
    found = recovered.module(torch.as_tensor(points)).argmax(1).numpy()
    notes = recovered.history[-1].notes
    assert (found == labels).mean() > 0.95
    assert notes["loss_after"] < 0.6 * notes["loss_before"]
    assert notes["epochs"] == 5
    assert 1 <= notes["best_epoch"] <= 5
    assert notes["samples"] == 5 * 160
    assert notes["distilled"] == ("logits" if distill else None)


def test_a_teacher_replaces_labels(task: tauten.Task) -> None:
    original, broken, recovered = recover(without_labels(task))
    assert distance(recovered, original) < 0.3 * distance(broken, original)
    assert recovered.history[-1].notes["loss_on"] == "validation"


def test_logits_are_known_by_labels_anywhere(task: tauten.Task) -> None:
    labelled = in_batches(*clouds(32, 2))
    assert recover(without_labels(task, validate=labelled))[2].history[-1].notes["distilled"] == "logits"
    nowhere = without_labels(task, calibrate=unlabelled(32, 1))
    assert recover(nowhere)[2].history[-1].notes["distilled"] == "outputs"

    def own(outputs: Any, labels: Any) -> torch.Tensor:
        return functional.cross_entropy(outputs["output"], labels)

    original, broken, recovered = recover(classify(model=task.model, loss=own))
    assert recovered.history[-1].notes["distilled"] == "outputs"
    assert distance(recovered, original) < distance(broken, original)


def test_several_outputs_are_all_learned() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()
            self.side = nn.Linear(FEATURES, 2)

        def forward(self, point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits = self.body(point)
            return logits, self.side(point), logits.argmax(1)

    torch.manual_seed(0)
    task = classify(model=Both(), outputs=("class", "side", "choice"), train=unlabelled(160, 0))
    original = to_model(task)
    with torch.no_grad():
        student = Both()
        student.load_state_dict(original.module.state_dict())
        student.side.weight.zero_()
    model = original.but(module=student.eval())
    recovered = apply(Recover(epochs=3), model, Context(task, original.module))
    away = (original.module.side.weight - recovered.module.side.weight).abs().sum()
    assert away < 0.8 * original.module.side.weight.abs().sum()


def test_zeros_stay_where_the_model_is_sparse(task: tauten.Task) -> None:
    original = to_model(task)
    broken = damaged(original)
    context = Context(task, original.module)
    zeros = broken.module[0].weight == 0
    sparse = apply(Recover(epochs=1), broken.but(facts=broken.facts | {SPARSE}), context)
    assert torch.equal(sparse.module[0].weight == 0, zeros)
    assert SPARSE in sparse.facts
    dense = apply(Recover(epochs=1), broken, context)
    assert torch.count_nonzero(dense.module[0].weight) > torch.count_nonzero(~zeros)


def test_neither_labels_nor_a_teacher_is_refused(task: tauten.Task) -> None:
    with pytest.raises(PassError, match="no labels and distill is off"):
        recover(without_labels(task), distill=False)


def test_no_training_data_is_refused(task: tauten.Task) -> None:
    with pytest.raises(PassError, match="no train data"):
        recover(without_labels(task, train=None))


def test_the_teacher_is_left_as_it_was_and_the_result_repeats(task: tauten.Task) -> None:
    original = to_model(task)
    before = {name: value.clone() for name, value in original.module.state_dict().items()}
    context = Context(task, original.module, seed=3)
    first, again = (apply(Recover(epochs=1), damaged(original), context) for _ in range(2))
    assert all(torch.equal(value, before[name]) for name, value in original.module.state_dict().items())
    assert not original.module.training
    assert first.history[-1].after == again.history[-1].after


def test_its_learning_rate_is_the_tasks_unless_given(task: tauten.Task) -> None:
    def moved(**parameters: Any) -> float:
        _, broken, recovered = recover(task, epochs=1, distill=False, **parameters)
        return float((recovered.module[3].weight - broken.module[3].weight).detach().abs().mean())

    assert moved(learning_rate=1e-5) < 0.1 * moved()
    assert moved(learning_rate=task.learning_rate) == moved()


def test_a_regression_learns_the_teachers_numbers() -> None:
    points, _ = clouds(160, 0)
    values = points @ np.arange(FEATURES, dtype=np.float32)[:, None]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 1))
    task = tauten.Task(
        model=model, inputs=(POINT,), train=in_batches(points, values), calibrate=[points], epochs=20, metric="mse"
    ).fit()
    original = to_model(task)
    student = original.but(module=nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, 1)).eval())
    recovered = apply(Recover(learning_rate=1e-2, weight=1.0), student, Context(task, original.module))
    assert recovered.history[-1].notes["distilled"] == "outputs"
    assert distance(recovered, original) < 0.3 * distance(student, original)


def test_it_is_a_pass_that_survives_json() -> None:
    assert PASSES.get("distill.recover") is Recover
    step = Recover(epochs=2, learning_rate=0.1, distill=False)
    assert pass_from_json(step.to_json()) == step
    assert step.trains


@pytest.mark.parametrize(
    "fields",
    [{"epochs": 0}, {"learning_rate": 0.0}, {"temperature": 0.0}, {"temperature": math.inf}, {"weight": 1.5}],
)
def test_its_parameters_are_checked(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(RecipeError, match=rf"{name}: expected"):
        Recover(**fields)
    with pytest.raises(RecipeError, match=rf"{name}: expected"):
        pass_from_json({"pass": "distill.recover", **fields})


def test_soft_targets_are_the_divergence_of_the_softened_classes() -> None:
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(soft_targets(student, teacher, 3), expected)
    assert soft_targets(teacher, teacher, 3).item() == pytest.approx(0, abs=1e-12)
    assert torch.allclose(soft_targets(student.T[None], teacher.T[None], 3, axis=1), expected)


def test_soft_targets_of_extreme_logits_are_finite() -> None:
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = soft_targets(student, torch.tensor([[-1e4, 1e4]]), 1.0)
    torch.autograd.backward(loss)
    assert math.isfinite(loss.item())
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_values_error_is_a_mean_square() -> None:
    assert values_error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 1.0])).item() == 4.5


def test_memory_is_saved_by_parameters_of_the_pass(task: tauten.Task) -> None:
    step = pass_from_json({"pass": "distill.recover", "epochs": 1, "recompute": ["0"], "max_memory_mib": 1e6})
    assert step == Recover(epochs=1, recompute=("0",), max_memory_mib=1e6)
    original = to_model(task)
    notes = apply(step, original, Context(task, original.module)).history[-1].notes
    assert notes["recomputed"] == 1
    assert notes["rows_at_once"] > 0
    with pytest.raises(RecipeError, match="max_memory_mib: expected a number above 0, got 0"):
        Recover(max_memory_mib=0)
