"""The prediction cache before a worker: answers are those of the model, whatever happens in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauten.core.tensor import Array, TensorSpec
from tauten.errors import EngineError, NotReady, Overloaded
from tauten.run.serve.cache.cached import LARGEST_BYTES, Cached
from tauten.run.serve.cache.keys import Keys
from tauten.run.serve.cache.memory import Memory
from tauten.run.serve.call import Call
from tauten.run.serve.protocol.buffer import ALONE
from tauten.run.serve.protocol.elements import BytesSpec, Packed, pack_elements, to_objects, unpack_elements

X = TensorSpec(name="x", shape=("batch", 3))
DOUBLE = TensorSpec(name="double", shape=("batch", 3))
TOTAL = TensorSpec(name="total", shape=("batch",))
HOUR_NS = 3_600 * 10**9


def double(rows: Array) -> list[Array]:
    """What the model answers."""
    return [rows * 2, rows.sum(axis=1)]


class Stepwise:
    """Computes what was submitted when it is told to; ``calls`` are those that wait."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.rows = 0

    def submit(self, call: Call) -> None:
        self.calls.append(call)

    def answer(self, call: Call) -> None:
        self.calls.remove(call)
        if call.cancelled:
            return
        data = np.frombuffer(call.buffers[0], np.float32).reshape(call.shapes[0])  # type: ignore[arg-type]
        assert len(data) == call.rows
        self.rows += call.rows
        # Amid a batch with others' rows, as a worker would.
        batch = double(np.concatenate([np.ones((2, 3), np.float32), data]))
        call.result = [output[2:] for output in batch]
        call.started_ns, call.ended_ns, call.batch_rows, call.why = 10, 20, call.rows + 2, "idle"
        call.answered(call)

    def fail(self, call: Call, fault: Exception) -> None:
        self.calls.remove(call)
        call.refuse(fault)

    def answer_all(self) -> None:
        while self.calls:
            self.answer(self.calls[0])


class Refusing(Stepwise):
    """Has no place for anything."""

    def submit(self, call: Call) -> None:
        self.rows += 1
        call.refuse(Overloaded("full"))


def keys_of(specs: Sequence[TensorSpec] = (X,), outputs: Sequence[TensorSpec] = (DOUBLE, TOTAL)) -> Keys:
    return Keys(b"secret", [b"m", b"1", b"digest"], specs, outputs)


class Rig:
    """A cache before a model that computes step by step."""

    def __init__(self, inner: Stepwise | None = None, max_bytes: int = 10**6) -> None:
        self.inner = inner or Stepwise()
        self.memory = Memory(max_bytes, HOUR_NS)
        self.cache = Cached(self.inner, keys_of(), self.memory)
        self.answered: list[Call] = []

    def ask(self, *rows: float, **fields: Any) -> Call:
        """Ask for rows that hold one number each."""
        data = np.repeat(np.array(rows, np.float32), 3).reshape(-1, 3)
        call = Call([data.tobytes()], [data.shape], len(rows), "group", self.answered.append, data)
        call.arrived_ns = 1
        for name, value in fields.items():
            setattr(call, name, value)
        self.cache.submit(call)
        return call

    def check(self, call: Call, *, cached: bool | None = None) -> None:
        """``call`` was answered once, with what the model says."""
        assert self.answered.count(call) == 1
        assert call.fault is None
        assert call.result is not None
        for came, expected in zip(call.result, double(call.context), strict=True):
            np.testing.assert_array_equal(came, expected)
        assert call.started_ns <= call.ended_ns
        assert cached in (None, call.cached)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_row_that_came_before_is_answered_at_once(rig: Rig) -> None:
    first = rig.ask(1)
    assert rig.answered == []
    rig.inner.answer_all()
    rig.check(first, cached=False)
    assert (first.batch_rows, first.why) == (3, "idle")
    second = rig.ask(1)
    rig.check(second, cached=True)
    assert rig.inner.rows == 1
    assert (rig.cache.hits, rig.cache.misses) == (1, 1)
    assert second.started_ns > second.arrived_ns


