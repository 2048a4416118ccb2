"""Passes that distil learn from the task's teacher, where it has one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tauten
from tauten.errors import TaskError
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.digest import digest
from tauten.make.model.pass_ import Context, Pass
from tauten.make.passes import PASSES
from tauten.make.passes.distill._student import Learning
from tests.unit.train.problems import CLASSES, FEATURES, classify, clouds, in_batches, network, unlabelled


class Contrary(nn.Module):
    """Puts a task's classes one place further than they are, and counts how often it was asked."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.asked = 0

    def forward(self, point: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return self.module(point).roll(1, -1)


@pytest.fixture(scope="module")
def trained() -> tauten.Task:
    return classify(epochs=6).fit(0)


def agreement(one: nn.Module, other: nn.Module) -> float:
    points = torch.as_tensor(clouds(200, 7)[0])
    with torch.no_grad():
        return float((one(points).argmax(1) == other(points).argmax(1)).float().mean())


def taught(trained: tauten.Task, teacher: Any) -> tauten.Task:
    """Without labels, so that nobody else is learned from."""
    return classify(
        model=trained.model,
        train=unlabelled(160, 0),
        validate=in_batches(clouds(64, 2)[0], clouds(64, 2)[1]),
        teacher=teacher,
    )


@pytest.mark.parametrize("as_given", [lambda module: module, lambda module: lambda: module], ids=["module", "function"])
def test_the_teacher_is_learned_from_in_the_models_place(
    trained: tauten.Task, as_given: Callable[[nn.Module], Any]
) -> None:
    teacher = Contrary(to_model(trained).module)
    assert agreement(to_model(trained).module, teacher) < 0.1
    recovered = tauten.recover(taught(trained, as_given(teacher)), weight=1.0, epochs=20)
    assert agreement(recovered.module, teacher) > 0.9


DISTILLING = [name for name in PASSES.names() if issubclass(PASSES.get(name), Learning)]


def made(name: str) -> Pass:
    kind = PASSES.get(name)
    few: dict[str, Any] = {"epochs": 2}
    return kind.from_parameters({**few, "ratio": 0.5} if "ratio" in inspect.signature(kind).parameters else few)


def test_passes_that_distil_are_found() -> None:
    assert "distill.recover" in DISTILLING
    assert len(DISTILLING) >= 6


@pytest.mark.parametrize("name", DISTILLING)
def test_every_pass_that_distils_asks_the_teacher_alone(trained: tauten.Task, name: str) -> None:
    teacher = Contrary(network().eval())
    before = digest(teacher)
    task = taught(trained, teacher)
    model = to_model(task)
    reference = Contrary(model.module)
    context = Context(task, reference)
    apply(made(name), model, context)
    # More often than the look that every teacher is given: once for each batch, if answers are kept.
    assert teacher.asked >= 10
    assert digest(teacher) == before
    assert teacher.asked > 3 * reference.asked


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        (lambda: None, r"expected an nn\.Module, got a NoneType"),
        (lambda: nn.Linear(FEATURES, CLASSES + 1), r"expected the model's outputs, .*\(16, 3\).*, got .*\(16, 4\)"),
        (lambda: nn.Linear(FEATURES + 1, CLASSES), "does not run as the model does"),
        (lambda: 1 // 0, "the function that builds it failed: ZeroDivisionError"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(trained: tauten.Task, teacher: Any, told: str) -> None:
    with pytest.raises(TaskError, match=rf"teacher: {told}"):
        tauten.recover(taught(trained, teacher))


def test_a_teacher_is_a_module_or_builds_one(trained: tauten.Task) -> None:
    with pytest.raises(TaskError, match=r"teacher: expected an nn\.Module or a function"):
        taught(trained, "large")


def test_nobody_else_teaches_where_there_is_no_teacher(trained: tauten.Task) -> None:
    model = to_model(trained)
    assert Context(trained, model.module).teacher is model.module
