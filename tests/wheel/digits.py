"""A task that needs PyTorch only when its model is built: 8 by 8 pictures of one bright row, which row is it?"""

from __future__ import annotations

from typing import Any

import numpy as np

import tauten


def rows(seed: int, count: int = 128) -> list[tuple[Any, Any]]:
    """One batch: images of shape (count, 1, 8, 8) and labels of shape (count,)."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 8, count)
    images = draw.normal(0, 0.1, (count, 1, 8, 8)).astype(np.float32)
    images[np.arange(count), 0, labels] += 1
    return [(images, labels)]


def build() -> Any:
    """A convolution and a linear layer."""
    from torch import nn

    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 8))


def task() -> tauten.Task:
    """The task: trained for a few epochs, which is enough for rows this plain."""
    return tauten.Task(
        model=build,
        inputs=[tauten.TensorSpec(name="image", shape=("batch", 1, 8, 8))],
        train=rows(0),
        calibrate=rows(1),
        validate=rows(2),
        test=rows(3),
        epochs=20,
        learning_rate=1e-2,
        name="rows",
    )
