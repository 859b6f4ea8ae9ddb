# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Train a language model: `python -m pqt_jax.train --config configs/quickstart.py`.

    config → text → state → steps (log, validate, checkpoint) → table, pictures, summary

The same command run again goes on from the newest checkpoint, or says that the run is finished.
Once the line `workdir:` is out, Ctrl-C or SIGTERM leads to one more step, a checkpoint and an end;
before compilation, to an end without either. What XLA compiles, it compiles first. A second one
stops at once. Only one run at a time can use a workdir.

Exit codes: 0 finished; 2 the input cannot be used (one line on stderr, nothing compiled);
128 + number of the signal that interrupted it.
"""

import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pqt_jax import checkpoint, cli, evaluate, metrics, plot
from pqt_jax import config as configs
from pqt_jax import step as steps
from pqt_jax.config import Config
from pqt_jax.data import pipeline, source
from pqt_jax.errors import InputError

DONE, BAD_INPUT = 0, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Check everything that was given, then train.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    try:
        config, workdir = cli.parse(sys.argv[1:] if arguments is None else arguments)
        text = source.load(config.data.files)
        pipeline.check_lengths(text.train, text.validation, config.data.length, config.data.batch)
        parameters = steps.count_parameters(config)  # here the rules meet the parameters' paths
        steps.check_memory(config, parameters)
        meta = checkpoint.describe(config, text)
        lock = checkpoint.claim(workdir, config, meta)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(configs.describe(config))
    print(f"data: {text.description}")
    print(f"model: {config.model.name}, {parameters:,} parameters")
    print(f"workdir: {workdir}", flush=True)
    try:
        with interruptions() as signals:
            return train(config, workdir, text, meta, signals)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    finally:
        os.close(lock)


def train(
    config: Config,
    workdir: Path,
    text: source.Text,
    meta: checkpoint.Meta,
    signals: Sequence[int] = (),
) -> int:
    """Train from the newest checkpoint, or from the start, to the end.

    Args:
      config: checked and locked.
      workdir: claimed for this run.
      text: its training and validation bytes.
      meta: from `checkpoint.describe`; saved with every checkpoint.
      signals: from `interruptions`; looked at before compilation and at every step.

    Returns:
      The exit code.

    Raises:
      InputError: if there are checkpoints and none can be read.
    """
    manager = checkpoint.open_manager(workdir)
    newest, summary = manager.latest_step(), _read_summary(workdir / "summary.json")
    if newest == config.steps and summary is not None:
        print(f"finished: all {config.steps} steps are done\n")
        print(evaluate.format_table(summary))
        return DONE

    timer = metrics.Timer()
    optimizer, rules = steps.make_optimizer(config), configs.rules(config)
    graph, state = steps.init_state(config, optimizer)
    size = {"length": config.data.length, "batch": config.data.batch}
    batches = pipeline.train_batches(text.train, seed=config.seed, **size)
    if newest is not None:
        newest, state, saved = checkpoint.restore_newest(manager, state, batches)
        timer = metrics.Timer(**saved["time"])
        print(f"resumed from step {newest} of {config.steps}", flush=True)
    start, log = int(state.step), config.log
    waits = (log.every, log.validate_every, log.checkpoint_every)
    metrics.truncate(workdir / "metrics.jsonl", start)
    validation = pipeline.validation_batches(text.validation, count=log.validation_batches, **size)
    validation_loss = evaluate.make_loss(graph, validation)

    key, schedule = jax.random.key(config.seed), steps.make_schedule(config)
    shape = jax.ShapeDtypeStruct((config.data.batch, config.data.length + 1), jnp.uint8)
    if signals:
        return _stopped(start, config, signals)
    train_step = steps.make_train_step(graph, optimizer, rules).lower(state, shape, key).compile()
    print(f"ready after {timer.seconds():.0f} s", flush=True)

    def record(entry: metrics.Record) -> None:
        metrics.append(workdir / "metrics.jsonl", entry)
        report(entry)

    tokens = math.prod(shape.shape) - config.data.batch  # that a step predicts
    with metrics.progress(start, config.steps) as (advance, report):
        for step in range(start + 1, config.steps + 1):
            last, stop = step == config.steps, bool(signals)
            timer.start()
            state, measured = train_step(state, next(batches), key)
            if last or stop or any(step % n == 0 for n in waits):
                jax.block_until_ready(state)  # else the next step is prepared while this one runs
            timer.stop(tokens)
            if last or step % log.every == 0:
                record(_entry(step, tokens, timer, float(schedule(step - 1)), measured))
            if last or step % log.validate_every == 0:
                record({"step": step, "validation_loss": validation_loss(state.params)})
            if last or stop or step % log.checkpoint_every == 0:
                checkpoint.save(manager, step, state, batches, {**meta, "time": timer.state()})
            advance(step)
            if stop and not last:
                return _stopped(step, config, signals)
    manager.close()
    finish(config, workdir, state.params, validation_loss, timer)
    return DONE


def _stopped(step: int, config: Config, signals: Sequence[int]) -> int:
    print(f"stopped at step {step} of {config.steps}; run the command again to go on", flush=True)
    return 128 + signals[0]


def _read_summary(path: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None if it is missing, or cannot be used."""
    try:
        summary = json.loads(path.read_text())
        evaluate.format_table(summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return summary


def finish(
    config: Config,
    workdir: Path,
    params: Any,
    validation_loss: evaluate.Loss,
    timer: metrics.Timer,
) -> None:
    """Write the summary and the pictures of a trained model, and print the table."""
    losses = evaluate.table(config, validation_loss, params)
    summary = {
        **losses,
        "method": config.method,
        "steps": config.steps,
        "seconds": round(timer.seconds(), 1),
        "tokens_per_s": round(timer.rate(), 1),
        "config": configs.digest(config),
    }
    finite = {name: metrics.finite(value) for name, value in summary.items()}
    metrics.write_text(workdir / "summary.json", json.dumps(finite, indent=2) + "\n")
    print(f"\n{evaluate.format_table(losses)}", flush=True)
    records = metrics.read(workdir / "metrics.jsonl")
    title = f"{config.model.name}, {config.method}, seed {config.seed}"
    plot.loss(workdir / "loss.png", records, title)
    if b_t := jax.device_get(steps.bit_widths(params, configs.rules(config))):
        plot.bits(workdir / "bits.png", records, b_t, title)
    print(f"\n{timer.seconds():.0f} s in all; see {workdir}")


def _entry(step, tokens, timer, learning_rate, measured) -> metrics.Record:
    """What `metrics.jsonl` says about a step."""
    values = {name: float(value) for name, value in measured.items()}
    return {
        "step": step,
        "loss": values["loss"],
        "tokens": step * tokens,
        "tokens_per_s": round(timer.lap(), 1),
        "lr": learning_rate,
        "grad_norm": values["grad_norm"],
        **{name: values.get(name) for name in ("bits_mean", "bits_min", "bits_max")},
    }


@contextlib.contextmanager
def interruptions() -> Iterator[list[int]]:
    """A list that the first SIGINT or SIGTERM adds its number to; the second acts as usual."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number, frame):
        received.append(number)
        restore()

    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


if __name__ == "__main__":
    sys.exit(main())
