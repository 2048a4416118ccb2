from __future__ import annotations

import pytest

from tauten.core.target import Budget
from tauten.errors import MeasureError
from tauten.make.search.budget import choose, judge, nearest
from tests.unit.search.entries import entry


@pytest.mark.parametrize(
    ("limits", "violation"),
    [
        ({"max_drop": 0.5}, "drop 0.6 > 0.5 points"),
        ({"max_bytes": 99_999}, "size 100,000 > 99,999 bytes"),
        ({"max_latency_ms": 0.1}, "p95 latency 0.2 > 0.1 ms"),
        ({"max_memory_mib": 59}, "peak memory 60 > 59 MiB"),
    ],
)
def test_each_limit_binds_by_itself_and_says_the_numbers(limits: dict[str, float], violation: str) -> None:
    judged = judge(Budget(**limits), entry("a", drop=0.6))
    assert judged.violations == (violation,)
    assert not judged.within_budget


def test_a_value_at_the_limit_holds() -> None:
    budget = Budget(max_drop=0.5, max_bytes=100_000, max_latency_ms=0.2, max_memory_mib=60)
    assert judge(budget, entry("a", drop=0.5)).within_budget


def test_a_limit_on_what_was_not_measured_is_an_error_not_a_pass() -> None:
    unmeasured = entry("a").model_copy(update={"measures": {}})
    with pytest.raises(MeasureError, match="peak memory, which was not measured"):
        judge(Budget(max_memory_mib=1), unmeasured)


def test_with_a_limit_on_the_drop_the_smallest_and_fastest_wins() -> None:
    budget = Budget(max_drop=0.5)
    entries = [entry("fine", drop=0.0), entry("small", size=1e4, drop=0.4), entry("tiny", size=1e3, drop=0.6)]
    chosen = choose(budget, [judge(budget, each) for each in entries], entry("baseline", size=1e6, p50=1.0))
    assert chosen is not None
    assert chosen.name == "small"


def test_without_a_limit_on_the_drop_quality_wins_and_within_noise_the_smaller() -> None:
    budget = Budget(max_latency_ms=1)
    entries = [
        entry("finest", drop=0.1, noise=0.05),
        entry("as-fine", drop=0.15, noise=0.05, size=5e4),
        entry("coarse", drop=3.0, noise=0.05, size=1e3),
        entry("too-slow", drop=0.0, p50=3.0),
    ]
    chosen = choose(budget, [judge(budget, each) for each in entries], entry("baseline", size=1e6, p50=1.0))
    assert chosen is not None
    assert chosen.name == "as-fine"


def test_where_bytes_are_limited_the_best_quality_at_that_size_wins_not_the_smallest_file() -> None:
    budget = Budget(max_bytes=10_000)
    entries = [
        entry("finest", drop=0.1, noise=0.5, size=9e3, p50=0.3),
        entry("as-fine-and-faster", drop=0.1, noise=0.5, size=9.9e3, p50=0.2),
        entry("tiny", drop=0.2, noise=0.5, size=2e3, p50=0.1),
        entry("too-large", drop=0.0, size=1.1e4),
    ]
    chosen = choose(budget, [judge(budget, each) for each in entries], entry("baseline", size=1e6, p50=1.0))
    assert chosen is not None
    assert chosen.name == "as-fine-and-faster"
    # With a limit on the drop too, quality is bought already.
    both = Budget(max_bytes=10_000, max_drop=0.5)
    chosen = choose(both, [judge(both, each) for each in entries], entry("baseline", size=1e6, p50=1.0))
    assert chosen is not None
    assert chosen.name == "tiny"


def test_nothing_within_the_budget_is_no_choice_and_the_nearest_come_first() -> None:
    budget = Budget(max_drop=0.5, max_bytes=1000)
    entries = [judge(budget, entry(name, size=size, drop=drop)) for name, size, drop in
               [("both", 3000, 1.0), ("size", 2000, 0.0), ("far", 90_000, 9.0)]]  # fmt: skip
    assert choose(budget, entries, entry("baseline")) is None
    assert [each.name for each in nearest(budget, entries, 2)] == ["size", "both"]


def test_a_limit_of_zero_points_ranks_by_the_points() -> None:
    budget = Budget(max_drop=0)
    entries = [judge(budget, entry("worse", drop=2.0)), judge(budget, entry("close", drop=0.1))]
    assert nearest(budget, entries, 1)[0].name == "close"
