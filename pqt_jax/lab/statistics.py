# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Estimates from the runs of a sweep, with 95 % confidence intervals.

    proportion          k of n runs, with the exact interval of Clopper and Pearson
    paired_difference   mean difference of two arms over the same runs, with Student's interval
    holm                p-values of many comparisons: one table in twenty has a false star
    roc_curve           how well a score separates runs that diverge from runs that do not
    concordance         the same within groups of runs, with the interval expected by chance

Source: Clopper and Pearson (1934), Biometrika 26; Holm (1979), Scandinavian Journal of Statistics
6; the area under the ROC curve is the Mann–Whitney statistic, its standard error that of Hanley and
McNeil (1982), Radiology 143; the sum over strata is that of van Elteren (1960) with equal weights
of pairs.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pqt_jax.analysis.intervals import CONFIDENCE, Interval, mean_interval
from pqt_jax.lab.outcomes import Losses

_UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class RocCurve:
    """A receiver operating characteristic.

    Attributes:
      false_alarms: float64[thresholds], the share of runs that did not diverge with a score at or
        above each threshold. It rises from 0 to 1.
      hits: float64[thresholds], the same share for the runs that diverged.
      thresholds: float64[thresholds] in descending order; the first is infinite.
      area: the area under the curve with its interval. It is 0.5 by chance, and NaN unless there
        are runs of both kinds.
    """

    false_alarms: np.ndarray
    hits: np.ndarray
    thresholds: np.ndarray
    area: Interval


def proportion(count: int, total: int) -> Interval:
    """`count / total` with the exact binomial interval.

    Example:
      >>> [round(x, 4) for x in proportion(0, 8)]
      [0.0, 0.0, 0.3694]

    Args:
      count: number of runs with some property.
      total: number of all runs, at least 1.
    """
    import scipy.stats

    result = scipy.stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return Interval(count / total, float(result.low), float(result.high))


def paired_difference(values: Losses, baseline: Losses) -> Interval:
    """The mean of `values − baseline`, pair by pair, with Student's interval.

    Example:
      >>> [round(x, 3) for x in paired_difference([2.0, 3.0, 4.0], [1.5, 2.4, 3.6])]
      [0.5, 0.252, 0.748]

    Args:
      values, baseline: numbers of the same length. A pair with a NaN is left out.

    Returns:
      The mean with its interval. The bounds are NaN for one pair; everything is NaN for none.
    """
    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    differences = differences[np.isfinite(differences)]
    return Interval(*map(float, mean_interval(differences)))


def paired_p_value(values: Losses, baseline: Losses) -> float:
    """The two-sided p-value of Student's paired test that the mean difference is 0.

    Example:
      >>> round(paired_p_value([2.0, 3.0, 4.0], [1.5, 2.4, 3.6]), 4)
      0.0131

    Args:
      values, baseline: as for `paired_difference`.

    Returns:
      A number from 0 to 1; NaN for fewer than two pairs.
    """
    import scipy.stats

    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    differences = differences[np.isfinite(differences)]
    if differences.size < 2 or not differences.any():
        return math.nan if differences.size < 2 else 1.0
    if not differences.std():
        return 0.0
    result: Any = scipy.stats.ttest_1samp(differences, 0.0)
    return float(result.pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values for the number of comparisons.

        the k-th smallest of n becomes max over i ≤ k of min(1, (n + 1 − i) · p_i)

    Example:
      >>> holm(np.array([0.04, 0.01, np.nan])).tolist()
      [0.04, 0.02, nan]

    Args:
      p_values: float64 of any shape; NaN for no comparison.

    Returns:
      float64 of the same shape.
    """
    flat = np.ravel(p_values).astype(np.float64)
    order = np.argsort(flat)[: np.isfinite(flat).sum()]  # NaN is sorted last
    factors = np.arange(order.size, 0, -1)
    adjusted = np.full(flat.shape, np.nan)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * flat[order]))
    return adjusted.reshape(np.shape(p_values))


def roc_curve(scores: Sequence[float], diverged: Sequence[bool]) -> RocCurve:
    """How well a score separates two kinds of runs, for every threshold.

    Example:
      >>> roc_curve([0.1, 0.4, 0.35, 0.8], [False, False, True, True]).area.value
      0.75

    Args:
      scores: one for each run. A higher score predicts divergence.
      diverged: whether the run diverged.
    """
    x, is_bad = np.asarray(scores, np.float64), np.asarray(diverged, bool)
    bad, good = int(is_bad.sum()), int((~is_bad).sum())
    thresholds = np.concatenate([[np.inf], np.unique(x)[::-1]])
    above = x[None] >= thresholds[:, None]
    with np.errstate(invalid="ignore"):
        hits, false_alarms = above[:, is_bad].sum(1) / bad, above[:, ~is_bad].sum(1) / good
    area = _area(x[is_bad], x[~is_bad]) if bad and good else _UNKNOWN
    return RocCurve(false_alarms=false_alarms, hits=hits, thresholds=thresholds, area=area)


def _area(bad_scores: np.ndarray, good_scores: np.ndarray) -> Interval:
    bad, good = bad_scores.size, good_scores.size
    area = _wins(bad_scores, good_scores) / (bad * good)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (bad - 1) * (q1 - area**2) + (good - 1) * (q2 - area**2)
    half_width = _normal_quantile() * math.sqrt(max(variance, 0) / (bad * good))
    return Interval(area, max(0.0, area - half_width), min(1.0, area + half_width))


def concordance(
    scores: Sequence[float], diverged: Sequence[bool], strata: Sequence[Hashable]
) -> Interval:
    """How often, of two runs in one stratum, the run that diverged has the higher score.

        A = Σ_s U_s / Σ_s n_s·m_s
        by chance  0.5 ± z · √(Σ_s n_s·m_s·(n_s + m_s + 1) / 12) / Σ_s n_s·m_s

    In stratum s, n_s runs diverged, m_s did not, and U_s counts the pairs that the score orders
    correctly. Differences between strata do not count. If the stratum is the learning rate, a
    score gains nothing from rising with the learning rate.

    Example:
      >>> [round(x, 1) for x in concordance([1, 2, 9, 8], [False, True, False, True], "aabb")]
      [0.5, -0.2, 1.2]

    Args:
      scores: one for each run.
      diverged: whether the run diverged.
      strata: the stratum of each run.

    Returns:
      A, and the interval that contains A in 95 % of cases if the score says nothing. Everything is
      NaN if no stratum has runs of both kinds.
    """
    x, is_bad = np.asarray(scores, np.float64), np.asarray(diverged, bool)
    wins = pairs = variance = 0.0
    for stratum in set(strata):
        inside = np.array([other == stratum for other in strata])
        bad, good = x[inside & is_bad], x[inside & ~is_bad]
        wins += _wins(bad, good)
        pairs += bad.size * good.size
        variance += bad.size * good.size * (bad.size + good.size + 1) / 12
    if not pairs:
        return _UNKNOWN
    half_width = _normal_quantile() * math.sqrt(variance) / pairs
    return Interval(wins / pairs, 0.5 - half_width, 0.5 + half_width)


def _wins(bad_scores: np.ndarray, good_scores: np.ndarray) -> float:
    """The Mann–Whitney statistic U: pairs in which the bad run scores higher; a tie is a half."""
    differences = bad_scores[:, None] - good_scores[None]
    return float(((differences > 0) + 0.5 * (differences == 0)).sum())


def _normal_quantile() -> float:
    import scipy.stats

    return float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))
