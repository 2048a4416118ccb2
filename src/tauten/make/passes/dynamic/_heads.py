"""Trains the heads of early exits: on what the model computes anyway, or together with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import torch
from torch import nn

from tauten.core.tensor import Arrays, TensorSpec
from tauten.make.layers.early_exit import EarlyExits, PlaneHead, TokenHead, watch
from tauten.make.model.loss import Loss, task_loss
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context, Pass
from tauten.make.model.run import Tensors, call, name_outputs, to_tensor
from tauten.make.model.task import Batch, Data
from tauten.make.model.train import Objective, Trained, Trainer, Training, checkpoints_of
from tauten.make.model.training.precision import Precision, channels_last, computing_in
from tauten.make.passes.distill._losses import soft_targets
from tauten.make.passes.dynamic._points import Point

_TEMPERATURE: Final = 2.0
_DISTILLED: Final = 0.5
"""How much of the loss is distillation from the whole model; all of it where there are no labels."""

_FEWEST, _MOST = 16, 64  # what a head may be wide
_LATER: Final = "later"


def make_head(point: Point, classes: int, convolves: bool) -> nn.Module:
    """A head for features of that shape; ``convolves`` tells ``(channels, length)`` from ``(tokens, width)``."""
    spaced = len(point.shape) > 2 or (len(point.shape) == 2 and convolves)
    features = point.shape[0] if spaced else point.shape[-1]
    width = min(_MOST, max(_FEWEST, features))
    if spaced:
        return PlaneHead(features, len(point.shape) - 1, classes, width)
    return TokenHead(features, len(point.shape) == 2, classes, width)


def train_heads(module: EarlyExits, model: Model, context: Context, training: Training) -> Trained:
    """Train the heads alone, on features of the model as it is: its own answers stay what they were.

    ``model`` tells the borders that ``module`` has. Works in place.
    """
    task = context.task
    heads = _Heads(module.heads)
    walk = _Features(module, model, task.data("train"), training.precision)
    inputs = _specs(next(iter(walk))[0])
    trainer = Trainer(
        inputs=inputs,
        outputs=tuple(_exit(index) for index in range(len(module.heads))),
        training=training,
        objective=_of_heads(task_loss(task), model.outputs[0]),
        seed=context.seed,
        progress=context.progress,
    )
    validate = None
    if task.has("validate"):
        validate = Data(_Features(module, model, task.data("validate"), training.precision), inputs, "validate")
    with channels_last(training.precision, lambda: next(iter(walk)), module.model):
        return trainer(heads, Data(walk, inputs, "train"), validate)


def train_together(module: EarlyExits, model: Model, context: Context, training: Training, step: Pass) -> Trained:
    """Train the model and its heads at once, on labels and on the answers that the model gave before. In place."""
    task = context.task
    teacher = copy.deepcopy(module.model).eval()
    names = (*(_exit(index) for index in range(len(module.heads))), _LATER)
    loss, output = task_loss(task), model.outputs[0]

    def objective(outputs: Tensors, inputs: Arrays, labels: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            targets = next(iter(call(teacher, model.inputs, model.outputs, inputs).values()))
        return _sum(outputs, targets.float(), labels, loss, output)

    trainer = Trainer(
        inputs=model.inputs,
        outputs=names,
        training=training,
        objective=objective,
        seed=context.seed,
        progress=context.progress,
        teachers=(teacher,),
        checkpoints=checkpoints_of(context, step, (teacher,)),
    )
    return trainer(_Together(module), task.data("train"), task.data("validate") if task.has("validate") else None)


class _Heads(nn.Module):
    """The heads on features that are given; what else is given is not theirs."""

    def __init__(self, heads: nn.ModuleList) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, *features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(head(given) for head, given in zip(self.heads, features, strict=False))


class _Together(nn.Module):
    """All answers, those of the exits first."""

    def __init__(self, exits: EarlyExits) -> None:
        super().__init__()
        self.exits = exits

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores, answer = self.exits.all_scores(*inputs)
        return (*scores, answer)


class _Features:
    """Batches of what the exits see, and of the whole model's answers, with the labels; walked as often as asked."""

    def __init__(self, module: EarlyExits, model: Model, data: Data, precision: Precision) -> None:
        self._module = module
        self._model = model
        self._data = data
        self._precision = precision

    def __iter__(self) -> Iterator[Batch]:
        body, paths = self._module.model, self._module.paths
        device = next((tensor.device for tensor in body.parameters()), torch.device("cpu"))
        for arrays, labels in self._data:
            given = [to_tensor(arrays[spec.name]).to(device) for spec in self._model.inputs]
            with torch.inference_mode(), computing_in(self._precision, device):
                # Copied: what comes after in the model may overwrite them in place.
                seen, returned = watch(body, paths, given, lambda _, features: features.float().cpu().numpy().copy())
            later = next(iter(name_outputs(returned).values()))
            named = {_exit(index): features for index, features in enumerate(seen)}
            yield {**named, _LATER: later.float().cpu().numpy()}, labels

    def __len__(self) -> int:
        source = self._data.source() if callable(self._data.source) else self._data.source
        try:
            return len(source)  # type: ignore[arg-type]
        except TypeError:
            return sum(1 for _ in source)


def _of_heads(loss: Loss, output: str) -> Objective:
    def objective(outputs: Tensors, inputs: Arrays, labels: torch.Tensor | None) -> torch.Tensor:
        targets = torch.from_numpy(np.asarray(inputs[_LATER])).to(next(iter(outputs.values())).device)
        return _sum(outputs, targets, labels, loss, output)

    return objective


def _sum(outputs: Tensors, targets: torch.Tensor, labels: torch.Tensor | None, loss: Loss, output: str) -> torch.Tensor:
    """The losses of all answers together, each against labels and ``targets``, scores ``(batch, classes)``."""
    total = torch.zeros((), device=targets.device)
    for scores in outputs.values():
        distilled = soft_targets(scores, targets, _TEMPERATURE)
        if labels is None:
            total = total + distilled
        else:
            total = total + (1 - _DISTILLED) * loss({output: scores}, labels) + _DISTILLED * distilled
    return total


def _specs(first: Mapping[str, np.ndarray]) -> tuple[TensorSpec, ...]:
    """Features as inputs: their number of channels is known, what they are spread over may differ between batches."""
    return tuple(
        TensorSpec(name=name, shape=("batch", *(f"{name}_{axis}" for axis in range(1, array.ndim))))
        for name, array in first.items()
    )


def _exit(index: int) -> str:
    return f"exit_{index}"
