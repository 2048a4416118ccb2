"""A task small enough to optimize in seconds: two blobs of pixels that a tiny CNN tells apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import tauten


def batches(count: int, seed: int, size: int = 32) -> list[tuple[Any, Any]]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    images = generator.normal(0, 0.5, (count, 1, 6, 6)).astype(np.float32)
    images[labels == 1, :, :3] += 1.0
    images[labels == 0, :, 3:] += 1.0
    return [(images[at : at + size], labels[at : at + size]) for at in range(0, count, size)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16 * 36, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x))
        return self.head(x.flatten(1))


def task() -> tauten.Task:
    return tauten.Task(
        name="blobs",
        model=Net,
        inputs=(tauten.TensorSpec(name="image", shape=("batch", 1, 6, 6)),),
        train=batches(256, 0),
        calibrate=batches(64, 1),
        validate=batches(128, 2),
        test=batches(128, 3),
        epochs=2,
    )


def unlabelled() -> tauten.Task:
    torch.manual_seed(0)
    inputs = [images for images, _ in batches(64, 1)]
    return tauten.Task(
        name="unlabelled",
        model=Net().eval(),
        inputs=(tauten.TensorSpec(name="image", shape=("batch", 1, 6, 6)),),
        calibrate=inputs,
        metric="cosine",
    )