def test_rows_of_one_call_are_answers_of_their_own(rig: Rig) -> None:
    rig.ask(1, 2)
    rig.inner.answer_all()
    mixed = rig.ask(3, 2, 4, 1, 3)
    assert [call.rows for call in rig.inner.calls] == [2]
    rig.inner.answer_all()
    rig.check(mixed, cached=False)
    rig.check(rig.ask(4, 3), cached=True)
    rig.check(rig.ask(2), cached=True)


def test_what_is_computed_already_is_waited_for(rig: Rig) -> None:
    first, second, third = rig.ask(1), rig.ask(1), rig.ask(2, 1)
    assert [call.rows for call in rig.inner.calls] == [1, 1]
    rig.inner.answer(rig.inner.calls[0])
    rig.check(first, cached=False)
    rig.check(second, cached=True)
    assert third not in rig.answered
    rig.inner.answer_all()
    rig.check(third, cached=False)
    assert rig.cache.shared == 2


def test_answers_hold_no_batch_and_cannot_be_written(rig: Rig) -> None:
    rig.ask(1)
    rig.ask(2, 3)
    rig.inner.answer_all()
    for call in (rig.ask(1), rig.ask(2), rig.ask(3)):
        for output in call.result or ():
            assert output.base is None
            assert not output.flags.writeable


def test_the_fault_of_one_who_began_is_not_that_of_those_who_waited(rig: Rig) -> None:
    calls = [rig.ask(1) for _ in range(3)]
    rig.inner.fail(rig.inner.calls[0], EngineError("broken"))
    assert rig.answered == [calls[0]]
    assert isinstance(calls[0].fault, EngineError)
    assert len(rig.inner.calls) == 1
    rig.inner.answer_all()
    rig.check(calls[1], cached=False)
    rig.check(calls[2], cached=True)


def test_a_deadline_passes_for_its_owner_alone(rig: Rig) -> None:
    hasty = rig.ask(1, deadline_ns=50)
    patient, later = rig.ask(1), rig.ask(1, deadline_ns=90)
    rig.inner.fail(rig.inner.calls[0], Overloaded("waited too long"))
    assert rig.answered == [hasty]
    (begun,) = rig.inner.calls
    assert begun.deadline_ns == 90
    rig.inner.fail(begun, Overloaded("waited too long"))
    assert rig.answered == [hasty, later]
    rig.inner.answer_all()
    rig.check(patient)


@pytest.mark.parametrize("urgent", [{"deadline_ns": 40}, {"priority": -1}])
def test_nobody_waits_for_what_is_less_urgent(rig: Rig, urgent: dict[str, int]) -> None:
    rig.ask(1, deadline_ns=50)
    other = rig.ask(1, **urgent)
    assert len(rig.inner.calls) == 2
    third = rig.ask(1)
    assert len(rig.inner.calls) == 2
    rig.inner.answer(rig.inner.calls[1])
    rig.check(other)
    rig.check(third)
    rig.inner.answer_all()
    assert len(rig.answered) == 3


def test_what_ends_leaves_a_more_urgent_one_to_be_waited_for(rig: Rig) -> None:
    rig.ask(1, deadline_ns=50)
    rig.ask(1, deadline_ns=40)
    rig.inner.fail(rig.inner.calls[0], Overloaded("waited too long"))
    third = rig.ask(1)
    assert len(rig.inner.calls) == 1
    rig.inner.answer_all()
    rig.check(third, cached=True)


def test_what_all_have_left_is_not_computed(rig: Rig) -> None:
    first, second = rig.ask(1), rig.ask(1)
    first.cancel()
    assert not rig.inner.calls[0].cancelled
    second.cancel()
    assert rig.inner.calls[0].cancelled
    third = rig.ask(1)
    rig.inner.answer_all()
    rig.check(third)
    assert rig.answered == [third]


