"""Every pruning criterion keeps the contract; the contract catches those that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tauten.make.passes.prune.criteria import CRITERIA
from tauten.testing.criteria import check_criterion


@pytest.mark.parametrize("name", CRITERIA.names())
def test_contract(name: str) -> None:
    check_criterion(CRITERIA.get(name))


@pytest.mark.parametrize(
    "broken",
    [
        lambda weights, _: weights.sum(),
        lambda weights, _: weights.sum(1),
        lambda weights, _: 1 / weights.abs().sum(1),
        lambda weights, _: weights.abs_().sum(1),
        lambda weights, _: weights.abs().sum(1).long(),
    ],
)
def test_contract_catches(broken: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(AssertionError):
        check_criterion(broken)


def test_norms_rank_larger_channels_higher() -> None:
    weights = torch.tensor([[3.0, 0.0], [2.0, 2.0], [0.1, 0.1]])
    assert CRITERIA.get("l1")(weights, {}).argsort().tolist() == [2, 0, 1]
    assert CRITERIA.get("l2")(weights, {}).argsort().tolist() == [2, 1, 0]
