from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tauten.make.search.pareto import dominates, front
from tests.unit.search.entries import entry

POINTS = st.lists(
    st.tuples(st.floats(50, 100), st.floats(1e3, 1e6), st.floats(0.01, 10), st.sampled_from([0.0, 0.2])), max_size=12
)


@given(POINTS)
def test_the_front_is_what_no_other_dominates(points: list[tuple[float, float, float, float]]) -> None:
    entries = [entry(f"e{i}", quality, size, p50, noise=noise) for i, (quality, size, p50, noise) in enumerate(points)]
    kept = front(entries)
    assert bool(kept) == bool(entries)
    for one in entries:
        assert (one in kept) == (not any(dominates(other, one) for other in entries))


def test_better_within_the_noise_does_not_dominate() -> None:
    noisy, other = entry("a", quality=98.1, noise=0.5), entry("b", quality=98.0, noise=0.5)
    assert not dominates(noisy, other)
    assert dominates(entry("a", quality=98.1), entry("b", quality=98.0))


def test_worse_on_one_axis_does_not_dominate() -> None:
    assert not dominates(entry("a", size=1, p50=9.0), entry("b", size=2, p50=1.0))