def test_one_who_comes_before_the_last_has_left_keeps_it_going(rig: Rig) -> None:
    first = rig.ask(1)
    second = rig.ask(1)
    first.cancel()
    rig.inner.answer_all()
    rig.check(second)
    assert rig.answered == [second]


def test_a_call_of_two_computations_fails_with_its_own_alone(rig: Rig) -> None:
    first = rig.ask(1)
    both = rig.ask(1, 2)
    own = rig.inner.calls[1]
    rig.inner.fail(rig.inner.calls[0], EngineError("broken"))
    assert rig.answered == [first]
    assert [call.rows for call in rig.inner.calls] == [1, 1]
    rig.inner.fail(own, EngineError("broken too"))
    assert rig.answered == [first, both]
    assert rig.inner.calls[0].cancelled


def test_many_who_wait_are_refused_without_depth() -> None:
    rig = Rig()
    calls = [rig.ask(1) for _ in range(5_000)]
    begun = rig.inner.calls[0]
    refusing = Refusing()
    rig.cache._inner = refusing
    rig.inner.fail(begun, Overloaded("full"))
    assert len(rig.answered) == 5_000
    assert all(isinstance(call.fault, Overloaded) for call in calls)


def test_a_model_that_goes_leaves_nothing(rig: Rig) -> None:
    rig.ask(1)
    rig.inner.answer_all()
    late = rig.ask(2)
    rig.cache.close()
    assert len(rig.memory) == 0
    rig.inner.answer_all()
    rig.check(late)
    assert len(rig.memory) == 0


def test_a_call_that_may_share_no_batch_is_an_answer_as_a_whole() -> None:
    rig = Rig()
    rig.ask(1, 2, group=ALONE)
    rig.inner.answer_all()
    alone = rig.ask(1, group=ALONE)
    assert len(rig.inner.calls) == 1
    rig.inner.answer_all()
    rig.check(alone)
    rig.check(rig.ask(1, 2, group=ALONE), cached=True)
    rig.check(rig.ask(1, group=ALONE), cached=True)
    assert rig.ask(1) not in rig.answered


def test_an_engine_without_as_many_rows_is_an_error(rig: Rig) -> None:
    call = rig.ask(1, 2)
    (flight,) = rig.inner.calls
    flight.result = [np.zeros((1, 3), np.float32), np.zeros(2, np.float32)]
    flight.answered(flight)
    assert isinstance(call.fault, EngineError)
    assert "expected 2 rows" in str(call.fault)
    assert len(rig.memory) == 0


def test_rows_that_do_not_fit_together_are_computed_together(rig: Rig) -> None:
    rig.ask(1)
    (flight,) = rig.inner.calls
    flight.result = [np.zeros((1, 5), np.float32), np.zeros(1, np.float32)]  # as if padded for its batch
    flight.answered(flight)
    rig.inner.calls.clear()
    call = rig.ask(1, 2)
    rig.inner.answer_all()
    rig.check(call, cached=False)


