# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sweep arms × learning rates × seeds: `python -m pqt_jax.lab.sweep --config configs/lab/smoke.py`.

    config → arms → programs of at_once runs → DIR/parts/… → DIR/runs.jsonl, a row for each run

The same command goes on where it was stopped: a program's rows are written at its end, whole, and
what is there is not trained again. A run that diverges is a row like the others; what that means is
in `outcomes`.

Exit codes: 0 done; 1 something cannot be written; 2 the input cannot be used (one line on stderr,
nothing compiled); 130 after Ctrl-C.
"""

import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pqt_jax import checks, cli, errors, files
from pqt_jax import config as configs
from pqt_jax import state as states
from pqt_jax import workdir as workdirs
from pqt_jax.config import Config
from pqt_jax.data import pipeline, source, tokens
from pqt_jax.errors import InputError, Lenient, tell
from pqt_jax.lab import cells, grid, runs
from pqt_jax.lab.grid import Arm, Grid
from pqt_jax.workdir import PARTS, TABLE


class Part(NamedTuple):
    """What one program trains.

    Attributes:
      arm: of all its runs.
      cells: learning rates and seeds.
      path: of its rows.
    """

    arm: Arm
    cells: list[runs.Cell]
    path: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep, or the rest of it.

    Args:
      arguments: the command line, without the program.

    Returns:
      The exit code.
    """
    return errors.run(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> int:
    parser = cli.Parser(
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
    wanted = grid.load(given.config, cli.overrides(rest))
    workdir = Path(given.workdir or Path("runs") / Path(given.config).stem)
    text = _checked_text(wanted)
    meta = _describe(wanted, text)
    lock = workdirs.claim(workdir, meta)
    try:
        _check_same(workdir, meta)
        _train(wanted, workdir, text)
    finally:
        os.close(lock)
    return 0


def _help(parser: cli.Parser, path: str | None) -> int:
    parser.print_help()
    if path is not None:
        print("\n" + configs.describe(ConfigDict(grid.load(path).everything)))
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
    checks.check_devices(arm.config)
    pipeline.check_lengths(text.train, text.validation, own.length, own.batch)
    states.count_parameters(arm.config)  # where its rules meet the paths
    runs.check(arm)


def _describe(wanted: Grid, text: source.Text) -> workdirs.Meta:
    meta = workdirs.describe(wanted.arms[0].config, text)
    return {**meta, "config": json.loads(json.dumps(wanted.everything))}


def _check_same(workdir: Path, meta: workdirs.Meta) -> None:
    """Raise InputError for any other field, also one that a training run may set anew.

    Other versions are said.
    """
    old = workdirs.read(workdir, whose=workdirs.SWEEP)
    if different := configs.differences(old["config"], meta["config"], may=()):
        raise InputError(
            f"--workdir={workdir} belongs to another sweep: {different[0]}; give another --workdir"
        )
    if changed := workdirs.changed_versions(old, meta):
        tell(f"the rest is trained under {changed}, so runs may differ in the last digits")


def _parts(wanted: Grid, workdir: Path) -> Iterator[Part]:
    every = [(rate, seed) for rate in wanted.learning_rates for seed in wanted.seeds]
    for number, arm in enumerate(wanted.arms):
        for start in range(0, len(every), wanted.sweep.at_once):
            some = every[start : start + wanted.sweep.at_once]
            yield Part(arm, some, workdir / PARTS / f"{number:03d}-{start:05d}.jsonl")


def _train(wanted: Grid, workdir: Path, text: source.Text) -> None:
    (workdir / PARTS).mkdir(exist_ok=True)
    parts = list(_parts(wanted, workdir))
    for part in parts:
        if part.path.exists():
            _check_part(part)
    name = TextColumn("{task.description}", markup=False)
    columns = (name, MofNCompleteColumn(), TimeRemainingColumn())
    total = sum(part.arm.config.steps for part in parts)
    terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(file=cast(Any, Lenient(sys.stdout)))
    with Progress(*columns, console=console, disable=not terminal) as bar:
        above = functools.partial(bar.console.print, highlight=False, markup=False)
        show = above if terminal else tell
        task = bar.add_task("steps", total=total)
        for arm in wanted.arms:
            own = [part for part in parts if part.arm is arm]
            bar.update(task, description=arm.name)
            train = None
            for part in own:
                if part.path.exists():
                    bar.advance(task, arm.config.steps)
                    continue
                train = train or runs.make_train(arm, text, wanted.sweep)
                rows = train(part.cells, lambda: bar.advance(task))
                files.write(part.path, "".join(map(cells.as_line, rows)))
            show(_line(arm, own))
    table = "".join(part.path.read_text() for part in parts)
    files.write(workdir / TABLE, table)
    tell(f"{table.count(chr(10))} runs: {workdir / TABLE}")


def _check_part(part: Part) -> None:
    """Raise InputError if a file holds other rows than those of its runs."""
    found = [(row["arm"], row["learning_rate"], row["seed"]) for row in cells.read_part(part.path)]
    if found != [(part.arm.name, rate, seed) for rate, seed in part.cells]:
        raise InputError(
            f"{part.path} holds other runs than its own; delete it and run the sweep again"
        )


def _line(arm: Arm, parts: Sequence[Part]) -> str:
    rows = [row for part in parts for row in cells.read_part(part.path)]
    count = lambda what: sum(row["outcome"] == what for row in rows)  # noqa: E731
    finals = [row["final_loss"] for row in rows if row["final_loss"] is not None]
    best = f", best final loss {min(finals):.4f}" if finals else ""
    return (
        f"{arm.name}: {len(rows)} runs, {count('diverged')} diverged, {count('stuck')} stuck{best}"
    )


if __name__ == "__main__":
    sys.exit(main())
