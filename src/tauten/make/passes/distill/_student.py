"""What every pass that distils shares: its parameters, and how a student is trained with them."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from torch import nn

from tauten.errors import PassError, RecipeError
from tauten.make.model.fit import has_labels, labelled
from tauten.make.model.loss import task_loss
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context, Pass
from tauten.make.model.task import Data, Task
from tauten.make.model.train import OnStep, Precision, Trainer, Training, checkpoints_of
from tauten.make.model.training.randomness import randomness_kept
from tauten.make.passes.distill._cache import AnswerCache
from tauten.make.passes.distill._distillation import Distillation, Logits, Method
from tauten.make.passes.distill._heads import KINDS, find_heads
from tauten.make.passes.distill._hints import find_hints


@dataclass(frozen=True)
class Learning(Pass):
    """How a student learns from a teacher, from labels, or from both.

    The teacher is the original, or in its place the one that the task names.
    The loss is ``(1 - weight) * task loss + weight * distillation loss``; batches without labels use the second alone.
    The first output is class logits where integer labels number its classes: softened by ``temperature`` (Hinton,
    Vinyals, Dean 2015), or with ``method="decoupled"`` in two parts that ``alpha`` and ``beta`` weigh (Zhao et al.,
    2022). Others are learned as numbers, by their mean squared error. ``outputs`` says otherwise, as ``(name, kind)``
    with the kinds ``logits``, ``values``, ``embedding`` (by cosine and pairwise distances: Park et al., 2019) and
    ``none``. ``hints`` names modules whose features are learned too, ``("auto",)`` three of them by their position
    (Romero et al., 2015), for ``hint_weight``. The teacher is asked once for each batch that comes again, for as much
    as ``cache_mib`` hold.

    ``steps`` asks for more epochs where ``epochs`` of them have fewer steps: a small data set needs more walks.
    ``learning_rate`` is the peak; default: the task's. ``precision`` is what products and convolutions are computed in
    while training, the teacher's too; the weights stay float32. ``accumulate`` batches make one step, ``recompute``
    trades time for memory in the blocks that are found, or in modules by name; ``max_memory_mib`` divides batches until
    the measured peak holds; ``patience`` ends training after so many epochs without a better one (0: never).
    """

    fewest_epochs: ClassVar[int] = 1
    """Of ``epochs``; 0 for a pass that can do without training."""

    epochs: int = 5
    steps: int = 0
    learning_rate: float | None = None
    temperature: float = 4.0
    weight: float = 0.5
    method: Method = "soft"
    alpha: float = 1.0
    beta: float = 8.0
    outputs: tuple[tuple[str, str], ...] = ()
    hints: tuple[str, ...] = ()
    hint_weight: float = 1.0
    cache_mib: int = 256
    precision: Precision = "float32"
    accumulate: int = 1
    recompute: bool | tuple[str, ...] = False
    max_memory_mib: float | None = None
    patience: int = 0

    def __post_init__(self) -> None:
        fewest = {"epochs": self.fewest_epochs, "steps": 0, "cache_mib": 0, "accumulate": 1, "patience": 0}
        for name, least in fewest.items():
            if getattr(self, name) < least:
                raise self._wrong(name, f"{least} or more")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise self._wrong("learning_rate", "a number above 0")
        if self.max_memory_mib is not None and not 0 < self.max_memory_mib < math.inf:
            raise self._wrong("max_memory_mib", "a number above 0")
        if not 0 < self.temperature < math.inf:
            raise self._wrong("temperature", "a number above 0")
        if not 0 <= self.weight <= 1:
            raise self._wrong("weight", "a number from 0 to 1")
        for name in ("alpha", "beta", "hint_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise self._wrong(name, "a number of 0 or more")
        for name, known in (("method", get_args(Method)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise self._wrong(name, f"one of {', '.join(known)}")
        named = [name for name, _ in self.outputs]
        if len(set(named)) < len(named) or any(kind not in KINDS for _, kind in self.outputs):
            raise self._wrong("outputs", f"each output once, with a kind of {', '.join(KINDS)}")
        if len(set(self.hints)) < len(self.hints) or ("auto" in self.hints and len(self.hints) > 1):
            raise self._wrong("hints", 'different names, or ("auto",) alone')

    def learn(
        self,
        student: Model,
        context: Context,
        teachers: tuple[nn.Module, ...],
        keep_zeros: bool = False,
        on_step: OnStep | None = None,
        settled: float = 0.0,
        training: Training | None = None,
    ) -> dict[str, Any]:
        """Train ``student.module`` in place; without ``teachers`` from labels alone. Returns notes.

        ``keep_zeros``, ``on_step`` and ``settled`` are the trainer's; vectors with zeros that passes made are held too.
        ``training`` is another than the parameters tell.
        """
        task = context.task
        distillation = self._distillation(student, task, teachers) if teachers else None
        trainer = Trainer(
            inputs=student.inputs,
            outputs=student.outputs,
            training=training or self.training(task),
            objective=distillation or labelled(task),
            seed=context.seed,
            progress=context.progress,
            teachers=teachers,
            companion=distillation.hints if distillation else None,
            checkpoints=checkpoints_of(context, self, teachers),
        )
        with distillation.watching(student.module) if distillation else nullcontext():
            trained = trainer(
                student.module,
                task.data("train"),
                self._held_out(task, teachers),
                keep_zeros=keep_zeros,
                held=student.held(),
                on_step=on_step,
                settled=settled,
            )
        return {**trained.to_notes(), **(distillation.to_notes() if distillation else {"distilled": None})}

    def training(self, task: Task) -> Training:
        """What the parameters tell of the training itself."""
        return Training(
            epochs=self.epochs,
            steps=self.steps,
            learning_rate=self.learning_rate or task.learning_rate,
            precision=self.precision,
            accumulate=self.accumulate,
            recompute=self.recompute,
            max_memory_mib=self.max_memory_mib,
            patience=self.patience,
        )

    def check_data(self, task: Task, *, taught: bool) -> None:
        """``PassError`` where the task has no train data, or none to learn from: no labels, and not ``taught``."""
        if not task.has("train"):
            raise PassError(f"{self.name}: trains, but the task has no train data; give tauten.Task(..., train=...)")
        if not taught and not has_labels(task.data("train")):
            raise PassError(f"{self.name}: train has no labels and distill is off, so there is nothing to learn from")

    def _distillation(self, student: Model, task: Task, teachers: tuple[nn.Module, ...]) -> Distillation:
        train = task.data("train")
        with randomness_kept(train):
            inputs, _ = next(iter(train))
        return Distillation(
            model=student,
            teachers=teachers,
            loss=task_loss(task),
            heads=find_heads(student, teachers[0], task, dict(self.outputs)),
            logits=Logits(self.method, self.temperature, self.alpha, self.beta),
            weight=self.weight,
            hints=find_hints(self.hints, student, teachers[0], inputs) if self.hints else None,
            hint_weight=self.hint_weight,
            precision=self.precision,
            cache=AnswerCache(self.cache_mib * 2**20),
        )

    def _held_out(self, task: Task, teachers: tuple[nn.Module, ...]) -> Data | None:
        """What the best epoch is chosen on: ``validate``, or else ``calibrate``, where a teacher can judge it."""
        if task.has("validate") and (teachers or has_labels(task.data("validate"))):
            return task.data("validate")
        if not teachers:
            return None
        calibrate = task.data("calibrate")
        return Data(lambda: (inputs for inputs, _ in calibrate), task.inputs, "calibrate")

    def _wrong(self, name: str, rule: str) -> RecipeError:
        return RecipeError(f"{self.name}: {name}: expected {rule}, got {getattr(self, name)!r}")
