# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""When a run logs, validates, measures sharpness and saves checkpoints."""

from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.optimizer import count_fixed_steps


class Cadence:
    """The actions that are due after a step, by `config.log`. After the last step all are due.

    Example:
      >>> from pqt_jax.models import Llama2Config
      >>> from pqt_jax.training.config import default
      >>> cadence = Cadence(default(Llama2Config(256, 64, 2, 4, 128)))  # 1000 steps, log.every=10
      >>> cadence.begin_step(20, stop=False)
      >>> cadence.log, cadence.validate, cadence.last
      (True, False, False)

    Attributes:
      last: whether the step is the last one.
      log, validate, sharpness: whether the step is logged, validated, or measured for sharpness.
      wait: whether the host waits for the step, because a due action reads its results.
    """

    def __init__(self, config: RunConfig):
        self._config = config
        self._fixed_steps = count_fixed_steps(config)
        self._stop = False
        self._save_is_due = False  # also from an earlier step, if the steps since were skipped

    def begin_step(self, step: int, stop: bool) -> None:
        """Go to a step.

        Args:
          step: its number, from 1 on.
          stop: whether the run ends after it, which makes a checkpoint due.
        """
        log, self._stop = self._config.log, stop
        self.last = step == self._config.steps
        self.log = self.last or step % log.every == 0
        self.validate = self.last or step % log.validate_every == 0
        every = log.sharpness_every
        self.sharpness = every > 0 and (self.last or step % every == 0)
        # What comes after the fixed steps depends on the number of steps, which may grow.
        self._save_is_due |= step % log.checkpoint_every == 0 or step == self._fixed_steps
        due = self.log or self.validate or self.sharpness or self._save_is_due
        self.wait = self.last or stop or due

    def take_save(self, skipped_in_a_row: int) -> bool:
        """Whether to save a checkpoint now; if so, it is no longer due.

        While steps are skipped, only the end of the run saves a checkpoint: the weights may be the
        reason that the loss or the gradient is not finite.
        """
        save = self.last or self._stop or (self._save_is_due and not skipped_in_a_row)
        self._save_is_due &= not save
        return save
