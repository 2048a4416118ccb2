from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.errors import PassError
from tauten.make.passes.device.in_place import InPlace
from tauten.testing.tiny import residual_task, vision_transformer_task
from tests.unit.device.applied import alone, answer, change, example, task_of, worth_measuring


class Around(nn.Module):
    """A layer, then the activation as ``using`` has it."""

    def __init__(self, using: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.relu, self.other = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.using = using

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.using(self, x, self.layer(x))


def test_activations_that_nobody_sees_work_in_place() -> None:
    task = residual_task()
    before, made, notes = change(InPlace(), task)
    assert notes["in_place"] == ["2", "3.relu", "4.relu"]
    assert notes["refused"] == {}
    assert made.module[2].inplace
    assert not before.module[2].inplace
    assert np.array_equal(answer(made, example(task)), answer(before, example(task)))


CASES: dict[str, tuple[Callable[..., torch.Tensor], str | None]] = {
    "input": (lambda m, x, y: m.other(m.relu(x)), "an input"),
    "read": (lambda m, x, y: m.other(m.relu(y)) + y, "also read by add"),
    "view": (lambda m, x, y: m.relu(m.other(y).transpose(0, 1).flatten(1)).sum() + y, None),
    "gaps": (lambda m, x, y: m.relu(m.other(y)[:, :2]).sum() + y, "with gaps"),
    "viewed": (lambda m, x, y: m.relu(y.view(-1, 2, 2)).sum() + y.sum() + x, "also read by sum"),
    "reshaped": (lambda m, x, y: m.relu(y.reshape(-1, 2)).sum() + y, "also read by add"),
    "dropped": (lambda m, x, y: m.relu(m.drop(y)) - y, "also read by sub"),  # in evaluation, what it was given
    "expanded": (lambda m, x, y: m.other(m.relu(y.mean(1, keepdim=True).expand(-1, 4))), "expanded"),
    "weight": (lambda m, x, y: m.relu(m.layer.weight).sum() + y, "a weight"),
    "twice": (lambda m, x, y: m.relu(m.other(m.relu(y))) + y, "also read by"),  # the second call alone would be safe
    "function": (lambda m, x, y: torch.relu(y), "does not call it"),
    "gradients": (lambda m, x, y: m.other(m.relu(torch.sigmoid(y))), "gradients need"),
}


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cases = nn.ModuleDict({name: Around(using) for name, (using, _) in CASES.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([case(x) for case in self.cases.values()], 1)


def test_what_somebody_may_see_is_refused_by_name() -> None:
    task = task_of(Many(), 4)
    before, made, notes = change(InPlace(), task)
    assert np.array_equal(answer(made, example(task)), answer(before, example(task)))
    assert notes["in_place"] == ["cases.view.relu"]
    for name, (_, reason) in CASES.items():
        assert made.module.cases[name].relu.inplace == (reason is None)
        assert reason is None or reason in notes["refused"][f"cases.{name}.relu"]


def test_what_is_returned_stays_as_it_is() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.layer(x)
            return found, self.relu(found)

    assert "an output" in change(InPlace(), task_of(Both(), 4))[2]["refused"]["relu"]


def test_every_activation_is_known() -> None:
    kinds = (nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Mish, nn.LeakyReLU, nn.ELU, nn.CELU)
    layers = [layer for kind in kinds for layer in (nn.Linear(4, 4), kind())]
    _, made, notes = change(InPlace(), task_of(nn.Sequential(*layers), 4))
    assert len(notes["in_place"]) == len(kinds), notes["refused"]
    assert all(layer.inplace for layer in made.module[1::2])


def test_a_model_without_activations_is_refused() -> None:
    with pytest.raises(PassError, match=r"no activation module.*ReLU"):
        change(InPlace(), vision_transformer_task())


def test_the_model_trains_on_and_is_pruned() -> None:
    task = residual_task()
    _, made, _ = change(InPlace(), task)
    recovered = tauten.recover(made, task=task, epochs=1)
    assert recovered.module[2].inplace
    assert tauten.prune(made, task=task, ratio=0.5).module[0].out_channels < 8


def check_the_peak_is_measured_and_smaller() -> None:
    _, _, notes = change(InPlace(), task_of(worth_measuring(), 8, rows=2048))
    before, after = notes["peak"]["before"]["work_mib"], notes["peak"]["after"]["work_mib"]
    if before is not None:
        assert before == pytest.approx(64, abs=6)
        assert after == pytest.approx(32, abs=6)


def test_the_peak_is_measured_and_smaller() -> None:
    alone(check_the_peak_is_measured_and_smaller)
