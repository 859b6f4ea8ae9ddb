# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Intervals: computed by hand, and how often they cover the truth."""

import math

import numpy as np
import pytest

from pqt_jax.analysis import intervals


def test_by_hand():
    # Without the first of (1, 1), (2, 1), (6, 2): 8/3, then 7/3, then 3/2; t(2) = 4.302653.
    interval = intervals.ratio_interval(np.array([1, 2, 6]), np.array([1, 1, 2]))
    without = np.array([8 / 3, 7 / 3, 3 / 2])
    half = 4.302653 * math.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())
    assert interval == pytest.approx((9 / 4, 9 / 4 - half, 9 / 4 + half), rel=1e-6)


def test_equal_counts_give_the_interval_of_a_mean():
    sums = np.random.default_rng(0).normal(size=20)
    interval = intervals.ratio_interval(3 * sums, np.full(20, 3))
    half = 2.093024 * sums.std(ddof=1) / math.sqrt(20)
    assert interval == pytest.approx(
        (sums.mean(), sums.mean() - half, sums.mean() + half), rel=1e-5
    )


def test_one_document_has_no_interval():
    value, low, high = intervals.ratio_interval(np.array([3.0]), np.array([2]))
    assert value == 1.5 and math.isnan(low) and math.isnan(high)


def test_documents_that_do_not_count_only_add():
    interval = intervals.ratio_interval(np.array([3.0, 1.0, 2.0]), np.array([2, 2, 0]))
    assert interval.value == 1.5 and math.isfinite(interval.low)
    value, low, high = intervals.ratio_interval(np.array([3.0, 1.0]), np.array([2, 0]))
    assert value == 2 and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, intervals.ratio_interval(np.array([3.0]), np.array([0]))))


@pytest.mark.parametrize("sums, counts", [([], []), ([1], [-1]), ([1, 2], [1]), ([[1]], [[1]])])
def test_what_is_no_sample_is_refused(sums, counts):
    with pytest.raises(ValueError, match="give one of each"):
        intervals.ratio_interval(np.array(sums), np.array(counts))


@pytest.mark.parametrize(
    "documents, spread, least", [(5, 0.0, 0.93), (40, 0.5, 0.93), (30, 1, 0.89)]
)
def test_intervals_cover_the_truth_and_paired_ones_are_narrower(documents, spread, least):
    """Losses depend on the lengths, so that the ratio differs from the mean of the ratios."""
    rng, runs = np.random.default_rng(1), 2000
    slope, shift = 0.05, 0.01
    loss_hits = shift_hits = 0
    widths = []
    for _ in range(runs):
        log_length = rng.normal(0, spread, documents)
        counts = 1000 * np.exp(log_length)
        rates = 1.5 + slope * log_length + rng.normal(0, 0.3, documents)
        sums, moved = counts * rates, counts * (rates + rng.normal(shift, 0.02, documents))
        loss, difference = (
            intervals.ratio_interval(sums, counts),
            intervals.ratio_interval(moved - sums, counts),
        )
        loss_hits += loss.low <= 1.5 + slope * spread**2 <= loss.high
        shift_hits += difference.low <= shift <= difference.high
        widths.append((difference.high - difference.low) / (loss.high - loss.low))
    assert least <= loss_hits / runs <= 0.97
    assert least <= shift_hits / runs <= 0.97
    assert np.median(widths) < 0.1
