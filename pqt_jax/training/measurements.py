# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The measurements of a run: records of steps, validation, bit-widths and sharpness."""

from collections import deque
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from pqt_jax.data import pipeline
from pqt_jax.models import partitioning
from pqt_jax.training import final_evaluation, sharpness, step_records
from pqt_jax.training.cadence import Cadence
from pqt_jax.training.methods import make_rules
from pqt_jax.training.optimizer import make_schedule
from pqt_jax.training.run import bit_history, distributed, metrics
from pqt_jax.training.run import workdir as run_folder
from pqt_jax.training.run_context import RunContext, StartPoint
from pqt_jax.training.step import Metrics, step_split

Record = Callable[[metrics.Record], None]


class Measurements:
    """Checks the loss of every step, and makes the records that are due.

    Attributes:
      validation_loss: parameters → nats per token on the validation batches.
    """

    def __init__(self, run: RunContext, start: StartPoint):
        config, data = run.config, run.config.data
        self._run, self._timer, self._monitor = run, start.timer, start.monitor
        self._rules, self._schedule = make_rules(config), make_schedule(config)
        self._unchecked = deque[tuple[int, Metrics]]()
        batches = pipeline.validation_batches(
            run.text.validation,
            length=data.length,
            batch=data.batch,
            count=config.log.validation_batches,
        )
        self._batches = partitioning.put_batches(batches, run.mesh)
        self.validation_loss = final_evaluation.make_loss(
            start.graph, self._batches, end=run.end, split=step_split(config)
        )

        @jax.jit
        def measure_sharpness(params, batches):
            tokens = batches[0].astype("int32")
            return sharpness.model_sharpness(start.graph, params, tokens, run.end)

        self._sharpness = measure_sharpness

    def compile_learning_rate(self) -> None:
        """Compile the operations of the schedule, each of which is a program of its own.

        As one program it would take less time, but the last bit of the rate would be another.
        """
        self._schedule(0)

    def check_loss(self, step: int, measured: Metrics, wait: bool, record: Record) -> int | None:
        """Record skipped steps and spikes of the loss, and stop the clock of the step.

        Without `wait` a step is checked after the next one has been dispatched, so that the device
        does not wait for the host.

        Args:
          step: the step's number.
          measured: the metrics that the step returned.
          wait: whether to check this step now, and not after the next one.
          record: a function that takes a record.

        Returns:
          The step at which too many steps in a row were skipped, which ends the run; else None.
        """
        self._unchecked.append((step, measured))
        while len(self._unchecked) > (not wait):
            checked, values = self._unchecked.popleft()
            if entry := step_records.check_step(self._monitor, checked, values):
                record(entry)
            if self._monitor.in_a_row >= self._run.config.watch.skips:
                return checked
        # Not before: reading the values of the previous step waits for it.
        self._timer.stop(self._run.step_tokens)
        return None

    def record_due(
        self, step: int, params: nnx.State, measured: Metrics, due: Cadence, record: Record
    ) -> None:
        """Record the step, the validation loss and the sharpness, whichever is due."""
        config, monitor = self._run.config, self._monitor
        if due.log:
            rate = float(self._schedule(step - 1 - monitor.skipped + bool(monitor.in_a_row)))
            mesh, timer = self._run.mesh, self._timer
            record(step_records.step_record(config, step, mesh, timer, rate, measured))
        if due.validate:
            record({"step": step, "validation_loss": self.validation_loss(params)})
            self._append_bits(step, params)
        if due.sharpness:
            record({"step": step, "sharpness": float(self._sharpness(params, self._batches))})

    def _append_bits(self, step: int, params: Any) -> None:
        bits = bit_history.measure(params, self._rules)
        if distributed.is_first_process():
            path = self._run.workdir / run_folder.BIT_HISTORY
            bit_history.append(path, step, step * self._run.step_tokens, bits)
