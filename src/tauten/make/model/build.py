"""From what the user brought to a module that runs."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tauten.errors import TaskError, TautenError
from tauten.make.model.model import Model
from tauten.make.model.run import forward
from tauten.make.model.task import Task


def build(task: Task) -> nn.Module:
    """The task's module in evaluation mode; ``TaskError`` where the function builds none."""
    return _built("model", task.model)


def build_teacher(task: Task, original: nn.Module) -> nn.Module:
    """Whom passes that distil learn from, in evaluation mode: the task's teacher, ``original`` where it has none.

    ``TaskError`` where its function builds none, or where it does not answer in the shapes that ``original`` does.
    """
    if task.teacher is None:
        return original
    teacher = _built("teacher", task.teacher)
    example = next(iter(task.data("calibrate")))[0]
    expected = forward(original, task.inputs, task.outputs, example)
    try:
        answers = forward(teacher, task.inputs, task.outputs, example)
    except Exception as fault:
        raise TaskError(f"teacher: does not run as the model does: {fault}") from fault
    wanted, came = ({name: array.shape for name, array in one.items()} for one in (expected, answers))
    if wanted != came:
        raise TaskError(f"teacher: expected the model's outputs, {wanted} for a calibration batch, got {came}")
    return teacher


def _built(what: str, given: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The module ``given``, or what that function builds, in evaluation mode."""
    module = given
    if not isinstance(module, nn.Module):
        try:
            module = module()
        except TautenError:
            raise
        except Exception as fault:
            raise TaskError(f"{what}: the function that builds it failed: {type(fault).__name__}: {fault}") from fault
    if not isinstance(module, nn.Module):
        raise TaskError(f"{what}: expected an nn.Module, got a {type(module).__name__}")
    return module.eval()


def to_model(task: Task) -> Model:
    """The untouched model of a task, run once on calibration data to see that it works."""
    module = build(task)
    example = next(iter(task.data("calibrate")))[0]
    try:
        outputs = forward(module, task.inputs, task.outputs, example)
    except TautenError:
        raise
    except Exception as fault:
        shapes = {name: f"{array.dtype}{array.shape}" for name, array in example.items()}
        raise TaskError(f"model: does not run on a calibration batch {shapes}: {fault}") from fault
    return Model(module, task.inputs, tuple(outputs))
