# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a table of runs says, and how sure one can be of it.

    share        k of n, with the exact interval of Clopper and Pearson
    paired       the mean difference of two arms over the same cells, with Student's interval
    roc          how well a score tells runs that will diverge from runs that will not
    landmarks    the same at each step, for the runs that have not diverged by then
    lead_time    how long before it diverges a run's score has crossed a threshold

Source: Clopper and Pearson (1934), Biometrika 26; the area under the ROC is the Mann–Whitney
statistic, its error that of Hanley and McNeil (1982), Radiology 143.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from pqt_jax.intervals import CONFIDENCE, Interval
from pqt_jax.lab.cells import Cells
from pqt_jax.lab.outcomes import Losses


class Landmark(NamedTuple):
    """Sharpness at a step as a forecast.

    Attributes:
      step: at which it was measured.
      bad, good: of the runs that had not diverged by then, those that did later and that did not.
      roc: of the sharpness of these runs.
    """

    step: int
    bad: int
    good: int
    roc: "Roc"


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


def landmarks(cells: Cells) -> list[Landmark]:
    """How well sharpness at a step tells which runs will diverge, at each step it was measured at.

    Only runs that have not diverged by then count, so that nothing is foretold afterwards. Runs of
    all arms and learning rates are together: what a high rate does to both is in the figure, too.

    Returns:
      The steps at which there are runs of both kinds.
    """
    known: dict[int, list[tuple[float, bool]]] = {}
    for row in cells.rows.values():
        end = row["diverged_at"]
        for step, value in row.get("sharpness", []):
            if value is not None and (end is None or step < end):
                known.setdefault(step, []).append((value, end is not None))
    found = []
    for step, pairs in sorted(known.items()):
        scores, diverged = zip(*pairs, strict=True)
        if 0 < sum(diverged) < len(pairs):
            bad = sum(diverged)
            found.append(Landmark(step, bad, len(pairs) - bad, roc(scores, diverged)))
    return found


def lead_time(
    scores: Sequence[tuple[int, float]], diverged_at: int, threshold: float
) -> int | None:
    """Steps between the first score above a threshold and divergence; None if none came before.

    Example:
      >>> lead_time([(0, 0.1), (20, 0.4), (40, 0.9)], diverged_at=45, threshold=0.3)
      25

    Args:
      scores: (step, score) in order.
      diverged_at: step.
      threshold: of an alarm.
    """
    alarms = [at for at, score in scores if at < diverged_at and score > threshold]
    return diverged_at - alarms[0] if alarms else None
