from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from tauten.errors import TaskError
from tauten.make.model.loss import class_axis, default_loss, task_loss
from tests.unit.train.problems import classify


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64])
def test_integer_labels_are_classes_of_the_first_output(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1], dtype=dtype)
    outputs = {"logits": logits, "features": torch.randn(4, 9)}
    assert torch.equal(default_loss(outputs, labels), functional.cross_entropy(logits, labels.long()))


def test_classes_lie_on_axis_one_or_on_the_last() -> None:
    labels = torch.randint(0, 3, (4, 5))
    labels[0, 0] = -100
    first, last = torch.randn(4, 3, 5), torch.randn(4, 5, 3)
    expected = functional.cross_entropy(first, labels)
    assert torch.allclose(default_loss({"output": first}, labels), expected)
    assert torch.allclose(default_loss({"output": last}, labels), functional.cross_entropy(last.movedim(2, 1), labels))
    assert class_axis(first, labels) == 1
    assert class_axis(last, labels) == -1
    assert class_axis(torch.randn(4, 5), labels) is None
    assert class_axis(first, labels.float()) is None


def test_other_labels_are_a_regression() -> None:
    output, labels = torch.randn(4, 1), torch.randn(4, dtype=torch.float64)
    expected = ((output[:, 0] - labels.float()) ** 2).mean()
    assert torch.allclose(default_loss({"output": output}, labels), expected)
    marks = torch.tensor([True, False, True, True])
    assert torch.allclose(default_loss({"output": output}, marks), ((output[:, 0] - marks.float()) ** 2).mean())


@pytest.mark.parametrize(
    ("output", "labels", "message"),
    [
        (torch.randn(4, 3), torch.tensor([0, 1, 2, 3]), "class numbers from 0 to 2"),
        (torch.randn(4, 3), torch.tensor([0, 1, 2, -1]), "got numbers from -1 to 2"),
        (torch.randn(4, 1), torch.zeros(4, 1, 2, dtype=torch.int64), "no class numbers for output 'output'"),
        (torch.randn(4), torch.zeros(4, dtype=torch.int64), "give floats for a regression"),
        (torch.randn(4, 3), torch.randn(4), r"expected the shape of output 'output', \(4, 3\), got \(4,\)"),
        (torch.randn(4, 3), torch.randn(3, 4), "expected the shape"),
    ],
)
def test_labels_that_do_not_fit_are_refused(output: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        default_loss({"output": output}, labels)


def test_a_loss_of_ones_own_is_used_and_checked() -> None:
    def summed(outputs: Any, labels: Any) -> torch.Tensor:
        return (outputs["output"] - labels).abs().sum().reshape(1)

    loss = task_loss(classify(loss=summed))
    value = loss({"output": torch.ones(2, 2)}, torch.zeros(2, 2))
    assert value.shape == ()
    assert value.item() == 4

    with pytest.raises(TaskError, match=r"loss: KeyError: 'logits'"):
        task_loss(classify(loss=lambda outputs, labels: outputs["logits"]))({"output": torch.ones(1)}, torch.ones(1))
    with pytest.raises(TaskError, match=r"one number, got shape \(2,\)"):
        task_loss(classify(loss=lambda outputs, labels: labels))({}, torch.ones(2))
    with pytest.raises(TaskError, match="one number, got a float"):
        task_loss(classify(loss=lambda outputs, labels: 1.0))({}, torch.ones(2))
