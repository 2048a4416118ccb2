"""What a student learns from a teacher: kinds of outputs, hints, kept answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.errors import PassError, RecipeError
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.passes.distill._cache import AnswerCache
from tauten.make.passes.distill._hints import find_hints
from tauten.make.passes.distill.recover import Recover
from tauten.make.search.recipe import pass_from_json
from tauten.testing.tiny import encoder_task, residual_task, two_inputs_task
from tests.unit.train.problems import CLASSES, FEATURES, classify, clouds, in_batches, network, shuffled, unlabelled


@pytest.fixture(scope="module")
def task() -> tauten.Task:
    return classify(epochs=6).fit(0)


def narrow() -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
    return nn.Sequential(*layers).eval()


def learn(task: tauten.Task, student: nn.Module, **parameters: Any) -> Model:
    original = to_model(task)
    return apply(Recover(**parameters), original.but(module=student), Context(task, original.module))


def notes(made: Model) -> dict[str, Any]:
    return dict(made.history[-1].notes)


def accuracy(module: nn.Module) -> float:
    points, labels = clouds(200, 7)
    return float((module(torch.as_tensor(points)).argmax(1).numpy() == labels).mean())


def test_decoupled_distillation_learns(task: tauten.Task) -> None:
    made = learn(task, narrow(), method="decoupled", weight=1.0, epochs=8)
    assert accuracy(made.module) > 0.95
    assert notes(made)["loss_after"] < 0.5 * notes(made)["loss_before"]
    soft = learn(task, narrow(), weight=1.0, epochs=8)
    assert soft.history[-1].after != made.history[-1].after


def test_labels_are_the_targets_of_decoupling(task: tauten.Task) -> None:
    points, labels = clouds(160, 0)
    wrong = classify(model=task.model, train=in_batches(points, (labels + 1) % CLASSES))
    parameters = {"method": "decoupled", "weight": 1.0, "beta": 0.0, "epochs": 1}
    assert (
        learn(wrong, narrow(), **parameters).history[-1].after != learn(task, narrow(), **parameters).history[-1].after
    )


class Heads(nn.Module):
    """Class scores, a number, an embedding and a choice, as a dict."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(FEATURES, 8)
        self.scores, self.number, self.embedding = nn.Linear(8, CLASSES), nn.Linear(8, 1), nn.Linear(8, 5)

    def forward(self, point: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.relu(self.body(point))
        scores = self.scores(hidden)
        return {
            "scores": scores,
            "number": self.number(hidden),
            "embedding": self.embedding(hidden),
            "choice": scores.argmax(1),
        }


def test_every_head_is_learned_by_its_kind() -> None:
    task = classify(model=Heads(0).eval(), train=unlabelled(160, 0), validate=unlabelled(32, 1))
    made = learn(task, Heads(1).eval(), epochs=20, outputs=(("scores", "logits"), ("embedding", "embedding")))
    assert notes(made)["outputs"] == {"scores": "logits", "number": "values", "embedding": "embedding"}
    points = torch.as_tensor(clouds(100, 5)[0])
    with torch.no_grad():
        theirs, ours, before = Heads(0)(points), made.module(points), Heads(1)(points)
    cosine = nn.functional.cosine_similarity
    assert cosine(ours["embedding"], theirs["embedding"]).mean() > 0.97
    assert cosine(before["embedding"], theirs["embedding"]).mean() < 0.5
    assert (ours["number"] - theirs["number"]).square().mean() < 0.1 * (
        before["number"] - theirs["number"]
    ).square().mean()
    assert (ours["scores"].argmax(1) == theirs["scores"].argmax(1)).float().mean() > 0.85


def test_a_head_that_is_none_is_not_learned() -> None:
    task = classify(model=Heads(0).eval(), train=unlabelled(160, 0), validate=None)
    student = Heads(1).eval()
    made = learn(task, student, epochs=1, outputs=(("number", "none"), ("embedding", "none")))
    assert notes(made)["outputs"] == {"scores": "logits"}
    assert torch.equal(made.module.number.weight, student.number.weight)
    assert not torch.equal(made.module.scores.weight, student.scores.weight)


def test_two_inputs_and_two_outputs_learn() -> None:
    task = two_inputs_task()
    made = learn(task, two_inputs_task(3).build(), epochs=2)
    assert notes(made)["outputs"] == {"scores": "logits"}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [((("nothing", "logits"),), "the model has none named"), ((("output", "none"),), "no floating-point output")],
)
def test_outputs_that_cannot_be_learned_are_told(task: tauten.Task, outputs: Any, message: str) -> None:
    with pytest.raises(PassError, match=message):
        learn(task, narrow(), outputs=outputs)


