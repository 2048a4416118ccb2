from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import tauten
from tauten.errors import ConfigError, RecipeError
from tauten.make.model.fit import labelled
from tauten.make.model.train import Trained, Trainer, Training
from tauten.make.model.training.precision import channels_last, computing_in
from tauten.make.passes.distill.recover import Recover
from tauten.testing.tiny import residual_task
from tests.unit.train.problems import classify

CPU = torch.device("cpu")


class Flat(nn.Module):
    """Views its channels in a row, which channels that lie last do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(256, 4)
        self.seen = list[bool]()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.conv(image)
        self.seen.append(found.is_contiguous())
        flat: torch.Tensor = self.head(self.drop(found.view(-1, 256)))
        return flat


def train(task: tauten.Task, module: nn.Module, precision: str, **settings: Any) -> Trained:
    training = Training(**{"epochs": 2, "precision": precision, **settings})
    return Trainer(task.inputs, (), training, labelled(task))(module, task.data("train"), task.data("validate"))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_fewer_bits_learn_nearly_the_same(precision: str) -> None:
    task = residual_task()
    exact = train(task, residual_task().build(), "float32", epochs=8)
    module = residual_task().build()
    short = train(task, module, precision, epochs=8)
    assert short.losses[-1] < 0.9 * short.losses[0]
    assert np.allclose(short.losses, exact.losses, rtol=0.05)
    assert short.losses != exact.losses
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert all(kernel.is_contiguous() for kernel in module.parameters())


def test_the_loss_is_computed_in_float32() -> None:
    seen = set()

    def loss(outputs: Any, labels: Any) -> torch.Tensor:
        seen.add((outputs["output"].dtype, (outputs["output"] @ outputs["output"].T).dtype))
        return functional.cross_entropy(outputs["output"], labels)

    task = classify(loss=loss)
    train(task, task.build(), "bfloat16")
    assert seen == {(torch.float32, torch.float32)}


def test_kernels_lie_channels_last_in_few_bits_alone() -> None:
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3))
    image = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        before = module(image)
        with channels_last("bfloat16", lambda: module(image), module) as stored:
            assert stored
            assert module[1].weight.is_contiguous(memory_format=torch.channels_last)
            assert torch.allclose(module(image), before, atol=1e-5)
            assert module(image).is_contiguous(memory_format=torch.channels_last)
        assert module[1].weight.is_contiguous()
        assert torch.equal(module(image), before)
        with channels_last("float32", lambda: module(image), module) as stored:
            assert not stored
            assert module[1].weight.is_contiguous()


def test_a_module_that_views_its_channels_keeps_them_in_rows() -> None:
    task = residual_task()
    module = Flat()
    train(task, module, "bfloat16", epochs=1)
    assert module.seen[0] is False  # the trial
    assert all(module.seen[1:])


def test_a_trial_changes_neither_buffers_nor_random_numbers() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with channels_last("bfloat16", lambda: module(torch.randn(4, 1, 8, 8)), module):
        assert torch.equal(torch.rand(3), expected)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_few_bits_are_those_asked_for() -> None:
    product = torch.ones(2, 2)
    for precision, dtype in (
        ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)
    ):  # fmt: skip
        with computing_in(precision, CPU):  # type: ignore[arg-type]
            assert (product @ product).dtype == dtype


def test_the_teacher_answers_in_the_same_bits() -> None:
    task = residual_task()
    seen = set[torch.dtype]()
    teacher = residual_task().build()
    teacher[0].register_forward_hook(lambda layer, given, found: seen.add(found.dtype))
    task = tauten.Task(
        model=teacher, inputs=task.inputs, train=task.train, calibrate=task.calibrate, validate=task.validate
    )
    made = tauten.recover(task, epochs=1, precision="bfloat16")
    assert seen == {torch.float32, torch.bfloat16}  # float32 where apply looks at the module
    assert all(kernel.is_contiguous() for kernel in [*teacher.parameters(), *made.module.parameters()])


def test_precisions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(RecipeError, match="precision: expected one of float32, bfloat16, float16, got 'int8'"):
        Recover(precision="int8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="precision"):
        Training(epochs=1, precision="int8")  # type: ignore[arg-type]
