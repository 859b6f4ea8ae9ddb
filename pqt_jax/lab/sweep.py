# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sweep arms × learning rates × seeds: `python -m pqt_jax.lab.sweep --config configs/lab/smoke.py`.

    config → arms → work units of at_once runs → DIR/parts/*.jsonl → DIR/runs.jsonl, one row a run

The same command resumes a sweep that was stopped: a work unit whose rows are written is not trained
again, and one that was stopped goes on from the state of the last minute. Arms that begin with the
same steps share them (`saved_states`). If the command is started again while the sweep is running,
the second process trains work units that no other process trains (`work_units`);
CUDA_VISIBLE_DEVICES selects its GPU. A run that diverges does not end the sweep; its row says that
it diverged (`outcomes`).

Exit codes: `EXIT_CODES`.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pqt_jax import console, errors, signals
from pqt_jax.console import print_line
from pqt_jax.data import pipeline, source, tokens
from pqt_jax.errors import InputError
from pqt_jax.lab import allocator, runs, sweep_config, train_sweep
from pqt_jax.lab.sweep_arms import Arm, Sweep, load_sweep
from pqt_jax.training import state
from pqt_jax.training.config import command_line, field_table, saved_config, validation
from pqt_jax.training.config.schema import DataConfig
from pqt_jax.training.run.run_metadata import Meta, changed_versions, make_metadata
from pqt_jax.training.run.workdir import SWEEP, claim, read_metadata

_ADDED = ("weights",)  # later fields of the section `sweep`

EXIT_CODES = errors.EXIT_CODES | {
    errors.HUNG_UP: "ended by SIGHUP, as when the terminal is closed; written rows are kept",
    errors.INTERRUPTED: "interrupted by Ctrl-C; written rows are kept",
    errors.UNREAD: "the reader of `--help` has gone; a sweep goes on without a reader",
    errors.TERMINATED: "ended by SIGTERM; written rows are kept",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      arguments: the command line without the program; None for `sys.argv[1:]`.

    Returns:
      One of `EXIT_CODES`.
    """
    if arguments is None:  # the process is that of the command
        allocator.keep_freed_memory()
    return console.run(_run, arguments)


def parser() -> console.Parser:
    """The parser of the command line."""
    parser = console.Parser(
        prog="python -m pqt_jax.lab.sweep",
        description="Train arms × learning rates × seeds.",
        epilog="Any field of the config: --config.field=value; --help lists them.",
        add_help=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="config file, or its name in configs/: lab/smoke"
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="folder of the sweep; default: runs/CONFIG"
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this and the fields")
    return parser


def _run(arguments: Sequence[str]) -> None:
    options, rest = parser().parse_known_args(arguments)
    if options.help:
        return _print_help(options.config)
    if options.config is None:
        command_line.overrides(rest)  # a misspelt option is the likelier mistake
        raise InputError("--config is missing; try --config lab/smoke")
    if options.workdir == "":
        raise InputError("--workdir= is empty; give a directory")
    sweep = load_sweep(options.config, command_line.overrides(rest))
    workdir = Path(options.workdir or Path("runs") / Path(options.config).stem)
    text = _load_text(sweep)
    for arm in sweep.arms:
        _check_arm(arm, sweep.arms[0].config.data, text)
    metadata = _describe(sweep, text)
    lock = claim(workdir, metadata, alone=False)
    try:
        _check_same_sweep(workdir, metadata)
        # The files of rows are written whole, so the process may end at any moment.
        with signals.exit_on_signal():
            train_sweep.train_all(sweep, workdir, text, lock)
    finally:
        os.close(lock)


def _print_help(config_path: str | None) -> None:
    parser().print_help()
    config = load_sweep(config_path).full_config if config_path else None
    print("\n" + field_table.help_text(config, sweep_config.SweepFileConfig))


def _load_text(sweep: Sweep) -> source.Text:
    """The text of all arms, by the data section of the first one."""
    data = sweep.arms[0].config.data
    if not data.tokens:
        return source.load(data.files)
    return tokens.load(data.tokens, min(arm.config.model.vocab_size for arm in sweep.arms))


def _check_arm(arm: Arm, shared_data: DataConfig, text: source.Text) -> None:
    """Raise InputError if an arm cannot be trained on the text.

    Args:
      arm: the arm to check.
      shared_data: the data section of the first arm, from which the text was loaded.
      text: the text that all arms train on.
    """
    data = arm.config.data
    try:
        if (data.tokens, data.files, data.boundaries) != (
            shared_data.tokens,
            shared_data.files,
            "token",
        ):
            raise InputError(
                "config.data.files, tokens and boundaries must be those of all arms, and "
                "boundaries must be token"
            )
        validation.check_devices(arm.config)
        pipeline.check_lengths(text.train, text.validation, data.length, data.batch)
        state.count_parameters(arm.config)  # fails if a rule matches no parameter
        runs.check(arm)
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f"config.sweep.arms[{arm.name!r}]: {error}") from None


def _describe(sweep: Sweep, text: source.Text) -> Meta:
    """The content of the sweep's `run.json`."""
    metadata = make_metadata(sweep.arms[0].config, text)
    config = json.loads(saved_config.as_json(sweep.full_config))
    for name in _ADDED:  # so that a sweep of an earlier version is the same sweep
        if getattr(sweep.options, name) == getattr(sweep_config.SweepOptions(), name):
            del config["sweep"][name]
    return {**metadata, "config": config}


def _check_same_sweep(workdir: Path, metadata: Meta) -> None:
    """Raise InputError if the workdir belongs to a sweep with another value of any field.

    Unlike a training run, a sweep allows no field to change. Other versions of packages are only
    reported.
    """
    old = read_metadata(workdir, whose=SWEEP)
    if different := saved_config.differences(old["config"], metadata["config"], may=()):
        raise InputError(
            f"--workdir={workdir} belongs to another sweep: {different[0]}; give another --workdir"
        )
    if changed := changed_versions(old, metadata):
        print_line(f"the rest is trained under {changed}, so runs may differ in the last digits")


if __name__ == "__main__":
    sys.exit(main())
