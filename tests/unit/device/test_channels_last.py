from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tauten.core.target import Target
from tauten.errors import PassError
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.pass_ import Context
from tauten.make.passes.device.channels_last import ChannelsLast
from tauten.run.engines import load
from tauten.testing.tiny import encoder_task, residual_task
from tests.unit.device.applied import answer, change, example, task_of


def test_kernels_lie_channels_last_and_answers_stay() -> None:
    task = residual_task()
    before, made, notes = change(ChannelsLast(), task)
    kernel = made.module[3].conv1.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert before.module[3].conv1.weight.is_contiguous()
    assert notes["refused"] == {}
    assert "3.conv1.weight" in notes["channels_last"]
    assert set(notes["peak"]) == {"before", "after", "rows", "how"}
    assert np.allclose(answer(made, example(task)), answer(before, example(task)), atol=1e-5)


def test_an_artifact_answers_the_same(tmp_path: Path) -> None:
    task = residual_task()
    before, made, _ = change(ChannelsLast(), task)
    target = Target(name="here")
    lowered = LOWERINGS.get("eager")(made, target, Context(task, task.build()))
    artifact = to_artifact(lowered, tmp_path / "a", name="a", engine="eager", target=target)
    assert np.allclose(load(artifact)(example(task))["output"], answer(before, example(task)), atol=1e-4)


class Views(nn.Module):
    """Views channels in a row after its second convolution; the third is free."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.first, self.second = (nn.Conv2d(3, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.first(x)
        flat: torch.Tensor = found.view(len(x), -1).sum(1)
        return flat + self.side(x).mean((1, 2, 3)) + self.second(x).mean((1, 2, 3))


def test_kernels_that_the_code_wants_in_rows_are_refused_by_name() -> None:
    task = task_of(Views(), 3, 8, 8)
    before, made, notes = change(ChannelsLast(), task)
    assert list(notes["refused"]) == ["first.weight"]
    assert "wants channels in rows" in notes["refused"]["first.weight"]
    assert notes["channels_last"] == ["side.weight", "second.weight"]
    assert made.module.first.weight.is_contiguous()
    assert np.allclose(answer(made, example(task)), answer(before, example(task)), atol=1e-5)


def test_pictures_of_three_dimensions_are_known() -> None:
    _, made, _ = change(ChannelsLast(), task_of(nn.Sequential(nn.Conv3d(2, 4, 3)), 2, 4, 4, 4))
    assert made.module[0].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_model_without_convolutions_is_refused() -> None:
    with pytest.raises(PassError, match="no 2-d or 3-d convolution"):
        change(ChannelsLast(), encoder_task())
