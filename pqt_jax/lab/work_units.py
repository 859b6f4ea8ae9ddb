# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The work units of a sweep, and how several processes share them.

A work unit is a set of runs of one arm that one program trains side by side. Processes of a sweep
coordinate through one folder only:

    parts/003-00004.jsonl     the rows of a finished unit; it is written whole and never again
    run.lock, byte 1 + n      locked by the process that trains unit n
    run.lock, byte 0          locked while a process chooses a unit or writes the table

The locks are POSIX byte-range locks, which network file systems also support. The system releases
them when a process dies, so another process can take over its unit.
"""

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pqt_jax.errors import InputError
from pqt_jax.lab import sweep_table
from pqt_jax.lab.sweep_arms import Arm, RateAndSeed, Sweep
from pqt_jax.training.run.workdir import WORK_UNITS


@dataclass(frozen=True)
class WorkUnit:
    """Runs that one program trains.

    Attributes:
      number: the unit's number, counted from 0 over the whole sweep.
      arm: the arm of all its runs.
      rates_and_seeds: learning rate and seed of each run.
      path: the file for its rows.
    """

    number: int
    arm: Arm
    rates_and_seeds: list[RateAndSeed]
    path: Path

    def is_done(self) -> bool:
        """Whether its rows have been written."""
        return self.path.exists()


def plan(sweep: Sweep, workdir: Path) -> list[WorkUnit]:
    """All work units of a sweep, arm by arm."""
    grid = [(rate, seed) for rate in sweep.learning_rates for seed in sweep.seeds]
    size = sweep.options.at_once
    starts = range(0, len(grid), size)
    return [
        WorkUnit(
            number=arm_number * len(starts) + i,
            arm=arm,
            rates_and_seeds=grid[start : start + size],
            path=workdir / WORK_UNITS / f"{arm_number:03d}-{start:05d}.jsonl",
        )
        for arm_number, arm in enumerate(sweep.arms)
        for i, start in enumerate(starts)
    ]


def check_rows(unit: WorkUnit) -> None:
    """Raise InputError if the file of a finished unit holds rows of other runs."""
    stored = [
        (row["arm"], row["learning_rate"], row["seed"]) for row in sweep_table.read_rows(unit.path)
    ]
    if stored != [(unit.arm.name, rate, seed) for rate, seed in unit.rates_and_seeds]:
        raise InputError(f"{unit.path} holds rows of other runs; delete it and run the sweep again")


@contextlib.contextmanager
def exclusive(lock: int) -> Iterator[None]:
    """Keep other processes of the sweep from choosing a unit or writing the table meanwhile.

    Args:
      lock: file descriptor of `run.lock`.
    """
    fcntl.lockf(lock, fcntl.LOCK_EX, 1, 0)
    try:
        yield
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN, 1, 0)


def claim_units(
    units: Sequence[WorkUnit], lock: int, waits: Callable[[WorkUnit, Sequence[WorkUnit]], bool]
) -> Iterator[WorkUnit]:
    """Yield units that are not done and that no other process trains.

    A unit stays locked until the next one is requested. Units of the arm that this process has
    just compiled come first, then units of arms that no process is training, then all others.
    Units that wait come after those that do not.

    Args:
      units: all units of the sweep.
      lock: file descriptor of `run.lock`. Nothing else in this process may open that file: closing
        it would release the locks.
      waits: unit, units that other processes train → whether it had better be trained later.
    """
    arm = None
    while unit := _claim_next(units, lock, arm, waits):
        arm = unit.arm
        yield unit
        _unlock(unit, lock)


def _claim_next(
    units: Sequence[WorkUnit],
    lock: int,
    arm: Arm | None,
    waits: Callable[[WorkUnit, Sequence[WorkUnit]], bool],
) -> WorkUnit | None:
    """Lock one unit and return it; None if every unit is done or locked by others."""
    with exclusive(lock):
        missing = [unit for unit in units if not unit.is_done()]
        locked = [unit for unit in missing if _try_lock(unit, lock)]
        busy = [unit for unit in missing if unit not in locked]
        busy_arms = {unit.arm.name for unit in busy}
        # Look again: another process may have finished a unit before it was locked here.
        candidates = [unit for unit in locked if not unit.is_done()]

        def cost(unit: WorkUnit) -> tuple[bool, bool, bool]:
            return waits(unit, busy), unit.arm is not arm, unit.arm.name in busy_arms

        chosen = min(candidates, key=cost, default=None)
        for unit in locked:
            if unit is not chosen:
                _unlock(unit, lock)
    return chosen


def _try_lock(unit: WorkUnit, lock: int) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + unit.number)
    except (BlockingIOError, PermissionError):  # POSIX allows either error for a locked range
        return False
    return True


def _unlock(unit: WorkUnit, lock: int) -> None:
    fcntl.lockf(lock, fcntl.LOCK_UN, 1, 1 + unit.number)
