# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a table of runs says, and how sure one can be of it.

    share        k of n, with the exact interval of Clopper and Pearson
    paired       the mean difference of two arms over the same cells, with Student's interval
    roc          how well a score tells runs that will diverge from runs that will not
    concordance  the same among runs of one stratum only, with what chance would give

Source: Clopper and Pearson (1934), Biometrika 26; the area under the ROC is the Mann–Whitney
statistic, its error that of Hanley and McNeil (1982), Radiology 143; over strata its sum is that
of van Elteren (1960) with equal weights of pairs.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from pqt_jax.analysis.intervals import CONFIDENCE, Interval
from pqt_jax.lab.outcomes import Losses


class Roc(NamedTuple):
    """A receiver operating characteristic.

    Attributes:
      false_alarms, hits: shares of the runs that did not and that did diverge whose score is at or
        above each threshold, from the highest on; both begin at 0 and end at 1.
      thresholds: of them; the first is infinite.
      area: under it, 0.5 by chance, with an interval; NaN without runs of both kinds.
    """

    false_alarms: np.ndarray
    hits: np.ndarray
    thresholds: np.ndarray
    area: Interval


def share(count: int, total: int) -> Interval:
    """`count / total` with the exact binomial interval.

    Example:
      >>> [round(x, 4) for x in share(0, 8)]
      [0.0, 0.0, 0.3694]

    Args:
      count: runs of a kind.
      total: runs in all, at least one.
    """
    result = scipy.stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return Interval(count / total, float(result.low), float(result.high))


def paired(values: Losses, others: Losses) -> Interval:
    """The mean of `values − others`, pair by pair, with Student's interval.

    Example:
      >>> [round(x, 3) for x in paired([2.0, 3.0, 4.0], [1.5, 2.4, 3.6])]
      [0.5, 0.252, 0.748]

    Args:
      values, others: one of each for every cell that both arms finished; NaN leaves a pair out.

    Returns:
      NaN bounds for fewer than two pairs, and NaN for none.
    """
    differences = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    differences = differences[np.isfinite(differences)]
    n = differences.size
    if n < 2:
        return Interval(float(differences[0]) if n else math.nan, math.nan, math.nan)
    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(n)
    reach = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * error
    return Interval(float(mean), float(mean - reach), float(mean + reach))


def roc(scores: Sequence[float], diverged: Sequence[bool]) -> Roc:
    """How well a score tells the two kinds of run apart, for every threshold.

    Example:
      >>> roc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]).area.value
      0.75

    Args:
      scores: of the runs, higher for those that are thought to diverge.
      diverged: whether they did.
    """
    x, is_bad = np.asarray(scores, np.float64), np.asarray(diverged, bool)
    bad, good = int(is_bad.sum()), int((~is_bad).sum())
    thresholds = np.concatenate([[np.inf], np.unique(x)[::-1]])
    above = x[None] >= thresholds[:, None]
    with np.errstate(invalid="ignore"):
        hits, false_alarms = above[:, is_bad].sum(1) / bad, above[:, ~is_bad].sum(1) / good
    if not (bad and good):
        return Roc(false_alarms, hits, thresholds, Interval(math.nan, math.nan, math.nan))
    pairs = x[is_bad][:, None] - x[~is_bad][None]
    area = float(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (bad - 1) * (q1 - area**2) + (good - 1) * (q2 - area**2)
    error = math.sqrt(max(variance, 0) / (bad * good))
    reach = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)) * error
    within = Interval(area, max(0.0, area - reach), min(1.0, area + reach))
    return Roc(false_alarms, hits, thresholds, within)


def concordance(
    scores: Sequence[float], diverged: Sequence[bool], strata: Sequence[Hashable]
) -> Interval:
    """How often, of two runs of a stratum, the one that diverged has the higher score.

        A = Σ U_s / Σ n_s·m_s,   by chance 0.5 ± z · √(Σ n_s·m_s·(n_s + m_s + 1) / 12) / Σ n_s·m_s

    What tells strata apart tells nothing here: with the learning rate as the stratum, that
    sharpness and divergence both rise with it.

    Example:
      >>> [round(x, 1) for x in concordance([1, 2, 9, 8], [False, True, False, True], "aabb")]
      [0.5, -0.2, 1.2]

    Args:
      scores: of the runs.
      diverged: whether they did.
      strata: what each belongs to.

    Returns:
      A, and between what it lies in 95 % of cases if scores say nothing; NaN where no stratum has
      runs of both kinds.
    """
    x, is_bad = np.asarray(scores, np.float64), np.asarray(diverged, bool)
    wins = pairs = variance = 0.0
    for stratum in set(strata):
        own = np.array([one == stratum for one in strata])
        bad, good = x[own & is_bad], x[own & ~is_bad]
        differences = bad[:, None] - good[None]
        wins += ((differences > 0) + 0.5 * (differences == 0)).sum()
        pairs += differences.size
        variance += differences.size * (bad.size + good.size + 1) / 12
    if not pairs:
        return Interval(math.nan, math.nan, math.nan)
    reach = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(variance) / pairs
    return Interval(float(wins / pairs), 0.5 - reach, 0.5 + reach)
