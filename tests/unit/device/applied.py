"""A pass applied to a module of one's own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from torch import nn

import tauten
from tauten.core.tensor import Arrays
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context, Pass
from tauten.make.model.run import forward


def task_of(module: nn.Module, *shape: int, rows: int = 8, scale: float = 1.0) -> tauten.Task:
    """A task whose input ``x (batch, *shape)`` is drawn from a normal distribution of that scale."""
    drawn = np.random.default_rng(0).standard_normal((rows, *shape)) * scale
    data = [{"x": drawn.astype(np.float32)}]
    spec = tauten.TensorSpec(name="x", shape=("batch", *shape))
    return tauten.Task(model=module.eval(), inputs=(spec,), calibrate=data)


def change(step: Pass, task: tauten.Task) -> tuple[Model, Model, dict[str, Any]]:
    """The model before, the model after, and the notes."""
    model = to_model(task)
    made = apply(step, model, Context(task, model.module))
    return model, made, dict(made.history[-1].notes)


def example(task: tauten.Task) -> Arrays:
    return next(iter(task.data("calibrate")))[0]


def answer(model: Model, inputs: Arrays) -> Any:
    """The first output."""
    return next(iter(forward(model.module, model.inputs, model.outputs, inputs).values()))


def worth_measuring() -> nn.Module:
    """``(rows, 8) -> (rows, 4)``: 16 KiB a row between an activation and what it is given, hardly any weights."""
    return nn.Sequential(nn.Linear(8, 4096), nn.ReLU(), nn.Linear(4096, 4))


def alone(check: Callable[[], None]) -> None:
    """Call a function of a module in a process of its own: memory that other tests have freed would hide what grows."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        fresh.submit(check).result()
