# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Whether a score that is measured during training predicts divergence.

At each step a prediction is evaluated over the runs that have not diverged by then, so no score
uses what happened after it. Divergence becomes more frequent with the learning rate. A score that
merely rises with the learning rate therefore has a large area under the ROC curve over all runs.
For this reason the area within runs of the same arm and learning rate is computed as well, and the
learning rate and the loss are evaluated as scores too.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pqt_jax.analysis.intervals import Interval
from pqt_jax.lab.statistics import RocCurve, concordance, proportion, roc_curve
from pqt_jax.lab.sweep_table import SweepTable
from pqt_jax.training.run.metrics import Record

ScoreSeries = Sequence[tuple[int, float | None]]  # (step, score), by step
Score = Callable[[Record], ScoreSeries]  # the row of a run → its scores
_LOSS_WINDOW = 20  # steps


@dataclass(frozen=True)
class PredictionAtStep:
    """How well a score at one step predicts divergence after it.

    Attributes:
      step: number of steps taken before the measurement.
      diverging: number of runs that diverge after the step.
      stable: number of runs that do not diverge.
      roc: the ROC curve over all these runs.
      within: the `concordance` of runs with the same arm and learning rate.
    """

    step: int
    diverging: int
    stable: int
    roc: RocCurve
    within: Interval


@dataclass(frozen=True)
class Alarm:
    """What an alarm at a fixed threshold would have achieved.

    Attributes:
      threshold: the score that one in twenty of the runs that did not diverge ever exceeds.
      detected: the share of the diverged runs whose score exceeded the threshold before they
        diverged. Runs without a measurement do not count.
      lead_times: for these runs, the steps between the first alarm and divergence.
    """

    threshold: float
    detected: Interval
    lead_times: list[int]


def scores_of(table: SweepTable) -> dict[str, Score]:
    """Name → function from a row to its scores, for the scores that some run has.

    The loss at a step is the median loss of the `_LOSS_WINDOW` steps before it, as far as they are
    recorded. Loss and learning rate are taken at the steps at which sharpness was measured.
    """
    record_every = table.options.record_every

    def sharpness(row: Record) -> ScoreSeries:
        return row.get("sharpness", [])

    def sharpness_of_weights(row: Record) -> ScoreSeries:
        return row.get("sharpness_of_weights", [])

    def loss_at(row: Record, step: int) -> float | None:
        recorded = row["losses"][: step // record_every]
        recent = recorded[-max(1, _LOSS_WINDOW // record_every) :]
        return float(np.median(recent)) if recent and None not in recent else None

    def loss(row: Record) -> ScoreSeries:
        return [(step, loss_at(row, step)) for step, _ in sharpness(row) if step]

    def learning_rate(row: Record) -> ScoreSeries:
        return [(step, row["learning_rate"]) for step, _ in sharpness(row)]

    scores: dict[str, Score] = {
        "sharpness": sharpness,
        "sharpness of weights": sharpness_of_weights,
        "loss": loss,
        "learning rate": learning_rate,
    }
    rows = table.rows.values()
    return {name: score for name, score in scores.items() if any(score(row) for row in rows)}


def evaluate_predictions(rows: Iterable[Record], score: Score) -> list[PredictionAtStep]:
    """Evaluate a score at each step that has runs which diverge later and runs which do not.

    Args:
      rows: rows of the sweep's table.
      score: one of `scores_of`.
    """
    measured: dict[int, list[tuple[float, bool, tuple[str, float]]]] = {}
    for row in rows:
        end = row["diverged_at"]
        for step, value in score(row):
            if value is not None and (end is None or step < end):
                stratum = (row["arm"], row["learning_rate"])
                measured.setdefault(step, []).append((value, end is not None, stratum))
    predictions = []
    for step, entries in sorted(measured.items()):
        values, diverged, strata = zip(*entries, strict=True)
        diverging = sum(diverged)
        if 0 < diverging < len(entries):
            prediction = PredictionAtStep(
                step=step,
                diverging=diverging,
                stable=len(entries) - diverging,
                roc=roc_curve(values, diverged),
                within=concordance(values, diverged, strata),
            )
            predictions.append(prediction)
    return predictions


def lead_time(series: ScoreSeries, diverged_at: int, threshold: float) -> int | None:
    """Steps between the first score above a threshold and divergence; None without an alarm.

    Example:
      >>> lead_time([(0, 0.1), (20, 0.4), (40, 0.9)], diverged_at=45, threshold=0.3)
      25

    Args:
      series: (step, score) by step.
      diverged_at: the step at which the run diverged.
      threshold: a score above it raises the alarm.
    """
    alarms = [
        step for step, value in series if step < diverged_at and (value or -math.inf) > threshold
    ]
    return diverged_at - alarms[0] if alarms else None


def evaluate_alarm(rows: Iterable[Record], score: Score) -> Alarm | None:
    """What an alarm on a score would have achieved; None unless there are runs of both kinds."""
    highest_when_stable, before_divergence = [], []
    for row in rows:
        series = [(step, value) for step, value in score(row) if value is not None]
        if row["diverged_at"] is None and series:
            highest_when_stable.append(max(value for _, value in series))
        elif series:
            before_divergence.append((series, row["diverged_at"]))
    if not highest_when_stable or not before_divergence:
        return None
    threshold = float(np.quantile(highest_when_stable, 0.95))
    leads = [lead_time(series, end, threshold) for series, end in before_divergence]
    detected = [lead for lead in leads if lead is not None]
    return Alarm(threshold, proportion(len(detected), len(leads)), detected)
