# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What became of a run, from its losses: the definitions of the study, which are ours.

Losses are those of the training batches, one for each step, in nats per token, NaN or Inf where a
step was skipped.

    diverged   a loss is not finite; or it lies more than `margin` above a level that the run had
               reached, and so does the median of it and the next `window − 1` (at the end of the
               run, of at least half as many); or loss or gradient was not finite in
               `config.watch.skips` steps in a row, where the trainer would have ended. The level is
               the least of the first loss, before any step, and the medians of each `window` losses
               before: one batch that is easy, or one that is hard, decides nothing.
    spikes     rows of steps whose score (`loss_monitor.spike_score`: standard deviations above
               the median of the steps before) is above a threshold; a row counts once
    final      the mean of the last `share` of the steps
    stuck      it has not diverged, and its final loss is not below the entropy of the tokens'
               frequencies: what it says of the next token, it could say without the others
    learned    neither
    sensitivity   the mean over learning rates of min(final, first) − the least final
    usable     how many decades of learning rates end below a level

Sensitivity is 0 where every rate ends as well as the best, and at most that of learning nothing:
a run that diverged counts as one that stayed at its first loss.

Source of the sensitivity: Wortsman and others, arXiv 2309.14322 (2023), who integrate over the
logarithm of the rate; on a grid of equal ratios that is this mean.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from pqt_jax.training.run.loss_monitor import spike_score

Losses = Sequence[float] | np.ndarray


def diverged_at(
    losses: Losses,
    in_a_row: Losses = (),
    *,
    margin: float = 0.5,
    window: int = 20,
    skips: int = 10,
) -> int | None:
    """The step at which a run diverged, counted from 1; None if it did not.

    Example:
      >>> diverged_at([5.0, 3.0, 2.0, 2.1, 2.0, 4.0, 3.9, 4.1], margin=1.0, window=3)
      6
      >>> diverged_at([5.0, 3.0, 2.0, 2.1, 2.0, 4.0, 1.9, 2.1], margin=1.0, window=3) is None
      True

    Args:
      losses: of every step from the first on.
      in_a_row: of every step, how many of the last steps were skipped; of gradients that are not
        finite the losses may know nothing.
      margin: nats above the level.
      window: steps whose median counts.
      skips: steps in a row.
    """
    found = _by_losses(losses, margin, window)
    rows = np.flatnonzero(np.asarray(in_a_row, int) >= skips)
    if rows.size:
        first = int(rows[0]) + 2 - skips  # of the row
        return first if found is None else min(found, first)
    return found


def _by_losses(all_losses: Losses, margin: float, window: int) -> int | None:
    losses = np.asarray(all_losses, np.float64)
    bad = np.flatnonzero(~np.isfinite(losses))
    end = int(bad[0]) if bad.size else len(losses)
    level = math.inf
    for i in range(1, end - -(-window // 2) + 1):
        before = losses[i - window : i] if i >= window else losses[:1]
        level = min(level, float(np.median(before)))
        if (
            losses[i] > level + margin
            and np.median(losses[i : min(i + window, end)]) > level + margin
        ):
            return i + 1
    return end + 1 if bad.size else None


def spikes(losses: Losses, *, threshold: float = 6.0, window: int = 100) -> int:
    """How many spikes there are.

    Example:
      >>> spikes([3.1, 3.0, 3.2, 3.1, 2.9, 3.0, 3.1, 3.0, 9.0, 8.0, 3.0, 9.0])
      2

    Args:
      losses: of every step from the first on.
      threshold: standard deviations.
      window: finite losses before a step that it is compared with.
    """
    before: list[float] = []
    count, inside = 0, False
    for loss in losses:
        high = bool(spike_score(before[-window:], loss) > threshold)  # of NaN, False
        count, inside = count + int(high and not inside), high
        if math.isfinite(loss):
            before.append(loss)
    return count


def final(losses: Losses, *, share: float = 0.05) -> float:
    """The mean loss of the last steps, at least one; NaN if one of them is not finite."""
    last = np.asarray(losses, np.float64)[-max(1, round(share * len(losses))) :]
    return float(last.mean()) if np.isfinite(last).all() else math.nan


def outcome(diverged_at: int | None, final_loss: float, unigram_loss: float) -> str:
    """What became of a run, in a word: learned, stuck or diverged.

    Example:
      >>> outcome(None, 2.1, 3.1), outcome(None, 3.2, 3.1), outcome(17, 2.1, 3.1)
      ('learned', 'stuck', 'diverged')

    Args:
      diverged_at: as `diverged_at` returns it.
      final_loss: as `final` returns it.
      unigram_loss: as `unigram_loss` returns it.
    """
    if diverged_at is not None:
        return "diverged"
    return "learned" if final_loss < unigram_loss else "stuck"


def unigram_loss(tokens: Sequence[int] | np.ndarray) -> float:
    """The entropy of the frequencies of tokens, in nats: the least loss without context.

    Example:
      >>> round(unigram_loss([0, 1, 1, 0, 2, 3]), 4)
      1.3297

    Args:
      tokens: whole numbers from 0 on.
    """
    counts = np.bincount(np.asarray(tokens))
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def sensitivity(finals: Mapping[float, float], first: float) -> float:
    """How much is lost, on average, by not knowing the best learning rate.

    Example:
      >>> sensitivity({1e-3: 2.0, 1e-2: 3.0, 1e-1: float("nan")}, first=5.5)
      1.5

    Args:
      finals: learning rate → final loss of its run; what is not finite counts as `first`.
      first: loss before the first step.

    Returns:
      Nats per token; NaN without a finite loss.
    """
    values = np.array(list(finals.values()), np.float64)
    if not np.isfinite(values).any():
        return math.nan
    values = np.minimum(np.where(np.isfinite(values), values, first), first)
    return float((values - values.min()).mean())


def usable(finals: Mapping[float, float], level: float) -> float:
    """How wide the range of learning rates is that end below a level, in decades.

    Between two rates of the grid the loss is linear in the logarithm of the rate; from a rate whose
    loss is not finite nothing reaches to its neighbours.

    Example:
      >>> round(usable({1e-3: 2.4, 1e-2: 2.0, 1e-1: 2.2, 1.0: float("nan")}, level=2.2), 4)
      1.5

    Args:
      finals: learning rate → final loss of its run; NaN for one that diverged.
      level: nats per token.

    Returns:
      Decades; NaN where the level is.
    """
    if math.isnan(level):
        return math.nan
    width = 0.0
    for (rate, one), (next_rate, other) in itertools.pairwise(sorted(finals.items())):
        low, high = min(one, other), max(one, other)
        if math.isfinite(one + other) and low <= level:
            share = 1.0 if high <= level else (level - low) / (high - low)
            width += share * math.log10(next_rate / rate)
    return width
