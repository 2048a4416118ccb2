"""The arithmetic of how sure an exit has to be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tauten.make.layers.early_exit import NEVER
from tauten.make.passes.dynamic._thresholds import Held, for_drop, for_share, outcome, temperature


def held(samples: int = 2000, exits: int = 2, seed: int = 0, flaw: float = 0.15) -> Held:
    """Exits that are right more often where they are surer."""
    draw = np.random.default_rng(seed)
    sure = draw.uniform(size=(exits, samples))
    right = draw.uniform(size=(exits, samples)) > (1 - sure) * flaw
    costs = np.array([*np.linspace(0.2, 0.6, exits), 1.0])
    return Held(sure, right, draw.uniform(size=samples) > 0.02, costs, np.full(exits, 0.02))


def test_an_outcome_is_counted_sample_by_sample() -> None:
    given = Held(
        sure=np.array([[0.9, 0.1, 0.9, 0.1], [0.0, 0.9, 0.9, 0.1]]),
        right=np.array([[False, True, True, True], [True, True, False, True]]),
        whole=np.array([True, False, True, True]),
        costs=np.array([0.2, 0.5, 1.0]),
        heads=np.array([0.1, 0.05]),
    )
    found = outcome(given, (0.5, 0.5))
    assert found.shares == (0.5, 0.25)
    assert found.drop[0] == 0  # the first sample is lost, the second won
    assert found.cost == pytest.approx((2 * 0.3 + 0.65 + 1.15) / 4)
    assert outcome(given, (NEVER, 0.5)).cost == pytest.approx((2 * 0.55 + 2 * 1.05) / 4)
    assert outcome(given, (NEVER, NEVER)).cost == 1


@pytest.mark.parametrize("most", [0.3, 1.0, 3.0])
def test_the_limit_holds_beyond_doubt_and_little_is_left_to_gain(most: float) -> None:
    given = held()
    chosen = for_drop(given, most)
    found = outcome(given, chosen)
    assert found.drop[2] <= most
    assert found.cost < 1
    grid = [*np.linspace(0, 1, 41), NEVER]
    tried = [outcome(given, pair) for pair in itertools.product(grid, grid)]
    best = min(other.cost for other in tried if other.drop[2] <= most)
    assert found.cost <= best * 1.03


def test_few_samples_allow_little() -> None:
    few, many = held(samples=60), held(samples=6000)
    assert for_drop(few, 0.3) == (NEVER, NEVER)
    assert outcome(many, for_drop(many, 0.3)).cost < 0.95


def test_an_exit_that_does_not_pay_is_not_asked() -> None:
    given = held()
    dear = Held(given.sure, given.right, given.whole, given.costs, np.array([0.9, 0.02]))
    first, second = for_drop(dear, 1.0)
    assert first == NEVER
    assert second < NEVER


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_wanted_share_leaves(share: float) -> None:
    given = held(exits=3)
    found = outcome(given, for_share(given, share))
    assert sum(found.shares) == pytest.approx(share)


def test_a_temperature_is_found_again() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(4000, 5)) * 2
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    labels = np.array([draw.choice(5, p=row) for row in shares])
    assert temperature(scores * 3, np.eye(5)[labels]) == pytest.approx(3, rel=0.1)
