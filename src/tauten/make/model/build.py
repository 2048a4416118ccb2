"""From what the user brought to a module that runs."""

from __future__ import annotations

from torch import nn

from tauten.errors import TaskError, TautenError
from tauten.make.model.model import Model
from tauten.make.model.run import forward
from tauten.make.model.task import Task


def build(task: Task) -> nn.Module:
    """The task's module in evaluation mode; ``TaskError`` where the function builds none."""
    module = task.model
    if not isinstance(module, nn.Module):
        try:
            module = module()
        except TautenError:
            raise
        except Exception as fault:
            raise TaskError(f"model: the function that builds it failed: {type(fault).__name__}: {fault}") from fault
    if not isinstance(module, nn.Module):
        raise TaskError(f"model: expected an nn.Module, got a {type(module).__name__}")
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
