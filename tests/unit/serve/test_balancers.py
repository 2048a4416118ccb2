"""What each balancing policy does that the others do not."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tauten.run.serve.balancers import BALANCERS

counts = st.lists(st.none() | st.integers(0, 3), max_size=6)


@given(counts)
def test_pull_gives_to_the_first_idle_one_alone(outstanding: list[int | None]) -> None:
    picked = BALANCERS.get("pull")(3, Random(0)).pick(outstanding)
    assert picked == next((index for index, held in enumerate(outstanding) if held == 0), None)


@given(counts)
def test_least_outstanding_gives_to_one_with_the_fewest(outstanding: list[int | None]) -> None:
    picked = BALANCERS.get("least_outstanding")(3, Random(0)).pick(outstanding)
    open_ = [held for held in outstanding if held is not None and held < 3]
    assert (picked is None) == (not open_)
    assert picked is None or outstanding[picked] == min(open_)


@given(st.integers(1, 5), st.data())
def test_round_robin_gives_to_each_up_one_in_turn(instances: int, data: st.DataObject) -> None:
    up = data.draw(st.sets(st.integers(0, instances - 1), min_size=1))
    balancer = BALANCERS.get("round_robin")(2, Random(0))
    outstanding = [0 if index in up else None for index in range(instances)]
    picked = [balancer.pick(outstanding) for _ in range(3 * len(up))]
    assert picked == sorted(up) * 3


@given(counts, st.integers(0, 100))
def test_two_choices_never_take_the_fullest_of_more(outstanding: list[int | None], seed: int) -> None:
    picked = BALANCERS.get("p2c")(3, Random(seed)).pick(outstanding)
    open_ = sorted(held for held in outstanding if held is not None and held < 3)
    if picked is None:
        assert not open_
        return
    held = outstanding[picked]
    assert held is not None
    # Of two that were drawn the fuller stays: the one picked is no fuller than the second fullest.
    assert held <= (open_[-2] if len(open_) > 1 else open_[0])
    assert not (held and 0 in open_)


def test_two_choices_use_all_and_prefer_those_that_hold_less() -> None:
    balancer = BALANCERS.get("p2c")(4, Random(0))
    equal = Counter(balancer.pick([1, 1, 1, 1]) for _ in range(4000))
    assert all(800 < equal[index] < 1200 for index in range(4))
    # Of four that hold 1, 2, 3 and 3, the first is picked whenever it is drawn: in half of the draws.
    uneven = Counter(balancer.pick([1, 2, 3, 3]) for _ in range(4000))
    assert 1800 < uneven[0] < 2200
    assert uneven[0] > uneven[1] > uneven[2]
