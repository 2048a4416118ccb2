"""Trains a task's model for the first time."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tauten.core.tensor import Arrays
from tauten.errors import PassError, TaskError, TautenError
from tauten.make.model.apply import seed_all
from tauten.make.model.build import build
from tauten.make.model.digest import code_of
from tauten.make.model.loss import task_loss
from tauten.make.model.pass_ import Progress, silent
from tauten.make.model.run import Tensors
from tauten.make.model.task import Data, Task
from tauten.make.model.train import Checkpoints, Objective, Trainer, Training
from tauten.make.model.training.checkpoint import Unwritable


def fit(task: Task, seed: int = 0, progress: Progress = silent, checkpoints: Path | None = None) -> Task:
    """The task with its model trained for ``task.epochs`` on ``task.train``; the task itself where that is 0.

    The best weights on ``validate`` are kept where it has labels. A module that the task holds is left as it was. With
    a folder for ``checkpoints``, a training that was killed goes on after its last whole epoch.
    Raises ``TaskError`` where the model cannot be trained.
    """
    if task.epochs == 0:
        return task
    seed_all(seed)
    module = copy.deepcopy(build(task)) if isinstance(task.model, nn.Module) else build(task)
    held_out = task.data("validate") if task.has("validate") else None
    if held_out is not None and not has_labels(held_out):
        held_out = None
    trainer = Trainer(
        inputs=task.inputs,
        outputs=task.outputs,
        training=Training(epochs=task.epochs, learning_rate=task.learning_rate),
        objective=labelled(task),
        seed=seed,
        progress=progress,
        checkpoints=None if checkpoints is None else Checkpoints(checkpoints, f"fit {code_of(task.loss)}"),
    )
    try:
        trainer(module, task.data("train"), held_out)
    except PassError as fault:
        raise TaskError(f"fit: {fault}") from fault
    except (TautenError, Unwritable):
        raise
    except Exception as fault:
        raise TaskError(f"fit: the model does not train: {type(fault).__name__}: {fault}") from fault
    return replace(task, model=module, epochs=0)


def has_labels(data: Data) -> bool:
    """Whether the first batch has labels."""
    return next(iter(data))[1] is not None


def labelled(task: Task) -> Objective:
    """The task's loss as an objective; ``TaskError`` for a batch without labels."""
    loss = task_loss(task)

    def objective(outputs: Tensors, inputs: Arrays, labels: torch.Tensor | None) -> torch.Tensor:
        if labels is None:
            raise TaskError("train: expected batches of (inputs, labels), got inputs without labels")
        return loss(outputs, labels)

    return objective
