# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Train a language model: `python -m pqt_jax.train --config configs/quickstart.py`.

    config → text → state → steps (log, validate, checkpoint) → table, pictures, summary

The same command run again goes on from the newest checkpoint, or says that the run is finished.
Ctrl-C or SIGTERM saves a checkpoint first; a second one stops at once.

Exit codes: 0 finished; 2 the input cannot be used (one line on stderr, nothing compiled);
128 + number of the signal that interrupted it, after a checkpoint.
"""

import contextlib
import json
import math
import signal
import sys
import time
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
        meta = checkpoint.describe(config, text)
        checkpoint.claim(workdir, config, meta)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(configs.describe(config))
    print(f"data: {text.description}")
    print(f"model: {config.model.name}, {parameters:,} parameters")
    print(f"workdir: {workdir}", flush=True)
    return train(config, workdir, text, meta)


def train(config: Config, workdir: Path, text: source.Text, meta: checkpoint.Meta) -> int:
    """Train from the newest checkpoint, or from the start, to the end.

    Args:
      config: checked and locked.
      workdir: claimed for this run.
      text: its training and validation bytes.
      meta: from `checkpoint.describe`; saved with every checkpoint.

    Returns:
      The exit code.
    """
    manager = checkpoint.open_manager(workdir)
    newest, summary_file = manager.latest_step(), workdir / "summary.json"
    if newest == config.steps and summary_file.exists():
        print(f"finished: all {config.steps} steps are done\n")
        print(evaluate.format_table(json.loads(summary_file.read_text())))
        return DONE

    timer = Timer()
    optimizer, rules = steps.make_optimizer(config), configs.rules(config)
    graph, state = steps.init_state(config, optimizer)
    size = {"length": config.data.length, "batch": config.data.batch}
    batches = pipeline.train_batches(text.train, seed=config.seed, **size)
    if newest is not None:
        state, saved = checkpoint.restore(manager, newest, state, batches)
        timer = Timer(**saved["time"])
        print(f"resumed from step {newest} of {config.steps}", flush=True)
    start, log = int(state.step), config.log
    waits = (log.every, log.validate_every, log.checkpoint_every)
    metrics.truncate(workdir / "metrics.jsonl", start)
    validation = pipeline.validation_batches(text.validation, count=log.validation_batches, **size)
    validation_loss = evaluate.make_loss(graph, validation)

    key, schedule = jax.random.key(config.seed), steps.make_schedule(config)
    shape = jax.ShapeDtypeStruct((config.data.batch, config.data.length + 1), jnp.uint8)
    train_step = steps.make_train_step(graph, optimizer, rules).lower(state, shape, key).compile()
    print(f"ready after {timer.seconds():.0f} s", flush=True)

    def record(entry: metrics.Record) -> None:
        metrics.append(workdir / "metrics.jsonl", entry)
        report(entry)

    tokens = math.prod(shape.shape) - config.data.batch  # that a step predicts
    with interruptions() as signals, metrics.progress(start, config.steps) as (advance, report):
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
                print(f"stopped at step {step} of {config.steps}; run the command again to go on")
                return 128 + signals[0]
    manager.close()
    finish(config, workdir, state.params, validation_loss, timer)
    return DONE


def finish(
    config: Config,
    workdir: Path,
    params: Any,
    validation_loss: evaluate.Loss,
    timer: "Timer",
) -> None:
    """Write the summary and the pictures of a trained model, and print the table."""
    rules, records = configs.rules(config), metrics.read(workdir / "metrics.jsonl")
    losses = evaluate.table(config, validation_loss, params)
    title = f"{config.model.name}, {config.method}, seed {config.seed}"
    plot.loss(workdir / "loss.png", records, title)
    if rules:
        b_t = jax.device_get(steps.bit_widths(params, rules))
        plot.bits(workdir / "bits.png", records, b_t, title)
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
    print(f"\n{evaluate.format_table(losses)}\n\n{timer.seconds():.0f} s in all; see {workdir}")


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


class Timer:
    """Seconds of the whole run and tokens per second of its steps, over all its parts.

    Args:
      before: seconds that earlier parts of the run took.
      stepping: seconds of those in steps, and so without compilation, validation and saving.
      tokens: that those steps predicted.
    """

    def __init__(self, before: float = 0.0, stepping: float = 0.0, tokens: int = 0):
        self.began, self.before = time.perf_counter(), before
        self.stepping, self.tokens = stepping, tokens
        self.lapped = (stepping, tokens)

    def start(self) -> None:
        """A step begins."""
        self.started = time.perf_counter()

    def stop(self, tokens: int) -> None:
        """It ends, having predicted so many tokens."""
        self.stepping += time.perf_counter() - self.started
        self.tokens += tokens

    def seconds(self) -> float:
        """Seconds since the run began, pauses between its parts left out."""
        return self.before + time.perf_counter() - self.began

    def rate(self) -> float:
        """Tokens per second over the whole run."""
        return self.tokens / self.stepping

    def lap(self) -> float:
        """Tokens per second since the last call."""
        seconds, tokens = self.lapped
        self.lapped = (self.stepping, self.tokens)
        return (self.tokens - tokens) / (self.stepping - seconds)

    def state(self) -> dict[str, float]:
        """What a later part needs to go on counting: arguments of a new timer."""
        return {"before": self.seconds(), "stepping": self.stepping, "tokens": self.tokens}


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
