# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Records of a run → `metrics.jsonl`, the progress bar or lines, and trackers.

Only the first process writes; in the others every record is discarded.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from pqt_jax.console import print_error
from pqt_jax.models.registry import model_config
from pqt_jax.training import flops
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.run import distributed, metrics, trackers
from pqt_jax.training.run.loss_monitor import LossMonitor
from pqt_jax.training.run.metrics import Record, Timer
from pqt_jax.training.run.workdir import BIT_HISTORY, METRICS
from pqt_jax.training.step import Metrics


@contextlib.contextmanager
def open_loggers(
    config: RunConfig, workdir: Path, start: int
) -> Iterator[tuple[Callable[[int], None], Callable[[Record], None]]]:
    """Open all outputs of records, and drop the records of steps that will be repeated.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      start: the last step that is not repeated.

    Yields:
      `(advance, record)`: call `advance(step)` after each step, and `record(entry)` for a record.
    """
    if not distributed.is_first_process():
        yield (lambda step: None), (lambda record: None)
        return
    path = workdir / METRICS
    for old in (path, workdir / BIT_HISTORY):
        if broken := metrics.truncate(old, start):
            lines = "1 broken line was" if broken == 1 else f"{broken} broken lines were"
            print_error(f"{old}: {lines} dropped")
    with trackers.close_at_end() as others:
        others += trackers.start(config, workdir, start)
        with metrics.progress(start, config.steps) as (advance, report):

            def record(entry: Record) -> None:
                metrics.append(path, entry)
                report(entry)
                trackers.send(others, entry)

            yield advance, record


def step_record(
    config: RunConfig,
    step: int,
    mesh: Mesh | None,
    timer: Timer,
    learning_rate: float,
    measured: Metrics,
) -> Record:
    """The record of a step that is logged.

    Args:
      config: the run's configuration.
      step: the step's number.
      mesh: the run's device mesh, or None for one device.
      timer: gives the speed since the previous record.
      learning_rate: learning rate of the weights.
      measured: the metrics that the step returned.
    """
    tokens, rate = config.data.batch * config.data.length, timer.lap()
    step_flops = flops.training_flops(model_config(config), config.data.length)
    kind = jax.devices()[0].device_kind
    values = {name: float(value) for name, value in measured.items()}
    return {
        "step": step,
        "loss": values["loss"],
        "tokens": step * tokens,
        "tokens_per_s": round(rate, 1),
        **flops.speed(rate, step_flops, 1 if mesh is None else mesh.size, kind),
        **metrics.peak_memory(jax.local_devices()),
        "hours_left": round(timer.hours((config.steps - step) * tokens), 3),
        "lr": learning_rate,
        "grad_norm": values["grad_norm"],
        **{name: values.get(name) for name in ("bits_mean", "bits_min", "bits_max")},
        **{name: values[name] for name in ("penalty",) if name in values},
    }


def check_step(monitor: LossMonitor, step: int, measured: Metrics) -> Record | None:
    """The record of a skipped step or a spike, with a line on stderr; None for other steps."""
    entry = monitor.add_step(
        step, *(measured[name].item() for name in ("loss", "skipped", "in_a_row"))
    )
    if entry and distributed.is_first_process():
        if "spike" in entry:
            print_error(f"step {step}: the loss of {entry['spike_loss']:.4f} is a spike")
        elif entry["in_a_row"] == 1:
            print_error(f"step {step} is skipped: its loss or gradient is not finite")
    return entry
