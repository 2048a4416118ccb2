"""What is remembered between two lowerings of one model changes nothing of what comes out, and outlives no model."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.make.lower import LOWERINGS
from tauten.make.lower._remembered import remembered
from tauten.make.lower.lowering import Lowered
from tauten.make.model.build import to_model
from tauten.make.model.model import Model, QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.testing import tiny

from .lowered import TARGET


def lower(model: Model, context: Context, placement: str, **plan: Any) -> Lowered:
    planned = model.but(quantization=QuantizationPlan(method="static", **plan))
    return LOWERINGS.get("onnx")(planned, TARGET, context, {"placement": placement})


def begin(task: tauten.Task) -> tuple[Model, Context]:
    model = to_model(task)
    return model, Context(task, model.module)


def same(one: Lowered, other: Lowered) -> bool:
    weights = one.weights.keys() == other.weights.keys() and all(
        np.array_equal(one.weights[name], other.weights[name]) for name in one.weights
    )
    return weights and one.graph == other.graph and one.notes == other.notes


@pytest.fixture
def task() -> tauten.Task:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = np.random.default_rng(0).standard_normal((128, 6)).astype(np.float32)
    # What lies far out comes late, so that plans which look at fewer samples find other ranges.
    x[120:] *= 9
    specs = (tauten.TensorSpec(name="x", shape=("batch", 6)),)
    return tauten.Task(model=module.eval(), inputs=specs, name="small", calibrate=[({"x": x}, None)])


def test_a_second_way_comes_out_as_if_it_were_the_first(task: tauten.Task) -> None:
    model, context = begin(task)
    plans = [
        ("everything", {"samples": 128}),
        ("products", {"samples": 128}),
        # As many batches, of another number of samples.
        ("products", {"samples": 100}),
        ("everything", {"samples": 100, "calibration": "mse"}),
    ]
    # All of these first: what is made alone makes what was known of the model forgotten.
    in_turn = [lower(model, context, placement, **plan) for placement, plan in plans]
    for made, (placement, plan) in zip(in_turn, plans, strict=True):
        assert same(made, lower(*begin(tiny_copy(task)), placement, **plan)), (placement, plan)


def tiny_copy(task: tauten.Task) -> tauten.Task:
    """Another task of equal numbers, of which nothing can be known."""
    return tauten.Task(
        model=task.model, inputs=task.inputs, name=task.name, calibrate=[next(iter(task.data("calibrate")))]
    )


def test_nothing_is_known_of_another_module_or_task_and_nothing_outlives_them() -> None:
    class Told:
        """Something that can be asked whether it is still there."""

    model, context = begin(tiny.cnn_task())
    first = remembered(model, context, "it", Told)
    assert remembered(model, context, "it", Told) is first
    assert remembered(model, context, "other", Told) is not first
    assert remembered(model, Context(tiny.cnn_task(), model.module), "it", Told) is not first
    held = weakref.ref(remembered(model, context, "it", Told))
    assert held() is not None
    assert held() is not first
    del model, context, first
    gc.collect()
    assert held() is None
