"""Taking turns, on a clock that only the calls move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from tauten.run.measure._rounds import ENOUGH_ROUNDS, FEWEST_ROUNDS, ROUNDS, order, run_rounds
from tauten.run.measure.latency import latency_measures, rounds_p50_ms
from tauten.run.measure.throughput import throughput_measure

MS = 1_000_000


class World:
    """A clock, and things to call that take their time on it."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[str] = []

    def clock(self) -> int:
        return self.now

    def call(self, name: str, takes_ns: Callable[[int], int]) -> Callable[[], None]:
        def run() -> None:
            self.now += takes_ns(self.log.count(name))
            self.log.append(name)

        return run


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_everybody_runs_once_a_round_and_at_every_place(count: int) -> None:
    turns = [order(count, turn) for turn in range(4 * count)]
    assert all(sorted(turn) == list(range(count)) for turn in turns)
    for place in range(count):
        assert set(Counter(turn[place] for turn in turns).values()) == {4}, "some run at this place more often"


@pytest.mark.parametrize("count", [3, 4, 5])
def test_nobody_always_runs_after_the_same_neighbour(count: int) -> None:
    turns = [order(count, turn) for turn in range(2 * count)]
    for one in range(count):
        before = {turn[turn.index(one) - 1] for turn in turns if turn.index(one)}
        assert len(before) > 1


def test_each_is_in_every_round_with_its_own_durations() -> None:
    world = World()
    calls = {"fast": world.call("fast", lambda _: 1 * MS), "slow": world.call("slow", lambda _: 5 * MS)}
    taken = run_rounds(calls, seconds=1.0, clock=world.clock)
    assert {name: len(rounds) for name, rounds in taken.items()} == {"fast": ROUNDS, "slow": ROUNDS}
    assert all((values == MS).all() for values in taken["fast"])
    assert all((values == 5 * MS).all() for values in taken["slow"])
    for rounds in taken.values():
        assert sum(values.sum() for values in rounds) == pytest.approx(1e9, rel=0.15), "measured time is not as asked"


def test_rounds_are_interleaved() -> None:
    world = World()
    calls = {name: world.call(name, lambda _: MS) for name in "abc"}
    run_rounds(calls, seconds=0.6, clock=world.clock, rounds=6)
    runs = [name for name, before in zip(world.log, [None, *world.log], strict=False) if name != before]
    assert len(runs) >= 3 * 6 - 6


def test_a_machine_that_slows_down_slows_all_alike() -> None:
    world = World()
    calls = {name: world.call(name, lambda _: MS if world.now < 1e9 else 2 * MS) for name in ("one", "other")}
    taken = run_rounds(calls, seconds=1.0, clock=world.clock)
    one, other = (np.array(rounds_p50_ms(taken[name])) for name in ("one", "other"))
    assert {1.0, 2.0} == set(one)
    assert np.median(one / other) == 1.0


def test_warm_up_is_dropped() -> None:
    world = World()
    cold = world.call("x", lambda before: 100 * MS if before < 2 else MS)
    taken = run_rounds({"x": cold}, seconds=0.5, clock=world.clock)
    assert max(values.max() for values in taken["x"]) == MS


def test_the_first_of_a_turn_is_dropped_where_calls_are_short() -> None:
    world = World()
    last = [""]

    def evicted(name: str) -> Callable[[], None]:
        def run() -> None:
            world.now += MS if last[0] == name else 3 * MS
            last[0] = name

        return run

    taken = run_rounds({"a": evicted("a"), "b": evicted("b")}, seconds=1.0, clock=world.clock)
    assert {int(values.max()) for rounds in taken.values() for values in rounds} == {MS}


def test_long_calls_get_fewer_rounds_but_enough() -> None:
    world = World()
    calls = {"long": world.call("long", lambda _: 400 * MS), "short": world.call("short", lambda _: MS)}
    taken = run_rounds(calls, seconds=1.0, clock=world.clock)
    assert len(taken["long"]) == len(taken["short"]) == FEWEST_ROUNDS
    assert sum(len(values) for values in taken["long"]) == FEWEST_ROUNDS


def test_what_is_steady_ends_early_and_what_is_not_goes_on() -> None:
    world = World()
    told: list[float] = []
    steady = run_rounds(
        {"x": world.call("x", lambda _: MS)}, seconds=0.1, clock=world.clock, steady=0.01, progress=told.append
    )
    assert len(steady["x"]) == ENOUGH_ROUNDS
    assert told[-1] == 1.0
    # The one beside it takes another time in each round: both go on.
    calls = {
        "x": world.call("x", lambda _: MS),
        "y": world.call("y", lambda _: (1 + world.now // 10_000_000 % 3) * MS),
    }
    assert {len(rounds) for rounds in run_rounds(calls, seconds=0.1, clock=world.clock, steady=0.01).values()} == {
        ROUNDS
    }


def test_progress_ends_at_the_whole() -> None:
    world = World()
    told: list[float] = []
    run_rounds({"x": world.call("x", lambda _: MS)}, seconds=0.1, clock=world.clock, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_latencies_are_those_of_all_calls_in_ms() -> None:
    rounds = [np.arange(1, 51) * MS, np.arange(51, 101) * MS]
    found = latency_measures(rounds, "here")
    values = {name: measure.value for name, measure in found.items()}
    assert values == {"latency_mean_ms": 50.5, "latency_p50_ms": 50, "latency_p95_ms": 95, "latency_p99_ms": 99}
    assert {(m.unit, m.better, m.repeats, m.on) for m in found.values()} == {("ms", "lower", 100, "here")}
    assert rounds_p50_ms(rounds) == (25.0, 75.0)


def test_intervals_are_as_wide_as_rounds_differ() -> None:
    steady = latency_measures([np.full(9, 2 * MS)] * 20, "")
    shaky = latency_measures([np.full(9, (1 + turn % 3) * MS) for turn in range(20)], "")
    assert steady["latency_mean_ms"].low == steady["latency_mean_ms"].high == 2
    assert shaky["latency_mean_ms"].high - shaky["latency_mean_ms"].low > 0.3


def test_throughput_counts_rows_over_time() -> None:
    found = throughput_measure([np.array([2 * MS, 2 * MS]), np.array([4 * MS])], 8, "here")
    assert found.value == pytest.approx(3 * 8 / 0.008)
    assert (found.unit, found.better, found.repeats) == ("1/s", "higher", 3)
    assert found.low < found.value < found.high
