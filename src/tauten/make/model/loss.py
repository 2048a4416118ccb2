"""How far a module's outputs are from the labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from tauten.errors import TaskError
from tauten.make.model.run import Tensors
from tauten.make.model.task import Task

Loss = Callable[[Tensors, torch.Tensor], torch.Tensor]
IGNORED = -100
"""The label that counts for nothing, as in PyTorch's cross entropy."""


def task_loss(task: Task) -> Loss:
    """The task's own loss, or the default; called with outputs by name and labels, both on one device.

    The loss raises ``TaskError`` where it fails, where shapes do not fit, or where it gives no single number.
    """
    return default_loss if task.loss is None else _checked(task.loss)


def default_loss(outputs: Tensors, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the first output for integer labels, mean squared error for others; a scalar."""
    name, first = next(iter(outputs.items()))
    if are_classes(labels):
        axis = class_axis(first, labels)
        if axis is None:
            raise TaskError(
                f"labels: integers of shape {tuple(labels.shape)} are no class numbers for output {name!r} of shape "
                f"{tuple(first.shape)}; give floats for a regression, or tauten.Task(..., loss=...)"
            )
        classes = labels.long().flatten()
        _check_range(name, first.shape[axis], classes)
        logits = first.movedim(axis, -1).flatten(0, -2)
        return functional.cross_entropy(logits, classes, ignore_index=IGNORED)
    if labels.numel() != first.numel() or labels.shape[:1] != first.shape[:1]:
        raise TaskError(
            f"labels: expected the shape of output {name!r}, {tuple(first.shape)}, got {tuple(labels.shape)}; "
            "give tauten.Task(..., loss=...) where they are compared in another way"
        )
    return functional.mse_loss(first, labels.to(first.dtype).reshape(first.shape))


def are_classes(labels: torch.Tensor) -> bool:
    """Whether labels are class numbers: integers, not floats or booleans."""
    return not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool


def class_axis(logits: torch.Tensor, labels: torch.Tensor) -> int | None:
    """The axis of ``logits`` that holds the classes which ``labels`` number, or ``None`` where none does.

    That is axis 1, as PyTorch has it, ``(batch, classes, ...)``, or the last one, ``(batch, ..., classes)``; where both
    would fit, axis 1.
    """
    if logits.ndim < 2 or not are_classes(labels):
        return None
    if logits.shape[:1] + logits.shape[2:] == labels.shape:
        return 1
    return -1 if logits.shape[:-1] == labels.shape else None


def _check_range(name: str, classes: int, labels: torch.Tensor) -> None:
    counted = labels[labels != IGNORED]
    if counted.numel() and not (counted.min() >= 0 and counted.max() < classes):
        raise TaskError(
            f"labels: expected class numbers from 0 to {classes - 1}, as output {name!r} has {classes} classes, "
            f"got numbers from {counted.min().item()} to {counted.max().item()}"
        )


def _checked(given: Callable[..., object]) -> Loss:
    def loss(outputs: Tensors, labels: torch.Tensor) -> torch.Tensor:
        try:
            value = given(outputs, labels)
        except Exception as fault:
            raise TaskError(f"loss: {type(fault).__name__}: {fault}") from fault
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            came = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
            raise TaskError(f"loss: expected a tensor with one number, got {came}")
        return value.reshape(())

    return loss
