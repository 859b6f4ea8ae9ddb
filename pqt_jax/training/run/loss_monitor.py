# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Detect loss spikes and skipped steps while a run trains, and name the error of too many skips.

A step is a *spike* if its loss stands out from the losses before it:

    score = (loss − median) / max(1.4826 · MAD, 0.01 · |median|)  >  config.watch.spike_score

Median and MAD (median absolute deviation) are taken over the last `config.watch.window` finite
losses. For normally distributed losses 1.4826 · MAD is the standard deviation. Unlike mean and
standard deviation, median and MAD hardly change when there are spikes among the losses. The term
0.01 · |median| prevents that a change of 1 % counts as a spike when the loss is nearly constant.

A step is *skipped* if its loss or gradient is not finite: the train step then leaves weights and
optimizer state unchanged. Training ends after `config.watch.skips` consecutive skipped steps.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pqt_jax.training.run.metrics import Record

SKIPPED_TOO_OFTEN = 3  # exit code
_MIN_LOSSES = 8  # with fewer, no step is a spike


class SkipError(RuntimeError):
    """Loss or gradient was not finite in too many consecutive steps.

    Args:
      count: number of these steps.
      step: the last of them.
      newest: step of the newest checkpoint; None for none.
    """

    exit_code = SKIPPED_TOO_OFTEN

    def __init__(self, count: int, step: int, newest: int | None):
        where = f"the newest checkpoint is of step {newest}" if newest else "there is no checkpoint"
        super().__init__(
            f"loss or gradient was not finite in {count} steps in a row, up to step {step}; "
            f"{where}; a lower config.optimizer.learning_rate may help, in a new --workdir"
        )


def spike_score(previous: Sequence[float], loss: float) -> float:
    """How far a loss is above the losses before it, in their standard deviations.

    Example:
      >>> round(spike_score([3.1, 3.0, 3.2, 3.1, 2.9, 3.0, 3.1, 3.0], 4.0), 1)
      12.8

    Args:
      previous: finite losses of earlier steps, in nats per token.
      loss: the loss of the step.

    Returns:
      The score; NaN with fewer than eight earlier losses, or if the loss is not finite.
    """
    if len(previous) < _MIN_LOSSES or not math.isfinite(loss):
        return math.nan
    median = float(np.median(previous))
    spread = 1.4826 * float(np.median(np.abs(np.asarray(previous) - median)))
    return (loss - median) / max(spread, 0.01 * abs(median), 1e-30)


class LossMonitor:
    """Checks each step of a run, in order.

    Args:
      options: `config.watch`.
      recent_losses: the losses of the last steps, from `state`, when a run is resumed.

    Attributes:
      skipped: number of skipped steps so far.
      in_a_row: number of skipped steps up to the last step, without a break.
    """

    def __init__(self, options: Any, recent_losses: Iterable[float] = ()):
        self.spike_score = options.spike_score
        self.losses: deque[float] = deque(recent_losses, maxlen=options.window)
        self.skipped = self.in_a_row = 0

    def add_step(self, step: int, loss: float, skipped: int, in_a_row: int) -> Record | None:
        """Check one step.

        Args:
          step: number of the step.
          loss: in nats per token.
          skipped, in_a_row: the counts after this step, from the train step.

        Returns:
          The record `{"step", "skipped", "in_a_row"}` of a skipped step, the record `{"step",
          "spike", "spike_loss"}` of a spike, or None.
        """
        self.skipped, self.in_a_row = skipped, in_a_row
        if in_a_row:
            return {"step": step, "skipped": skipped, "in_a_row": in_a_row}
        score = spike_score(self.losses, loss)
        self.losses.append(loss)
        if score > self.spike_score:
            return {"step": step, "spike": round(score, 2), "spike_loss": loss}
        return None

    def state(self) -> list[float]:
        """The losses of the last steps, with which a resumed run continues."""
        return list(self.losses)
