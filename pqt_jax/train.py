# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Train a language model: `python -m pqt_jax.train --config configs/quickstart.py`.

    command line → config → text → workdir → `loop.train`

The same command resumes from the newest checkpoint, or prints that the run is finished. After
Ctrl-C or SIGTERM the run takes one more step, saves a checkpoint and ends; before compilation it
ends without either. A compilation that has begun is finished first. A second signal ends the run at
once. Only one run at a time can use a workdir.

Exit codes: `EXIT_CODES`.
"""

import contextlib
import dataclasses
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from pqt_jax import console, errors
from pqt_jax.console import escape_output, exit_now, print_error, print_line
from pqt_jax.data import boundaries, pipeline, source, tokens
from pqt_jax.errors import InputError, OutputError
from pqt_jax.models import partitioning
from pqt_jax.signals import collect_signals
from pqt_jax.training import init_from, loop, startup_summary, state
from pqt_jax.training.config import command_line, saved_config, validation
from pqt_jax.training.config.fields import flatten
from pqt_jax.training.config.schema import RunConfig
from pqt_jax.training.run import (
    distributed,
    object_store,
    run_metadata,
    tokenizer_copy,
    trackers,
    workdir,
)
from pqt_jax.training.run.distributed import ProcessError
from pqt_jax.training.run.loss_monitor import SkipError
from pqt_jax.training.run.orbax_errors import quiet_orbax
from pqt_jax.training.run.run_metadata import Meta
from pqt_jax.training.run.tokenizer_copy import TokenizerFile
from pqt_jax.training.run_context import RunContext

EXIT_CODES = {
    0: "finished",
    1: "something could not be written, or memory did not suffice",
    2: errors.EXIT_CODES[2],
    SkipError.exit_code: "loss or gradient was not finite in too many consecutive steps",
    distributed.LOST: "another process of the run was lost",
    errors.HUNG_UP: "ended by SIGHUP, as when the terminal is closed: a checkpoint as after Ctrl-C",
    errors.INTERRUPTED: "interrupted by Ctrl-C: a checkpoint is written, unless training had not "
    "begun or a second signal ended the run at once",
    errors.UNREAD: "the reader of the help has gone, as in `--help | head`",
    errors.TERMINATED: "ended by SIGTERM: a checkpoint as after Ctrl-C",
}
_MEMORY = "give more of config.data.microbatches, config.model.remat, or a smaller batch or model"


def parser() -> console.Parser:
    """The options of the command, without the fields of the config."""
    return command_line.make_parser()


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the whole input, then train.

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
            code = distributed.exit_process(error.exit_code)
            if arguments is None and isinstance(error, OutputError):
                exit_now(code)  # Orbax's threads may wait 300 s for what will not be written
            return code
        except Exception as error:
            if errors.is_out_of_memory(error):
                print_error(f"error: memory does not suffice: {error}; {_MEMORY}")
                return distributed.exit_process(OutputError.exit_code)
            if not distributed.is_distributed():
                raise
            if not distributed.is_lost_process(error):
                traceback.print_exc()
                return distributed.exit_process(1)
            # A normal exit would wait for the other processes, one of which is gone.
            print_error(f"error: another process was lost; start all of them again ({error})")
            exit_now(distributed.LOST)


def _run(arguments: Sequence[str], signals: Sequence[int]) -> int:
    options = command_line.parse(arguments)
    if options.distributed:
        distributed.initialize()
        # Connect to each other now: later, processes would wait only half a minute for each other.
        distributed.all_gather_int(0)
    checked = distributed.run_in_all(lambda: _prepare(options))
    with contextlib.ExitStack() as claims:
        _claim_workdir(options, checked, claims)
        if number := max(distributed.all_gather_int(signals[0] if signals else 0)):
            return loop.report_stop("before training", number)
        with partitioning.use_mesh(checked.mesh):
            if distributed.is_first_process():
                facts = startup_summary.gather_facts(
                    options.config, checked.mesh, checked.text.description, options.workdir
                )
                print_line(saved_config.describe(options.config))
                print_line(startup_summary.format_summary(options.config, facts))
            return loop.train(
                RunContext(
                    config=options.config,
                    workdir=options.workdir,
                    text=checked.text,
                    meta=checked.meta,
                    mesh=checked.mesh,
                    signals=signals,
                    take_start=checked.take_start,
                    profile=options.profile,
                )
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CheckedInput:
    text: source.Text
    mesh: Mesh | None
    take_start: Callable[[], Any]  # can be called once, so that nothing else keeps the weights
    meta: Meta
    tokenizer: TokenizerFile | None  # to be copied into the workdir


def _prepare(options: command_line.TrainOptions) -> _CheckedInput:
    """Read and check the whole input, before anything is compiled."""
    config, profile = options.config, options.workdir / workdir.PROFILE
    if options.profile and profile.exists() and not profile.is_dir():
        raise InputError(f"--profile: {profile} is not a directory; move it away")
    validation.check_devices(config)
    mesh = partitioning.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    validation.check_mesh(config, mesh)
    trackers.check_config(config.log)
    if config.log.store:
        object_store.check(config.log.store)
    text = _text(config)
    pipeline.check_lengths(text.train, text.validation, config.data.length, config.data.batch)
    parameters = state.count_parameters(config)  # also checks that the rules match parameters
    state.check_memory(config, parameters)
    start = init_from.read(config, workdir.read_init_fingerprint(options.workdir, config.log.store))
    meta = run_metadata.make_metadata(config, text, start.fingerprint)
    return _CheckedInput(
        text=text,
        mesh=mesh,
        take_start=[start.params].pop,
        meta=meta,
        tokenizer=_read_tokenizer(options),
    )


def _read_tokenizer(options: command_line.TrainOptions) -> TokenizerFile | None:
    """The tokenizer of prepared data, unless the workdir has a copy already."""
    folder = Path(options.config.data.tokens)
    if not options.config.data.tokens or not folder.is_dir():
        return None
    if tokenizer_copy.is_there(options.workdir):
        return None
    tokenizer = tokenizer_copy.read_prepared(folder)
    if tokenizer is None and distributed.is_first_process():
        console.print_error(
            f"warning: config.data.tokens={options.config.data.tokens!r} has no tokenizer any "
            "more; give --tokenizer to generate and evaluate"
        )
    return tokenizer


def _claim_workdir(
    options: command_line.TrainOptions, checked: _CheckedInput, claims: contextlib.ExitStack
) -> None:
    """Claim the workdir for all processes, after a check that they belong to one run.

    Args:
      options, checked: the run.
      claims: gives up in the end what the first process claims.
    """
    run = {"--workdir": str(options.workdir.absolute()), **checked.meta}
    first = json.loads(distributed.broadcast_from_first(json.dumps(run)))
    distributed.run_in_all(lambda: _check_one_run(first, run))
    is_first = distributed.is_first_process()

    def claim() -> None:
        claims.callback(os.close, workdir.claim(options.workdir, checked.meta))
        if store := options.config.log.store:
            claims.callback(object_store.claim(store))

    distributed.run_in_all(claim if is_first else lambda: None)
    if not options.config.log.store:
        distributed.run_in_all(lambda: workdir.check_shared(options.workdir))
    if is_first and checked.tokenizer is not None:
        tokenizer_copy.write(options.workdir, checked.tokenizer)


def _check_one_run(first: Meta, run: Meta) -> None:
    """Raise InputError, naming the field, if this process and the first one have different runs."""
    before, now = (
        {
            name: value
            for name, value in meta.items()
            if name not in ("config", "versions", "directory")
        }
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
    gc.freeze()  # what was imported stays, and need not be searched for garbage while JAX traces
    sys.exit(main())
