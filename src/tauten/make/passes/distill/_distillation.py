"""Learning from labels and from a teacher's answers at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tauten.core.tensor import Arrays
from tauten.errors import PassError
from tauten.make.model.loss import Loss, class_axis, task_loss
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import Tensors, call, to_tensor
from tauten.make.model.task import Task
from tauten.make.model.training.precision import Precision, computing_in, in_float32
from tauten.make.passes.distill._losses import outputs_error, soft_targets


@dataclass(frozen=True)
class Distillation:
    """The objective ``(1 - weight) * task loss + weight * distillation loss``; the second alone without labels.

    ``axis`` holds the classes of the first output, or is ``None`` where that output is no class logits. The first
    output's logits are distilled as soft targets; every other floating-point output by its mean squared error.
    """

    model: Model
    teacher: nn.Module
    loss: Loss
    axis: int | None
    temperature: float
    weight: float
    precision: Precision = "float32"

    @classmethod
    def of(
        cls, model: Model, context: Context, temperature: float, weight: float, precision: Precision = "float32"
    ) -> Distillation:
        """Distil from the untouched module, whose outputs are class logits where the task's labels say so."""
        axis = _find_class_axis(model, context.reference, context.task)
        return cls(model, context.reference, task_loss(context.task), axis, temperature, weight, precision)

    @property
    def kind(self) -> str:
        """What is distilled, for the record."""
        return "outputs" if self.axis is None else "logits"

    def __call__(self, outputs: Tensors, inputs: Arrays, labels: torch.Tensor | None) -> torch.Tensor:
        device = next(iter(outputs.values())).device
        with torch.no_grad(), computing_in(self.precision, device):
            targets = in_float32(call(self.teacher, self.model.inputs, self.model.outputs, inputs))
        terms = [
            soft_targets(outputs[name], target, self.temperature, self.axis)
            if index == 0 and self.axis is not None
            else outputs_error(outputs[name], target)
            for index, (name, target) in enumerate(targets.items())
            if target.is_floating_point()
        ]
        if not terms:
            raise PassError("distillation: the model has no floating-point output to learn from")
        distilled = torch.stack(terms).sum()
        if labels is None:
            return distilled
        return (1 - self.weight) * self.loss(outputs, labels) + self.weight * distilled


def _find_class_axis(model: Model, teacher: nn.Module, task: Task) -> int | None:
    """Where the first output has classes, by the first integer labels found; a loss of the user's own rules it out.

    With a loss of one's own, integer labels need not number classes, and softening what is no logits would be wrong.
    """
    if task.loss is not None:
        return None
    for what in ("train", "validate", "test", "calibrate"):
        inputs, labels = next(iter(task.data(what))) if task.has(what) else ({}, None)
        if labels is not None:
            with torch.no_grad():
                outputs = call(teacher, model.inputs, model.outputs, inputs)
            return class_axis(next(iter(outputs.values())), to_tensor(labels))
    return None
