# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Intervals have the right coverage; perfect and useless scores are recognized."""

import math

import numpy as np
import pytest
import scipy.stats

from pqt_jax.lab.statistics import (
    concordance,
    holm,
    paired_difference,
    paired_p_value,
    proportion,
    roc_curve,
)


@pytest.mark.parametrize("count, total", [(0, 8), (3, 8), (8, 8), (1, 32)])
def test_the_tails_outside_an_exact_interval_are_a_fortieth(count, total):
    value, low, high = proportion(count, total)
    assert value == count / total
    if count:
        assert scipy.stats.binom.sf(count - 1, total, low) == pytest.approx(0.025)
    if count < total:
        assert scipy.stats.binom.cdf(count, total, high) == pytest.approx(0.025)
    assert (low == 0) == (count == 0) and (high == 1) == (count == total)


def test_paired_differences_cover_the_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        common = rng.normal(0, 10, 8)  # per seed; much larger than the difference of the arms
        _, low, high = paired_difference(common + rng.normal(0.3, 1, 8), common)
        inside += low <= 0.3 <= high
    assert 930 <= inside <= 968  # 950 ± 2.6 standard deviations


def test_incomplete_pairs_are_left_out():
    nan = math.nan
    assert paired_difference([2.0, nan, 4.0, 5.0], [1.0, 1.0, 3.0, nan]).value == 1.0
    assert math.isnan(paired_difference([nan], [1.0]).value)
    value, low, high = paired_difference([3.0], [1.0])
    assert value == 2.0 and math.isnan(low) and math.isnan(high)


def test_the_areas_of_perfect_and_useless_scores():
    known = roc_curve([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
    assert known.area.value == 1.0
    assert roc_curve([0.9, 0.8, 0.2, 0.1], [False, False, True, True]).area.value == 0.0
    blind = roc_curve([0.5] * 6, [True, False] * 3)
    assert blind.area.value == 0.5 and blind.area.low < 0.5 < blind.area.high
    assert math.isnan(roc_curve([0.1, 0.2], [True, True]).area.value)


def test_the_area_is_the_integral_of_the_curve():
    rng = np.random.default_rng(1)
    diverged = rng.random(60) < 0.3
    scores = np.round(rng.normal(size=60) + diverged, 1)  # with ties
    curve = roc_curve(scores, diverged)
    assert curve.false_alarms[0] == curve.hits[0] == 0
    assert curve.false_alarms[-1] == curve.hits[-1] == 1
    assert np.trapezoid(curve.hits, curve.false_alarms) == pytest.approx(curve.area.value)
    statistic = scipy.stats.mannwhitneyu(scores[diverged], scores[~diverged]).statistic
    assert curve.area.value == pytest.approx(statistic / (diverged.sum() * (~diverged).sum()))


def test_concordance_ignores_differences_between_strata():
    rng = np.random.default_rng(0)
    strata = np.repeat(np.arange(6), 8)
    diverged = rng.random(48) < np.array([0, 0.1, 0.3, 0.7, 0.9, 1])[strata]
    by_stratum = 10 * strata + rng.normal(0, 1, 48)  # depends on the stratum only
    assert roc_curve(by_stratum, diverged).area.value > 0.8
    blind = concordance(by_stratum, diverged, strata)
    assert blind.low < blind.value < blind.high
    knowing = concordance(by_stratum + 9 * diverged, diverged, strata)
    assert knowing.value == 1.0 > knowing.high > 0.5
    one = concordance(by_stratum, diverged, [0] * 48)
    assert one.value == pytest.approx(roc_curve(by_stratum, diverged).area.value)
    assert math.isnan(concordance([1.0, 2.0], [True, False], "ab").value)


def test_the_interval_of_chance_covers_nineteen_in_twenty():
    rng = np.random.default_rng(1)
    strata, inside = np.repeat(np.arange(5), 8), 0
    for _ in range(1000):
        chance = concordance(rng.normal(size=40), rng.random(40) < 0.4, strata)
        inside += chance.low <= chance.value <= chance.high
    assert 930 <= inside <= 975


def test_the_p_value_is_that_at_which_the_interval_touches_zero():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.3, 1.0):
        values, baseline = rng.normal(shift, 1, 9), rng.normal(0, 1, 9)
        p = paired_p_value(values, baseline)
        interval = paired_difference(values, baseline)
        assert (p < 0.05) == (interval.low > 0 or interval.high < 0)
        t = (values - baseline).mean() / ((values - baseline).std(ddof=1) / 3)
        assert p == pytest.approx(2 * scipy.stats.t.sf(abs(t), 8))
    assert math.isnan(paired_p_value([1.0, math.nan], [0.0, 0.0]))
    assert paired_p_value([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert paired_p_value([2.0, 2.0], [1.0, 1.0]) == 0.0


def test_holm_finds_no_star_in_nineteen_of_twenty_tables_without_an_effect():
    rng = np.random.default_rng(1)
    found = sum((holm(rng.random((3, 4))) < 0.05).any() for _ in range(2000))
    assert 60 < found < 140  # 95 to 100 are expected
    some = np.array([0.01, 0.02, 0.03, math.nan])
    np.testing.assert_allclose(holm(some), [0.03, 0.04, 0.04, math.nan])
