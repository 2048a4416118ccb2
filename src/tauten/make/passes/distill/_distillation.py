"""Learning from labels and from a teacher's answers at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from tauten.core.tensor import Arrays
from tauten.make.model.loss import Loss
from tauten.make.model.model import Model
from tauten.make.model.run import Tensors, call
from tauten.make.model.training.precision import Precision, computing_in, in_float32
from tauten.make.passes.distill._cache import AnswerCache
from tauten.make.passes.distill._heads import Head
from tauten.make.passes.distill._hints import Hints
from tauten.make.passes.distill._losses import decoupled, embedding_error, soft_targets, values_error

Method = Literal["soft", "decoupled"]

_FEATURE = "feature:"


@dataclass(frozen=True)
class Logits:
    """How class logits are learned: softened as a whole, or decoupled into ``alpha`` and ``beta`` times two parts."""

    method: Method = "soft"
    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0

    def error(
        self, head: Head, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        """How far the student's logits are from the teacher's."""
        if self.method == "soft":
            return soft_targets(student, teacher, self.temperature, head.axis)
        known = labels if head.labelled else None
        return decoupled(student, teacher, known, self.temperature, self.alpha, self.beta, head.axis)


@dataclass(frozen=True)
class Distillation:
    """The objective ``(1 - weight) * task loss + weight * distillation loss``; the second alone without labels.

    The distillation loss is the sum over ``heads``, each by its kind, and over ``teachers`` their mean, and
    ``hint_weight`` times the error of the hints, which are the first teacher's.
    """

    model: Model
    teachers: tuple[nn.Module, ...]
    loss: Loss
    heads: tuple[Head, ...]
    logits: Logits
    weight: float
    hints: Hints | None = None
    hint_weight: float = 1.0
    precision: Precision = "float32"
    cache: AnswerCache = field(default_factory=lambda: AnswerCache(0))

    def __call__(self, outputs: Tensors, inputs: Arrays, labels: torch.Tensor | None) -> torch.Tensor:
        device = next(iter(outputs.values())).device
        answers = self.cache(inputs, lambda: self._ask(inputs, device))
        distilled = self._from_answers(outputs, answers, labels)
        if labels is None:
            return distilled
        return (1 - self.weight) * self.loss(outputs, labels) + self.weight * distilled

    @contextmanager
    def watching(self, student: nn.Module) -> Iterator[None]:
        """What the hints look at in the student is seen meanwhile."""
        if self.hints is None:
            yield
            return
        with self.hints.watching(student):
            yield

    def to_notes(self) -> dict[str, Any]:
        """As JSON: what is learned of each output, from which features, and how often the teacher was spared."""
        return {
            "distilled": "logits" if any(head.kind == "logits" for head in self.heads) else "outputs",
            "outputs": {head.name: head.kind for head in self.heads},
            "hints": [point.name for point in self.hints.points] if self.hints else [],
            "teacher_cache": self.cache.to_notes(),
        }

    def _ask(self, inputs: Arrays, device: torch.device) -> Tensors:
        """Outputs and features of the teachers by name, prefixed with which of them."""
        found: Tensors = {}
        with torch.no_grad(), computing_in(self.precision, device):
            for index, teacher in enumerate(self.teachers):
                features: Tensors = {}
                if index == 0 and self.hints is not None:
                    answers, features = self.hints.features(teacher, self.model, inputs)
                else:
                    answers = call(teacher, self.model.inputs, self.model.outputs, inputs)
                wanted = {head.name: answers[head.name] for head in self.heads}
                found |= {f"{index}:{name}": answer for name, answer in in_float32(wanted).items()}
                found |= {f"{_FEATURE}{name}": feature for name, feature in features.items()}
        return found

    def _from_answers(self, outputs: Tensors, answers: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        terms = [
            self._error(head, outputs[head.name], answers[f"{index}:{head.name}"], labels)
            for index in range(len(self.teachers))
            for head in self.heads
        ]
        distilled = torch.stack(terms).sum() / len(self.teachers)
        if self.hints is None:
            return distilled
        features = {name.removeprefix(_FEATURE): value for name, value in answers.items() if name.startswith(_FEATURE)}
        return distilled + self.hint_weight * self.hints.error(features)

    def _error(
        self, head: Head, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        if head.kind == "logits":
            return self.logits.error(head, student, teacher, labels)
        return embedding_error(student, teacher) if head.kind == "embedding" else values_error(student, teacher)
