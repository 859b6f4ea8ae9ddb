# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Train the work units of a sweep, one after the other, and write the table at the end."""

import functools
import shutil
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
from pqt_jax.lab.held_out_table import held_out_table
from pqt_jax.lab.programs import Fingerprints, Programs, make_programs
from pqt_jax.lab.saved_states import SavedStates, count_shared_steps, last_saved_step
from pqt_jax.lab.sweep_arms import Arm, Sweep
from pqt_jax.lab.sweep_config import SweepOptions
from pqt_jax.lab.work_units import WorkUnit
from pqt_jax.training.phases import list_phases
from pqt_jax.training.run.workdir import STATES, SWEEP_RESULTS, WORK_UNITS


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
    units, arms = work_units.plan(sweep, workdir), {arm.name: arm for arm in sweep.arms}
    for unit in units:
        if unit.is_done():
            work_units.check_rows(unit)
    programs_of = functools.cache(lambda name: make_programs(arms[name]))
    states_of = make_states_of(units, programs_of, workdir / STATES, text.train.dtype)
    with _progress_bar() as bar:
        print_above = functools.partial(bar.console.print, highlight=False, markup=False)
        show = print_line if bar.disable else print_above
        for arm in sweep.arms:
            _show_finished_arm(units, arm, show)
        task = bar.add_task("steps", total=_count_steps(units))
        compiled_arm = train = None
        for unit in work_units.claim_units(units, lock, functools.partial(waits, states_of)):
            if train is None or unit.arm is not compiled_arm:
                compiled_arm = unit.arm
                train = runs.make_train(unit.arm, programs_of(unit.arm.name), text, sweep.options)
            done = [unit for unit in units if unit.is_done()]  # also by other processes
            bar.update(task, description=unit.arm.name, completed=_count_steps(done))
            states = states_of(unit)
            rows = train(unit.rates_and_seeds, states, functools.partial(bar.advance, task))
            files.write(unit.path, "".join(map(sweep_table.encode_row, rows)))
            states.remove(before=unit.arm.config.steps)
            _show_finished_arm(units, unit.arm, show)
    _write_table(units, workdir, lock)


def make_states_of(
    units: Sequence[WorkUnit], programs_of: Callable[[str], Programs], folder: Path, dtype: Any
) -> Callable[[WorkUnit], SavedStates]:
    """A function unit → its saved states; dtype is that of the tokens."""
    have_phases = any(_has_phases(unit) for unit in units)

    @functools.cache
    def fingerprints(number: int) -> Fingerprints:
        unit = units[number]
        return programs_of(unit.arm.name).fingerprints(unit.rates_and_seeds, dtype)

    def states_of(unit: WorkUnit) -> SavedStates:
        own = fingerprints(unit.number)
        others = [other for other in units if have_phases and other is not unit]
        shared = {
            count_shared_steps(own, fingerprints(other.number))
            for other in others
            if not other.is_done()
        }
        return SavedStates(folder, own, frozenset(shared - {0}))

    return states_of


def waits(
    states_of: Callable[[WorkUnit], SavedStates], unit: WorkUnit, busy: Sequence[WorkUnit]
) -> bool:
    """Whether other processes are taking steps that the unit shares and that are not saved yet."""
    if not any(map(_has_phases, (unit, *busy))):
        return False
    states = states_of(unit)
    done = last_saved_step(states.folder, states.fingerprints)
    others = [states_of(other).fingerprints for other in busy]
    return any(count_shared_steps(states.fingerprints, other) > done for other in others)


def _has_phases(unit: WorkUnit) -> bool:
    return len(list_phases(unit.arm.config)) > 1


def _progress_bar() -> Progress:
    """A bar for the steps of all units; it is disabled unless stdout is a terminal."""
    name = TextColumn("{task.description}", markup=False)
    console = Console(file=cast(Any, LenientStream(sys.stdout)))
    columns = (name, MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not is_terminal())


def _write_table(units: Sequence[WorkUnit], workdir: Path, lock: int) -> None:
    """Write the rows of all units to one file and print what few bits cost, if no unit is left."""
    path = workdir / SWEEP_RESULTS
    with work_units.exclusive(lock):
        if missing := sum(not unit.is_done() for unit in units):
            left = f"left to other processes: {missing} of {len(units)} work units"
            print_line(f"{left}; the last of them writes {path}")
            return
        for unit in units:  # other processes may have written some of them
            work_units.check_rows(unit)
        table = "".join(unit.path.read_text() for unit in units)
        files.write(path, table)
        shutil.rmtree(workdir / STATES, ignore_errors=True)
    print_line(held_out_table(sweep_table.read(workdir)))
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
