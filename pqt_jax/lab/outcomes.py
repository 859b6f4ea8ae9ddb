# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What became of a run, from its losses: the definitions of the study, which are ours.

Losses are those of the training batches, one for each step, in nats per token, NaN or Inf where a
step was skipped.

    diverged   a loss is not finite; or it and those of the next `window − 1` steps lie more than
               `margin` above the least loss before it; or loss or gradient was not finite in
               `config.watch.skips` steps in a row, where the trainer would have ended
    spikes     rows of steps whose score (`watch.spike_score`: standard deviations above the median
               of the steps before) is above a threshold; a row counts once
    final      the mean of the last `share` of the steps
    sensitivity   the mean over learning rates of min(final, first) − the least final

Sensitivity is 0 where every rate ends as well as the best, and at most that of learning nothing:
a run that diverged counts as one that stayed at its first loss.

Source of the sensitivity: Wortsman and others, arXiv 2309.14322 (2023), who integrate over the
logarithm of the rate; on a grid of equal ratios that is this mean.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pqt_jax.watch import spike_score

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
      >>> diverged_at([5.0, 3.0, 2.0, 4.0, 4.0, 4.0], margin=1.0, window=3)
      4
      >>> diverged_at([5.0, 3.0, 2.0, 4.0, 2.0, 4.0], margin=1.0, window=3) is None
      True

    Args:
      losses: of every step from the first on.
      in_a_row: of every step, how many of the last steps were skipped; of gradients that are not
        finite the losses may know nothing.
      margin: nats above the least loss before.
      window: steps in a row.
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
    least = np.minimum.accumulate(np.where(np.isfinite(losses), losses, np.inf))
    before = np.concatenate([[np.inf], least[:-1]])
    above = losses > before + margin
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            return i + 1
        rest = losses[i : i + window]
        # From step i on all lie above what was least before it, not above what they bring.
        if len(rest) == window and above[i] and (rest > before[i] + margin).all():
            return i + 1
    return None


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
