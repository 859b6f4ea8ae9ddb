# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Tables of a sweep as HTML, made from its table of runs."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from pqt_jax.analysis import html_page
from pqt_jax.analysis.html_page import text
from pqt_jax.analysis.intervals import CONFIDENCE, Interval
from pqt_jax.lab import outcomes
from pqt_jax.lab.prediction import Alarm
from pqt_jax.lab.statistics import holm, paired_difference, paired_p_value, proportion
from pqt_jax.lab.sweep_table import SweepTable
from pqt_jax.training import named_formats

_FORMAT_LABELS = named_formats.LABELS | {"master": "as they are"}
_NONE = "—"


def usable_level(table: SweepTable, nats: float) -> float:
    """The final loss up to which a learning rate counts as usable.

    Args:
      table: the sweep's table.
      nats: the margin above the baseline's median final loss at its best rate. The baseline is the
        first arm.

    Returns:
      Nats per token; NaN if the baseline has no best rate.
    """
    baseline = table.arms[0]
    best = table.best_rate_index(baseline)
    finals = _at_rate(table, baseline, "final_loss", best)
    finals = finals[np.isfinite(finals)]
    return nats + float(np.median(finals)) if finals.size else math.nan


def is_too_short(table: SweepTable) -> bool:
    """Whether the baseline at its best rate has not learned more than the token frequencies.

    Then no run took enough steps, or no rate suits, and differences between arms mean nothing.
    """
    baseline = table.arms[0]
    finals = _at_rate(table, baseline, "final_loss", table.best_rate_index(baseline))
    finals = finals[np.isfinite(finals)]
    return bool(finals.size) and float(np.median(finals)) >= table.unigram_loss


def overview_table(table: SweepTable, level: float) -> str:
    """One row for each arm: its failures, its best rate, and its range of usable rates.

    With a single rate there is no range.
    """
    head = ["arm", "runs", "diverged", "stuck", "best rate", "final loss there"]
    has_range = len(table.rates) > 1
    head += ["usable decades of rates", "sensitivity to the rate, nats"] if has_range else []
    head += ["spikes per run"]
    rows = []
    for arm in table.arms:
        best, runs = table.best_rate_index(arm), int(table.has_run(arm).sum())
        if not runs:
            rows.append([text(arm), "0", *[_NONE] * (len(head) - 2)])
            continue
        failures = [
            _percent(proportion(int(table.has_outcome(arm, outcome).sum()), runs))
            for outcome in ("diverged", "stuck")
        ]
        columns = [
            f"{runs}",
            *failures,
            _rate(table, best),
            _mean(_at_rate(table, arm, "final_loss", best), ".4f"),
            *([_mean(_usable_decades(table, arm, level), ".3f")] if has_range else []),
            *([_mean(_sensitivities(table, arm), ".3f")] if has_range else []),
            f"{np.mean(table.values(arm, 'spikes')[table.has_run(arm)]):.2f}",
        ]
        rows.append([text(arm), *columns])
    return html_page.table(head, rows, "numbers")


def rate_range_table(table: SweepTable, level: float) -> str:
    """Every arm against the baseline: usable decades and sensitivity, paired by seed."""
    head = ["arm", "usable decades", "sensitivity, nats"]
    baseline = table.arms[0]
    usable, sensitivity = (
        _usable_decades(table, baseline, level),
        _sensitivities(table, baseline),
    )
    rows = []
    for arm in table.arms[1:]:
        differences = (
            paired_difference(_usable_decades(table, arm, level), usable),
            paired_difference(_sensitivities(table, arm), sensitivity),
        )
        rows.append([text(arm), *(_difference(interval, "+.3f") for interval in differences)])
    return html_page.table(head, rows, "numbers")


def paired_loss_table(table: SweepTable, field: str) -> str:
    """A loss of every arm minus the baseline's, at each rate, over the seeds stable with both.

    Args:
      table: the sweep's table.
      field: a field of the rows, as for `SweepTable.values`.
    """
    head = ["arm", *(f"rate {rate:g}" for rate in table.rates)]
    baseline = table.stable_values(table.arms[0], field)
    rows = []
    for arm in table.arms[1:]:
        by_rate = zip(table.stable_values(arm, field).T, baseline.T, strict=True)
        differences = [
            _difference(paired_difference(values, others), "+.4f", values - others)
            for values, others in by_rate
        ]
        rows.append([text(arm), *differences])
    return html_page.table(head, rows, "numbers")


def format_loss_table(table: SweepTable) -> str:
    """Held-out loss at each arm's best rate, and what rounding the weights adds to it."""
    names = table.options.weights
    head = ["arm", "rate", "mean bits", *(_FORMAT_LABELS.get(name, text(name)) for name in names)]
    rows = []
    for arm in table.arms:
        best = table.best_rate_index(arm)
        master, *rounded = (_at_rate(table, arm, f"held_out_losses.{name}", best) for name in names)
        bits = _at_rate(table, arm, "bits_mean", best)
        mean_bits = f"{np.nanmean(bits):.2f}" if np.isfinite(bits).any() else _NONE
        added = [_difference(paired_difference(losses, master), "+.4f") for losses in rounded]
        rows.append([text(arm), _rate(table, best), mean_bits, _mean(master, ".4f"), *added])
    return html_page.table(head, rows, "numbers")


