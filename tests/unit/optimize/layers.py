"""The quickest there is to export: two linear layers, 17 KB of weights that are not trained."""

from __future__ import annotations

import numpy as np
import torch

import tauten


def task() -> tauten.Task:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 56), torch.nn.ReLU(), torch.nn.Linear(56, 10))
    generator = np.random.default_rng(0)
    inputs = [generator.normal(size=(32, 64)).astype(np.float32) for _ in range(2)]
    spec = tauten.TensorSpec(name="x", shape=("batch", 64))
    return tauten.Task(name="layers", model=model.eval(), inputs=(spec,), calibrate=inputs, metric="cosine")
