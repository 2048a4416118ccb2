"""When two runs are about the same thing, so that finished work can be taken up again."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version

from torch import nn

from tauten.core.target import Target
from tauten.core.tensor import Array, Arrays
from tauten.make.model.apply import seed_all
from tauten.make.model.build import build_teacher
from tauten.make.model.digest import code_of, digest
from tauten.make.model.task import Task
from tauten.make.search.recipe import Recipe
from tauten.run.measure.metrics import FunctionMetric


def identify_task(task: Task, module: nn.Module, seed: int, origin: str = "") -> str:
    """SHA-256 of what a task is: weights, borders, training settings, and all calibration and validation data.

    ``origin`` is the text the task was read from, where there is one: an edited task file is another task.
    """
    seen = hashlib.sha256(digest(module).encode())
    specs = [spec.to_json() for spec in task.inputs]
    told = {
        "inputs": specs,
        "outputs": task.outputs,
        "metric": _code(task.metric),
        "loss": _code(task.loss),
        "epochs": task.epochs,
        "rate": task.learning_rate,
        "origin": origin,
        **({} if task.teacher is None else {"teacher": digest(build_teacher(task, module))}),
    }
    seen.update(json.dumps(told, sort_keys=True).encode())
    for what in ("calibrate", "validate"):
        if not task.has(what):
            continue
        seed_all(seed)
        for inputs, labels in task.data(what):
            add_batch(seen, inputs, labels)
    return seen.hexdigest()


def identify_candidate(task_key: str, recipe: Recipe, target: Target, seed: int) -> str:
    """SHA-256 of what decides a candidate's bytes: the task, the recipe (its name aside), target, seed and version."""
    made = recipe.to_json()
    del made["name"]
    parts = {"task": task_key, "recipe": made, "target": target.to_json(), "seed": seed, "tauten": version("tauten")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def add_batch(seen: hashlib._Hash, inputs: Arrays, labels: Array | None) -> None:
    """Let a hash see one batch: dtypes, shapes and bytes, by the inputs' names in order."""
    for name in sorted(inputs):
        _add(seen, inputs[name])
    if labels is not None:
        _add(seen, labels)


def _code(given: object) -> str:
    """As ``code_of``, with what a metric of the user's wraps."""
    if isinstance(given, FunctionMetric):
        return f"{given.better} {given.unit} {given.reference} {_code(given.function)}"
    return code_of(given)


def _add(seen: hashlib._Hash, array: Array) -> None:
    seen.update(f"{array.dtype}{array.shape}".encode())
    seen.update(array.tobytes())