def rounded_loss_table(table: SweepTable) -> str:
    """Held-out loss of each arm's weights minus that of the baseline's as they are, by seed.

    Each at its best rate. A star says that the difference is significant by Holm's correction over
    all cells.
    """
    names = table.options.weights
    losses = {
        arm: {
            name: _at_rate(table, arm, f"held_out_losses.{name}", table.best_rate_index(arm))
            for name in names
        }
        for arm in table.arms
    }
    baseline = losses[table.arms[0]]["master"]
    cells = [[losses[arm][name] for name in names] for arm in table.arms]
    p_values = np.array([[paired_p_value(cell, baseline) for cell in row] for row in cells])
    p_values[0, 0] = math.nan  # the baseline itself
    significant = holm(p_values) < 1 - CONFIDENCE
    rows = []
    for arm, values, stars in zip(table.arms, cells, significant, strict=True):
        intervals = [paired_difference(value, baseline) for value in values]
        rows.append(
            [text(arm)]
            + [
                _difference(interval, "+.4f", is_significant=bool(star))
                for interval, star in zip(intervals, stars, strict=True)
            ]
        )
    head = ["arm", *(_FORMAT_LABELS.get(name, text(name)) for name in names)]
    return html_page.table(head, rows, "numbers")


def alarm_table(alarms: Mapping[str, Alarm]) -> str:
    """One row for each score: the threshold of its alarm, and how often and how early it warned."""
    head = ["score", "threshold", "warned, of the runs that diverged", "median lead, steps"]
    rows = []
    for name, alarm in alarms.items():
        if name == "learning rate":  # it is constant during a run
            continue
        lead = f"{np.median(alarm.lead_times):.0f}" if alarm.lead_times else _NONE
        rows.append([text(name), f"{alarm.threshold:.3g}", _percent(alarm.detected), lead])
    return html_page.table(head, rows, "numbers")


def _at_rate(table: SweepTable, arm: str, field: str, rate_index: int | None) -> np.ndarray:
    """float64[seeds]: a field at one rate; NaN for diverged runs and if there is no such rate."""
    values = table.stable_values(arm, field)
    return np.full(len(values), math.nan) if rate_index is None else values[:, rate_index]


def _usable_decades(table: SweepTable, arm: str, level: float) -> np.ndarray:
    """float64[seeds]: `outcomes.usable_decades`; NaN for a seed that lacks a run at some rate."""

    def usable(finals: dict[float, float], _: int) -> float:
        return outcomes.usable_decades(finals, level)

    return _for_each_seed(table, arm, usable)


def _sensitivities(table: SweepTable, arm: str) -> np.ndarray:
    """float64[seeds]: `outcomes.rate_sensitivity`; NaN for a seed that lacks a run at some rate."""
    first_losses = table.values(arm, "first_loss")

    def sensitivity(finals: dict[float, float], seed_index: int) -> float:
        return outcomes.rate_sensitivity(finals, np.nanmax(first_losses[seed_index]))

    return _for_each_seed(table, arm, sensitivity)


def _for_each_seed(
    table: SweepTable, arm: str, measure: Callable[[dict[float, float], int], float]
) -> np.ndarray:
    """float64[seeds]: `measure(rate → final loss, seed index)`; the final loss is NaN if diverged.

    A seed that has not been trained at every rate yet gets NaN.
    """
    finals = table.stable_values(arm, "final_loss")
    results = np.full(len(table.seeds), math.nan)
    for i in np.flatnonzero(table.has_run(arm).all(axis=1)).tolist():
        results[i] = measure(dict(zip(table.rates, finals[i], strict=True)), i)
    return results


def _rate(table: SweepTable, rate_index: int | None) -> str:
    return _NONE if rate_index is None else f"{table.rates[rate_index]:g}"


def _mean(values: np.ndarray, form: str) -> str:
    """The mean over seeds with Student's interval."""
    mean = paired_difference(values, np.zeros(values.shape))
    return _NONE if math.isnan(mean.value) else f"{mean.value:{form}}{_bounds(mean, form)}"


def _difference(
    difference: Interval,
    form: str,
    pairs: np.ndarray | None = None,
    is_significant: bool | None = None,
) -> str:
    """A difference with its interval, a star, and the number of pairs.

    The star is there if the interval excludes 0, unless the caller decides.
    """
    if math.isnan(difference.value):
        return _NONE
    if is_significant is None:
        is_significant = difference.low > 0 or difference.high < 0
    star = "*" if is_significant else ""
    count = "" if pairs is None else f" of {np.isfinite(pairs).sum()}"
    return f"{difference.value:{form}}{star}{_bounds(difference, form, count)}"


def _bounds(interval: Interval, form: str, suffix: str = "") -> str:
    bounds = "" if math.isnan(interval.low) else f"[{interval.low:{form}}, {interval.high:{form}}]"
    return f"<small>{bounds}{suffix}</small>" if bounds or suffix else ""


def _percent(share: Interval) -> str:
    return f"{share.value:.0%}<small>[{share.low:.0%}, {share.high:.0%}]</small>"
