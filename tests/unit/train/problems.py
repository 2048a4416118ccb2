"""Small problems that a small network learns in a second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

import tauten

CLASSES = 3
FEATURES = 6
POINT = tauten.TensorSpec(name="point", shape=("batch", FEATURES))

Points = npt.NDArray[np.float32]


def clouds(samples: int, seed: int) -> tuple[Points, npt.NDArray[np.int64]]:
    """Points around one centre a class."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    labels = draw.integers(0, CLASSES, samples)
    return (centres[labels] + 0.3 * draw.normal(size=(samples, FEATURES))).astype(np.float32), labels


def in_batches(inputs: Any, labels: Any, size: int = 16) -> list[tuple[Any, Any]]:
    return [(inputs[at : at + size], labels[at : at + size]) for at in range(0, len(inputs), size)]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def classify(**fields: Any) -> tauten.Task:
    """Tell the clouds apart."""
    return tauten.Task(
        **{
            "model": network,
            "inputs": (POINT,),
            "train": in_batches(*clouds(160, 0)),
            "calibrate": in_batches(*clouds(32, 1)),
            "validate": in_batches(*clouds(64, 2)),
            "learning_rate": 1e-2,
            **fields,
        }
    )


def unlabelled(samples: int, seed: int) -> list[Points]:
    return [inputs for inputs, _ in in_batches(*clouds(samples, seed))]


def shuffled() -> Iterator[tuple[Points, npt.NDArray[np.int64]]]:
    """The training points in a new order at every walk, from NumPy's global generator."""
    points, labels = clouds(160, 0)
    order = np.random.permutation(len(points))
    yield from in_batches(points[order], labels[order])
