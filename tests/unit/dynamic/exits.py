"""A tiny model with early exits, made once, and ways to say who leaves."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import torch

from tauten.artifact.read import Artifact
from tauten.core.target import Target
from tauten.core.tensor import Arrays
from tauten.make.layers.early_exit import NEVER, EarlyExits
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.make.passes.dynamic._heads import make_head
from tauten.make.passes.dynamic._points import Point
from tauten.make.passes.dynamic.early_exit import EarlyExit
from tauten.testing.tiny import encoder_task, residual_task

STEP = EarlyExit(exits=2, share=0.5, epochs=1, steps=20)


@cache
def passed() -> tuple[Model, Task]:
    """A residual CNN after the pass."""
    task = residual_task()
    model = to_model(task)
    return apply(STEP, model, Context(task, model.module, seed=1)), task


@cache
def residual() -> tuple[Model, Task]:
    """A residual CNN with two exits that nothing trained; half of the first samples leave at one or another."""
    task = residual_task()
    return _with_exits(task, {"2": (8, 8, 8), "3": (8, 8, 8)}, (0.4, 0.5), 4), task


@cache
def encoder() -> tuple[Model, Task]:
    """Two inputs of a length that varies, one of them a mask that every layer reads."""
    task = encoder_task()
    return _with_exits(task, {"norm1": (12, 16)}, (0.5,), 16), task


def _with_exits(task: Task, at: dict[str, tuple[int, ...]], shares: tuple[float, ...], classes: int) -> Model:
    torch.manual_seed(0)
    points = [Point(path, shape, 1, 0.5) for path, shape in at.items()]
    heads = {point.path: make_head(point, classes, convolves=False) for point in points}
    model = to_model(task)
    model = model.but(module=EarlyExits(model.module, heads).eval())
    return leaving(model, shares, first(task, 32))


def leaving(model: Model, shares: tuple[float, ...], inputs: Arrays) -> Model:
    """The same model, with thresholds that ``shares`` of the inputs reach at each exit: 0 for none, 1 for all."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        scores, _ = module.all_scores(*(torch.from_numpy(inputs[spec.name]) for spec in model.inputs))
    for index, share in enumerate(shares):
        sure = torch.softmax(scores[index] / module.temperatures[index], dim=1).amax(dim=1).sort().values
        place = round((1 - share) * len(sure))
        inner = (sure[max(place, 1) - 1] + sure[min(place, len(sure) - 1)]) / 2
        module.thresholds[index] = 0 if share == 1 else NEVER if share == 0 else inner
    return model.but(module=module)


def artifact_of(model: Model, task: Task, folder: Path) -> Artifact:
    target = Target(name="test")
    lowered = LOWERINGS.get("onnx")(model, target, Context(task, model.module))
    return to_artifact(lowered, folder / "artifact", name="test", engine="onnx", target=target, history=model.history)


def first(task: Task, count: int) -> Arrays:
    inputs, _ = next(iter(task.data("validate")))
    return {name: np.ascontiguousarray(array[:count]) for name, array in inputs.items()}
