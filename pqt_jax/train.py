# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Train a language model: `python -m pqt_jax.train --config configs/quickstart.py`.

    command line → config → text → workdir → `loop.train`

The same command run again goes on from the newest checkpoint, or says that the run is finished.
Ctrl-C or SIGTERM leads to one more step, a checkpoint and an end; before compilation, to an end
without either. What XLA compiles, it compiles first. A second one stops at once. Only one run at a
time can use a workdir.

Exit codes: `EXIT_CODES`.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pqt_jax import console, errors
from pqt_jax.console import escape_output, exit_now, print_error, print_line
from pqt_jax.data import boundaries, pipeline, source, tokens
from pqt_jax.errors import InputError, OutputError
from pqt_jax.models import partitioning
from pqt_jax.training import init_from, loop, startup_summary, state
from pqt_jax.training.config import command_line, saved_config, validation
from pqt_jax.training.config.fields import flatten
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.run import distributed, trackers, workdir
from pqt_jax.training.run.distributed import ProcessError
from pqt_jax.training.run.loss_monitor import SkipError
from pqt_jax.training.run.orbax_errors import quiet_orbax
from pqt_jax.training.run.signals import collect_signals
from pqt_jax.training.run_context import RunContext

EXIT_CODES = {
    0: "finished",
    1: "something could not be written, or memory did not suffice",
    2: errors.EXIT_CODES[2],
    3: "loss or gradient was not finite in too many consecutive steps",
    4: "another process of the run was lost",
    130: "interrupted by Ctrl-C: a checkpoint is written unless training had not begun",
    143: "the same after SIGTERM",
}
_MEMORY = "give more of config.data.microbatches, config.model.remat, or a smaller batch or model"


def parser() -> console.Parser:
    """The options of the command, without the fields of the config."""
    return command_line.make_parser()


def main(arguments: Sequence[str] | None = None) -> int:
    """Check everything that was given, then train.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    escape_output()  # names may hold any byte
    with collect_signals() as signals, quiet_orbax():
        try:
            return _run(sys.argv[1:] if arguments is None else arguments, signals)
        except (InputError, OutputError, ProcessError, SkipError) as error:
            print_error(f"error: {error}")
            return distributed.exit_process(error.exit_code)
        except Exception as error:
            if errors.is_out_of_memory(error):
                print_error(f"error: memory does not suffice: {error}; {_MEMORY}")
                return distributed.exit_process(OutputError.exit_code)
            if not distributed.is_distributed():
                raise
            if not distributed.is_lost_process(error):
                traceback.print_exc()
                return distributed.exit_process(1)
            # The others are waited for at exit, and one of them is gone.
            print_error(f"error: another process was lost; start all of them again ({error})")
            exit_now(distributed.LOST)


def _run(arguments: Sequence[str], signals: Sequence[int]) -> int:
    given = command_line.parse(arguments)
    if given.distributed:
        distributed.initialize()
        distributed.all_gather_int(
            0
        )  # connected now: later they would wait for each other half a minute only
    ready = distributed.run_in_all(lambda: _prepare(given))
    lock = _claimed(given, ready.meta)
    try:
        if number := max(distributed.all_gather_int(signals[0] if signals else 0)):
            return loop.report_stop("before training", number)
        with partitioning.use_mesh(ready.mesh):
            if distributed.is_first_process():
                facts = startup_summary.gather_facts(
                    given.config, ready.mesh, ready.text.description, given.workdir
                )
                print_line(saved_config.describe(given.config))
                print_line(startup_summary.format_summary(given.config, facts))
            return loop.train(
                RunContext(
                    config=given.config,
                    workdir=given.workdir,
                    text=ready.text,
                    meta=ready.meta,
                    mesh=ready.mesh,
                    signals=signals,
                    take_start=ready.take_start,
                    profile=given.profile,
                )
            )
    finally:
        if lock is not None:
            os.close(lock)


class _Ready(NamedTuple):
    text: source.Text
    mesh: Mesh | None
    take_start: Callable[[], Any]  # once, so that nobody holds the weights when they are placed
    meta: workdir.Meta


def _prepare(given: command_line.TrainOptions) -> _Ready:
    """Everything that can be wrong with the input, before anything is compiled."""
    config, profile = given.config, given.workdir / workdir.PROFILE
    if given.profile and profile.exists() and not profile.is_dir():
        raise InputError(f"--profile: {profile} is not a directory; move it away")
    validation.check_devices(config)
    trackers.check_config(config.log)
    text = _text(config)
    pipeline.check_lengths(text.train, text.validation, config.data.length, config.data.batch)
    parameters = state.count_parameters(config)  # here the rules meet the parameters' paths
    state.check_memory(config, parameters)
    mesh = partitioning.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    validation.check_mesh(config, mesh)
    start = init_from.read(config, workdir.read_init_fingerprint(given.workdir))
    meta = workdir.make_metadata(config, text, start.fingerprint)
    return _Ready(text, mesh, [start.params].pop, meta)


def _claimed(given: command_line.TrainOptions, meta: workdir.Meta) -> int | None:
    """Claim the workdir for all processes, which must be of one run; the lock, in the first."""
    run = {"--workdir": str(given.workdir.absolute()), **meta}
    first = json.loads(distributed.broadcast_from_first(json.dumps(run)))
    distributed.run_in_all(lambda: _check_one_run(first, run))
    own = distributed.is_first_process()
    lock = distributed.run_in_all(lambda: workdir.claim(given.workdir, meta) if own else None)
    distributed.run_in_all(lambda: workdir.check_shared(given.workdir))
    return lock


def _check_one_run(first: workdir.Meta, run: workdir.Meta) -> None:
    """Raise InputError, naming the field, if a process is of another run than the first."""
    before, now = (
        {name: value for name, value in meta.items() if name not in ("config", "versions")}
        | {f"config.{name}": value for name, value in flatten(meta["config"])}
        for meta in (first, json.loads(json.dumps(run)))
    )
    for name in before | now:
        if before.get(name) != now.get(name):
            raise InputError(
                f"process {jax.process_index()}: {name} is {now.get(name)!r}, and "
                f"{before.get(name)!r} in the first process; give all of them the same"
            )


def _text(config: RunConfig) -> source.Text:
    data = config.data
    if data.tokens:
        text = tokens.load(data.tokens, config.model.vocab_size)
    else:
        text = source.load(data.files)
    return boundaries.set_end_token(text, data.end_token, needed=data.boundaries == "mask")


if __name__ == "__main__":
    sys.exit(main())
