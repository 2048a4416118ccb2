"""Which engine is chosen, and what is said of the others."""

from __future__ import annotations

from tauten.core.measure import Measure
from tauten.core.target import Target
from tauten.make.search.installed import missing
from tauten.make.search.race import best_float, decide, spell
from tauten.make.search.recipe import Way
from tauten.make.search.result import EngineTried
from tauten.run.measure.session import Timing
from tests.unit.search.entries import measure

ROWS = [
    EngineTried(engine="one", precision="float32"),
    EngineTried(engine="two", precision="float32", options={"placement": "products"}),
    EngineTried(engine="three", precision="float32", reason="cannot be made"),
]


def timing(*rounds: float) -> Timing:
    middle = sorted(rounds)[len(rounds) // 2]
    return Timing({"latency_p50_ms": measure(middle, "ms", "lower", (max(rounds) - min(rounds)) / 2)}, rounds)


def drop(value: float, noise: float = 0.1) -> Measure:
    return measure(value, "points", "lower", noise)


def test_the_fastest_outside_the_noise_is_chosen_and_the_others_are_told_why_not() -> None:
    found = decide(
        ROWS, {0: timing(2.0, 2.1, 2.2), 1: timing(1.0, 1.1, 1.0)}, {0: measure(0, "points", "lower"), 1: drop(0.0)}
    )
    assert [row.chosen for row in found] == [False, True, False]
    assert found[1].reason == "the fastest"
    assert "times the time of two placement=products" in found[0].reason
    assert found[2] == ROWS[2]
    assert found[0].latency
    assert found[0].latency.value == 2.1
    assert spell(found[1]) == "two placement=products"
    assert best_float(found, "two") == Way("two", {"placement": "products"})
    assert best_float(found, "three") == Way("three")


def test_a_difference_inside_the_noise_leaves_the_one_that_the_target_names_first() -> None:
    found = decide(ROWS, {0: timing(1.0, 2.0, 3.0), 1: timing(1.1, 1.8, 2.9)}, {0: drop(0), 1: drop(0)})
    assert [row.chosen for row in found] == [True, False, False]
    assert found[1].reason == "no faster than one outside the noise"


def test_speed_does_not_buy_quality() -> None:
    found = decide(ROWS, {0: timing(2.0, 2.0), 1: timing(1.0, 1.0)}, {0: drop(0), 1: drop(3)})
    assert [row.chosen for row in found] == [True, False, False]
    assert found[1].reason == "loses more quality than another, outside the noise"


def test_an_engine_that_is_not_there_is_named() -> None:
    assert missing(Target(name="x").engine) is None
    absent = missing("abacus")
    assert absent is not None
    assert not absent.installed
    assert "no lowering named 'abacus'" in absent.reason
