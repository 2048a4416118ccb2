"""A training that may be killed: ``python -m tests.unit.train.killed FOLDER KILL_AT_STEP OUT``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import tauten
from tauten.make.model.fit import labelled
from tauten.make.model.train import Checkpoints, Trained, Trainer, Training
from tests.unit.train.problems import CLASSES, FEATURES, classify, clouds, in_batches


def network() -> nn.Module:
    """Draws while it trains, and has running statistics."""
    torch.manual_seed(0)
    layers = (nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES))
    return nn.Sequential(*layers)


def noisy() -> Iterator[tuple[Any, Any]]:
    """Batches in a new order, with new noise, at every walk."""
    points, labels = clouds(160, 0)
    order = np.random.permutation(len(points))
    for inputs, known in in_batches(points[order], labels[order]):
        yield inputs + 0.1 * np.random.standard_normal(inputs.shape).astype(np.float32), known


def run(
    folder: Path | None, kill_at: int = -1, task: tauten.Task | None = None, **settings: Any
) -> tuple[nn.Module, Trained]:
    """Train, and end as if the power went before step ``kill_at``."""
    task = task or classify(train=noisy)
    module = network()

    def on_step(step: int, steps: int) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    training = Training(**{"epochs": 4, "learning_rate": 1e-2, **settings})
    checkpoints = None if folder is None else Checkpoints(folder)
    trainer = Trainer(task.inputs, (), training, labelled(task), seed=5, checkpoints=checkpoints)
    return module, trainer(module, task.data("train"), task.data("validate"), on_step=on_step)


if __name__ == "__main__":
    module, trained = run(Path(sys.argv[1]), int(sys.argv[2]))
    save_file(module.state_dict(), sys.argv[3])
    print(trained.resumed)
