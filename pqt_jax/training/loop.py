# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The loop: the newest checkpoint, or new weights → steps (log, validate, save) → the end.

With several processes each runs this loop, on the same steps; the first of them prints and writes
files, checkpoints apart, of which each writes its own part.
"""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pqt_jax.console import print_line
from pqt_jax.data import pipeline, source
from pqt_jax.models import partitioning
from pqt_jax.training import (
    final_evaluation,
    flops,
    methods,
    sharpness,
    startup_summary,
    step_records,
    summary,
)
from pqt_jax.training import state as states
from pqt_jax.training import step as steps
from pqt_jax.training.config.schema import Config
from pqt_jax.training.optimizer import make_optimizer, make_schedule
from pqt_jax.training.run import bit_history, checkpoint, distributed, metrics, profiling
from pqt_jax.training.run import workdir as workdirs
from pqt_jax.training.run.loss_monitor import LossMonitor, SkipError

DONE = 0


def train(
    config: Config,
    workdir: Path,
    text: source.Text,
    meta: workdirs.Meta,
    *,
    mesh: Mesh | None = None,
    signals: Sequence[int] = (),
    take_start: Callable[[], Any] = lambda: None,
    profile: bool = False,
) -> int:
    """Train from the newest checkpoint, or from the start, to the end.

    Args:
      config: checked and locked.
      workdir: claimed for this run.
      text: its training and validation tokens.
      meta: from `workdir.make_metadata`; saved with every checkpoint.
      mesh: that is entered; None for one device.
      signals: from `signals.collect_signals`; looked at before compilation and at every step.
      take_start: called for a new run: the weights before the first step; None for new ones.
      profile: whether to write a trace of a few steps to `workdir/profile`.

    Returns:
      The exit code.

    Raises:
      InputError: if there are checkpoints and none can be read, or another run's is the newest.
      OutputError: if something cannot be written.
      SkipError: if too many steps in a row were skipped.
    """
    log = config.log
    manager = checkpoint.open_manager(workdir, log.keep, log.keep_every)
    newest, finished = manager.latest_step(), summary.read(workdir, config)
    if newest == config.steps and finished is not None:
        _print(f"finished: all {config.steps} steps are done\n")
        _print(final_evaluation.format_table(finished))
        return DONE

    timer, watch = metrics.Timer(), LossMonitor(config.watch)
    optimizer, rules = make_optimizer(config), methods.make_rules(config)
    if newest is None:
        graph, state = states.init_state(config, optimizer, take_start())
    else:
        graph, like = states.abstract_state(config, optimizer)
        newest, state, saved = checkpoint.restore_newest(manager, like, meta)
        timer, watch = metrics.Timer(**saved["time"]), LossMonitor(config.watch, saved["losses"])
        _print(f"resumed from step {newest} of {config.steps}")
        if changed := workdirs.changed_versions(saved, meta):
            _print(f"resumed under {changed}, so results may differ in the last digits")
    start = int(state.step)
    _print(startup_summary.to_go(config, start, timer.rate()))

    length, batch = config.data.length, config.data.batch
    rows = partitioning.local_rows(mesh, batch)
    batches = pipeline.train_batches(
        text.train, length=length, batch=batch, seed=config.seed, first=start, rows=rows
    )
    validation = pipeline.validation_batches(
        text.validation, length=length, batch=batch, count=log.validation_batches
    )
    end = text.end if config.data.boundaries == "mask" else None
    validation = partitioning.put_batches(validation, mesh)
    validation_loss = final_evaluation.make_loss(
        graph, validation, end=end, split=steps.step_split(config)
    )
    sharpness_of = jax.jit(
        lambda p, all_: sharpness.model_sharpness(graph, p, all_[0].astype("int32"), end)
    )

    key, schedule = jax.random.key(config.seed), make_schedule(config)
    if number := max(distributed.all_gather_int(signals[0] if signals else 0)):
        return stopped(f"at step {start} of {config.steps}", number)

    train_step = steps.build_train_step(config, graph, optimizer, end=end)
    like = partitioning.put_batch(np.zeros((len(rows), length + 1), text.train.dtype), mesh, batch)
    predicted = batch * length  # tokens of a step
    waits = (log.every, log.validate_every, log.sharpness_every)
    stop_of, unseen = (
        distributed.make_stop_signal(signals, mesh),
        deque[tuple[int, steps.Metrics]](),
    )
    due = False  # a checkpoint, put off by steps that were skipped
    folder = workdir / workdirs.PROFILE if profile else None
    with (
        step_records.opened(config, workdir, start) as (advance, record),
        profiling.trace_steps(folder, config.steps - start) as profiled,
    ):
        train_step = train_step.lower(state, like, key).compile()
        limit = flops.device_memory(jax.local_devices()[0])
        _print(startup_summary.compiled(train_step.memory_analysis(), limit))
        _print(f"ready after {timer.seconds():.0f} s")
        for step in range(start + 1, config.steps + 1):
            last, stop = step == config.steps, stop_of()
            profiled(step - start)
            timer.start()
            tokens = partitioning.put_batch(next(batches), mesh, batch)
            state, measured = train_step(state, tokens, key)
            due = due or step % log.checkpoint_every == 0
            waited = bool(last or stop or due or any(n and step % n == 0 for n in waits))
            if waited:
                jax.block_until_ready(state)  # else the next step is prepared while this one runs
            unseen.append((step, measured))
            while len(unseen) > (not waited):
                seen = unseen.popleft()
                if entry := step_records.of_watch(watch, *seen):
                    record(entry)
                if watch.in_a_row >= config.watch.skips:
                    checkpoint.close(manager)
                    raise SkipError(watch.in_a_row, seen[0], manager.latest_step())
            timer.stop(predicted)  # not before: what was read of the step before is waited for
            if last or step % log.every == 0:
                rate = float(schedule(step - 1 - watch.skipped + bool(watch.in_a_row)))
                record(step_records.of_step(config, step, mesh, timer, rate, measured))
            if last or step % log.validate_every == 0:
                record({"step": step, "validation_loss": validation_loss(state.params)})
                learned = bit_history.measure(state.params, rules)
                if distributed.is_first_process():
                    bit_history.append(
                        workdir / workdirs.BIT_HISTORY, step, step * predicted, learned
                    )
            if log.sharpness_every and (last or step % log.sharpness_every == 0):
                record({"step": step, "sharpness": float(sharpness_of(state.params, validation))})
            # Not among skipped steps: what made them so may be in the weights already.
            if last or stop or due and not watch.in_a_row:
                due = False
                more = {"time": timer.state(), "losses": watch.state()}
                checkpoint.save(manager, step, state, {**meta, **more})
            checkpoint.check(manager)
            advance(step)
            if stop and not last:
                checkpoint.close(manager)
                return stopped(f"at step {step} of {config.steps}", stop)
    checkpoint.close(manager)
    summary.finish(config, workdir, state.params, validation_loss, timer, mesh)
    return DONE


def stopped(when: str, number: int) -> int:
    """Say that a signal ended the run, and how; the exit code."""
    _print(f"stopped {when}; run the command again to go on")
    return 128 + number


def _print(text: str) -> None:
    if distributed.is_first_process():
        print_line(text)
