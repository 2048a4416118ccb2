"""``dynamic.early_exit`` as a pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.errors import PassError, RecipeError
from tauten.make.layers.early_exit import EarlyExits, confidence
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes.distill.recover import Recover
from tauten.make.passes.dynamic._points import find_points, spread
from tauten.make.passes.dynamic.early_exit import EarlyExit
from tauten.testing.tiny import cnn_task, residual_task, two_inputs_task
from tests.unit.dynamic.exits import STEP, encoder, first, passed, residual

QUICK = {"epochs": 1, "steps": 10}


def made(task: Task, **parameters: object) -> Model:
    model = to_model(task)
    return apply(EarlyExit(**{**QUICK, **parameters}), model, Context(task, model.module, seed=1))


def test_the_model_itself_stays_as_it_was() -> None:
    model, task = passed()
    untouched = to_model(task)
    state = untouched.module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.module.model.state_dict().items())


def test_a_row_takes_the_first_answer_that_is_sure() -> None:
    model, task = residual()
    inputs = first(task, 32)
    with torch.no_grad():
        scores, whole = model.module.all_scores(torch.from_numpy(inputs["image"]))
    came = forward(model.module, model.inputs, model.outputs, inputs)["output"]
    for row in range(32):
        expected = whole[row]
        for index in reversed(range(2)):
            softened = scores[index][row : row + 1] / model.module.temperatures[index]
            if confidence(softened, "probability") >= model.module.thresholds[index]:
                expected = scores[index][row]
        np.testing.assert_allclose(came[row], expected.numpy(), atol=1e-6)


def test_the_notes_tell_where_how_sure_and_how_many() -> None:
    model, _ = passed()
    notes = model.history[-1].notes
    assert notes["judged_on"] == "labels of validate, 64 samples"
    assert sum(exit["share"] for exit in notes["exits"]) == pytest.approx(0.5)
    assert notes["stays_to_the_end"] == pytest.approx(0.5)
    assert [exit["at"] for exit in notes["exits"]] == list(model.module.paths)
    assert [exit["threshold"] for exit in notes["exits"]] == pytest.approx(model.module.thresholds.tolist())
    assert notes["points_lost"]["low"] <= notes["points_lost"]["value"] <= notes["points_lost"]["high"]


def test_without_labels_the_whole_models_answers_are_what_is_right() -> None:
    task = residual_task()
    unlabelled = [inputs for inputs, _ in task.data("train")]
    bare = replace(task, train=unlabelled, validate=None, calibrate=unlabelled, metric="agreement")
    notes = made(bare, share=0.5).history[-1].notes
    assert notes["judged_on"] == "answers of the whole model of calibrate, 64 samples"
    assert notes["points_lost"]["value"] >= 0, "nobody agrees more with the model than itself"


def test_where_nothing_may_be_lost_the_model_is_left_alone() -> None:
    task = residual_task()
    unlabelled = [inputs for inputs, _ in task.data("train")]
    bare = replace(task, train=unlabelled, validate=None, calibrate=unlabelled, metric="agreement")
    model = made(bare, max_drop=0.01)
    assert not isinstance(model.module, EarlyExits)
    assert len(model.history[-1].notes["refused"]) == 2
    assert model.history[-1].notes["exits"] == []


@pytest.mark.parametrize("kind", ["probability", "margin", "entropy"])
def test_confidence_is_between_chance_and_certainty(kind: str) -> None:
    certain, chance = torch.tensor([[100.0, 0, 0, 0]]), torch.zeros(1, 4)
    assert confidence(certain, kind).item() == pytest.approx(1)
    assert confidence(chance, kind).item() == pytest.approx(0.25 if kind == "probability" else 0, abs=1e-6)


def test_training_together_changes_the_model_too() -> None:
    task = residual_task()
    model = made(task, share=0.5, together=True)
    before = to_model(task).module.state_dict()
    after = model.module.model.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_what_it_left_can_be_recovered() -> None:
    model, task = passed()
    again = apply(Recover(epochs=1), model, Context(task, task.build()))
    assert isinstance(again.module, EarlyExits)


def test_points_are_where_nothing_else_is_read_later() -> None:
    task = residual_task()
    module, example = task.build(), first(task, 2)
    paths = [point.path for point in find_points(module, task.inputs, example)]
    assert paths == ["0", "1", "2", "3"], "inside of a residual block its input is still to be read"
    assert [point.path for point in spread(find_points(module, task.inputs, example), 1)] in (["2"], ["3"])
    model, task = encoder()
    inside = find_points(model.module.model, task.inputs, first(task, 2))
    assert [point.path for point in inside] == ["norm1"], "a mask may be read later, the query's input may not"


class Overwriting(nn.Module):
    """Overwrites in place what its first layer returned, as an in-place activation does."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.scores = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(torch.relu_(self.low(x)))
        return scores


def test_features_are_read_before_they_are_overwritten() -> None:
    exits = EarlyExits(Overwriting(), {"low": nn.Linear(3, 3)}).eval()
    x = torch.randn(32, 4)
    with torch.no_grad():
        (scores,), _ = exits.all_scores(x)
        assert torch.equal(scores, exits.heads[0](exits.model.low(x)))


@pytest.mark.parametrize(
    ("task", "parameters", "told"),
    [
        (two_inputs_task, {}, "expected a model with one output, class scores"),
        (lambda: replace(cnn_task(), train=None), {}, "no train data"),
        (cnn_task, {"at": ("nowhere",)}, "the model has no module 'nowhere'"),
        (lambda: regression(), {}, "expected labels that number the class of each sample"),
    ],
)
def test_what_cannot_leave_early_is_told(task: object, parameters: dict, told: str) -> None:
    with pytest.raises(PassError, match=told):
        made(task(), **parameters)


def regression() -> Task:
    data = [(np.zeros((4, 1, 8, 8), np.float32), np.zeros((4, 4), np.float32))]
    return replace(cnn_task(), train=data, validate=data, metric="mse")


@pytest.mark.parametrize(
    "parameters",
    [{"exits": 0}, {"max_drop": -1}, {"share": 1.5}, {"confidence": "hope"}, {"epochs": 0}, {"steps": -1}],
)
def test_parameters_that_cannot_be_are_refused(parameters: dict) -> None:
    with pytest.raises(RecipeError, match=next(iter(parameters))):
        EarlyExit(**parameters)


def test_it_round_trips() -> None:
    step = replace(STEP, at=("layer1", "layer2"))
    document = {key: value for key, value in step.to_json().items() if key != "pass"}
    assert EarlyExit.from_parameters({**document, "at": ["layer1", "layer2"]}) == step
    assert tauten.Recipe(name="r", passes=(step,)).trains
