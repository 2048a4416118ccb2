"""Runs several things in turn, so that what the machine does meanwhile falls on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Nanoseconds = npt.NDArray[np.int64]
Clock = Callable[[], int]

ROUNDS: Final = 20
FEWEST_ROUNDS: Final = 7
ENOUGH_ROUNDS: Final = 10
"""From so many rounds on, things that are steady may end."""
WARM_UP: Final = 0.1
"""The share of the measured time that each thing runs before it is measured."""
_FEWEST_WARM_UPS: Final = 3
_MOST_CALLS_A_TURN: Final = 2000


def order(count: int, turn: int) -> list[int]:
    """Who runs when in a round: rotated by one each round, and turned around after each full circle, so that all have
    every place equally often and nobody always runs after the same neighbour.

    >>> order(3, 0), order(3, 1), order(3, 2), order(3, 3)
    ([0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])
    """
    rotated = [(turn + index) % count for index in range(count)]
    return rotated if turn // count % 2 == 0 else rotated[::-1]


def run_rounds(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    clock: Clock,
    rounds: int = ROUNDS,
    steady: float = 0.0,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, list[Nanoseconds]]:
    """Durations of single calls in nanoseconds, a list of rounds for each name, every name in every round.

    Each thing runs for about ``seconds`` in all, after a warm-up that is dropped. Where single calls are so long that
    ``rounds`` of them do not fit, there are fewer rounds, but never fewer than seven. ``clock`` tells nanoseconds.
    After ten rounds all end together where the medians of everyone's rounds are so alike that the mean of them is known
    to within the share ``steady`` of itself (95 %); 0 for never.
    """
    usual = {name: _warm_up(call, seconds * WARM_UP, clock) for name, call in calls.items()}
    slowest = max(usual.values())
    if slowest * rounds > seconds * 1e9:
        rounds = max(FEWEST_ROUNDS, min(rounds, int(seconds * 1e9 / slowest)))
    turn_ns = seconds * 1e9 / rounds
    taken: dict[str, list[Nanoseconds]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        for place in order(len(names), turn):
            name = names[place]
            # The first call of a turn finds caches that the one before filled; it is dropped where calls are short
            # enough that it would show, and cheap enough to drop.
            if usual[name] * 4 <= turn_ns:
                calls[name]()
            taken[name].append(_turn(calls[name], turn_ns, clock))
        if steady and turn + 1 >= ENOUGH_ROUNDS and all(_spread(values) <= steady for values in taken.values()):
            progress(1.0)
            break
        progress((turn + 1) / rounds)
    return taken


def _spread(rounds: Sequence[Nanoseconds]) -> float:
    """How well the rounds' median is known: the reach of its mean's 95 % interval over that mean."""
    medians = np.array([np.median(values) for values in rounds])
    return float(2.0 * medians.std(ddof=1) / np.sqrt(len(medians)) / max(medians.mean(), 1e-9))


def _warm_up(call: Callable[[], object], seconds: float, clock: Clock) -> float:
    """Run until calls are warm; the last half's median in nanoseconds."""
    taken: list[int] = []
    started = clock()
    while len(taken) < _FEWEST_WARM_UPS or (clock() - started < seconds * 1e9 and len(taken) < _MOST_CALLS_A_TURN):
        before = clock()
        call()
        taken.append(clock() - before)
    return float(np.median(taken[len(taken) // 2 :]))


def _turn(call: Callable[[], object], turn_ns: float, clock: Clock) -> Nanoseconds:
    taken: list[int] = []
    started = before = clock()
    while True:
        call()
        after = clock()
        taken.append(after - before)
        if after - started >= turn_ns or len(taken) >= _MOST_CALLS_A_TURN:
            return np.asarray(taken, dtype=np.int64)
        before = clock()
