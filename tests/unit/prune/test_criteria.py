from __future__ import annotations

import torch

from tauten.make.passes.prune.criteria import CRITERIA


def test_a_channel_that_the_others_say_already_goes_first() -> None:
    weights = torch.tensor([[1.0, 1.0], [1.1, 0.9], [0.9, 1.1], [9.0, 0.0], [0.0, -9.0]])
    scores = CRITERIA.get("geometric_median")(weights, {})
    assert int(scores.argmin()) in (0, 1, 2)
    # Where a norm would drop the small ones, this one keeps what is unlike the rest.
    assert set(scores.topk(2).indices.tolist()) == {3, 4}


def test_channels_that_are_alike_are_told_apart_from_those_that_are_not_however_far_from_zero() -> None:
    weights = 1000 + torch.tensor([[0.0], [0.001], [0.002], [0.5]])
    scores = CRITERIA.get("geometric_median")(weights, {})
    assert int(scores.argmax()) == 3
    assert int(scores.argmin()) in (0, 1, 2)
