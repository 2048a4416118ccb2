"""Handwritten digits: 1,797 real scans of 8x8 pixels that come with scikit-learn, and a small residual network.

Usage: ``tauten optimize examples/digits.py:task --max-drop 0.5 --level medium --out build/digits``
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

import tauten

if TYPE_CHECKING:
    import torch
    from torch import nn

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Batches = list[tuple[Images, Labels]]

BATCH = 32


def task() -> tauten.Task:
    """About half of the scans to train on, a quarter to compare candidates on, and a quarter to test the winner on."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    rest, test, rest_labels, test_labels = train_test_split(
        images, labels, test_size=450, stratify=labels, random_state=0
    )
    train, validate, train_labels, validate_labels = train_test_split(
        rest, rest_labels, test_size=450, stratify=rest_labels, random_state=0
    )
    return tauten.Task(
        name="digits",
        model=build,
        inputs=(tauten.TensorSpec(name="image", shape=("batch", 1, 8, 8)),),
        train=lambda: shifted(train, train_labels),
        calibrate=batches(train, train_labels)[:8],
        validate=batches(validate, validate_labels),
        test=batches(test, test_labels),
        metric="accuracy",
        epochs=22,
        learning_rate=3e-3,
    )


def batches(images: Images, labels: Labels) -> Batches:
    """Batches of images ``(batch, 1, 8, 8)`` and labels ``(batch,)``, in order."""
    return [(images[at : at + BATCH], labels[at : at + BATCH]) for at in range(0, len(images), BATCH)]


def shifted(images: Images, labels: Labels) -> Iterator[tuple[Images, Labels]]:
    """The samples in a new order, each moved by up to one pixel each way, anew at every walk.

    Draws from NumPy's global generator, which Tauten seeds, so that the same seed gives the same training.
    """
    order = np.random.permutation(len(images))
    padded = np.pad(images[order], ((0, 0), (0, 0), (1, 1), (1, 1)))
    moves = np.random.randint(0, 3, (len(images), 2))
    moved = np.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, moves, strict=True)])
    yield from batches(moved, labels[order])


def build() -> nn.Module:
    """A residual network (He et al. 2016) of 755,482 parameters, untrained.

    PyTorch is imported here, so that a machine without it can still evaluate artifacts with this file.
    """
    from torch import nn

    def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs))

    class Residual(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
            super().__init__()
            self.first = convolution(inputs, outputs, 3, stride)
            self.second = convolution(outputs, outputs, 3)
            same = inputs == outputs and stride == 1
            self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)
            self.inner = nn.ReLU()
            self.outer = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside = self.second(self.inner(self.first(x)))
            out: torch.Tensor = self.outer(inside + self.shortcut(x))
            return out

    return nn.Sequential(
        convolution(1, 32, 3),
        nn.ReLU(),
        Residual(32, 32),
        Residual(32, 72, stride=2),
        Residual(72, 144, stride=2),
        Residual(144, 144),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(144, 10),
    )
