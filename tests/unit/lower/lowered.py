"""What the tests of the lowerings share: from a task to a lowered model and an engine."""

from __future__ import annotations

from pathlib import Path

from tauten.core.target import Target
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.lower.lowering import Lowered
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context, Pass
from tauten.make.model.task import Task
from tauten.run.engines import load
from tauten.run.engines.engine import Engine

TARGET = Target(name="test")


def prepare(task: Task, *steps: Pass) -> tuple[Model, Context]:
    model = to_model(task)
    context = Context(task, model.module)
    for step in steps:
        model = apply(step, model, context)
    return model, context


def lower(task: Task, *steps: Pass, engine: str = "onnx") -> Lowered:
    model, context = prepare(task, *steps)
    return LOWERINGS.get(engine)(model, TARGET, context)


def engine_of(lowered: Lowered, folder: Path, engine: str = "onnx") -> Engine:
    return load(to_artifact(lowered, folder / "artifact", name="test", engine=engine, target=TARGET))