def test_labelled_and_unlabelled_batches_mix(task: tauten.Task) -> None:
    points, labels = clouds(160, 0)
    mixed: list[Any] = [points[:64], *in_batches(points[64:], labels[64:])]
    made = learn(classify(model=task.model, train=mixed), narrow(), epochs=10)
    assert notes(made)["distilled"] == "logits"
    assert notes(made)["samples"] == 1600
    assert accuracy(made.module) > 0.95


def feature_distance(module: nn.Module, teacher: nn.Module) -> float:
    """Mean squared difference of hidden features on points that neither has seen."""
    points = torch.as_tensor(clouds(200, 7)[0])
    with torch.no_grad():
        return float((module[:3](points) - teacher[:3](points)).square().mean())


def test_hints_bring_the_features_nearer(task: tauten.Task) -> None:
    teacher = to_model(task).module
    torch.manual_seed(5)
    student = network().eval()
    plain = learn(task, student, epochs=10)
    hinted = learn(task, student, epochs=10, hints=("2",), hint_weight=5.0)
    assert notes(hinted)["hints"] == ["2"]
    assert feature_distance(hinted.module, teacher) < 0.3 * feature_distance(plain.module, teacher)
    assert not hinted.module[2]._forward_hooks
    assert not teacher[2]._forward_hooks


def hint_error(student: nn.Module, task: tauten.Task) -> float:
    """How far the best linear map of the student's features stays from the teacher's."""
    original = to_model(task)
    inputs = next(iter(task.data("validate")))[0]
    hints = find_hints(("2",), original.but(module=student), original.module, inputs)
    _, features = hints.features(original.module, original, inputs)
    with torch.no_grad(), hints.watching(student):
        student(torch.as_tensor(inputs["point"]))
        return float(hints.error(features))


def test_features_of_another_width_come_nearer_by_a_map_that_is_thrown_away(task: tauten.Task) -> None:
    hinted = learn(task, narrow(), epochs=20, hints=("2",), hint_weight=5.0)
    assert hint_error(hinted.module, task) < 0.7 * hint_error(narrow(), task)
    assert sorted(hinted.module.state_dict()) == sorted(narrow().state_dict())


def test_hints_work_after_widths_were_pruned() -> None:
    task = replace(residual_task(), epochs=30).fit()
    cut = tauten.prune(task, ratio=0.5)
    made = tauten.recover(cut, task=task, epochs=10, hints=("auto",))
    found = notes(made)["hints"]
    assert 1 <= len(found) <= 3
    assert all(name in dict(task.build().named_modules()) for name in found)
    assert notes(made)["loss_after"] < notes(made)["loss_before"]


def test_hints_are_found_by_position_where_names_differ() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
            self.head = nn.Linear(6, 4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            hidden = torch.relu(self.deep(torch.relu(self.stem(image))))
            found: torch.Tensor = self.head(hidden.mean((2, 3)))
            return found

    task = residual_task()
    original = to_model(task)
    inputs = next(iter(task.data("train")))[0]
    hints = find_hints(("auto",), original.but(module=Other().eval()), original.module, inputs)
    assert [(point.teacher, point.student, point.axis) for point in hints.points] == [
        ("3", "stem", 1),
        ("4", "deep", 1),
    ]


def test_a_transformer_is_hinted_on_its_last_axis() -> None:
    task = encoder_task()
    made = learn(task, encoder_task(2).build(), epochs=1, hints=("narrow", "mix=norm1"), precision="bfloat16")
    assert notes(made)["hints"] == ["narrow", "mix=norm1"]


def test_a_map_begins_as_the_best_one(task: tauten.Task) -> None:
    original = to_model(task)
    inputs = next(iter(task.data("train")))[0]
    hints = find_hints(("2",), original.but(module=narrow()), original.module, inputs)
    student, (_, features) = narrow(), hints.features(original.module, original, inputs)
    with torch.no_grad(), hints.watching(student):
        student(torch.as_tensor(inputs["point"]))
        begins = float(hints.error(features))
        torch.manual_seed(0)
        hints.maps["0"] = nn.Linear(8, 16)
        anywhere = float(hints.error(features))
    assert begins < 0.5 * anywhere


@pytest.mark.parametrize(
    ("hints", "message"),
    [(("9",), "teacher has no module '9'"), (("2=none",), "student has no module 'none'"), (("0=3",), "0=3: expected")],
)
def test_hints_that_cannot_be_are_told(task: tauten.Task, hints: tuple[str, ...], message: str) -> None:
    wide = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES), nn.Unflatten(1, (1, CLASSES))).eval()
    student = nn.Sequential(wide, nn.Flatten()).eval() if hints == ("0=3",) else narrow()
    asked = ("0=0.3",) if hints == ("0=3",) else hints
    with pytest.raises(PassError, match=message.replace("0=3", "0=0.3")):
        learn(task, student, hints=asked)


