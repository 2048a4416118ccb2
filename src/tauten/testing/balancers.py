"""What every balancing policy must hold.

Each function of ``CHECKS`` takes a policy's class and raises ``AssertionError`` where the contract is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final

from tauten.run.serve.balancer import Balancer
from tauten.testing._hold import hold

Counts = list[int | None]


def picks_one_that_may_take_it(policy: type[Balancer]) -> None:
    """What is picked is up and holds fewer batches than it may; where none may, nothing is picked."""
    for depth, outstanding in _situations():
        picked = policy(depth, Random(0)).pick(outstanding)
        may = [index for index, held in enumerate(outstanding) if held is not None and held < depth]
        hold(picked is None or picked in may, f"picked {picked} of {outstanding}, where each may hold {depth}")


def lets_none_idle(policy: type[Balancer]) -> None:
    """Where an instance is idle, one is picked."""
    for depth, outstanding in _situations():
        if 0 in outstanding:
            hold(policy(depth, Random(0)).pick(outstanding) is not None, f"picked none of {outstanding}, one is idle")


def keeps_all_busy(policy: type[Balancer]) -> None:
    """As many batches as there are places in all find a place each, and one more finds none that is full."""
    for depth, instances in ((1, 1), (1, 4), (3, 2)):
        balancer = policy(depth, Random(1))
        outstanding: Counts = [0] * instances
        while (picked := balancer.pick(outstanding)) is not None:
            outstanding[picked] = (outstanding[picked] or 0) + 1
            hold(sum(held or 0 for held in outstanding) <= depth * instances, f"gave more than fits: {outstanding}")
        hold(all(outstanding), f"let an instance idle with more to do: {outstanding}")


def bears_changes(policy: type[Balancer]) -> None:
    """Instances go down, come up, are added and removed between two calls."""
    balancer = policy(1, Random(3))
    situations: Sequence[Counts] = ([0, 0, 0], [0], [None, 0], [], [None], [1, None, 0, 0], [0, 0])
    for outstanding in situations:
        picked = balancer.pick(outstanding)
        idle = [index for index, held in enumerate(outstanding) if held == 0]
        hold(picked in idle if idle else picked is None, f"picked {picked} of {outstanding}")


def looks_only(policy: type[Balancer]) -> None:
    """The counts are left as they were, and are read as a tuple as well as a list."""
    for outstanding in ([0, 1, None], [1, 1], [0]):
        kept: Counts = list(outstanding)
        changed = policy(2, Random(4)).pick(kept)
        hold(kept == outstanding, f"changed {outstanding} to {kept}")
        hold(policy(2, Random(4)).pick(tuple(outstanding)) == changed, f"picks another of a tuple: {outstanding}")


def can_be_repeated(policy: type[Balancer]) -> None:
    """The same seed and the same counts give the same picks."""
    situations = list(_situations())
    first, second = policy(2, Random(5)), policy(2, Random(5))
    for _, outstanding in situations:
        one, other = first.pick(outstanding), second.pick(outstanding)
        hold(one == other, f"picked {one}, then {other} of {outstanding}")


CHECKS: Final[tuple[Callable[[type[Balancer]], None], ...]] = (
    picks_one_that_may_take_it,
    lets_none_idle,
    keeps_all_busy,
    bears_changes,
    looks_only,
    can_be_repeated,
)


def _situations() -> Iterator[tuple[int, Counts]]:
    """A depth, and counts that may come up with it; one instance, several, none, and some or all of them down."""
    random = Random(6)
    for depth in (1, 2, 4):
        yield depth, []
        for instances in (1, 2, 3, 7):
            for _ in range(40):
                counts: Counts = [random.choice([None, 0, *range(depth + 1)]) for _ in range(instances)]
                yield depth, counts
