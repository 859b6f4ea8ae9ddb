# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The outcome of a run, decided from its losses. The definitions are those of this study.

Losses are those of the training batches, one for each step, in nats per token. The loss of a
skipped step is NaN or Inf.

    diverged   a loss is not finite, or the loss rose above a level that the run had reached and
               stayed there, or too many steps in a row were skipped (`find_divergence`)
    stuck      the run has not diverged, and its final loss is not below the entropy of the token
               frequencies: it has learned no more than how often each token occurs
    learned    neither
    spikes     groups of consecutive steps whose `loss_monitor.spike_score` (standard deviations
               above the median of the steps before) exceeds a threshold
    final      the mean loss of the last 5 % of the steps
    sensitivity   the mean over learning rates of min(final, first) − the least final loss
    usable     the decades of learning rates whose final loss is below a level

The sensitivity is 0 if every rate ends as well as the best one. A run that diverged counts as if it
had stayed at its first loss, which is therefore the worst case.

Source of the sensitivity: Wortsman and others, arXiv 2309.14322 (2023), who integrate over the
logarithm of the rate; on a grid of equal ratios that is this mean.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from pqt_jax.training.run.loss_monitor import spike_score

Losses = Sequence[float] | np.ndarray


def find_divergence(
    losses: Losses,
    skipped_in_a_row: Losses = (),
    *,
    margin: float = 0.5,
    window: int = 20,
    skips: int = 10,
) -> int | None:
    """The step at which a run diverged, counted from 1; None if it did not diverge.

    A run diverges at step i if one of these holds:

    - the loss of step i is not finite;
    - the loss of step i and the median loss of steps i to i + window − 1 both exceed the level by
      more than `margin`. At the end of the run half a window is enough. The level is the least of
      the first loss and the medians of all windows before step i, so one easy or one hard batch
      decides nothing;
    - step i is the first of `skips` skipped steps in a row, after which the trainer would end.

    Example:
      >>> find_divergence([5.0, 3.0, 2.0, 2.1, 2.0, 4.0, 3.9, 4.1], margin=1.0, window=3)
      6
      >>> find_divergence([5.0, 3.0, 2.0, 2.1, 2.0, 4.0, 1.9, 2.1], margin=1.0, window=3) is None
      True

    Args:
      losses: the loss of every step from the first one on.
      skipped_in_a_row: for every step, how many of the latest steps were skipped. A step with a
        finite loss is skipped too if its gradient is not finite.
      margin: nats above the level.
      window: number of steps of a median.
      skips: number of skipped steps in a row.
    """
    by_loss = _divergence_by_loss(losses, margin, window)
    too_many = np.flatnonzero(np.asarray(skipped_in_a_row, int) >= skips)
    if not too_many.size:
        return by_loss
    first_skipped = int(too_many[0]) + 2 - skips
    return first_skipped if by_loss is None else min(by_loss, first_skipped)


def _divergence_by_loss(all_losses: Losses, margin: float, window: int) -> int | None:
    losses = np.asarray(all_losses, np.float64)
    not_finite = np.flatnonzero(~np.isfinite(losses))
    end = int(not_finite[0]) if not_finite.size else len(losses)
    level = math.inf
    for i in range(1, end - -(-window // 2) + 1):
        before = losses[i - window : i] if i >= window else losses[:1]
        level = min(level, float(np.median(before)))
        limit = level + margin
        if losses[i] > limit and np.median(losses[i : min(i + window, end)]) > limit:
            return i + 1
    return end + 1 if not_finite.size else None


def count_spikes(losses: Losses, *, threshold: float = 6.0, window: int = 100) -> int:
    """The number of spikes; consecutive steps above the threshold are one spike.

    Example:
      >>> count_spikes([3.1, 3.0, 3.2, 3.1, 2.9, 3.0, 3.1, 3.0, 9.0, 8.0, 3.0, 9.0])
      2

    Args:
      losses: the loss of every step from the first one on.
      threshold: in standard deviations.
      window: how many finite losses before a step it is compared with.
    """
    before: list[float] = []
    count, in_spike = 0, False
    for loss in losses:
        is_high = bool(spike_score(before[-window:], loss) > threshold)  # False for NaN
        count, in_spike = count + int(is_high and not in_spike), is_high
        if math.isfinite(loss):
            before.append(loss)
    return count


def final_loss(losses: Losses, *, share: float = 0.05) -> float:
    """The mean loss of the last steps; NaN if one of them is not finite.

    Args:
      losses: the loss of every step.
      share: the share of the steps to average over; at least one step.
    """
    last = np.asarray(losses, np.float64)[-max(1, round(share * len(losses))) :]
    return float(last.mean()) if np.isfinite(last).all() else math.nan


def classify_run(diverged_at: int | None, final_loss: float, unigram_loss: float) -> str:
    """The outcome of a run in one word: learned, stuck or diverged.

    Example:
      >>> classify_run(None, 2.1, 3.1), classify_run(None, 3.2, 3.1), classify_run(17, 2.1, 3.1)
      ('learned', 'stuck', 'diverged')

    Args:
      diverged_at: from `find_divergence`.
      final_loss: from `final_loss`.
      unigram_loss: from `unigram_loss`.
    """
    if diverged_at is not None:
        return "diverged"
    return "learned" if final_loss < unigram_loss else "stuck"


def unigram_loss(tokens: Sequence[int] | np.ndarray) -> float:
    """The entropy of the token frequencies, in nats: the least loss of a model without context.

    Example:
      >>> round(unigram_loss([0, 1, 1, 0, 2, 3]), 4)
      1.3297

    Args:
      tokens: integers, 0 or larger.
    """
    counts = np.bincount(np.asarray(tokens))
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def rate_sensitivity(finals: Mapping[float, float], first_loss: float) -> float:
    """How much is lost, on average over the rates, by not knowing the best learning rate.

    Example:
      >>> rate_sensitivity({1e-3: 2.0, 1e-2: 3.0, 1e-1: float("nan")}, first_loss=5.5)
      1.5

    Args:
      finals: learning rate → final loss. A loss that is not finite counts as `first_loss`.
      first_loss: the loss before the first step.

    Returns:
      Nats per token; NaN without a finite loss.
    """
    values = np.array(list(finals.values()), np.float64)
    if not np.isfinite(values).any():
        return math.nan
    values = np.minimum(np.where(np.isfinite(values), values, first_loss), first_loss)
    return float((values - values.min()).mean())


def usable_decades(finals: Mapping[float, float], level: float) -> float:
    """The width of the range of learning rates whose final loss is at most a level, in decades.

    Between two neighbouring rates the loss is interpolated linearly in the logarithm of the rate.
    An interval with an end that is not finite does not count.

    Example:
      >>> round(usable_decades({1e-3: 2.4, 1e-2: 2.0, 1e-1: 2.2, 1.0: float("nan")}, 2.2), 4)
      1.5

    Args:
      finals: learning rate → final loss; NaN for a run that diverged.
      level: nats per token.

    Returns:
      Decades; NaN if the level is NaN.
    """
    if math.isnan(level):
        return math.nan
    width = 0.0
    for (rate, loss), (next_rate, next_loss) in itertools.pairwise(sorted(finals.items())):
        low, high = min(loss, next_loss), max(loss, next_loss)
        if math.isfinite(loss + next_loss) and low <= level:
            share = 1.0 if high <= level else (level - low) / (high - low)
            width += share * math.log10(next_rate / rate)
    return width
