# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Whether something that is measured of a run says, before it diverges, that it will.

At each step only runs that have not diverged by then count, so that nothing is foretold afterwards.
A score that rises with the learning rate, as divergence does, tells what one knew: beside the area
under the ROC of all runs there is that among runs of the same arm and rate, and beside sharpness
stand the learning rate and the loss themselves.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pqt_jax.analysis.intervals import Interval
from pqt_jax.lab.statistics import Roc, concordance, roc, share
from pqt_jax.lab.sweep_table import Cells
from pqt_jax.training.run.metrics import Record

Points = Sequence[tuple[int, float | None]]
_BACK = 20  # steps whose median is the loss at one


class Landmark(NamedTuple):
    """A score at a step as a forecast.

    Attributes:
      step: number of steps that had been taken.
      bad, good: of the runs that had not diverged by then, those that did later and that did not.
      roc: of all of them.
      within: `concordance` among runs of the same arm and learning rate.
    """

    step: int
    bad: int
    good: int
    roc: Roc
    within: Interval


class Alarm(NamedTuple):
    """What a threshold would have told.

    Attributes:
      threshold: that one in twenty of the runs that did not diverge crosses at any time.
      told: share of the runs that diverged after a measurement which had crossed it before.
      lead: steps between the first alarm and divergence, of these.
    """

    threshold: float
    told: Interval
    lead: list[int]


def scores(cells: Cells) -> dict[str, Callable[[Record], Points]]:
    """Name → the function from a row to [(step, value), …], of what is known of these runs.

    The loss at a step is the median of those of the `_BACK` steps before it, as far as they are in
    the table; it and the learning rate are taken where sharpness is.
    """
    every = cells.about["config"]["sweep"]["record_every"]

    def steps(row: Record) -> list[int]:
        return [step for step, _ in row.get("sharpness", [])]

    def loss(row: Record) -> Points:
        def at(step):
            last = row["losses"][: step // every][-max(1, _BACK // every) :]
            return float(np.median(last)) if last and None not in last else None

        return [(step, at(step)) for step in steps(row) if step]

    found: dict[str, Callable[[Record], Points]] = {
        "sharpness": lambda row: row.get("sharpness", []),
        "sharpness of weights": lambda row: row.get("sharpness_of_weights", []),
        "loss": loss,
        "learning rate": lambda row: [(step, row["learning_rate"]) for step in steps(row)],
    }
    some = cells.rows.values()
    return {name: of for name, of in found.items() if any(of(row) for row in some)}


def landmarks(rows: Iterable[Record], points: Callable[[Record], Points]) -> list[Landmark]:
    """A score as a forecast, at each step at which runs of both kinds are left.

    Args:
      rows: of a table.
      points: one of `scores`.
    """
    known: dict[int, list[tuple[float, bool, tuple[str, float]]]] = {}
    for row in rows:
        end = row["diverged_at"]
        for step, value in points(row):
            if value is not None and (end is None or step < end):
                stratum = (row["arm"], row["learning_rate"])
                known.setdefault(step, []).append((value, end is not None, stratum))
    found = []
    for step, entries in sorted(known.items()):
        values, diverged, strata = zip(*entries, strict=True)
        if 0 < (bad := sum(diverged)) < len(entries):
            within = concordance(values, diverged, strata)
            found.append(Landmark(step, bad, len(entries) - bad, roc(values, diverged), within))
    return found


def lead_time(points: Points, diverged_at: int, threshold: float) -> int | None:
    """Steps between the first score above a threshold and divergence; None if none came before.

    Example:
      >>> lead_time([(0, 0.1), (20, 0.4), (40, 0.9)], diverged_at=45, threshold=0.3)
      25

    Args:
      points: (step, score) in order.
      diverged_at: step.
      threshold: of an alarm.
    """
    alarms = [at for at, score in points if at < diverged_at and (score or -math.inf) > threshold]
    return diverged_at - alarms[0] if alarms else None


def alarm(rows: Iterable[Record], points: Callable[[Record], Points]) -> Alarm | None:
    """What a threshold on a score would have told; None without runs of both kinds."""
    highest, leads = [], []
    for row in rows:
        known = [(at, value) for at, value in points(row) if value is not None]
        if row["diverged_at"] is None and known:
            highest.append(max(value for _, value in known))
        elif known:
            leads.append((known, row["diverged_at"]))
    if not highest or not leads:
        return None
    threshold = float(np.quantile(highest, 0.95))
    found = [lead_time(known, end, threshold) for known, end in leads]
    early = [lead for lead in found if lead is not None]
    return Alarm(threshold, share(len(early), len(leads)), early)