def test_kept_answers_train_identically_and_are_counted(task: tauten.Task) -> None:
    kept = learn(task, narrow(), epochs=3)
    asked = learn(task, narrow(), epochs=3, cache_mib=0)
    assert kept.history[-1].after == asked.history[-1].after
    # 10 batches of training data and 4 of validation: asked once, then found, in 3 epochs and the look before them.
    assert notes(kept)["teacher_cache"]["misses"] == 14
    assert notes(kept)["teacher_cache"]["hits"] == 3 * 14 + 4 - 14
    assert notes(kept)["teacher_cache"]["bytes"] == (160 + 64) * CLASSES * 4
    assert notes(asked)["teacher_cache"] == {"hits": 0, "misses": 46, "bytes": 0}


@pytest.mark.parametrize("noise", [False, True])
def test_shuffled_and_augmented_data_is_never_answered_from_memory(task: tauten.Task, noise: bool) -> None:
    def source() -> Iterator[Any]:
        for points, labels in shuffled() if not noise else in_batches(*clouds(160, 0)):
            yield points + noise * np.random.standard_normal(points.shape).astype(np.float32), labels

    changing = classify(model=task.model, train=source)
    kept = learn(changing, narrow(), epochs=3)
    assert kept.history[-1].after == learn(changing, narrow(), epochs=3, cache_mib=0).history[-1].after
    found = notes(kept)["teacher_cache"]
    assert found["hits"] == 3 * 4  # validation alone
    assert found["bytes"] == 64 * CLASSES * 4


def test_memory_is_bounded() -> None:
    cache = AnswerCache(100)
    asked = []

    def ask(index: int) -> Any:
        asked.append(index)
        return {"output": torch.full((10,), float(index))}

    batches = [{"x": np.full(4, index)} for index in range(4)]
    for _ in range(2):
        for index, batch in enumerate(batches):
            assert cache(batch, lambda index=index: ask(index))["output"][0] == index  # type: ignore[misc]
    assert cache.bytes == 80
    assert asked == [0, 1, 2, 3, 2, 3]
    other = {"x": np.full((2, 2), 0)}  # the same bytes in another shape are another batch
    assert cache(other, lambda: ask(7))["output"][0] == 7


def test_a_teacher_that_draws_is_always_asked() -> None:
    cache = AnswerCache(2**20)
    batch = {"x": np.zeros(4)}
    first, second = (cache(batch, lambda: {"output": torch.rand(3)})["output"] for _ in range(2))
    assert not torch.equal(first, second)
    assert cache.hits == 0


def test_its_parameters_survive_json() -> None:
    made = Recover(outputs=(("a", "embedding"), ("b", "none")), hints=("layer1", "x=y"), method="decoupled", beta=2.0)
    assert pass_from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "hard"}, {"alpha": -1.0}, {"beta": float("nan")}, {"hint_weight": -1.0}, {"cache_mib": -1},
        {"outputs": (("a", "words"),)}, {"outputs": (("a", "none"), ("a", "logits"))}, {"hints": ("auto", "layer")},
        {"accumulate": 0}, {"patience": -1},
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"{next(iter(fields))}: expected"):
        Recover(**fields)


def test_a_network_of_one_layer_has_no_features_to_hint_at() -> None:
    torch.manual_seed(0)
    task = classify(model=nn.Linear(FEATURES, CLASSES))
    with pytest.raises(PassError, match="name two modules"):
        learn(task, nn.Sequential(nn.Linear(FEATURES, CLASSES)).eval(), hints=("auto",))


def test_the_seen_features_are_let_go(task: tauten.Task) -> None:
    original = to_model(task)
    inputs = next(iter(task.data("train")))[0]
    hints = find_hints(("2",), original, original.module, inputs)
    with hints.watching(network()) as _:
        pass
    assert hints.seen == {}


def test_hints_see_the_same_features_whatever_is_computed_twice_and_summed_up() -> None:
    task = replace(residual_task(), epochs=2).fit()
    parameters = {"epochs": 2, "hints": ("3", "4.norm1")}
    plain = learn(task, residual_task(3).build(), **parameters)
    twice = learn(task, residual_task(3).build(), recompute=True, **parameters)
    assert notes(twice)["recomputed"] == 2
    assert plain.history[-1].after == twice.history[-1].after
    pictures = [(inputs["image"], labels) for inputs, labels in task.data("train")]
    halves = [half for images, labels in pictures for half in in_batches(images, labels, 16)]
    summed = learn(replace(task, train=halves), residual_task(3).build(), epochs=2, hints=("3",), accumulate=2)
    assert notes(summed)["samples"] == notes(plain)["samples"]


def test_a_module_that_gives_several_is_hinted_by_the_first() -> None:
    class Several(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(FEATURES, width, batch_first=True), nn.Linear(width, CLASSES)

        def forward(self, point: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.layer(point[:, None, :])[0][:, 0])
            return found

    torch.manual_seed(0)
    made = learn(classify(model=Several(8).eval()), Several(4).eval(), epochs=1, hints=("layer",))
    assert notes(made)["hints"] == ["layer"]
