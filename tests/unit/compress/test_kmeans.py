"""k-means on a line: never worse than where it began, the best where that is promised, the same for the same seed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tauten.make.passes.compress._kmeans import Line, entropy, error_of, refine
from tauten.make.passes.compress._optimal import Optimal
from tauten.make.passes.compress._starts import STARTS, cluster

NUMBERS = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-4, 4, width=16))
SLACK = 1e-6


def spread(seed: int = 0, count: int = 5000) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.standard_normal(count) * draw.choice([0.1, 1.0], count)).astype(np.float32)


def brute_force(values: np.ndarray, clusters: int) -> float:
    """The least error of all ways to cut the sorted numbers."""
    ordered = np.sort(values).astype(np.float64)
    best = np.inf
    for cuts in itertools.combinations(range(1, len(ordered)), clusters - 1):
        parts = np.split(ordered, cuts)
        best = min(best, sum(float(((part - part.mean()) ** 2).sum()) for part in parts))
    return best


@pytest.mark.parametrize("start", list(STARTS))
@given(values=NUMBERS, clusters=st.integers(1, 9), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_it_is_never_worse_than_its_start(start: str, values: np.ndarray, clusters: int, seed: int) -> None:
    line = Line(values)
    centres = STARTS[start](line, clusters, np.random.default_rng(seed))
    found = refine(line, centres)
    assert found.error <= error_of(line, centres) * (1 + SLACK) + SLACK
    assert 1 <= len(found.values) <= clusters
    assert found.counts.sum() == len(values)
    assert (found.counts > 0).all()


@given(values=NUMBERS, clusters=st.integers(1, 9), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_error_is_that_of_the_nearest_values(values: np.ndarray, clusters: int, seed: int) -> None:
    found = cluster(Line(values), clusters, "kmeans++", seed)
    nearest = found.values[found.index(values)]
    assert np.abs(values - nearest).max() <= np.abs(values[:, None] - found.values).min(1).max() + SLACK
    assert ((values - nearest) ** 2).sum() <= found.error + SLACK


@given(values=NUMBERS, clusters=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_optimal_start_is_no_worse_than_any_other(values: np.ndarray, clusters: int) -> None:
    line = Line(values)
    best = cluster(line, clusters, "optimal", 0).error
    for start in STARTS:
        assert best <= cluster(line, clusters, start, 1).error + SLACK


@given(values=arrays.arrays(np.float32, st.integers(4, 9), elements=st.floats(-4, 4, width=16)))
@settings(max_examples=40, deadline=None)
def test_the_optimal_start_is_the_best_of_all_ways(values: np.ndarray) -> None:
    for clusters in (2, 3):
        found = cluster(Line(values), clusters, "optimal", 0)
        assert found.error == pytest.approx(brute_force(values, clusters), abs=1e-5)


def test_of_many_numbers_the_optimal_start_is_about_as_good_as_ten_others() -> None:
    line = Line(spread(count=30_000))
    best = cluster(line, 16, "optimal", 0).error
    others = min(cluster(line, 16, "kmeans++", seed).error for seed in range(10))
    assert best <= others * 1.001


@pytest.mark.parametrize("start", list(STARTS))
def test_a_seed_gives_the_same_clusters_again(start: str) -> None:
    one, other = (cluster(Line(spread()), 8, start, 3) for _ in range(2))
    assert np.array_equal(one.values, other.values)


def test_fewer_different_numbers_than_clusters_are_kept_as_they_are() -> None:
    values = np.repeat(np.float32([-1.5, 0.25, 7.0]), [5, 1, 9])
    for start in STARTS:
        found = cluster(Line(values), 16, start, 0)
        assert found.error <= SLACK
        assert np.allclose(found.values[found.index(values)], values)


def test_what_is_important_is_kept_closer() -> None:
    values = spread()
    importance = np.where(values > 0, 100.0, 1.0)
    plain, weighted = cluster(Line(values), 6, "optimal", 0), cluster(Line(values, importance), 6, "optimal", 0)
    above = values > 0
    errors = [float(((values - found.values[found.index(values)])[above] ** 2).sum()) for found in (plain, weighted)]
    assert errors[1] < 0.7 * errors[0]


def test_numbers_far_from_zero_lose_no_digits() -> None:
    values = (1000 + np.repeat([0.0, 0.125, 0.25], 1000)).astype(np.float32)
    found = cluster(Line(values), 3, "linear", 0)
    assert np.allclose(found.values, [1000, 1000.125, 1000.25])


def test_an_empty_cluster_goes_where_it_is_needed() -> None:
    line = Line(np.float32([0, 0, 0, 0, 1, 2, 3, 50]))
    found = refine(line, np.full(4, line.points[0]))
    assert len(found.values) == 4
    assert found.error <= 1.0


def test_masses_count_as_so_many_points() -> None:
    points = np.array([0.0, 1.0, 2.0, 10.0, 11.0])
    mass = np.array([1.0, 3.0, 1.0, 2.0, 1.0])
    together, apart = Optimal(points, mass), Optimal(np.repeat(points, mass.astype(int)), np.ones(int(mass.sum())))
    for clusters in (3, 2, 4):
        assert np.allclose(together.centres(clusters), apart.centres(clusters))


def test_entropy_is_in_bits() -> None:
    assert entropy(np.array([4, 4, 4, 4])) == 2
    assert entropy(np.array([7, 0])) == 0
