"""Gradients in float16 are scaled, and a step that overflows is left out."""

from __future__ import annotations

import torch
from torch import nn

from tauten.make.model.train import Training
from tauten.make.model.training.processes import Processes
from tauten.make.model.training.stepper import Stepper


def test_a_step_whose_gradients_overflow_is_left_out() -> None:
    parameter = nn.Parameter(torch.ones(2))
    stepper = Stepper([parameter], Training(epochs=1, precision="float16"), Processes(), [])
    scale = stepper.numbers()["scale"]
    assert scale > 1
    stepper.add((parameter * 1e37).sum(), 1.0)
    stepper.step(1e-3, "here")
    assert torch.equal(parameter, torch.ones(2))
    assert stepper.numbers()["scale"] == scale / 2
    stepper.add(parameter.sum(), 1.0)
    stepper.step(1e-3, "here")
    assert bool((parameter < 1).all())
    assert stepper.numbers()["scale"] == scale / 2
