# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The parts of a sweep, and which process trains what.

    byte 1 + n of run.lock, locked     a process is at part n; one that dies leaves it free
    byte 0                             a process is choosing, or writing the table
    parts/003-00004.jsonl              the rows of a part, whole: nobody trains it again

Processes of one sweep share nothing else. Locks are POSIX's, which network disks know too.
"""

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pqt_jax.errors import InputError
from pqt_jax.lab import runs, sweep_table
from pqt_jax.lab.sweep_config import Arm, Grid
from pqt_jax.training.run.workdir import PARTS


class Part(NamedTuple):
    """What one program trains.

    Attributes:
      number: of the part, from 0.
      arm: of all its runs.
      cells: learning rates and seeds.
      path: of its rows.
    """

    number: int
    arm: Arm
    sweep_table: list[runs.Cell]
    path: Path

    def is_done(self) -> bool:
        """Whether its rows are there."""
        return self.path.exists()


def plan(wanted: Grid, workdir: Path) -> list[Part]:
    """All parts of a sweep, arm by arm."""
    every = [(rate, seed) for rate in wanted.learning_rates for seed in wanted.seeds]
    starts = range(0, len(every), wanted.sweep.at_once)
    return [
        Part(
            number * len(starts) + i,
            arm,
            every[start : start + wanted.sweep.at_once],
            workdir / PARTS / f"{number:03d}-{start:05d}.jsonl",
        )
        for number, arm in enumerate(wanted.arms)
        for i, start in enumerate(starts)
    ]


def check(part: Part) -> None:
    """Raise InputError if a file holds other rows than those of its runs."""
    found = [
        (row["arm"], row["learning_rate"], row["seed"]) for row in sweep_table.read_part(part.path)
    ]
    if found != [(part.arm.name, rate, seed) for rate, seed in part.cells]:
        raise InputError(
            f"{part.path} holds other runs than its own; delete it and run the sweep again"
        )


@contextlib.contextmanager
def alone(lock: int) -> Iterator[None]:
    """No other process of the sweep chooses, or writes the table, meanwhile."""
    fcntl.lockf(lock, fcntl.LOCK_EX, 1, 0)
    try:
        yield
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN, 1, 0)


def to_train(parts: Sequence[Part], lock: int) -> Iterator[Part]:
    """Parts that are nobody's, one after the other; each is this process's until the next.

    First those of the arm before, whose program is there already, then of arms that no process is
    at, then any.

    Args:
      parts: of the sweep.
      lock: descriptor of `run.lock`, which nothing else in this process may open.
    """
    arm = None
    while part := _take(parts, lock, arm):
        arm = part.arm
        yield part
        _free(part, lock)


def _take(parts: Sequence[Part], lock: int, arm: Arm | None) -> Part | None:
    """One part, locked; None where all are done or taken."""
    with alone(lock):
        missing = [part for part in parts if not part.is_done()]
        free = [part for part in missing if _lock(part, lock)]
        taken = {part.arm.name for part in missing if part not in free}
        # Again, since another process may have ended one between the two.
        able = [part for part in free if not part.is_done()]
        rank = lambda part: (part.arm is not arm, part.arm.name in taken)  # noqa: E731
        chosen = min(able, key=rank, default=None)
        for part in free:
            if part is not chosen:
                _free(part, lock)
    return chosen


def _lock(part: Part, lock: int) -> bool:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + part.number)
    except (BlockingIOError, PermissionError):  # which of them, POSIX leaves open
        return False
    return True


def _free(part: Part, lock: int) -> None:
    fcntl.lockf(lock, fcntl.LOCK_UN, 1, 1 + part.number)
