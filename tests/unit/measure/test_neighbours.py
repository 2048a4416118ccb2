"""Rank agreement of neighbours."""

from __future__ import annotations

import numpy as np

from tauten.run.measure.metrics import find_metric

METRIC = find_metric("neighbours")


def test_the_order_counts_not_the_lengths() -> None:
    draw = np.random.default_rng(0)
    theirs = draw.normal(size=(16, 8)).astype(np.float32)
    lengths = draw.uniform(0.5, 4, (16, 1)).astype(np.float32)
    np.testing.assert_allclose(METRIC({"e": theirs * lengths}, {"e": theirs}), 100.0)


def test_a_reversed_order_is_the_opposite() -> None:
    # On a half circle, the neighbours of the first sample by likeness; mirrored for all others.
    angles = np.array([0.0, 0.5, 1.0, 2.0])
    theirs = np.stack([np.cos(angles), np.sin(angles)], 1)
    ours = theirs.copy()
    ours[1:] = theirs[[3, 2, 1]]
    np.testing.assert_allclose(METRIC({"e": ours}, {"e": theirs})[0], -100.0)


def test_noise_costs_by_how_much_it_is() -> None:
    draw = np.random.default_rng(1)
    theirs = draw.normal(size=(24, 16))
    noisy = [
        METRIC({"e": theirs + size * draw.normal(size=theirs.shape)}, {"e": theirs}).mean() for size in (0.02, 0.5)
    ]
    assert 95 < noisy[0] < 100
    assert noisy[1] < noisy[0] - 5


def test_equal_answers_share_a_rank_and_one_sample_has_no_order() -> None:
    same = np.ones((5, 3))
    np.testing.assert_allclose(METRIC({"e": same}, {"e": same}), 100.0)
    assert METRIC({"e": same[:1]}, {"e": same[:1]}).tolist() == [100.0]
