"""What each output of a model is, and how it is learned from a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import torch
from torch import nn

from tauten.errors import PassError
from tauten.make.model.loss import class_axis
from tauten.make.model.model import Model
from tauten.make.model.run import call, to_tensor
from tauten.make.model.task import Task
from tauten.make.model.training.randomness import randomness_kept

Kind = Literal["logits", "values", "embedding", "none"]
KINDS: tuple[str, ...] = get_args(Kind)

_BATCHES_LOOKED_AT = 20


@dataclass(frozen=True)
class Head:
    """One output: its kind, the axis of its classes where it has them, and whether the task's labels number those."""

    name: str
    kind: str
    axis: int = -1
    labelled: bool = False


def find_heads(model: Model, teacher: nn.Module, task: Task, given: Mapping[str, str]) -> tuple[Head, ...]:
    """The outputs that are learned: those of a kind that is ``given``, and by default every floating-point one.

    The first output is class logits where the task's integer labels number classes of it, unless the task has a loss of
    its own: then integer labels need not number classes, and softening what is no logits would be wrong. Every other is
    values. Raises ``PassError`` for an output that there is not, or where none is left to learn from.
    """
    unknown = sorted(set(given) - set(model.outputs))
    if unknown:
        raise PassError(f"outputs: the model has none named {unknown}; it has {list(model.outputs)}")
    answers, first, numbered = _look(model, teacher, task)
    heads = []
    for name, answer in answers.items():
        if not answer.is_floating_point():
            continue
        labelled = name == first and numbered is not None
        by_default = "logits" if labelled and task.loss is None else "values"
        kind = given.get(name, by_default)
        if kind == "logits" and answer.ndim < 2:
            raise PassError(f"outputs: {name} of shape {tuple(answer.shape)} has no axis of classes")
        axis = numbered if labelled and numbered is not None else _class_axis(answer)
        if kind != "none":
            heads.append(Head(name, kind, axis, labelled and kind == "logits"))
    if not heads:
        raise PassError("distillation: the model has no floating-point output to learn from")
    return tuple(heads)


def _class_axis(answer: torch.Tensor) -> int:
    """Where classes lie by custom: ``(batch, classes)``, tokens ``(batch, length, classes)``, pictures axis 1."""
    return -1 if answer.ndim <= 3 else 1


def _look(model: Model, teacher: nn.Module, task: Task) -> tuple[dict[str, torch.Tensor], str, int | None]:
    """A batch's answers, the first output's name, and its class axis by the first integer labels that are found."""
    answers: dict[str, torch.Tensor] = {}
    for what in ("train", "validate", "test", "calibrate"):
        if not task.has(what):
            continue
        data = task.data(what)
        with randomness_kept(data):
            for inputs, labels in islice(data, _BATCHES_LOOKED_AT):
                if answers and labels is None:
                    continue
                with torch.no_grad():
                    answers = call(teacher, model.inputs, model.outputs, inputs)
                if labels is not None:
                    first = next(iter(answers))
                    return answers, first, class_axis(answers[first], to_tensor(labels))
    return answers, next(iter(answers), ""), None
