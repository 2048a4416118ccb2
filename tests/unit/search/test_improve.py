from __future__ import annotations

import pytest

from tauten.make.search.improve import improvements
from tests.unit.search.entries import entry


def test_signs_are_such_that_better_is_said_plainly() -> None:
    best = entry("best", quality=97.8, size=5e4, p50=0.05, drop=0.2)
    found = improvements(best, entry("baseline", quality=98.0, size=1e6, p50=0.5))
    assert found["size_bytes"].ratio == pytest.approx(20)
    assert found["size_bytes"].text == "20 times smaller"
    assert found["size_bytes"].difference == pytest.approx(-950_000)
    assert found["latency_p50_ms"].text == "10 times faster"
    assert found["throughput_per_s.1"].text == "10 times more rows a second"
    assert found["quality"].text == "0.20 points lost"
    assert not found["quality"].better
    assert found["peak_memory_mib"].text == "the same"


def test_worse_is_said_as_plainly_as_better() -> None:
    found = improvements(entry("best", size=2e6, p50=1.0, drop=-0.3), entry("baseline", size=1e6, p50=0.5))
    assert found["size_bytes"].text == "2 times larger"
    assert found["latency_p50_ms"].text == "2 times slower"
    assert found["quality"].text == "0.30 points gained"
    assert not found["size_bytes"].better


def test_the_latency_ratio_comes_from_rounds_that_ran_side_by_side() -> None:
    # The machine slowed threefold between the rounds; the ratio within each round did not move.
    best, baseline = entry("best", p50=0.2), entry("baseline", p50=1.0)
    found = improvements(best, baseline, [0.1, 0.2, 0.3] * 5, [0.5, 1.0, 1.5] * 5)
    assert found["latency_p50_ms"].ratio_low == pytest.approx(5)
    assert found["latency_p50_ms"].ratio_high == pytest.approx(5)
