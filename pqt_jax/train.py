# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Train a language model: `python -m pqt_jax.train --config configs/quickstart.py`.

    config → text → state → steps (log, validate, checkpoint) → table, pictures, summary

The same command run again goes on from the newest checkpoint, or says that the run is finished.
Ctrl-C or SIGTERM leads to one more step, a checkpoint and an end; before compilation, to an end
without either. What XLA compiles, it compiles first. A second one stops at once. Only one run at a
time can use a workdir.

Exit codes: 0 finished; 1 something could not be written, such as on a full disk; 2 the input cannot
be used (one line on stderr, nothing compiled); 128 + number of the signal that interrupted it.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pqt_jax import checkpoint, cli, files, init_from, learned_bits, metrics, pictures, table
from pqt_jax import config as configs
from pqt_jax import mesh as meshes
from pqt_jax import step as steps
from pqt_jax import workdir as workdirs
from pqt_jax.config import Config
from pqt_jax.data import pipeline, source, tokens
from pqt_jax.errors import InputError, OutputError, escape_output, say
from pqt_jax.signals import interruptions

DONE = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Check everything that was given, then train.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    escape_output()  # names may hold any byte
    with interruptions() as signals:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments, signals)
        except (InputError, OutputError) as error:
            say(f"error: {error}")
            return error.exit_code


def _run(arguments: Sequence[str], signals: Sequence[int]) -> int:
    config, workdir = cli.parse(arguments)
    text = _text(config)
    pipeline.check_lengths(text.train, text.validation, config.data.length, config.data.batch)
    parameters = steps.count_parameters(config)  # here the rules meet the parameters' paths
    steps.check_memory(config, parameters)
    mesh = meshes.make(config.mesh)
    meshes.check(mesh, config)
    start = init_from.read(config)
    meta = workdirs.describe(config, text, start.fingerprint)
    lock = workdirs.claim(workdir, meta)
    try:
        if signals:
            return _stopped("before training", signals)
        print(configs.describe(config))
        print(f"data: {text.description}")
        print(f"model: {config.model.name}, {parameters:,} parameters")
        print(f"workdir: {workdir}", flush=True)
        with meshes.entered(mesh):
            return train(config, workdir, text, meta, mesh, signals, start.params)
    finally:
        os.close(lock)


def _text(config: Config) -> source.Text:
    if config.data.tokens:
        return tokens.load(config.data.tokens, config.model.vocab_size)
    return source.load(config.data.files)