def test_large_calls_and_calls_without_rows_pass_by() -> None:
    specs = [TensorSpec(name="x", shape=("batch", "length"))]
    inner = Stepwise()
    cache = Cached(inner, keys_of(specs, specs), Memory(10**9, HOUR_NS))
    for shape in ((1, LARGEST_BYTES // 4 + 1), (0, 3)):
        call = Call([bytes(4 * shape[0] * shape[1])], [shape], shape[0], "group", lambda call: None)
        cache.submit(call)
        assert inner.calls.pop() is call


def test_a_fault_of_the_server_reaches_each(rig: Rig) -> None:
    calls = [rig.ask(1), rig.ask(1)]
    while rig.inner.calls:
        rig.inner.fail(rig.inner.calls[0], NotReady("going"))
    assert all(isinstance(call.fault, NotReady) for call in calls)


def test_who_begins_anew_gets_rows_in_its_own_order(rig: Rig) -> None:
    first, second = rig.ask(0, 1), rig.ask(1, 0)
    rig.inner.fail(rig.inner.calls[0], EngineError("broken"))
    assert isinstance(first.fault, EngineError)
    rig.inner.answer_all()
    rig.check(second, cached=False)
    for row in (0, 1):  # and each row is kept as its own
        rig.check(rig.ask(row), cached=True)


ROW = st.integers(0, 5)
STEP = st.one_of(
    st.tuples(st.just("ask"), st.lists(ROW, min_size=1, max_size=4), st.integers(-1, 1), st.sampled_from([0, 50, 90])),
    st.tuples(st.sampled_from(["answer", "fail", "expire", "cancel"]), st.integers(0, 100)),
    st.tuples(st.sampled_from(["forget", "crowd"])),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEP, max_size=40), st.sampled_from([3_000, 10**6]))
def test_each_is_answered_once_with_what_the_model_says(steps: list[Any], max_bytes: int) -> None:
    rig = Rig(max_bytes=max_bytes)
    asked: list[Call] = []
    spoilt: set[int] = set()
    for step, *arguments in steps:
        if step == "ask":
            rows, priority, deadline_ns = arguments
            asked.append(rig.ask(*rows, priority=priority, deadline_ns=deadline_ns))
        elif step == "forget":
            rig.memory.drop(rig.cache)
        elif step == "crowd":
            rig.memory.put(bytes(16), (np.zeros(100),), 0)
        elif step == "cancel" and asked:
            asked[arguments[0] % len(asked)].cancel()
        elif step != "cancel" and rig.inner.calls:
            call = rig.inner.calls[arguments[0] % len(rig.inner.calls)]
            if step == "answer":
                rig.inner.answer(call)
            elif step == "fail" or call.deadline_ns:
                # Whoever began it, and nobody else, may fail by this.
                spoilt.add(id(call.leader.call))  # type: ignore[attr-defined]
                rig.inner.fail(call, EngineError("broken") if step == "fail" else Overloaded("late"))
        assert rig.memory.bytes <= max_bytes
    rig.inner.answer_all()
    for call in asked:
        if call.cancelled:
            assert rig.answered.count(call) <= 1
        elif call.fault is not None:
            assert id(call) in spoilt
            assert rig.answered.count(call) == 1
        else:
            rig.check(call)
    assert rig.cache._flights == {}
    assert all(call.parts == () for call in asked if not call.cancelled)


def test_elements_of_bytes_are_rows_as_any_other() -> None:
    text, label = BytesSpec(name="text", shape=("batch", 2)), BytesSpec(name="label", shape=("batch",))
    rows = [[b"a", b"bcd"], [b"", b"e"], [b"", b"e"], [b"e", b""]]
    inner, memory = Stepwise(), Memory(10**6, HOUR_NS)
    cache = Cached(inner, keys_of([text], [label]), memory)
    answered: list[Call] = []

    def ask(*places: int) -> Call:
        data = Packed(pack_elements([element for place in places for element in rows[place]]))
        call = Call([data], [(len(places), 2)], len(places), "group", answered.append)
        cache.submit(call)
        return call

    def answer() -> None:
        (flight,) = inner.calls
        inner.calls.clear()
        assert isinstance(flight.buffers[0], Packed)
        elements = unpack_elements("text", flight.shapes[0], flight.buffers[0])
        flight.result = [
            to_objects([b"".join(pair) for pair in zip(*[iter(elements)] * 2, strict=True)], [flight.rows])
        ]
        flight.answered(flight)

    ask(0)
    answer()
    mixed = ask(1, 0, 2, 3)
    assert [call.rows for call in inner.calls] == [2]
    answer()
    assert mixed.result is not None
    assert mixed.result[0].tolist() == [b"e", b"abcd", b"e", b"e"]
    again = ask(3, 1)
    assert again.cached
    assert len(memory) == 3
    assert memory.bytes > 3 * (480 + 160 + 8 + 33)
