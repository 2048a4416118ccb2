"""What only a CUDA device can show: its counters of memory, and 16 bits computed as such."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.errors import PassError
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.fit import labelled
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context, Pass
from tauten.make.model.run import forward
from tauten.make.model.train import Trainer, Training
from tauten.make.passes.device.half import Half
from tauten.make.passes.device.in_place import InPlace
from tauten.make.passes.device.micro_batches import MicroBatching
from tauten.testing.tiny import residual_task

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def on_cuda(step: Pass, task: tauten.Task) -> tuple[Model, Model, dict[str, Any]]:
    model = to_model(task)
    model = model.but(module=model.module.cuda())
    made = apply(step, model, Context(task, model.module))
    return model, made, dict(made.history[-1].notes)


def wide_task(rows: int) -> tauten.Task:
    module = nn.Sequential(nn.Linear(8, 4096), nn.ReLU(), nn.Linear(4096, 4)).eval()
    data = np.random.default_rng(0).standard_normal((rows, 8)).astype(np.float32)
    labels = np.arange(rows) % 4
    spec = tauten.TensorSpec(name="x", shape=("batch", 8))
    return tauten.Task(model=module, inputs=(spec,), calibrate=[(data, labels)], train=[(data, labels)])


def answers(model: Model, task: tauten.Task) -> Any:
    inputs = next(iter(task.data("calibrate")))[0]
    return next(iter(forward(model.module, model.inputs, model.outputs, inputs).values()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_the_bits_take_half_the_memory(dtype: Any) -> None:
    task = wide_task(4096)
    before, made, notes = on_cuda(Half(dtype=dtype), task)
    assert notes["peak"]["how"] == "CUDA allocations"
    assert notes["peak"]["after"]["work_mib"] < 0.6 * notes["peak"]["before"]["work_mib"]
    assert np.allclose(answers(made, task), answers(before, task), atol=0.05)
    assert {parameter.device.type for parameter in made.module.parameters()} == {"cuda"}


def test_activations_in_place_take_half_the_memory() -> None:
    task = wide_task(4096)
    before, made, notes = on_cuda(InPlace(), task)
    assert notes["in_place"] == ["1"]
    assert notes["peak"]["after"]["work_mib"] < 0.6 * notes["peak"]["before"]["work_mib"]
    assert np.array_equal(answers(made, task), answers(before, task))


def test_batches_in_parts_hold_a_limit() -> None:
    task = wide_task(4096)
    before, made, notes = on_cuda(MicroBatching(max_memory_mib=40, batch=4096), task)
    assert notes["rows"] < 4096
    assert notes["peak"]["after"]["work_mib"] < 40 < notes["peak"]["before"]["work_mib"]
    assert np.allclose(answers(made, task), answers(before, task), atol=1e-4)


def train(**settings: Any) -> Any:
    task = wide_task(4096)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 4096), nn.ReLU(), nn.Linear(4096, 4)).cuda()
    training = Training(**{"epochs": 2, **settings})
    return Trainer(task.inputs, (), training, labelled(task))(module, task.data("train"))


def test_training_holds_a_limit() -> None:
    plain = train(max_memory_mib=1e5)
    assert plain.rows == 4096
    limit = 0.6 * plain.peak_mib
    held = train(max_memory_mib=limit)
    assert held.rows < 4096
    assert held.peak_mib <= limit
    assert np.allclose(held.losses, plain.losses, rtol=1e-3)
    with pytest.raises(PassError, match="one sample at a time needs"):
        train(max_memory_mib=0.1)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_training_in_fewer_bits_learns_nearly_the_same(precision: str) -> None:
    exact, short = train(epochs=6), train(epochs=6, precision=precision)
    assert np.allclose(short.losses, exact.losses, rtol=0.05)
    assert short.step_mib[1] < short.step_mib[0]


def test_recomputed_blocks_take_less_memory() -> None:
    task = residual_task()
    module = task.build().cuda()
    training = Training(epochs=1, recompute=True)
    trained = Trainer(task.inputs, (), training, labelled(task))(module, task.data("train"))
    assert trained.recomputed == 2
    assert trained.step_mib[1] < trained.step_mib[0]
