"""How much each group can spare, measured, and how a cut is divided by it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import tauten
from tauten.core.tensor import TensorSpec
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.make.passes.prune._alike import structure
from tauten.make.passes.prune._sensitivity import allocate
from tauten.make.passes.prune.structured import Structured
from tests.unit.graph import nets


def task_of(module: nn.Module, specs: tuple[TensorSpec, ...] = nets.VECTOR, *, labels: bool = False) -> Task:
    inputs = nets.example(specs, 48)
    return Task(model=module, inputs=specs, calibrate=[(inputs, np.arange(48) % 3 if labels else None)])


def prune(task: Task, **parameters: Any) -> Model:
    model = to_model(task)
    step = Structured.from_parameters({"ratio": 0.5, "repair": "none", **parameters})
    return apply(step, model, Context(task, model.module))


def one_redundant() -> nn.Module:
    """The second layer's outputs are read with weights of nearly nothing but for two of ten."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    with torch.no_grad():
        module[4].weight[:, 2:] *= 1e-4
        # As large as the others to a criterion that looks at weights alone.
        module[2].weight[2:] *= 3
    return module.eval()


def sizes(model: Model) -> dict[str, tuple[int, int]]:
    return {group["name"]: (group["before"], group["after"]) for group in model.history[-1].notes["groups"]}


@pytest.mark.parametrize("labels", [False, True])
def test_the_layer_that_can_spare_the_most_loses_the_most(labels: bool) -> None:
    model = prune(task_of(one_redundant(), labels=labels), ratio=0.25, scope="sensitivity", criterion="wanda")
    found = sizes(model)
    lost = {name: before - after for name, (before, after) in found.items()}
    assert sum(lost.values()) == round(0.25 * 30)
    assert lost.pop("2.weight") > 2 * sum(lost.values())
    curves = model.history[-1].notes["sensitivity"]
    assert list(curves) == ["0.weight", "2.weight", "4.weight"]
    half = {name: dict(curve)[0.5] if 0.5 in dict(curve) else curve[3][1] for name, curve in curves.items()}
    assert half["2.weight"] < 0.01 * min(half["0.weight"], half["4.weight"])
    assert json.loads(json.dumps(curves)) == curves


def test_a_curve_is_how_far_the_outputs_move() -> None:
    module = one_redundant()
    specs = nets.VECTOR
    x = torch.from_numpy(nets.example(specs, 48)["input"])
    for labels in (False, True):
        model = prune(task_of(module, labels=labels), ratio=0, scope="sensitivity")
        curve = model.history[-1].notes["sensitivity"]["4.weight"]
        assert curve[0] == [0.0, 0.0]
        # The same cut, asked for by name.
        share = curve[2][0]
        small = prune(task_of(module), ratio=0, ratios=[["4.weight", share]]).module
        with torch.no_grad():
            exact, found = module(x), small(x)
        # Spreads are about the mean of each batch of 32.
        spread = sum(float((part - part.mean(dim=0)).square().sum()) for part in exact.split(32))
        expected = float((found - exact).square().sum()) / spread
        if labels:
            expected = float(
                functional.kl_div(found.log_softmax(1), exact.log_softmax(1), reduction="batchmean", log_target=True)
            )
        assert curve[2][1] == pytest.approx(expected, rel=1e-4)


def test_groups_with_a_ratio_of_their_own_and_refused_ones_are_not_measured() -> None:
    task = Task(model=nets.HardCoded().eval(), inputs=nets.IMAGE, calibrate=[nets.example(nets.IMAGE, 8)])
    notes = prune(task, scope="sensitivity").history[-1].notes
    assert "conv2" in notes["refused"]
    assert list(notes["sensitivity"]) == ["conv1.weight"]
    notes = prune(task_of(one_redundant()), scope="sensitivity", ratios=[["2.weight", 0.3]]).history[-1].notes
    assert list(notes["sensitivity"]) == ["0.weight", "4.weight"]


def test_a_group_that_breaks_at_another_ratio_is_refused_and_the_rest_divided() -> None:
    class Even(nn.Module):
        """Its code works with an even number of channels alone."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(12, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            if x.shape[1] % 2:
                raise ValueError("odd")
            return self.third(torch.relu(self.second(x)))

    torch.manual_seed(0)
    notes = prune(task_of(Even().eval()), ratio=0.5, scope="sensitivity").history[-1].notes
    assert "does not run (ValueError: odd)" in notes["refused"]["first"]
    assert [group["name"] for group in notes["groups"]] == ["second.weight"]


def test_the_call_gives_the_curves_alone() -> None:
    task = task_of(one_redundant())
    assert tauten.sensitivity(task) == prune(task, ratio=0, scope="sensitivity").history[-1].notes["sensitivity"]


def test_the_cheapest_units_go_first() -> None:
    flat, steep = ((0, 0.0), (4, 0.1), (8, 0.2)), ((0, 0.0), (4, 1.0), (8, 5.0))
    assert allocate({0: flat, 1: steep}, 6) == {0: 6, 1: 0}
    assert allocate({0: flat, 1: steep}, 10) == {0: 8, 1: 2}
    # More than there is: all that the curves reach.
    assert allocate({0: flat, 1: steep}, 99) == {0: 8, 1: 8}
    # A curve that falls again is a chance of few samples: its hull is straight.
    bent = ((0, 0.0), (2, 0.9), (8, 0.8))
    assert allocate({0: bent, 1: ((0, 0.0), (8, 1.6))}, 5) == {0: 5, 1: 0}


@given(
    curves=st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=4), min_size=1, max_size=3),
    share=st.floats(0, 1),
)
def test_on_convex_curves_no_other_division_is_better(curves: list[list[float]], share: float) -> None:
    convex = {
        place: ((0, 0.0), *((k + 1, float(total)) for k, total in enumerate(np.cumsum(sorted(steps)))))
        for place, steps in enumerate(curves)
    }
    count = round(share * sum(len(steps) for steps in curves))
    losses = allocate(convex, count)
    assert sum(losses.values()) == count
    cost = sum(dict(convex[place])[units] for place, units in losses.items())
    best = min(
        sum(dict(convex[place])[units] for place, units in enumerate(division))
        for division in np.ndindex(*(len(steps) + 1 for steps in curves))
        if sum(division) == count
    )
    assert cost == pytest.approx(best, abs=1e-9)


def test_alike_are_blocks_that_are_built_alike_whatever_their_width() -> None:
    module = nets.ResNet()
    groups = {group.name: group for group in nets.of(module).groups}
    inner, wider = (structure(groups[f"{layer}.conv1.0.weight"], module) for layer in ("layer1", "layer2"))
    assert inner == wider
    assert inner != structure(groups["stem.0.weight"], module)


def test_only_groups_that_are_alike_compete() -> None:
    module = nets.lively(nets.ResNet())
    with torch.no_grad():
        # One unit of this group dwarfs the others, so that beside others they are cheap.
        for name in ("conv1", "conv2"):
            module.layer1.get_submodule(name)[0].weight[0] *= 100
    task = Task(model=module, inputs=nets.IMAGE, calibrate=[nets.example(nets.IMAGE, 8)])
    found = {name: before - after for name, (before, after) in sizes(prune(task, scope="isomorphic")).items()}
    pair = ("layer1.conv1.0.weight", "layer2.conv1.0.weight")
    assert sum(found[name] for name in pair) == (8 + 12) // 2
    assert found["stem.0.weight"] == 4
    together = sizes(prune(task, scope="global"))
    assert sum(before - after for before, after in together.values()) == (8 + 8 + 12 + 12) // 2
