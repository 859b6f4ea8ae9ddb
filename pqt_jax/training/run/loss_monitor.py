# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Watching a run: losses, step by step → records of spikes and of skipped steps, or an end.

A step is a *spike* if its loss stands out from those before it,

    score = (loss − median) / max(1.4826 · MAD, 0.01 · |median|)  >  config.watch.spike_score

where median and MAD (median absolute deviation) are those of the last `config.watch.window` finite
losses. For losses that are normally distributed 1.4826 · MAD is their standard deviation; neither
it nor the median is moved by the spikes themselves. The second term keeps a loss that hardly moves
from making a spike of a hundredth.

A step is *skipped* if its loss or gradient was not finite: `step.build_train_step` leaves weights
and optimizer as they were. After `config.watch.skips` in a row, training ends.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pqt_jax.training.run.metrics import Record

SKIPPED_TOO_OFTEN = 3  # exit code
_FEWEST = 8  # losses before which nothing is called a spike


class SkipError(RuntimeError):
    """Loss or gradient was not finite in too many steps in a row.

    Args:
      count: of them.
      step: the last one.
      newest: step of the newest checkpoint; None for none.
    """

    exit_code = SKIPPED_TOO_OFTEN

    def __init__(self, count: int, step: int, newest: int | None):
        where = f"the newest checkpoint is of step {newest}" if newest else "there is no checkpoint"
        super().__init__(
            f"loss or gradient was not finite in {count} steps in a row, up to step {step}; "
            f"{where}; a lower config.optimizer.learning_rate may help, in a new --workdir"
        )


def spike_score(before: Sequence[float], loss: float) -> float:
    """How far a loss stands out from those before it, in their standard deviations.

    Example:
      >>> round(spike_score([3.1, 3.0, 3.2, 3.1, 2.9, 3.0, 3.1, 3.0], 4.0), 1)
      12.8

    Args:
      before: finite losses of the steps before, in nats per token.
      loss: of the step.

    Returns:
      The score above; NaN with fewer than eight losses before, or where the loss is not finite.
    """
    if len(before) < _FEWEST or not math.isfinite(loss):
        return math.nan
    median = float(np.median(before))
    spread = 1.4826 * float(np.median(np.abs(np.asarray(before) - median)))
    return (loss - median) / max(spread, 0.01 * abs(median), 1e-30)


class LossMonitor:
    """Sees every step once, in order.

    Args:
      options: `config.watch`.
      before: the losses of the last steps, as `state` gave them.

    Attributes:
      skipped, in_a_row: steps that were skipped, in all and at the end.
    """

    def __init__(self, options: Any, before: Iterable[float] = ()):
        self.spike_score = options.spike_score
        self.losses: deque[float] = deque(before, maxlen=options.window)
        self.skipped = self.in_a_row = 0

    def add_step(self, step: int, loss: float, skipped: int, in_a_row: int) -> Record | None:
        """Look at a step.

        Args:
          step: its number.
          loss: in nats per token.
          skipped, in_a_row: what the step says of itself and those before it.

        Returns:
          A record if it was skipped, `{"step", "skipped", "in_a_row"}`, or a spike,
          `{"step", "spike", "spike_loss"}`; else None.
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
        """What a later part of the run needs to go on: the losses of the last steps."""
        return list(self.losses)
