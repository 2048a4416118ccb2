"""Which layers stay in a higher precision: found with few questions, and no dearer than the first in order are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tauten.make.search.assignment import TRIALS, Assignment, Bisection, order_by_worth


@given(count=st.integers(1, 400), least=st.integers(1, 400))
def test_the_least_number_that_holds_is_found_or_one_that_holds_within_the_trials(count: int, least: int) -> None:
    search = Bisection(count)
    while (number := search.ask()) is not None:
        assert 0 < number < count
        search.tell(number, number >= least)
    assert len(search.asked) <= TRIALS
    assert len(set(search.asked)) == len(search.asked)
    assert (search.holds is not None) == (least < count)
    if search.holds is not None:
        assert search.holds >= least
        if count <= 8:
            assert search.holds == least


def test_layers_come_by_noise_over_cost_and_the_quietest_last() -> None:
    noise = {"loud": 0.5, "free": 0.2, "cheap": 0.1, "quiet": 0.001, "silent": 0.0}
    costs = {"loud": 10.0, "free": -1.0, "cheap": 0.1, "quiet": 0.0, "silent": 0.0}
    assert order_by_worth(noise, costs) == ["free", "cheap", "loud", "quiet", "silent"]
    assert order_by_worth({}, {}) == []
    assert order_by_worth({"one": 0.0}, {"one": 0.0}) == ["one"]


def test_a_dear_layer_that_is_not_needed_is_rolled_back() -> None:
    order = ["cheap", "dear", "needed", "rest"]
    noise, costs = (
        {"cheap": 0.1, "dear": 0.2, "needed": 0.5, "rest": 0.2},
        {"cheap": 0.1, "dear": 4, "needed": 20, "rest": 9},
    )
    search = Assignment(order, noise, costs)
    asked = []
    while (paths := search.ask()) is not None:
        asked.append(paths)
        search.tell("needed" in paths and "cheap" in paths)
    assert search.kept == ("cheap", "needed")
    # Both others were rolled back at once, which did not hold; then the dearer one alone.
    assert asked[-2:] == [("needed",), ("cheap", "needed")]
    assert len(asked) <= TRIALS


@given(st.data())
def test_whatever_holds_no_more_is_asked_than_allowed_and_what_is_kept_held(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 40))
    paths = [f"layer{index}" for index in range(count)]
    sizes = st.floats(0, 1, allow_nan=False)
    noise = {path: data.draw(sizes) for path in paths}
    costs = {path: data.draw(st.floats(-1, 1, allow_nan=False)) for path in paths}
    room = data.draw(sizes) * sum(noise.values())
    search = Assignment(order_by_worth(noise, costs), noise, costs)
    held: list[tuple[str, ...]] = []
    asked = []
    while (chosen := search.ask()) is not None:
        asked.append(chosen)
        assert chosen
        assert len(chosen) < count
        holds = sum(noise[path] for path in paths if path not in chosen) <= room
        held += [chosen] * holds
        search.tell(holds)
    assert len(asked) <= TRIALS
    assert len(set(asked)) == len(asked)
    assert search.kept == (held[-1] if held else None)
    if search.kept is not None:
        first = min((sets for sets in held if list(sets) == search.order[: len(sets)]), key=len)
        assert sum(costs[path] for path in search.kept) <= sum(costs[path] for path in first)
