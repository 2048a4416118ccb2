"""Wins back what earlier passes lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, get_args

from tauten.errors import PassError, RecipeError
from tauten.make.model.fit import has_labels, labelled
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.task import Data, Task
from tauten.make.model.train import Trainer, Training, checkpoints_of
from tauten.make.model.training.precision import Precision
from tauten.make.passes.distill._distillation import Distillation

__all__ = ["Recover"]


@dataclass(frozen=True)
class Recover(Pass):
    """Trains the model on, on labels, on the answers of the original (knowledge distillation), or on both.

    With ``distill``, the loss is ``(1 - weight) * task loss + weight * distillation loss``; unlabelled batches use the
    second alone. Class logits are distilled as soft targets at ``temperature`` (Hinton, Vinyals, Dean 2015), other
    outputs by their mean squared error. Weights that a pruning pass set to zero stay zero. The best weights on held-out
    data are kept, so that the loss there never ends above where it began.

    ``steps`` asks for more epochs where ``epochs`` of them have fewer steps: a small data set needs more walks.
    ``learning_rate`` is the peak; default: the task's. ``precision`` is what products and convolutions are computed in
    while training, the teacher's too; the weights stay float32. ``accumulate`` batches make one step, ``recompute``
    trades time for memory, ``patience`` ends training after so many epochs without a better one (0: never).
    """

    name: ClassVar[str] = "distill.recover"
    trains: ClassVar[bool] = True

    epochs: int = 5
    steps: int = 0
    learning_rate: float | None = None
    distill: bool = True
    temperature: float = 4.0
    weight: float = 0.5
    precision: Precision = "float32"
    accumulate: int = 1
    recompute: bool = False
    patience: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise RecipeError(f"{self.name}: epochs: expected at least 1, got {self.epochs}")
        if self.steps < 0:
            raise RecipeError(f"{self.name}: steps: expected 0 or more, got {self.steps}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise RecipeError(f"{self.name}: learning_rate: expected a number above 0, got {self.learning_rate}")
        if not 0 < self.temperature < math.inf:
            raise RecipeError(f"{self.name}: temperature: expected a number above 0, got {self.temperature}")
        if not 0 <= self.weight <= 1:
            raise RecipeError(f"{self.name}: weight: expected a number from 0 to 1, got {self.weight}")
        if self.accumulate < 1:
            raise RecipeError(f"{self.name}: accumulate: expected at least 1, got {self.accumulate}")
        if self.patience < 0:
            raise RecipeError(f"{self.name}: patience: expected 0 or more, got {self.patience}")
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise RecipeError(f"{self.name}: precision: expected one of {known}, got {self.precision!r}")

    def __call__(self, model: Model, context: Context) -> Change:
        """Train ``model.module`` in place. Raises ``PassError`` where there is neither a label nor a teacher."""
        task = context.task
        if not task.has("train"):
            raise PassError(f"{self.name}: trains, but the task has no train data; give tauten.Task(..., train=...)")
        if not self.distill and not has_labels(task.data("train")):
            raise PassError(f"{self.name}: train has no labels and distill is off, so there is nothing to learn from")
        distillation = (
            Distillation.of(model, context, self.temperature, self.weight, self.precision) if self.distill else None
        )
        trainer = Trainer(
            inputs=model.inputs,
            outputs=model.outputs,
            training=Training(
                epochs=self.epochs,
                steps=self.steps,
                learning_rate=self.learning_rate or task.learning_rate,
                precision=self.precision,
                accumulate=self.accumulate,
                recompute=self.recompute,
                patience=self.patience,
            ),
            objective=distillation or labelled(task),
            seed=context.seed,
            progress=context.progress,
            teachers=(context.reference,) if self.distill else (),
            checkpoints=checkpoints_of(context, self),
        )
        trained = trainer(model.module, task.data("train"), self._held_out(task), keep_zeros=SPARSE in model.facts)
        return Change(model.module, {**trained.to_notes(), "distilled": distillation and distillation.kind})

    def _held_out(self, task: Task) -> Data | None:
        """What the best epoch is chosen on: ``validate``, or else ``calibrate``, where a teacher can judge it."""
        if task.has("validate") and (self.distill or has_labels(task.data("validate"))):
            return task.data("validate")
        if not self.distill:
            return None
        calibrate = task.data("calibrate")
        return Data(lambda: (inputs for inputs, _ in calibrate), task.inputs, "calibrate")
