# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""95 % intervals: of a mean, and of a loss per token over documents of different lengths.

The mean of n numbers has Student's interval, mean ± t(n − 1) · s / √n.

For a loss per token: document d has n_d tokens and the summed loss s_d. The loss per token,
L = Σ s_d / Σ n_d, is a ratio of two sums over documents. Tokens of one document depend on each
other, so that whole documents are the sample. The standard error is the jackknife's, from the
losses L₋d that D documents have without document d:

    se² = (D − 1) / D · Σ (L₋d − mean L₋d)²        interval: L ± t(D − 1) · se

with t(D − 1) the 0.975 quantile of Student's t. Where lengths vary much this covers the truth more
often than the linearized variance and percentiles of a bootstrap, whose intervals are too narrow.
It still is a little short of 95 % there: 91 % for 30 documents with lengths of log-normal spread 1.

Source: Cochran, "Sampling Techniques" (1977), section 6.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate with the ends of its interval, which are NaN for a sample of fewer than two."""

    value: float
    low: float
    high: float


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The means over the first axis with Student's intervals.

    Example:
      >>> [round(float(x), 3) for x in mean_interval(np.array([0.5, 0.6, 0.4]))]
      [0.5, 0.252, 0.748]

    Args:
      values: float64[n, ...].

    Returns:
      (mean, low, high), float64[...] each: NaN for no values, and NaN bounds for one.
    """
    unknown = np.full(values.shape[1:], np.nan)
    if (n := len(values)) < 2:
        return (values.mean(0) if n else unknown), unknown, unknown
    mean = values.mean(0)
    half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(0, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> Interval:
    """The ratio of two sums over documents, with its interval.

    To compare two models on the same documents, pass the differences of their sums: what makes a
    document hard for both models cancels.

    Example:
      >>> interval = ratio_interval(np.array([2.0, 3.0, 4.0]), np.array([2, 2, 2]))
      >>> [round(float(x), 3) for x in interval]
      [1.5, 0.258, 2.742]

    Args:
      sums: [D], s_d, of any sign.
      counts: [D], n_d, at least 0.

    Returns:
      Σ s_d / Σ n_d with its 95 % interval; all NaN if every count is 0, and without an interval if
      only one is not.

    Raises:
      ValueError: if the shapes differ, there are no documents, or a count is negative.
    """
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    if sums.ndim != 1 or sums.shape != counts.shape or not sums.size or not (counts >= 0).all():
        raise ValueError(f"sums {sums.shape} and counts {counts.shape}; give one of each, from 0")
    unknown, documents = float("nan"), sums.size
    if not counts.any():
        return Interval(unknown, unknown, unknown)
    value = float(sums.sum() / counts.sum())
    if np.count_nonzero(counts) < 2:
        return Interval(value, unknown, unknown)
    without = (sums.sum() - sums) / (counts.sum() - counts)
    spread = without - without.mean()
    error = np.sqrt((documents - 1) / documents * np.sum(spread**2))
    half = float(stdtrit(documents - 1, (1 + CONFIDENCE) / 2) * error)
    return Interval(value, value - half, value + half)


def format_interval(interval: Interval, signed: bool) -> str:
    """Value and interval, as in "1.5078 [1.4921, 1.5235]".

    Example:
      >>> format_interval(Interval(0.01, -0.00001, 0.02), signed=True)
      '+0.0100 [+0.0000, +0.0200]'
    """
    places = 4 if abs(interval.value) < 100 else 1
    value, low, high = (
        f"{round(x, places) + 0.0:{'+' if signed else ''}.{places}f}"  # + 0.0: not -0.0000
        for x in interval
    )
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"
