"""Wins back what earlier passes lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Change, Context
from tauten.make.passes.distill._student import Learning

__all__ = ["Recover"]


@dataclass(frozen=True)
class Recover(Learning):
    """Trains the model on, on labels, on the answers of the original (knowledge distillation), or on both.

    ``distill`` says whether the original teaches; how, ``Learning`` tells. Weights that a pruning pass set to zero stay
    zero. The best weights on held-out data are kept, so that the loss there never ends above where it began.
    """

    name: ClassVar[str] = "distill.recover"
    trains: ClassVar[bool] = True

    distill: bool = True

    def __call__(self, model: Model, context: Context) -> Change:
        """Train ``model.module`` in place. Raises ``PassError`` where there is neither a label nor a teacher."""
        task = context.task
        self.check_data(task, taught=self.distill)
        teachers = (context.teacher,) if self.distill else ()
        return Change(model.module, self.learn(model, context, teachers, keep_zeros=SPARSE in model.facts))
