"""MNIST and Fashion-MNIST: 60,000 images of 28x28 pixels to learn from, 10,000 to test on, and a small network.

Usage: ``TAUTEN_DATA=FOLDER tauten optimize examples/mnist.py:task --max-drop 0.5 --level medium --out build/mnist``

``FOLDER`` holds ``mnist/`` and ``fashion-mnist/`` with their ``*-ubyte.gz`` files; without it they are fetched from
OpenML.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

import tauten
from tauten.make.datasets import Images, Labels, Name, mnist

if TYPE_CHECKING:
    from torch import nn

BATCH = 128
HELD_OUT = 5_000


def task() -> tauten.Task:
    """Handwritten digits."""
    return images_task("mnist")


def fashion() -> tauten.Task:
    """Pieces of clothing, in the same shape and harder."""
    return images_task("fashion-mnist")


def images_task(name: Name) -> tauten.Task:
    """The last 5,000 images of the training part compare candidates; the test part is looked at once."""
    images, labels = mnist("train", name)
    train, train_labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    return tauten.Task(
        name=name,
        model=build,
        inputs=(tauten.TensorSpec(name="image", shape=("batch", 1, 28, 28)),),
        train=lambda: shuffled(train, train_labels),
        calibrate=batches(train[:512], train_labels[:512]),
        validate=batches(images[-HELD_OUT:], labels[-HELD_OUT:]),
        test=batches(*mnist("test", name)),
        metric="accuracy",
        epochs=4,
        learning_rate=3e-3,
    )


def batches(images: Images, labels: Labels) -> list[tuple[Images, Labels]]:
    """Batches of images ``(batch, 1, 28, 28)`` and labels ``(batch,)``, in order."""
    return [(images[at : at + BATCH], labels[at : at + BATCH]) for at in range(0, len(images), BATCH)]


def shuffled(images: Images, labels: Labels) -> Iterator[tuple[Images, Labels]]:
    """Batches in a new order at every walk, drawn from NumPy's global generator, which Tauten seeds."""
    order = np.random.permutation(len(images))
    for at in range(0, len(order), BATCH):
        chosen = order[at : at + BATCH]
        yield images[chosen], labels[chosen]


def build() -> nn.Module:
    """Three convolutions and two dense layers, after LeCun et al. 1998, with batch normalization; 98,554 parameters.

    PyTorch is imported here, so that a machine without it can still evaluate artifacts with this file.
    """
    from torch import nn

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [layer, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *stage(1, 16),
        *stage(16, 32),
        *stage(32, 64),
        nn.Flatten(),
        nn.Linear(64 * 3 * 3, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
