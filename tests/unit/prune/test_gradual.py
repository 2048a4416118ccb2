"""Gradual pruning: the schedule, the exact end, that only weights of the full share are kept, and patterns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tauten
from tauten.errors import PassError, RecipeError
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Context
from tauten.make.passes.prune.gradual import Gradual, Schedule
from tests.unit.train.problems import classify, unlabelled


def network() -> nn.Module:
    """``problems.network``, wide enough for a pattern of four."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def prune(task: tauten.Task, **parameters: Any) -> Model:
    model = to_model(task)
    return apply(Gradual(**parameters), model, Context(task, model.module))


def zeros(model: Model) -> list[int]:
    return [int((layer.weight == 0).sum()) for layer in model.module if isinstance(layer, nn.Linear)]


@given(st.floats(0, 0.5), st.floats(0.5, 0.99), st.integers(1, 5000))
def test_the_schedule_is_cubic(start: float, final: float, until: int) -> None:
    schedule = Schedule(start, final, until)
    assert schedule(0) == pytest.approx(start, abs=1e-12)
    assert schedule(until) == schedule(10 * until) == final
    half = final - (final - start) / 8
    if until % 2 == 0:
        assert schedule(until // 2) == pytest.approx(half)
    shares = [schedule(step) for step in range(until + 1)]
    assert shares == sorted(shares)
    acting = [step for step in range(2 * until) if schedule.acts(step)]
    assert acting[0] == 0
    assert acting[-1] == until
    assert len(acting) <= 101


def test_zeros_follow_the_schedule_and_end_exactly() -> None:
    seen: list[list[int]] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen[-1:] = [[*(seen[-1] if seen else []), int((self.weight == 0).sum())]]
            return super().forward(x)

    seen.append([])
    module = nn.Sequential(Watched(6, 16), nn.ReLU(), nn.Linear(16, 3))
    model = prune(classify(model=module), ratio=0.75, start=0.25, share=0.5, epochs=4, distill=False)
    (counts,) = seen
    steps, until = 40, 20
    expected = Schedule(0.25, 0.75, until)
    trained = counts[-steps:]
    assert trained == [round(96 * expected(step)) for step in range(steps)]
    assert zeros(model) == [72, 36]
    notes = model.history[-1].notes
    assert notes["sparsity"] == 0.75
    assert notes["layers"] == {"0.weight": 0.75, "2.weight": 0.75}
    assert notes["schedule"] == [[step, expected(step)] for step in range(until + 1)]
    assert SPARSE in model.facts


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_an_earlier_epoch_is_never_kept_however_good_it_was(share: float) -> None:
    """The start is the teacher itself, at a loss of zero: nothing later is as good."""
    task = classify(model=network, train=unlabelled(160, 0), validate=unlabelled(64, 2))
    model = prune(task, ratio=0.9, share=share, epochs=4, learning_rate=1e-4)
    assert zeros(model) == [round(0.9 * 96), round(0.9 * 256), round(0.9 * 48)]
    notes = model.history[-1].notes
    assert notes["loss_before"] == pytest.approx(0, abs=1e-6)
    assert notes["best_epoch"] > 4 * share
    assert notes["loss_after"] > 1e-3


def test_patience_waits_for_the_full_share() -> None:
    task = classify(model=network, train=unlabelled(160, 0), validate=unlabelled(64, 2))
    model = prune(task, ratio=0.9, share=0.6, epochs=6, learning_rate=1e-4, patience=1)
    assert zeros(model) == [round(0.9 * 96), round(0.9 * 256), round(0.9 * 48)]


def test_recovery_between_the_steps_beats_one_cut() -> None:
    task = classify(model=network, epochs=10).fit()
    at_once = tauten.recover(tauten.prune(task, "magnitude", ratio=0.9), task=task, epochs=1, distill=False)
    gradual = prune(task, ratio=0.9, epochs=8, distill=False)
    assert gradual.history[-1].notes["loss_after"] < at_once.history[-1].notes["loss_after"]


@pytest.mark.parametrize("scope", ["global", "lamp"])
def test_the_share_of_all_layers_together(scope: Any) -> None:
    model = prune(classify(model=network), ratio=0.8, scope=scope, epochs=2)
    assert sum(zeros(model)) == round(0.8 * 400)


def test_towards_a_pattern_each_block_ends_with_its_largest() -> None:
    model = prune(classify(model=network), pattern="1:4", epochs=3, start=0.1)
    blocks = model.module[2].weight.detach().reshape(-1, 4)
    assert ((blocks != 0).sum(1) == 1).all()
    notes = model.history[-1].notes
    assert notes["refused"] == {"0.weight": "has 6 inputs at a position, which is no multiple of 4"}
    assert notes["layers"]["2.weight"] == 0.75
    assert zeros(model)[0] == 0
    assert notes["schedule"][0] == [0, pytest.approx(0.1)]
    assert notes["schedule"][-1][1] == 0.75


def test_a_block_never_has_more_zeros_than_the_pattern_on_the_way() -> None:
    most: list[int] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            most.append(int((self.weight.reshape(-1, 4) == 0).sum(1).max()))
            return super().forward(x)

    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), Watched(16, 3))
    prune(classify(model=module), pattern="2:4", epochs=2)
    assert max(most) == 2


def test_data_that_ends_early_is_told() -> None:
    batch = next(iter(classify().train))

    class Long:
        """Says more batches than it gives."""

        def __len__(self) -> int:
            return 100

        def __iter__(self):
            yield batch

    with pytest.raises(PassError, match="as many batches as its length"):
        prune(classify(model=network, train=Long()), ratio=0.5, epochs=1, distill=False)


def test_what_it_needs() -> None:
    with pytest.raises(PassError, match="no train data"):
        prune(classify(train=None), ratio=0.5)
    with pytest.raises(PassError, match="no labels and distill is off"):
        prune(classify(train=unlabelled(32, 0)), ratio=0.5, distill=False)
    with pytest.raises(PassError, match="no weights to prune"):
        prune(classify(model=nn.LayerNorm(6)), ratio=0.5)


@pytest.mark.parametrize(
    "parameters",
    [
        {}, {"ratio": 1.0}, {"ratio": 0.5, "start": 0.6}, {"ratio": 0.5, "share": 1.0}, {"ratio": 0.5, "share": 0.0},
        {"pattern": "2:4", "ratio": 0.7}, {"pattern": "2:4", "start": 0.6}, {"pattern": "2:4", "scope": "lamp"},
        {"ratio": 0.5, "epochs": 0},
    ],
)  # fmt: skip
def test_parameters_are_checked(parameters: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Gradual.from_parameters(parameters)
