"""Every batching policy keeps the contract; the contract catches those that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tauten.run.serve.call import Batch, Call
from tauten.run.serve.scheduler import Scheduler
from tauten.run.serve.schedulers import SCHEDULERS
from tauten.run.serve.schedulers.continuous import Continuous
from tauten.testing import schedulers

Policy = type[Scheduler]


@pytest.mark.parametrize("check", schedulers.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_a_policy_holds_the_contract(name: str, check: Callable[[Policy], None]) -> None:
    check(SCHEDULERS.get(name))


class Twice(Continuous):
    """Runs a call again now and then."""

    def next(self, now_ns: int) -> Batch | int | None:
        found = super().next(now_ns)
        if isinstance(found, Batch) and now_ns % 7 == 0:
            self.submit(found.calls[0], now_ns)
        return found


class Mixing(Continuous):
    def submit(self, call: Call, now_ns: int) -> None:
        call.arrived_ns = now_ns
        super().submit(call, now_ns)

    def next(self, now_ns: int) -> Batch | int | None:
        first, second = super().next(now_ns), super().next(now_ns)
        if isinstance(first, Batch) and isinstance(second, Batch):
            return Batch([*first.calls, *second.calls], first.rows + second.rows, "idle")
        return first if first is not None else second


class Patient(Continuous):
    """Waits for a call that never comes."""

    def next(self, now_ns: int) -> Batch | int | None:
        found = super().next(now_ns)
        if isinstance(found, Batch) and len(found.calls) == 1:
            self._put_back((found.calls[0].priority, found.calls[0].group), found)
            return now_ns + 1000
        return found


class Unfair(Continuous):
    def submit(self, call: Call, now_ns: int) -> None:
        call.priority = -call.priority
        super().submit(call, now_ns)

    def next(self, now_ns: int) -> Batch | int | None:
        found = super().next(now_ns)
        for call in found.calls if isinstance(found, Batch) else ():
            call.priority = -call.priority
        return found


class Deaf(Continuous):
    """Runs what nobody waits for."""

    def _gone(self, call: Call, now_ns: int) -> bool:
        return False


@pytest.mark.parametrize(
    ("policy", "check"),
    [
        (Twice, schedulers.gives_each_call_once),
        (Mixing, schedulers.keeps_groups_apart),
        (Patient, schedulers.lets_nobody_wait_for_ever),
        (Unfair, schedulers.puts_priority_first),
        (Deaf, schedulers.tells_of_the_late_once),
        (Deaf, schedulers.gives_each_call_once),
    ],
)
def test_the_contract_catches(policy: Policy, check: Callable[[Policy], None]) -> None:
    with pytest.raises(AssertionError):
        check(policy)