def train(
    config: Config,
    workdir: Path,
    text: source.Text,
    meta: workdirs.Meta,
    mesh: Mesh | None = None,
    signals: Sequence[int] = (),
    start_params: Any = None,
) -> int:
    """Train from the newest checkpoint, or from the start, to the end.

    Args:
      config: checked and locked.
      workdir: claimed for this run.
      text: its training and validation bytes.
      meta: from `workdir.describe`; saved with every checkpoint.
      mesh: that is entered; None for one device.
      signals: from `interruptions`; looked at before compilation and at every step.
      start_params: the weights before the first step; None for new ones.

    Returns:
      The exit code.

    Raises:
      InputError: if there are checkpoints and none can be read, or another run's is the newest.
      OutputError: if something cannot be written.
    """
    log = config.log
    manager = checkpoint.open_manager(workdir, log.keep, log.keep_every)
    newest, summary = manager.latest_step(), _read_summary(workdir, config)
    if newest == config.steps and summary is not None:
        print(f"finished: all {config.steps} steps are done\n")
        print(table.format_table(summary))
        return DONE

    timer = metrics.Timer()
    optimizer, rules = steps.make_optimizer(config), configs.rules(config)
    graph, state = steps.init_state(config, optimizer, start_params)
    size = {"length": config.data.length, "batch": config.data.batch}
    if newest is not None:
        newest, state, saved = checkpoint.restore_newest(manager, state, meta)
        timer = metrics.Timer(**saved["time"])
        print(f"resumed from step {newest} of {config.steps}", flush=True)
        _compare_versions(saved["versions"], meta["versions"])
    start = int(state.step)
    batches = pipeline.train_batches(text.train, seed=config.seed, first=start, **size)
    waits = (log.every, log.validate_every, log.checkpoint_every)
    if broken := metrics.truncate(workdir / workdirs.METRICS, start):
        lines = "1 broken line was" if broken == 1 else f"{broken} broken lines were"
        say(f"{workdir / workdirs.METRICS}: {lines} dropped")
    validation = pipeline.validation_batches(text.validation, count=log.validation_batches, **size)
    validation_loss = table.make_loss(graph, validation)

    key, schedule = jax.random.key(config.seed), steps.make_schedule(config)
    shape = meshes.put(
        np.zeros((config.data.batch, config.data.length + 1), text.train.dtype), mesh
    )
    if signals:
        return _stopped(f"at step {start} of {config.steps}", signals)
    options = {"penalty": learned_bits.make_penalty(config), "snap": learned_bits.snap_step(config)}
    options["parts"] = steps.parts_of(config)
    train_step = steps.make_train_step(graph, optimizer, rules, **options)
    train_step = train_step.lower(state, shape, key).compile()
    print(f"ready after {timer.seconds():.0f} s", flush=True)

    warned = False

    def record(entry: metrics.Record) -> None:
        nonlocal warned
        metrics.append(workdir / workdirs.METRICS, entry)
        report(entry)
        if not (warned or math.isfinite(entry["loss" if "loss" in entry else "validation_loss"])):
            warned = True
            say(f"warning: the loss is not finite at step {entry['step']}")

    predicted = config.data.batch * config.data.length  # tokens of a step
    with metrics.progress(start, config.steps) as (advance, report):
        for step in range(start + 1, config.steps + 1):
            last, stop = step == config.steps, bool(signals)
            timer.start()
            state, measured = train_step(state, meshes.put(next(batches), mesh), key)
            if last or stop or any(step % n == 0 for n in waits):
                jax.block_until_ready(state)  # else the next step is prepared while this one runs
            timer.stop(predicted)
            if last or step % log.every == 0:
                record(_entry(step, predicted, timer, float(schedule(step - 1)), measured))
            if last or step % log.validate_every == 0:
                record({"step": step, "validation_loss": validation_loss(state.params)})
            if last or stop or step % log.checkpoint_every == 0:
                checkpoint.save(manager, step, state, {**meta, "time": timer.state()})
            checkpoint.check(manager)
            advance(step)
            if stop and not last:
                checkpoint.close(manager)
                return _stopped(f"at step {step} of {config.steps}", signals)
    checkpoint.close(manager)
    finish(config, workdir, state.params, validation_loss, timer)
    return DONE


def _stopped(when: str, signals: Sequence[int]) -> int:
    print(f"stopped {when}; run the command again to go on", flush=True)
    return 128 + signals[0]


def _compare_versions(old: dict[str, str], new: dict[str, str]) -> None:
    """Say so if a checkpoint was written under other versions."""
    if changed := [name for name in new if old.get(name) != new[name]]:
        now = ", ".join(f"{name} {new[name]}" for name in changed)
        before = ", ".join(f"{old.get(name)}" for name in changed)
        print(
            f"resumed under {now}; the checkpoint was written under {before}, "
            "so results may differ in the last digits"
        )


def _read_summary(workdir: Path, config: Config) -> dict[str, Any] | None:
    """The summary of a finished run; None if it is missing, another's, or cannot be used."""
    try:
        summary = json.loads((workdir / workdirs.SUMMARY).read_text())
        table.format_table(summary)
        return summary if summary["config"] == configs.digest(config) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def finish(
    config: Config,
    workdir: Path,
    params: Any,
    validation_loss: table.Loss,
    timer: metrics.Timer,
) -> None:
    """Write the summary and the pictures of a trained model, and print the table."""
    losses = table.table(config, validation_loss, params)
    summary = {
        **losses,
        "steps": config.steps,
        "seconds": round(timer.seconds(), 1),
        "tokens_per_s": round(timer.rate(), 1),
        "config": configs.digest(config),
    }
    records = metrics.read(workdir / workdirs.METRICS)
    title = f"{config.model.name}, {config.method}, seed {config.seed}"
    pictures.loss(workdir / workdirs.LOSS, records, title)
    if b_t := jax.device_get(learned_bits.bit_widths(params, configs.rules(config))):
        pictures.bits(workdir / workdirs.BITS, records, b_t, title)
    # Last, for it is what says that the run is finished.
    finite = {name: metrics.finite(value) for name, value in summary.items()}
    files.write(workdir / workdirs.SUMMARY, json.dumps(finite, indent=2) + "\n")
    print(f"\n{table.format_table(losses)}")
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
        **{name: values[name] for name in ("penalty",) if name in values},
    }


if __name__ == "__main__":
    sys.exit(main())
