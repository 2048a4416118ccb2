"""Asks all exits, and the whole model, about held-out samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from tauten.core.tensor import Array
from tauten.errors import TaskError
from tauten.make.layers.early_exit import EarlyExits, confidence
from tauten.make.model.model import Model
from tauten.make.model.run import call
from tauten.make.model.task import Task
from tauten.make.passes.dynamic._points import Point, count_products
from tauten.make.passes.dynamic._thresholds import Held, temperature


def judge(module: EarlyExits, points: Sequence[Point], model: Model, task: Task) -> tuple[Held, str]:
    """What was found on ``validate``, or else on ``calibrate``, and in words what it was judged on.

    Sets the temperatures of ``module``. What is right is what labels say; without labels, what the whole model answers.
    """
    split = "validate" if task.has("validate") else "calibrate"
    scores, labels = _ask(module, model, task, split)
    whole = scores[-1]
    truth = whole.argmax(axis=1) if labels is None else labels
    classes = whole.shape[1]
    exact = np.eye(classes)[np.clip(truth, 0, classes - 1)]
    sure = []
    for index, answers in enumerate(scores[:-1]):
        module.temperatures[index] = temperature(answers, exact)
        softened = torch.from_numpy(answers) / module.temperatures[index].cpu()
        sure.append(confidence(softened, module.confidence).numpy())
    right = scores.argmax(axis=2) == truth
    total = max(point.products / point.share for point in points)
    heads = [count_products(head, 1, *point.shape) / total for head, point in zip(module.heads, points, strict=True)]
    held = Held(
        sure=np.stack(sure),
        right=right[:-1],
        whole=right[-1],
        costs=np.array([*(point.share for point in points), 1.0]),
        heads=np.array(heads),
    )
    against = "labels" if labels is not None else "answers of the whole model"
    return held, f"{against} of {split}, {len(truth)} samples"


class _All(nn.Module):
    """The scores of each exit, then those of the whole model, as ``(exits + 1, batch, classes)``."""

    def __init__(self, exits: EarlyExits) -> None:
        super().__init__()
        self.exits = exits

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        scores, answer = self.exits.all_scores(*inputs)
        return torch.stack([*scores, answer])


def _ask(module: EarlyExits, model: Model, task: Task, split: str) -> tuple[Array, Array | None]:
    """Scores ``(exits + 1, samples, classes)``, and the labels ``(samples,)`` where every batch has them."""
    scores: list[Array] = []
    truth: list[Array] = []
    with torch.inference_mode():
        for inputs, labels in task.data(split):
            (found,) = call(_All(module), model.inputs, ("scores",), inputs).values()
            scores.append(found.float().cpu().numpy())
            if labels is not None:
                truth.append(labels.reshape(-1).astype(np.int64))
    together = np.concatenate(scores, axis=1)
    if len(truth) < len(scores):
        return together, None
    known = np.concatenate(truth)
    if len(known) != together.shape[1]:
        raise TaskError(f"{split}: expected one label a sample, got {len(known)} for {together.shape[1]} samples")
    return together, known
