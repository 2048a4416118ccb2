"""Which answers are kept."""

from __future__ import annotations

import random
import tracemalloc
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauten.run.serve.cache.memory import ARRAY_BYTES, ENTRY_BYTES, Memory, Value

SECOND_NS = 10**9


def value(size: int = 8) -> Value:
    return (np.zeros(size, np.uint8),)


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


COST = ENTRY_BYTES + ARRAY_BYTES + 8


def test_what_was_put_is_found_until_it_is_too_old() -> None:
    memory = Memory(10**6, 5 * SECOND_NS)
    kept = value()
    assert memory.put(key(1), kept, 10 * SECOND_NS)
    assert memory.get(key(1), 15 * SECOND_NS - 1) is kept
    assert memory.get(key(2), 10 * SECOND_NS) is None
    assert memory.get(key(1), 15 * SECOND_NS) is None
    assert (len(memory), memory.bytes) == (0, 0)


def test_what_was_old_already_goes_sooner() -> None:
    memory = Memory(10**6, 5 * SECOND_NS)
    memory.put(key(1), value(), 0, age_ns=2 * SECOND_NS)
    assert memory.get(key(1), 3 * SECOND_NS - 1) is not None
    assert memory.get(key(1), 3 * SECOND_NS) is None
    assert not memory.put(key(1), value(), 0, age_ns=5 * SECOND_NS)


def test_putting_again_replaces() -> None:
    memory = Memory(10**6, 5 * SECOND_NS)
    memory.put(key(1), value(), 0)
    second = value(100)
    memory.put(key(1), second, SECOND_NS)
    assert memory.get(key(1), 5 * SECOND_NS) is second
    assert (len(memory), memory.bytes) == (1, COST + 92)


def test_one_answer_may_not_take_most_of_the_room() -> None:
    memory = Memory(4_000, SECOND_NS)
    assert not memory.put(key(1), value(1_000), 0)
    assert memory.put(key(1), value(1_000 - ENTRY_BYTES - ARRAY_BYTES), 0)


def test_those_of_one_owner_are_dropped() -> None:
    memory = Memory(10**6, SECOND_NS)
    memory.put(key(1), value(), 0, owner="a")
    memory.put(key(2), value(), 0, owner="b")
    memory.drop("a")
    assert memory.get(key(1), 0) is None
    assert memory.get(key(2), 0) is not None
    assert memory.bytes == COST


def test_what_is_asked_for_again_stays_when_a_row_of_others_comes() -> None:
    memory = Memory(20 * COST, SECOND_NS)
    for number in range(5):
        memory.put(key(number), value(), 0)
    for _ in range(2):
        for number in range(5):
            assert memory.get(key(number), 0) is not None
    for number in range(100, 1_000):
        memory.put(key(number), value(), 0)
    assert all(memory.get(key(number), 0) is not None for number in range(5))
    assert memory.evictions > 800


def test_what_comes_again_soon_after_it_went_is_kept() -> None:
    memory = Memory(20 * COST, SECOND_NS)
    for number in range(30):
        memory.put(key(number), value(), 0)
    gone = next(number for number in reversed(range(30)) if memory.get(key(number), 0) is None)
    memory.put(key(gone), value(), 0)
    for number in range(100, 114):
        memory.put(key(number), value(), 0)
    assert memory.get(key(gone), 0) is not None


def test_what_expired_makes_room_and_is_no_eviction() -> None:
    memory = Memory(10 * COST, SECOND_NS)
    for number in range(10):
        memory.put(key(number), value(), 0)
        memory.get(key(number), 0)
    for number in range(10, 14):
        memory.put(key(number), value(), 2 * SECOND_NS)
    assert memory.evictions == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "get", "drop"]), st.integers(0, 40), st.integers(0, 3_000), st.integers(0, 3)
        ),
        max_size=200,
    ),
    st.integers(0, 20_000),
)
def test_its_size_is_what_it_says_and_never_above_the_bound(
    steps: list[tuple[str, int, int, int]], max_bytes: int
) -> None:
    memory = Memory(max_bytes, 50)
    kept: dict[bytes, Value] = {}
    now = 0
    for step, number, size, wait in steps:
        now += wait
        if step == "put":
            kept[key(number)] = value(size)
            memory.put(key(number), kept[key(number)], now, owner=number % 2)
        elif step == "get":
            found = memory.get(key(number), now)
            assert found is None or found is kept[key(number)]
        else:
            memory.drop(number % 2)
        assert 0 <= memory.bytes <= max_bytes
    memory.drop(0)
    memory.drop(1)
    assert len(memory) == 0
    assert memory._small_bytes == 0


@pytest.mark.parametrize("size", [8, 400, 4_000])
def test_the_bound_is_one_of_real_memory(size: int) -> None:
    bound = 2**20
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        memory = Memory(bound, SECOND_NS)
        for number in range(bound // 200):
            memory.put(number.to_bytes(16, "little"), (np.zeros(size, np.uint8),), 0)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.9 * bound < memory.bytes <= bound
    assert 0.6 * bound < taken < 1.05 * bound


def trace(draws: random.Random, requests: int) -> Iterator[int]:
    """Requests by Zipf's law, between rows of others that come once."""
    weights = [1 / (rank + 1) for rank in range(2_000)]
    once = 10**6
    popular = iter(draws.choices(range(2_000), weights, k=requests))
    for number in popular:
        yield number
        if draws.random() < 0.005:
            for _ in range(100):
                yield once
                once += 1


def test_it_keeps_more_of_what_comes_again_than_least_recently_used() -> None:
    room = 200
    memory, recent = Memory(room * COST, SECOND_NS), OrderedDict[int, None]()
    hits = {"here": 0, "recent": 0}
    for number in trace(random.Random(1), 40_000):
        if memory.get(key(number), 0) is not None:
            hits["here"] += 1
        else:
            memory.put(key(number), value(), 0)
        if number in recent:
            hits["recent"] += 1
            recent.move_to_end(number)
        else:
            recent[number] = None
            if len(recent) > room:
                recent.popitem(last=False)
    assert hits["here"] > 1.1 * hits["recent"], hits
