"""Every balancing policy keeps the contract; the contract catches those that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest

from tauten.run.serve.balancer import Balancer
from tauten.run.serve.balancers import BALANCERS, DEFAULT
from tauten.testing import balancers

Policy = type[Balancer]


@pytest.mark.parametrize("check", balancers.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", BALANCERS.names())
def test_a_policy_holds_the_contract(name: str, check: Callable[[Policy], None]) -> None:
    check(BALANCERS.get(name))


def test_the_default_is_one_of_them() -> None:
    assert DEFAULT in BALANCERS.names()


class First(Balancer):
    def pick(self, outstanding: Sequence[int | None]) -> int | None:
        return 0 if outstanding else None


class Never(Balancer):
    def pick(self, outstanding: Sequence[int | None]) -> int | None:
        return None


class Remembers(Balancer):
    """What it picked last, as long as it is up."""

    last = 0

    def pick(self, outstanding: Sequence[int | None]) -> int | None:
        if outstanding[self.last] != 0:
            self.last = next((i for i, held in enumerate(outstanding) if held == 0), self.last)
        return self.last if outstanding[self.last] == 0 else None


class Notes(Balancer):
    def pick(self, outstanding: Sequence[int | None]) -> int | None:
        if 0 not in outstanding:
            return None
        index = outstanding.index(0)
        outstanding[index] += 1
        return index


class Unseeded(Balancer):
    def pick(self, outstanding: Sequence[int | None]) -> int | None:
        idle = [index for index, held in enumerate(outstanding) if held == 0]
        return Random().choice(idle) if idle else None


@pytest.mark.parametrize(
    ("policy", "check", "fault"),
    [
        (First, balancers.picks_one_that_may_take_it, AssertionError),
        (Never, balancers.lets_none_idle, AssertionError),
        (Never, balancers.keeps_all_busy, AssertionError),
        (First, balancers.keeps_all_busy, AssertionError),
        (Remembers, balancers.bears_changes, IndexError),
        (Notes, balancers.looks_only, AssertionError),
        (Unseeded, balancers.can_be_repeated, AssertionError),
    ],
)
def test_the_contract_catches(policy: Policy, check: Callable[[Policy], None], fault: type[Exception]) -> None:
    with pytest.raises(fault):
        check(policy)
