# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Train a language model: `python -m pqt_jax.train --config configs/quickstart.py`.

    command line → config → text → workdir → `loop.train`

The same command run again goes on from the newest checkpoint, or says that the run is finished.
Ctrl-C or SIGTERM leads to one more step, a checkpoint and an end; before compilation, to an end
without either. What XLA compiles, it compiles first. A second one stops at once. Only one run at a
time can use a workdir.

Exit codes: 0 finished; 1 something could not be written, or memory did not suffice; 2 the input
cannot be used (one line on stderr, nothing compiled); 3 loss or gradient was not finite in too many
steps in a row; 4 another process was lost; 128 + number of the signal that interrupted it.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pqt_jax import checks, cli, init_from, loop, page, processes, sinks
from pqt_jax import config as configs
from pqt_jax import mesh as meshes
from pqt_jax import state as states
from pqt_jax import workdir as workdirs
from pqt_jax.config import Config
from pqt_jax.data import boundaries, pipeline, source, tokens
from pqt_jax.errors import InputError, OutputError, escape_output, say, tell
from pqt_jax.processes import ProcessError
from pqt_jax.signals import interruptions
from pqt_jax.watch import SkipError

_MEMORY = "give more of config.data.microbatches, config.model.remat, or a smaller batch or model"


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
        except (InputError, OutputError, ProcessError, SkipError) as error:
            say(f"error: {error}")
            return processes.leave(error.exit_code)
        except Exception as error:
            if str(error).startswith("RESOURCE_EXHAUSTED"):
                say(f"error: memory does not suffice: {error}; {_MEMORY}")
                return processes.leave(OutputError.exit_code)
            if not processes.are_joined():
                raise
            if not processes.is_loss(error):
                traceback.print_exc()
                return processes.leave(1)
            # The others are waited for at exit, and one of them is gone.
            say(f"error: another process was lost; start all of them again ({error})")
            os._exit(processes.LOST)


def _run(arguments: Sequence[str], signals: Sequence[int]) -> int:
    given = cli.parse(arguments)
    if given.distributed:
        processes.join()
        processes.every(0)  # connected now: later they would wait for each other half a minute only
    ready = processes.together(lambda: _prepare(given))
    lock = _claimed(given, ready.meta)
    try:
        if number := max(processes.every(signals[0] if signals else 0)):
            return loop.stopped("before training", number)
        with meshes.entered(ready.mesh):
            if processes.is_first():
                facts = page.gather(given.config, ready.mesh, ready.text.description, given.workdir)
                tell(f"{configs.describe(given.config)}\n{page.before(given.config, facts)}")
            return loop.train(
                given.config,
                given.workdir,
                ready.text,
                ready.meta,
                mesh=ready.mesh,
                signals=signals,
                take_start=ready.take_start,
                profile=given.profile,
            )
    finally:
        if lock is not None:
            os.close(lock)


class _Ready(NamedTuple):
    text: source.Text
    mesh: Mesh | None
    take_start: Callable[[], Any]  # once, so that nobody holds the weights when they are placed
    meta: workdirs.Meta


def _prepare(given: cli.Given) -> _Ready:
    """Everything that can be wrong with the input, before anything is compiled."""
    config, profile = given.config, given.workdir / workdirs.PROFILE
    if given.profile and profile.exists() and not profile.is_dir():
        raise InputError(f"--profile: {profile} is not a directory; move it away")
    checks.check_devices(config)
    sinks.check(config.log)
    text = _text(config)
    pipeline.check_lengths(text.train, text.validation, config.data.length, config.data.batch)
    parameters = states.count_parameters(config)  # here the rules meet the parameters' paths
    states.check_memory(config, parameters)
    mesh = meshes.make(config.mesh)
    meshes.check(mesh, config)
    start = init_from.read(config, workdirs.start_of(given.workdir))
    meta = workdirs.describe(config, text, start.fingerprint)
    return _Ready(text, mesh, [start.params].pop, meta)


def _claimed(given: cli.Given, meta: workdirs.Meta) -> int | None:
    """Claim the workdir for all processes, which must be of one run; the lock, in the first."""
    run = {"--workdir": str(given.workdir.absolute()), **meta}
    first = json.loads(processes.of_first(json.dumps(run)))
    processes.together(lambda: _check_one_run(first, run))
    own = processes.is_first()
    lock = processes.together(lambda: workdirs.claim(given.workdir, meta) if own else None)
    processes.together(lambda: workdirs.check_shared(given.workdir))
    return lock


def _check_one_run(first: workdirs.Meta, run: workdirs.Meta) -> None:
    """Raise InputError, naming the field, if a process is of another run than the first."""
    before, now = (
        {name: value for name, value in meta.items() if name not in ("config", "versions")}
        | {f"config.{name}": value for name, value in configs.fields(meta["config"])}
        for meta in (first, json.loads(json.dumps(run)))
    )
    for name in before | now:
        if before.get(name) != now.get(name):
            raise InputError(
                f"process {jax.process_index()}: {name} is {now.get(name)!r}, and "
                f"{before.get(name)!r} in the first process; give all of them the same"
            )


def _text(config: Config) -> source.Text:
    data = config.data
    if data.tokens:
        text = tokens.load(data.tokens, config.model.vocab_size)
    else:
        text = source.load(data.files)
    return boundaries.with_end(text, data.end_token, needed=data.boundaries == "mask")


if __name__ == "__main__":
    sys.exit(main())
