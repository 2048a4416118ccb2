from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tauten
from tauten.errors import PassError, RecipeError
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.passes.distill._reference import build_from, refer_to
from tauten.make.passes.distill.progressive import Progressive
from tauten.make.passes.distill.recover import Recover
from tauten.make.search.recipe import pass_from_json
from tests.unit.train import students
from tests.unit.train.problems import classify, clouds

HERE = "tests.unit.train.students"


@pytest.fixture(scope="module")
def task() -> tauten.Task:
    return classify(epochs=6).fit(0)


def stages(made: Model) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = made.history[-1].notes["stages"]
    return found


def accuracy(module: nn.Module) -> float:
    points, labels = clouds(200, 7)
    return float((module(torch.as_tensor(points)).argmax(1).numpy() == labels).mean())


def test_students_are_pruned_further_at_each_stage(task: tauten.Task) -> None:
    made = tauten.distill(task, ratios=(0.25, 0.5, 0.75), epochs=4)
    widths = [(stage["student"], stage["parameters"]) for stage in stages(made)]
    # Of 16 hidden channels 12, 8 and 4 are left, of 6 + 1 numbers in, 2 of the norm, and 3 out each; and 3 biases.
    assert widths == [("ratio 0.25", 12 * 12 + 3), ("ratio 0.5", 8 * 12 + 3), ("ratio 0.75", 4 * 12 + 3)]
    assert made.module[0].out_features == 4
    assert accuracy(made.module) > 0.95
    assert not any(parameter.grad is not None for parameter in made.module.parameters())


def test_students_of_the_users_learn_one_from_the_other(task: tauten.Task) -> None:
    made = tauten.distill(task, students=[students.middle, students.Small], epochs=12)
    assert [stage["student"] for stage in stages(made)] == [f"{HERE}:middle", f"{HERE}:Small"]
    assert isinstance(made.module, students.Small)
    assert accuracy(made.module) > 0.9
    assert all(stage["loss_after"] < stage["loss_before"] for stage in stages(made))
    assert all(parameter.requires_grad for parameter in made.module.parameters())


def test_a_file_of_students_can_be_named(task: tauten.Task, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from torch import nn\n\ndef net():\n    return nn.Linear(6, 3)\n")
    made = tauten.distill(task, students=[f"{file}:net"], epochs=2)
    assert isinstance(made.module, nn.Linear)
    step = Progressive(students=(f"{file}:net",), epochs=2)
    assert pass_from_json(step.to_json()) == step


def watched(monkeypatch: pytest.MonkeyPatch, task: tauten.Task, teacher: str) -> list[list[str]]:
    """Which teachers each stage had."""
    original = to_model(task)
    seen: list[list[str]] = []
    learn = Progressive.learn

    def spy(self: Any, student: Model, context: Context, teachers: tuple[nn.Module, ...]) -> dict[str, Any]:
        seen.append(["original" if one is original.module else type(one).__name__ for one in teachers])
        assert not any(one.training for one in teachers)
        return learn(self, student, context, teachers)

    monkeypatch.setattr(Progressive, "learn", spy)
    step = Progressive(students=(f"{HERE}:Small", f"{HERE}:middle"), teacher=teacher, epochs=1)  # type: ignore[arg-type]
    apply(step, original, Context(task, original.module))
    return seen


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ("previous", [["original"], ["Small"]]),
        ("original", [["original"], ["original"]]),
        ("both", [["original"], ["Small", "original"]]),
    ],
)
def test_each_learns_from_whom_it_shall(
    monkeypatch: pytest.MonkeyPatch, task: tauten.Task, teacher: str, expected: list[list[str]]
) -> None:
    assert watched(monkeypatch, task, teacher) == expected


def test_one_stage_is_pruning_and_recovery(task: tauten.Task) -> None:
    staged = tauten.distill(task, ratios=(0.5,), epochs=2, seed=3)
    by_hand = tauten.recover(tauten.prune(task, ratio=0.5, seed=3), task=task, epochs=2, seed=3)
    points = torch.as_tensor(clouds(20, 1)[0])
    assert torch.equal(staged.module(points), by_hand.module(points))


