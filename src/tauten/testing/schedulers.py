"""What every batching policy must hold.

Each function of ``CHECKS`` takes a policy's class and raises ``AssertionError`` where the contract is broken. Time is
made up: a policy reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import Random
from typing import Final

from tauten.run.serve.call import Batch, Call
from tauten.run.serve.protocol.buffer import ALONE
from tauten.run.serve.scheduler import Scheduler
from tauten.testing._hold import hold

_SECOND: Final = 1_000_000_000
_ROUNDS: Final = 60


def gives_each_call_once(policy: type[Scheduler]) -> None:
    """Every call that was neither cancelled nor late runs once; in no batch are more rows than may run at once."""
    for seed in range(_ROUNDS):
        world = _World(policy, seed)
        world.live(120)
        world.finish()
        for call in world.calls:
            expected = 0 if call in world.expired or call.cancelled else 1
            ran = world.ran.count(call)
            hold(ran == expected or (call.cancelled and ran <= 1), f"a call ran {ran} times")
        hold(world.scheduler.waiting == 0, f"{world.scheduler.waiting} are said to wait when all have left")


def keeps_groups_apart(policy: type[Scheduler]) -> None:
    """Calls of one batch are of one group, and a call that fits with none runs by itself."""
    for seed in range(_ROUNDS):
        world = _World(policy, seed)
        world.live(120)
        for batch in world.batches:
            groups = {call.group for call in batch.calls}
            hold(len(groups) == 1, f"calls of {len(groups)} groups in one batch")
            hold(ALONE not in groups or len(batch.calls) == 1, "a call that fits with none shares a batch")
            hold(batch.rows == sum(call.rows for call in batch.calls), f"says {batch.rows} rows, and holds others")
            alone = ALONE in groups
            hold(alone or batch.rows <= world.scheduler.max_rows, f"{batch.rows} rows at once")
            hold(bool(batch.why), "does not say why it left")


def lets_nobody_wait_for_ever(policy: type[Scheduler]) -> None:
    """A call that waits leaves by the time that the policy names, also where nobody else comes."""
    scheduler = policy(8)
    now = _SECOND
    for number in range(40):
        scheduler.submit(_call(number), now)
        found = scheduler.next(now)
        looks = 0
        while isinstance(found, int):
            hold(now < found < now + _SECOND, f"is to be asked again {(found - now) * 1e-9:g} seconds later")
            now, looks = found, looks + 1
            hold(looks < 10, "puts a call off again and again")
            found = scheduler.next(now)
        hold(isinstance(found, Batch), "an idle instance gets nothing though a call waits")
        now += 5_000_000
        if isinstance(found, Batch):
            scheduler.ran(found, 4_000_000)
    hold(scheduler.next(now) is None, "has something where nothing waits")


def puts_priority_first(policy: type[Scheduler]) -> None:
    """Of calls that wait, one with a lower number leaves before one with a higher."""
    scheduler = policy(1)
    for number in (5, 1, 3, 0, 4, 2):
        call = _call(number)
        call.priority = number
        scheduler.submit(call, _SECOND)
    found = []
    while isinstance(batch := scheduler.next(_SECOND), Batch):
        found += [call.priority for call in batch.calls]
    hold(found == sorted(found) and len(found) == 6, f"priorities left in the order {found}")


def tells_of_the_late_once(policy: type[Scheduler]) -> None:
    """A call whose deadline has passed is never run, and is told of once."""
    scheduler = policy(4)
    late, fine = _call(1), _call(2)
    late.deadline_ns, fine.deadline_ns = 2 * _SECOND, 9 * _SECOND
    scheduler.submit(late, _SECOND)
    scheduler.submit(fine, _SECOND)
    told = scheduler.expired(3 * _SECOND)
    batch = scheduler.next(3 * _SECOND)
    told += scheduler.expired(3 * _SECOND)
    hold(told == [late], f"told of {len(told)} late calls, of which there is one")
    hold(isinstance(batch, Batch) and list(batch.calls) == [fine], "the other does not leave by itself")


CHECKS: Final[tuple[Callable[[type[Scheduler]], None], ...]] = (
    gives_each_call_once,
    keeps_groups_apart,
    lets_nobody_wait_for_ever,
    puts_priority_first,
    tells_of_the_late_once,
)


def _call(number: int, rows: int = 1, group: Hashable = ()) -> Call:
    call = Call((), (), rows, group, lambda call: None, number)
    call.arrived_ns = _SECOND
    return call


class _World:
    """A policy, clients that come and leave, and an instance that is now and then idle."""

    def __init__(self, policy: type[Scheduler], seed: int) -> None:
        self.draw = Random(seed)
        self.scheduler = policy(self.draw.choice((1, 4, 8)))
        self.now = _SECOND
        self.calls: list[Call] = []
        self.batches: list[Batch] = []
        self.ran: list[Call] = []
        self.expired: list[Call] = []

    def live(self, steps: int) -> None:
        for _ in range(steps):
            self.now += self.draw.randrange(2_000_000)
            what = self.draw.random()
            if what < 0.55:
                self._submit()
            elif what < 0.65 and self.calls:
                self.draw.choice(self.calls).cancel()
            elif what < 0.7:
                self.expired += self.scheduler.expired(self.now)
            else:
                self._next()

    def finish(self) -> None:
        for _ in range(1000):
            if not self._next():
                break
        self.expired += self.scheduler.expired(self.now)

    def _submit(self) -> None:
        draw = self.draw
        group: Hashable = draw.choice(((), (), ("wide",), ALONE))
        rows = draw.randrange(1, 12) if group is ALONE else draw.randrange(1, self.scheduler.max_rows + 1)
        call = _call(len(self.calls), rows, group)
        call.arrived_ns = self.now
        call.priority = draw.choice((0, 0, 0, 1))
        call.deadline_ns = self.now + draw.choice((3_000_000, 100 * _SECOND))
        self.calls.append(call)
        self.scheduler.submit(call, self.now)

    def _next(self) -> bool:
        found = self.scheduler.next(self.now)
        if isinstance(found, int):
            self.now = max(self.now + 1, found)
            return True
        if found is None:
            return False
        for call in found.calls:
            hold(not call.cancelled, "runs a call that was cancelled")
            hold(not 0 < call.deadline_ns <= self.now, "runs a call that is late")
        self.batches.append(found)
        self.ran += found.calls
        duration_ns = 200_000 * found.rows + self.draw.choice((100_000, 5_000_000))
        self.now += duration_ns
        self.scheduler.ran(found, duration_ns)
        return True
