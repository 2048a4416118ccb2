"""Learns in stages, each student a little smaller than the one that teaches it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from tauten.errors import PassError
from tauten.make.model.apply import apply, seed_all
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Change, Context
from tauten.make.model.run import forward
from tauten.make.passes import PASSES
from tauten.make.passes.distill._reference import build_from, is_reference
from tauten.make.passes.distill._student import Learning

__all__ = ["Progressive"]

From = Literal["previous", "original", "both"]

_PRUNE = "prune.structured"


@dataclass(frozen=True)
class Progressive(Learning):
    """Distils through a row of students, of which the last is the model that comes out.

    A student that is much smaller than its teacher learns less from it than from one in between (teacher assistants:
    Mirzadeh et al., 2020). ``ratios`` are the shares of the original's channels that are gone after each stage: each
    student is the one before, pruned further (``criterion`` and ``round_to`` as in ``prune.structured``), which is
    where this departs from the source, whose students begin anew. ``students`` names functions that build modules
    instead, as ``package.module:function`` or ``FILE.py:function``: they begin as they are built.

    ``teacher`` says from whom each learns: the ``previous`` student, the ``original``, or ``both`` evenly; the first
    one learns from the original. How, ``Learning`` tells; ``epochs`` and ``steps`` are each stage's.
    """

    name: ClassVar[str] = "distill.progressive"
    drops: ClassVar[frozenset[str]] = frozenset({SPARSE})
    trains: ClassVar[bool] = True

    ratios: tuple[float, ...] = (0.25, 0.5)
    students: tuple[str, ...] = ()
    teacher: From = "previous"
    criterion: str = "l2"
    round_to: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(0 < one < 1 for one in self.ratios) and list(self.ratios) == sorted(set(self.ratios))
        if not rising or not (self.ratios or self.students):
            raise self._wrong("ratios", "rising shares above 0 and below 1")
        if not all(is_reference(text) for text in self.students):
            raise self._wrong("students", "package.module:function or FILE.py:function each")
        if self.teacher not in get_args(From):
            raise self._wrong("teacher", f"one of {', '.join(get_args(From))}")
        # Its own parameters are checked where it is built.
        PASSES.get(_PRUNE).from_parameters({"ratio": 0.5, "criterion": self.criterion, "round_to": self.round_to})

    def __call__(self, model: Model, context: Context) -> Change:
        """Raises ``PassError`` where the task has no train data, or a student answers otherwise than the model."""
        self.check_data(context.task, taught=True)
        stages: list[dict[str, Any]] = []
        number = len(self.students or self.ratios)
        previous, last = context.teacher, model
        for index, (what, student, notes) in enumerate(self._students(model, context)):
            within = replace(context, progress=_part(context, index, number))
            learnt = self.learn(student, within, self._teachers(previous, context.teacher))
            parameters = sum(one.numel() for one in student.module.parameters())
            stages.append({"student": what, "parameters": parameters, **notes, **learnt})
            previous, last = copy.deepcopy(student.module).eval().requires_grad_(False), student
        told = {"stages": stages, "loss_before": stages[0]["loss_before"], "loss_after": stages[-1]["loss_after"]}
        return Change(last.module, told)

    def _students(self, model: Model, context: Context) -> Iterator[tuple[str, Model, dict[str, Any]]]:
        """Each student when its turn has come: the pruned ones stand on what the one before has learnt."""
        for reference in self.students:
            seed_all(context.seed)
            student = model.but(module=build_from(reference))
            _check(reference, student, context)
            yield reference, student, {}
        if self.students:
            return
        gone, current = 0.0, model
        for ratio in self.ratios:
            share = 1 - (1 - ratio) / (1 - gone)
            parameters = {"ratio": share, "criterion": self.criterion, "round_to": self.round_to}
            current = apply(PASSES.get(_PRUNE).from_parameters(parameters), current, context)
            yield f"ratio {ratio:g}", current, {"pruned": _brief(current.history[-1].notes)}
            gone = ratio

    def _teachers(self, previous: nn.Module, original: nn.Module) -> tuple[nn.Module, ...]:
        if self.teacher == "original" or previous is original:
            return (original,)
        return (previous,) if self.teacher == "previous" else (previous, original)


def _check(reference: str, student: Model, context: Context) -> None:
    """``PassError`` for a student whose answers are not of the original's names and shapes."""
    example = next(iter(context.task.data("calibrate")))[0]
    expected = forward(context.reference, student.inputs, student.outputs, example)
    try:
        came = forward(student.module, student.inputs, student.outputs, example)
    except Exception as fault:
        raise PassError(f"students: {reference}: does not run: {type(fault).__name__}: {fault}") from fault
    for name, array in expected.items():
        if came[name].shape != array.shape:
            told = f"expected {name} of shape {array.shape} as the model has it, got {came[name].shape}"
            raise PassError(f"students: {reference}: {told}")


def _brief(notes: Any) -> dict[str, Any]:
    """What pruning says in one number or one reason a layer."""
    return {key: value for key, value in notes.items() if isinstance(value, int | float) or key == "refused"}


def _part(context: Context, index: int, number: int) -> Any:
    """Progress of one stage of several."""

    def told(what: str, share: float) -> None:
        context.progress(f"student {index + 1}/{number}, {what}", (index + share) / number)

    return told