def test_a_killed_row_of_students_goes_on_in_its_stage(task: tauten.Task, tmp_path: Path) -> None:
    original = to_model(task)

    def stop(what: str, share: float) -> None:
        if what.startswith("student 2/2, epoch 3"):
            raise KeyboardInterrupt

    step = Progressive(epochs=4)
    context = Context(task, original.module, checkpoints=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        apply(step, original, replace(context, progress=stop))
    made = apply(step, original, context)
    assert [stage["resumed"] for stage in stages(made)] == [4, 2]
    expected = apply(step, original, replace(context, checkpoints=None))
    assert made.history[-1].after == expected.history[-1].after


def test_a_recovery_that_was_interrupted_goes_on_by_the_same_call(task: tauten.Task, tmp_path: Path) -> None:
    first = tauten.recover(task, epochs=2, checkpoints=tmp_path)
    again = tauten.recover(task, epochs=2, checkpoints=tmp_path)
    assert (first.history[-1].notes["resumed"], again.history[-1].notes["resumed"]) == (0, 2)
    assert first.history[-1].after == again.history[-1].after
    assert tauten.recover(task, epochs=2, weight=0.1, checkpoints=tmp_path).history[-1].notes["resumed"] == 0


def test_hints_have_a_map_of_their_own_at_each_stage(task: tauten.Task, tmp_path: Path) -> None:
    original = to_model(task)
    context = Context(task, original.module, checkpoints=tmp_path)
    made = apply(Progressive(epochs=2, hints=("2",)), original, context)
    assert [stage["hints"] for stage in stages(made)] == [["2"], ["2"]]
    again = apply(Progressive(epochs=2, hints=("2",)), original, context)
    assert again.history[-1].after == made.history[-1].after


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "AttributeError"),
        ("NOT_A_FUNCTION", "TypeError"),
        ("nothing", "expected an nn.Module, got a NoneType"),
        ("failing", "ValueError: no such width"),
    ],
)
def test_students_that_cannot_be_built_are_named(name: str, message: str) -> None:
    with pytest.raises(PassError, match=f"{HERE}:{name}: {message}"):
        build_from(f"{HERE}:{name}")


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(PassError, match=r"none\.py:net: FileNotFoundError"):
        build_from("none.py:net")


def test_a_student_that_answers_otherwise_is_refused(task: tauten.Task) -> None:
    with pytest.raises(PassError, match=r"students:wrong: expected output of shape \(16, 3\) .* got \(16, 4\)"):
        tauten.distill(task, students=[students.wrong], epochs=1)


def test_only_functions_that_can_be_found_again_are_taken() -> None:
    assert refer_to(students.Small) == f"{HERE}:Small"
    for build in (lambda: students.Small(), students.Small().forward, students.Small()):
        with pytest.raises(RecipeError, match="expected functions without arguments at the top of a module"):
            refer_to(build)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratios": (0.5, 0.25)}, "ratios: expected rising"),
        ({"ratios": (0.0, 0.5)}, "ratios: expected rising"),
        ({"ratios": ()}, "ratios: expected rising"),
        ({"students": ("nowhere",)}, "students: expected package.module:function"),
        ({"teacher": "nobody"}, "teacher: expected one of previous, original, both"),
        ({"criterion": "beauty"}, "criterion"),
        ({"round_to": 0}, "prune.structured: round_to"),
        ({"epochs": 0}, "epochs: expected 1 or more"),
    ],
)
def test_parameters_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace(".", r"\.")):
        Progressive(**fields)


def test_what_it_learns_by_is_what_recovery_learns_by() -> None:
    shared = set(Recover.__dataclass_fields__) - {"distill"}
    assert shared < set(Progressive.__dataclass_fields__)
