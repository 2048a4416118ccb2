"""Measures: intervals, and what is better outside the noise."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tauten.core.measure import Measure
from tauten.errors import ConfigError

values = st.floats(0.001, 1000)


def measure(value: float, reach: float = 0.0, better: str = "lower") -> Measure:
    return Measure(value=value, low=value - reach, high=value + reach, unit="ms", better=better)


@pytest.mark.parametrize(
    ("low", "value", "high"), [(2, 1, 3), (0, 4, 3), (3, 2, 1), (math.nan, 1, 2), (0, 1, math.inf)]
)
def test_an_interval_holds_its_value(low: float, value: float, high: float) -> None:
    with pytest.raises(ConfigError, match="Measure"):
        Measure(value=value, low=low, high=high, unit="ms", better="lower")


@given(values, values, st.floats(0, 100), st.floats(0, 100), st.sampled_from(["lower", "higher"]))
def test_at_most_one_beats_the_other(a: float, b: float, reach_a: float, reach_b: float, better: str) -> None:
    first, second = measure(a, reach_a, better), measure(b, reach_b, better)
    assert not (first.beats(second) and second.beats(first))
    assert not first.beats(first)
    if first.beats(second):
        assert first.value < second.value if better == "lower" else first.value > second.value


def test_intervals_that_touch_beat_nothing() -> None:
    assert not measure(1, 0.5).beats(measure(2, 0.5))
    assert measure(1, 0.4).beats(measure(2, 0.5))


@given(values, values, st.sampled_from(["lower", "higher"]))
def test_ratios_turn_around(a: float, b: float, better: str) -> None:
    assume(a != b)
    first, second = measure(a, 0, better), measure(b, 0, better)
    assert first.ratio(second) == pytest.approx(1 / second.ratio(first))
    assert (first.ratio(second) > 1) == first.beats(second)


def test_ratios_with_zero() -> None:
    assert measure(0).ratio(measure(0)) == 1.0
    assert measure(0).ratio(measure(1)) == math.inf
    assert measure(1).ratio(measure(0)) == 0.0


def test_an_exact_measure_has_no_width() -> None:
    made = Measure.exact(7, "bytes", "lower", on="files")
    assert (made.low, made.value, made.high, made.on) == (7, 7, 7, "files")
    assert Measure.from_json(made.to_json()) == made
