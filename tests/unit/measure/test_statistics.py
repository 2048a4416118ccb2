"""Intervals against published values, brute force and what they promise: coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauten.run.measure import _statistics as stats


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_published_intervals(hits: int, count: int, low: float, high: float) -> None:
    assert stats.wilson(hits, count) == pytest.approx((hits / count, low, high), abs=5e-5)


def test_wilson_at_the_ends_has_a_width() -> None:
    value, low, high = stats.wilson(450, 450)
    assert (value, high) == (1.0, 1.0)
    assert 0.990 < low < 0.993


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_value_between_0_and_1(shares: tuple[int, int]) -> None:
    value, low, high = stats.wilson(*shares)
    assert 0 <= low <= value <= high <= 1


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 400))
def test_a_paired_difference_turns_around(lost: int, won: int, alike: int) -> None:
    count = lost + won + alike
    if not count:
        return
    value, low, high = stats.paired_shares(lost, won, count)
    assert -1 <= low <= value <= high <= 1
    assert stats.paired_shares(won, lost, count) == pytest.approx((-value, -high, -low))


def test_no_disagreement_still_has_a_width_and_much_of_it_is_seen() -> None:
    _, low, high = stats.paired_shares(0, 0, 400)
    assert low == pytest.approx(-high)
    assert 0.002 < high < 0.01
    assert stats.paired_shares(40, 0, 400)[1] > 0.05


def test_paired_differences_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        lost, won, _ = rng.multinomial(300, [0.03, 0.01, 0.96])
        _, low, high = stats.paired_shares(int(lost), int(won), 300)
        covered += low <= 0.02 <= high
    assert covered / 600 > 0.93


def test_student_gives_the_textbook_interval() -> None:
    assert stats.student(np.array([1.0, 2.0, 3.0])) == pytest.approx((2.0, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert stats.student(np.array([5.0])) == (5.0, 5.0, 5.0)
    _, low, high = stats.student(np.arange(100.0))
    assert (high - low) / 2 == pytest.approx(1.96 * np.arange(100.0).std(ddof=1) / 10, rel=1e-3)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.sampled_from([1, 50, 95, 99, 100]))
def test_a_percentile_is_a_value_that_enough_do_not_exceed(values: list[float], q: float) -> None:
    array = np.array(values)
    found = stats.percentile(array, q)
    assert found in values
    assert np.mean(array <= found) >= q / 100
    smaller = array[array < found]
    assert not smaller.size or np.mean(array <= smaller.max()) < q / 100


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=8), min_size=1, max_size=6), st.integers(0, 9))
def test_bootstrapped_percentiles_are_those_of_rounds_drawn_and_joined(rounds: list[list[float]], seed: int) -> None:
    arrays = [np.array(values) for values in rounds]
    found = stats.bootstrap_percentiles(arrays, [50, 95], seed=seed)
    brute = np.array(
        [
            [
                stats.percentile(np.concatenate([np.tile(a, k) for a, k in zip(arrays, drawn, strict=True)]), q)
                for q in (50, 95)
            ]
            for drawn in stats._draws(len(arrays), seed)
        ]
    )
    for column, q in enumerate((50, 95)):
        value = stats.percentile(np.concatenate(arrays), q)
        low, high = np.percentile(brute[:, column], [2.5, 97.5])
        assert found[column] == pytest.approx((value, min(value, low), max(value, high)))


def test_bootstrap_over_rounds_covers_the_truth_although_rounds_differ() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(150):
        # Rounds have their own mean: an interval over single calls would be far too narrow.
        rounds = [rng.normal(10 + shift, 0.1, 40) for shift in rng.normal(0, 1, 20)]
        sums, counts = np.array([r.sum() for r in rounds]), np.array([40.0] * 20)
        _, low, high = stats.bootstrap_ratio(sums, counts, seed=trial)
        covered += low <= 10 <= high
    assert covered / 150 > 0.87


def test_the_same_data_give_the_same_interval() -> None:
    rounds = [np.random.default_rng(0).normal(size=9) for _ in range(5)]
    assert stats.bootstrap_percentiles(rounds, [50]) == stats.bootstrap_percentiles(rounds, [50])


def test_one_unit_has_no_width() -> None:
    assert stats.bootstrap_ratio(np.array([6.0]), np.array([3.0])) == (2.0, 2.0, 2.0)
