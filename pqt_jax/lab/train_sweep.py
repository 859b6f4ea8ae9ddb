# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Train the work units of a sweep, one after the other, and write the table at the end."""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pqt_jax.console import LenientStream, format_quantity, is_terminal, print_line
from pqt_jax.data.source import Text
from pqt_jax.interchange import files
from pqt_jax.lab import runs, sweep_table, work_units
from pqt_jax.lab.sweep_arms import Arm, Sweep
from pqt_jax.lab.sweep_config import SweepOptions
from pqt_jax.lab.work_units import WorkUnit
from pqt_jax.training.run.workdir import SWEEP_RESULTS, WORK_UNITS


def train_all(sweep: Sweep, workdir: Path, text: Text, lock: int) -> None:
    """Train every unit that is not done and that no other process trains.

    The process that finishes the last unit writes the table.

    Args:
      sweep: what to train.
      workdir: the sweep's folder.
      text: the text that all runs train on.
      lock: file descriptor of `run.lock`.

    Raises:
      InputError: if a file of rows is damaged or holds other runs.
    """
    (workdir / WORK_UNITS).mkdir(exist_ok=True)
    units = work_units.plan(sweep, workdir)
    for unit in units:
        if unit.is_done():
            work_units.check_rows(unit)
    with _progress_bar() as bar:
        print_above = functools.partial(bar.console.print, highlight=False, markup=False)
        show = print_line if bar.disable else print_above
        for arm in sweep.arms:
            _show_finished_arm(units, arm, show)
        task = bar.add_task("steps", total=_count_steps(units))
        compiled_arm = train = None
        for unit in work_units.claim_units(units, lock):
            if train is None or unit.arm is not compiled_arm:
                compiled_arm, train = unit.arm, runs.make_train(unit.arm, text, sweep.options)
            done = [unit for unit in units if unit.is_done()]  # also by other processes
            bar.update(task, description=unit.arm.name, completed=_count_steps(done))
            rows = train(unit.rates_and_seeds, functools.partial(bar.advance, task))
            files.write(unit.path, "".join(map(sweep_table.encode_row, rows)))
            _show_finished_arm(units, unit.arm, show)
    _write_table(units, workdir / SWEEP_RESULTS, lock)


def _progress_bar() -> Progress:
    """A bar for the steps of all units; it is disabled unless stdout is a terminal."""
    name = TextColumn("{task.description}", markup=False)
    console = Console(file=cast(Any, LenientStream(sys.stdout)))
    columns = (name, MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not is_terminal())


def _write_table(units: Sequence[WorkUnit], path: Path, lock: int) -> None:
    """Write the rows of all units to one file, unless a unit is still being trained."""
    with work_units.exclusive(lock):
        if missing := sum(not unit.is_done() for unit in units):
            left = f"left to other processes: {missing} of {len(units)} work units"
            print_line(f"{left}; the last of them writes {path}")
            return
        for unit in units:  # other processes may have written some of them
            work_units.check_rows(unit)
        table = "".join(unit.path.read_text() for unit in units)
        files.write(path, table)
    print_line(f"{format_quantity(table.count(chr(10)), 'run')}: {path}")


def _show_finished_arm(units: Sequence[WorkUnit], arm: Arm, show: Callable[[str], object]) -> None:
    """Print one line with the outcomes of an arm's runs if all of them are done."""
    arm_units = [unit for unit in units if unit.arm is arm]
    if not all(unit.is_done() for unit in arm_units):
        return
    rows = [row for unit in arm_units for row in sweep_table.read_rows(unit.path)]
    outcomes = [row["outcome"] for row in rows]
    counts = f"{outcomes.count('diverged')} diverged, {outcomes.count('stuck')} stuck"
    table = sweep_table.from_rows(rows, [arm.name], SweepOptions(), metadata={})
    rate = table.best_rate_index(arm.name)
    best = "no best rate"
    if rate is not None:
        loss = table.best_final_loss(arm.name)
        best = f"final loss {loss:.4f} at the best rate, {table.rates[rate]:g}"
    show(f"{arm.name}: {format_quantity(len(rows), 'run')}, {counts}, {best}")


def _count_steps(units: Sequence[WorkUnit]) -> int:
    return sum(unit.arm.config.steps for unit in units)
