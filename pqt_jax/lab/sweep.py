# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sweep arms × learning rates × seeds: `python -m pqt_jax.lab.sweep --config configs/lab/smoke.py`.

    config → arms → programs of at_once runs → DIR/parts/… → DIR/runs.jsonl, a row for each run

The same command goes on where it was stopped: a program's rows are written at its end, whole, and
what is there is not trained again. Given again while it runs, it is a second process that takes
what no other is at (`parts`), on another GPU by CUDA_VISIBLE_DEVICES. A run that diverges is a row
like the others; what that means is in `outcomes`.

Exit codes: 0 done; 1 something cannot be written; 2 the input cannot be used (one line on stderr,
nothing compiled); 130 after Ctrl-C, 143 after SIGTERM, at once.
"""

import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pqt_jax import errors
from pqt_jax.data import pipeline, source, tokens
from pqt_jax.errors import InputError, Lenient, tell
from pqt_jax.interchange import files
from pqt_jax.lab import runs, sweep_config, sweep_table, work_units
from pqt_jax.lab.sweep_config import Arm, Grid
from pqt_jax.lab.work_units import Part
from pqt_jax.training import state
from pqt_jax.training.config import command_line, schema, validation
from pqt_jax.training.config.schema import Config
from pqt_jax.training.run import signals
from pqt_jax.training.run import workdir as workdirs
from pqt_jax.training.run.workdir import PARTS, TABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep, or the rest of it.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    return errors.run(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = command_line.Parser(
        prog="python -m pqt_jax.lab.sweep",
        description="Train arms × learning rates × seeds.",
        epilog="Any field of the config: --config.field=value. With --config, --help lists them.",
        add_help=False,
    )
    parser.add_argument("--config", metavar="FILE", help="e.g. configs/lab/smoke.py")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/CONFIG")
    parser.add_argument("-h", "--help", action="store_true", help="show this and the fields")
    given, rest = parser.parse_known_args(arguments)
    if given.help:
        return _help(parser, given.config)
    if given.config is None:
        raise InputError("--config is missing; try --config configs/lab/smoke.py")
    if given.workdir == "":
        raise InputError("--workdir= is empty; give a directory")
    wanted = sweep_config.load(given.config, command_line.overrides(rest))
    workdir = Path(given.workdir or Path("runs") / Path(given.config).stem)
    text = _checked_text(wanted)
    meta = _describe(wanted, text)
    lock = workdirs.claim(workdir, meta, alone=False)
    try:
        _check_same(workdir, meta)
        with signals.leaving_at_the_first():  # rows are whole on the disk, or not there
            _train(wanted, workdir, text, lock)
    finally:
        os.close(lock)
    return 0


def _help(parser: command_line.Parser, path: str | None) -> int:
    parser.print_help()
    if path is not None:
        print("\n" + schema.describe(ConfigDict(sweep_config.load(path).everything)))
    return 0


def _checked_text(wanted: Grid) -> source.Text:
    """The text, after everything that can be wrong with an arm on it."""
    data = wanted.arms[0].config.data
    vocabulary = min(arm.config.model.vocab_size for arm in wanted.arms)
    text = tokens.load(data.tokens, vocabulary) if data.tokens else source.load(data.files)
    for arm in wanted.arms:
        try:
            _check_arm(arm, data, text)
        except (InputError, ValueError, TypeError) as error:
            raise InputError(f"config.sweep.arms[{arm.name!r}]: {error}") from None
    return text


def _check_arm(arm: Arm, data: Config, text: source.Text) -> None:
    own = arm.config.data
    if (own.tokens, own.files, own.boundaries) != (data.tokens, data.files, "token"):
        raise InputError(
            "config.data.files, tokens and boundaries must be those of all arms, and boundaries "
            "token"
        )
    validation.check_devices(arm.config)
    pipeline.check_lengths(text.train, text.validation, own.length, own.batch)
    state.count_parameters(arm.config)  # where its rules meet the paths
    runs.check(arm)


def _describe(wanted: Grid, text: source.Text) -> workdirs.Meta:
    meta = workdirs.describe(wanted.arms[0].config, text)
    return {**meta, "config": json.loads(json.dumps(wanted.everything))}


def _check_same(workdir: Path, meta: workdirs.Meta) -> None:
    """Raise InputError for any other field, also one that a training run may set anew.

    Other versions are said.
    """
    old = workdirs.read(workdir, whose=workdirs.SWEEP)
    if different := schema.differences(old["config"], meta["config"], may=()):
        raise InputError(
            f"--workdir={workdir} belongs to another sweep: {different[0]}; give another --workdir"
        )
    if changed := workdirs.changed_versions(old, meta):
        tell(f"the rest is trained under {changed}, so runs may differ in the last digits")


def _train(wanted: Grid, workdir: Path, text: source.Text, lock: int) -> None:
    (workdir / PARTS).mkdir(exist_ok=True)
    every = work_units.plan(wanted, workdir)
    of_arm = {arm.name: [part for part in every if part.arm is arm] for arm in wanted.arms}
    for part in every:
        if part.is_done():
            work_units.check(part)
    name = TextColumn("{task.description}", markup=False)
    columns = (name, MofNCompleteColumn(), TimeRemainingColumn())
    terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(file=cast(Any, Lenient(sys.stdout)))
    with Progress(*columns, console=console, disable=not terminal) as bar:
        above = functools.partial(bar.console.print, highlight=False, markup=False)
        show = above if terminal else tell
        task = bar.add_task("steps", total=_steps(every))
        for own in of_arm.values():
            if not _missing(own):
                show(_line(own))
        before = train = None
        for part in work_units.to_train(every, lock):
            arm = part.arm
            if train is None or arm is not before:
                before, train = arm, runs.make_train(arm, text, wanted.sweep)
            done = _steps([part for part in every if part.is_done()])  # by whichever process
            bar.update(task, description=arm.name, completed=done)
            rows = train(part.cells, lambda: bar.advance(task))
            files.write(part.path, "".join(map(sweep_table.as_line, rows)))
            if not _missing(own := of_arm[arm.name]):
                show(_line(own))
    with work_units.alone(lock):
        if missing := _missing(every):
            left = f"left to other processes: {missing} of {len(every)} parts"
            tell(f"{left}; the last of them writes {workdir / TABLE}")
            return
        for part in every:  # again: whoever wrote it
            work_units.check(part)
        table = "".join(part.path.read_text() for part in every)
        files.write(workdir / TABLE, table)
    tell(f"{table.count(chr(10))} runs: {workdir / TABLE}")


def _steps(some: Sequence[Part]) -> int:
    return sum(part.arm.config.steps for part in some)


def _missing(some: Sequence[Part]) -> int:
    return sum(not part.is_done() for part in some)


def _line(some: Sequence[Part]) -> str:
    """What became of the runs of an arm, by all its parts."""
    rows = [row for part in some for row in sweep_table.read_part(part.path)]
    count = lambda what: sum(row["outcome"] == what for row in rows)  # noqa: E731
    finals = [row["final_loss"] for row in rows if row["final_loss"] is not None]
    best = f", best final loss {min(finals):.4f}" if finals else ""
    became = f"{count('diverged')} diverged, {count('stuck')} stuck"
    return f"{some[0].arm.name}: {len(rows)} runs, {became}{best}"


if __name__ == "__main__":
    sys.exit(main())
