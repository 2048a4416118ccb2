"""The same cut by Torch-Pruning, as its documentation shows it: ``pip install torch-pruning``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

import tauten

CRITERIA: dict[str, Callable[[], Any]] = {
    "magnitude_l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "magnitude_l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": tp.importance.GroupTaylorImportance,
    "hessian": tp.importance.GroupHessianImportance,
    "lamp": tp.importance.LAMPImportance,
    "fpgm": tp.importance.FPGMImportance,
    "bn_scale": tp.importance.BNScaleImportance,
}
"""Its criteria by name; each makes a fresh one."""


def cut(task: tauten.Task, criterion: str, ratio: float) -> nn.Module:
    """A copy of the task's module with ``ratio`` of the channels of each layer gone; the last layer keeps its classes.

    What needs gradients gets them from the task's calibration data with its labels.
    """
    module = copy.deepcopy(task.build()).requires_grad_(True)
    batches = [(torch.from_numpy(x["image"]), torch.from_numpy(y)) for x, y in task.data("calibrate") if y is not None]
    importance = CRITERIA[criterion]()
    pruner = tp.pruner.BasePruner(
        module, batches[0][0][:2], importance=importance, pruning_ratio=ratio, ignored_layers=[module.head]
    )
    if criterion == "taylor":
        for images, labels in batches:
            functional.cross_entropy(module(images), labels).backward()
    elif criterion == "hessian":
        importance.zero_grad()
        for image, label in zip(*batches[0], strict=True):
            module.zero_grad()
            functional.cross_entropy(module(image[None]), label[None]).backward()
            importance.accumulate_grad(module)
    pruner.step()
    module.zero_grad(set_to_none=True)
    return module.eval()
