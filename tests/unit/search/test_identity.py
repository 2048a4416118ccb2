from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tauten.core.target import Target
from tauten.make.model.build import to_model
from tauten.make.model.task import Task
from tauten.make.search.identity import identify_candidate, identify_task
from tauten.make.search.recipe import Recipe, pass_from_json
from tauten.run.measure.metrics import FunctionMetric
from tests.unit.optimize.task import Net, batches, task

TARGET = Target(name="t")
INT8 = Recipe("int8", (pass_from_json({"pass": "quantize.post_training"}),))


def key(brought: Task, origin: str = "") -> str:
    torch.manual_seed(0)
    return identify_task(brought, to_model(brought).module, 0, origin)


def test_the_same_task_has_the_same_key() -> None:
    assert key(task()) == key(task())


@pytest.mark.parametrize(
    "changes",
    [
        {"validate": batches(128, 9)},
        {"calibrate": batches(64, 9)},
        {"epochs": 3},
        {"learning_rate": 0.5},
        {"metric": "top5"},
        {"metric": lambda outputs, labels: 1.0},
        {"outputs": ("logits",)},
        {"loss": lambda outputs, labels: outputs["output"].mean()},
        {"teacher": Net()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_the_answer_changes_the_key(changes: dict[str, object]) -> None:
    assert key(replace(task(), **changes)) != key(task())  # type: ignore[arg-type]


def test_two_functions_are_told_apart_and_one_is_known_again() -> None:
    def metric(outputs: object, labels: object) -> float:
        return 1.0

    def other(outputs: object, labels: object) -> float:
        return 2.0

    assert key(replace(task(), metric=metric)) == key(replace(task(), metric=metric))
    other.__name__ = "metric"
    assert key(replace(task(), metric=metric)) != key(replace(task(), metric=other))
    wrapped = FunctionMetric(metric)
    assert key(replace(task(), metric=wrapped)) != key(replace(task(), metric=FunctionMetric(other)))
    assert key(replace(task(), metric=wrapped)) != key(replace(task(), metric=FunctionMetric(metric, better="lower")))


def test_one_weight_or_an_edited_task_file_is_another_task() -> None:
    module = task().build()
    before = key(replace(task(), model=module))
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += np.float32(1e-3)
    assert key(replace(task(), model=module)) != before
    assert key(task(), "x = 1") != key(task(), "x = 2")


def test_a_candidate_is_its_recipe_target_and_seed_whatever_it_is_called() -> None:
    renamed = replace(INT8, name="other")
    known = identify_candidate("task", INT8, TARGET, 0)
    assert identify_candidate("task", renamed, TARGET, 0) == known
    assert identify_candidate("task", Recipe("int8"), TARGET, 0) != known
    assert identify_candidate("task", INT8, Target(name="t", threads=2), 0) != known
    assert identify_candidate("task", INT8, TARGET, 1) != known
    assert identify_candidate("other", INT8, TARGET, 0) != known
