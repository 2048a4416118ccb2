"""A tiny trained model that the tests of quantization share, and modules that are hard to treat."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import tauten
from tauten.make.model.build import build, to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context

SPECS = (tauten.TensorSpec(name="image", shape=("batch", 1, 8, 8)),)


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Scans of digits ``(samples, 1, 8, 8)`` and their labels."""
    found = load_digits()
    return (found.images[:, None] / 8 - 1).astype(np.float32), found.target.astype(np.int64)


@cache
def trained() -> nn.Module:
    """A small CNN that reads digits."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 16, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    images, labels = (torch.from_numpy(array) for array in digits())
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for step in range(120):
        rows = slice(step % 8 * 128, step % 8 * 128 + 128)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
        optimizer.step()
    return module.eval()


def task_of(module: nn.Module, specs=SPECS, data=None, **more) -> tauten.Task:
    """A task of the module, with digits to calibrate on unless ``data`` is given."""
    images, labels = digits()
    data = data or [({"image": images[start : start + 32]}, labels[start : start + 32]) for start in (0, 32)]
    return tauten.Task(model=module.eval(), inputs=specs, name="tiny", calibrate=data, test=data, **more)


def begin(task: tauten.Task) -> tuple[Model, Context]:
    return to_model(task), Context(task, build(task))


def unseen_error(module: nn.Module, quantized: nn.Module) -> float:
    """The noise's power over the outputs' variance, on digits that calibration never saw."""
    images = torch.from_numpy(digits()[0][1200:1600])
    with torch.no_grad():
        wanted = module(images)
        return float((quantized(images) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())
