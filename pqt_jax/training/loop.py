# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The loop: newest checkpoint or new weights → steps (log, validate, save) → final table.

With several processes, each runs this loop on the same steps. The first one prints and writes
files. Each process writes its shards of a checkpoint.
"""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from pqt_jax.data import pipeline
from pqt_jax.models import partitioning
from pqt_jax.numerics.spec import Spec
from pqt_jax.training import (
    final_evaluation,
    flops,
    startup_summary,
    step,
    step_records,
    summary,
)
from pqt_jax.training.background import call_in_thread, no_garbage_collection
from pqt_jax.training.cadence import Cadence
from pqt_jax.training.measurements import Measurements
from pqt_jax.training.optimizer import count_fixed_steps
from pqt_jax.training.phases import Phase, list_phases, phase_index
from pqt_jax.training.run import checkpoint, distributed, profiling
from pqt_jax.training.run import workdir as run_folder
from pqt_jax.training.run.distributed import print_on_first_process
from pqt_jax.training.run.loss_monitor import SkipError
from pqt_jax.training.run_context import RunContext, StartPoint, restore_or_init
from pqt_jax.training.state import TrainState, check_step_memory, make_graph

DONE = 0


def train(run: RunContext) -> int:
    """Train from the newest checkpoint, or from new weights, to the end; return the exit code.

    Raises:
      InputError: if there are checkpoints and none can be read, or the newest is another run's.
      OutputError: if something cannot be written.
      SkipError: if too many steps in a row were skipped.
    """
    config, log = run.config, run.config.log
    fixed_steps = count_fixed_steps(config)
    manager = checkpoint.open_manager(run.workdir, log.keep, log.keep_every, fixed_steps, log.store)
    if _is_finished(run, manager):
        return DONE
    start = restore_or_init(run, manager)
    monitor, first = start.monitor, start.step
    batches, measurements = _train_batches(run, first), Measurements(run, start)
    if signal := max(distributed.all_gather_int(run.signals[0] if run.signals else 0)):
        return report_stop(f"at step {first} of {config.steps}", signal)
    read_signal, due = distributed.make_stop_signal(run.signals, run.mesh), Cadence(config)
    key, trace_folder = jax.random.key(config.seed), run.workdir / run_folder.PROFILE
    with (
        step_records.open_loggers(config, run.workdir, first) as (advance, record),
        profiling.trace_steps(trace_folder if run.profile else None, config.steps - first) as trace,
    ):
        step_of, train_state = _compile(run, start, measurements, key)
        for number in range(first + 1, config.steps + 1):
            signal = read_signal()
            due.begin_step(number, stop=bool(signal))
            trace(number - first)
            start.timer.start()
            train_state, measured = step_of(number)(train_state, next(batches), key)
            if due.wait:
                jax.block_until_ready(train_state)  # otherwise the next step is prepared meanwhile
            if last_skipped := measurements.check_loss(number, measured, due.wait, record):
                _give_up(manager, monitor.in_a_row, last_skipped)
            measurements.record_due(number, train_state.params, measured, due, record)
            if due.take_save(monitor.in_a_row):
                _save(run, start, manager, number, train_state)
            checkpoint.check(manager)
            advance(number)
            if signal and not due.last:
                checkpoint.close(manager)
                return report_stop(f"at step {number} of {config.steps}", signal)
    checkpoint.close(manager)
    summary.finish(run, train_state.params, measurements.validation_loss, start.timer)
    return DONE


def report_stop(when: str, signal: int) -> int:
    """Print that a signal ended the run, and return the exit code."""
    print_on_first_process(f"stopped {when}; run the command again to go on")
    return 128 + signal


def _save(
    run: RunContext, start: StartPoint, manager: Any, number: int, train_state: TrainState
) -> None:
    """Save a checkpoint after a step, with the time and the losses that a resumed run needs."""
    progress = {"time": start.timer.state(), "losses": start.monitor.state()}
    checkpoint.save(manager, number, train_state, {**run.meta, **progress})


def _give_up(manager: Any, count: int, last_skipped: int) -> NoReturn:
    """End a run in which too many steps in a row were skipped."""
    checkpoint.close(manager)
    raise SkipError(count, last_skipped, manager.latest_step())


def _is_finished(run: RunContext, manager: Any) -> bool:
    """Whether all steps are done and the summary is written; if so, print the final table."""
    config, finished = run.config, summary.read(run.workdir, run.config)
    # Only the first process may have the workdir, if checkpoints are in a bucket.
    is_written = distributed.all_gather_int(finished is not None)[0]
    if manager.latest_step() != config.steps or not is_written:
        return False
    print_on_first_process(f"finished: all {config.steps} steps are done\n")
    if finished is not None:
        print_on_first_process(final_evaluation.format_table(finished))
    return True


def _train_batches(run: RunContext, first: int) -> Iterator[Any]:
    """The batches from step `first` + 1 on, each on its devices."""
    config, data = run.config, run.config.data
    batches = pipeline.train_batches(
        run.text.train,
        length=data.length,
        batch=data.batch,
        seed=config.seed,
        first=first,
        rows=partitioning.local_rows(run.mesh, data.batch),
    )
    return (partitioning.put_batch(tokens, run.mesh, data.batch) for tokens in batches)


def _compile(
    run: RunContext, start: StartPoint, measurements: Measurements, key: jax.Array
) -> tuple[Callable[[int], Any], TrainState]:
    """Compile the training steps, print their memory on each device, and take the first state.

    While XLA compiles the program of the state, the first step is traced. While XLA compiles that
    step, the small programs of the learning rate are compiled.

    Returns:
      (number of a step → its program, state). Each phase that is left has one program.
    """
    phases = list_phases(run.config)
    left = phases[phase_index(phases, min(start.step + 1, run.config.steps)) :]
    with no_garbage_collection():
        lowered = _lower(run, start, left[0], key)
    train_state = start.take_state()
    wait_for_step = call_in_thread(lowered.compile)
    measurements.compile_learning_rate()
    programs = [wait_for_step()]
    programs += [_lower(run, start, phase, key).compile() for phase in left[1:]]
    limit = flops.device_memory(jax.local_devices()[0])
    for phase, program in zip(left, programs, strict=True):
        if len(left) > 1:
            method = phase.config.method
            pqt = phase.config.pqt
            rounding = Spec(noise="none", dtype=pqt.dtype, round_share=pqt.round_share)
            to = f" to {rounding.rounding_label}" if method == "ste" else ""
            print_on_first_process(f"from step {phase.first + 1}: method {method}{to}")
        memory = program.memory_analysis()
        print_on_first_process(startup_summary.format_step_memory(memory, limit))
        check_step_memory(memory, limit)
    print_on_first_process(f"ready after {start.timer.seconds_since_resume():.0f} s")
    return lambda number: programs[phase_index(left, number)], train_state


def _lower(run: RunContext, start: StartPoint, phase: Phase, key: jax.Array) -> Any:
    """Trace the training step of a phase."""
    data = run.config.data
    graph = start.graph if phase.is_own else make_graph(phase.config)
    train_step: Any = step.build_train_step(
        run.config, graph, start.optimizer, end=run.end, phase=phase
    )
    rows = len(partitioning.local_rows(run.mesh, data.batch))
    tokens = np.zeros((rows, data.length + 1), run.text.train.dtype)
    tokens = partitioning.put_batch(tokens, run.mesh, data.batch)
    return train_step.lower(start.like, tokens, key)
