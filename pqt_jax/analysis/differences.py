# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Runs against a baseline: differences paired by seed, with 95 % intervals over the seeds.

Runs with the same seed see the same batches in the same order, so what makes a seed lucky cancels:

    d_s = loss of the run with seed s − loss of the baseline's run with seed s
    difference   mean_s d_s,   with Student's interval if there are two seeds or more

Runs that differ by their seed alone are one group. The baseline is a group, too.
"""

import dataclasses
import itertools
import json
import os

import numpy as np

from pqt_jax.analysis import intervals, run_reader
from pqt_jax.analysis.intervals import Interval
from pqt_jax.analysis.plot_style import Runs
from pqt_jax.analysis.run_reader import RecordedRun
from pqt_jax.console import shorten
from pqt_jax.training.config.schema import MAY_CHANGE
from pqt_jax.training.run import metrics
from pqt_jax.training.run.run_plots import smooth

SEED = "config.seed"
# Other versions of packages change the last digits; the other fields change no number. Data and
# starting weights have fingerprints in fields of their own, so it does not matter where they were.
_PLACES = ("directory.", "config.data.files.", "config.data.tokens.", "config.init_from.")
_IGNORED = ("versions.", *_PLACES, *(f"config.{name}" for name in MAY_CHANGE))


@dataclasses.dataclass(frozen=True)
class Curve:
    """A difference over training.

    Attributes:
      tokens, mean: float64[N].
      low, high: float64[N], the bounds of the interval; NaN without one.
    """

    tokens: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def group_by_seed(runs: Runs) -> list[Runs]:
    """Runs in groups that differ by their seed alone; a second run of a seed begins a new group."""
    groups: dict[tuple[str, int], dict[int, RecordedRun]] = {}
    for i, run in runs.items():
        relevant = {
            name: value
            for name, value in run.fields.items()
            if name != SEED and not f"{name}.".startswith(_IGNORED)
        }
        text, seed = json.dumps(relevant, sort_keys=True), _seed(run)
        for again in itertools.count():
            group = groups.setdefault((text, again), {})
            if seed not in map(_seed, group.values()):
                group[i] = run
                break
    return list(groups.values())


def default_baseline(runs: Runs) -> int:
    """The number of the first run with the method bf16; without one, of the first run."""
    bf16 = (i for i, run in runs.items() if run.fields.get("config.method") == "bf16")
    return next(bf16, min(runs))


def split(runs: Runs, baseline: int) -> tuple[Runs, list[Runs]]:
    """(the group of the baseline, the other groups).

    Args:
      runs: runs by their numbers.
      baseline: the number of a run.
    """
    groups = group_by_seed(runs)
    chosen = next(group for group in groups if baseline in group)
    return chosen, [group for group in groups if group is not chosen]


def group_label(group: Runs) -> str:
    """The numbers of a group's runs, and what their names begin with."""
    names = [run.name for run in group.values()]
    start = os.path.commonprefix(names).rstrip("-_./ ")
    name = start if len(names) > 1 and start else names[0]
    numbers = ", ".join(str(i + 1) for i in group)
    return f"{numbers}  {shorten(name, 40)}"


def pair_runs(group: Runs, baseline: Runs) -> tuple[list[tuple[RecordedRun, RecordedRun]], bool]:
    """The pairs whose differences are averaged.

    Args:
      group: runs that differ by their seed alone.
      baseline: such runs, too.

    Returns:
      The pairs (run, run of the baseline) with the same seed, and True; all pairs, and False, if
      no seed is in both. Differences of the latter are not independent and have no interval.
    """
    by_seed = {_seed(run): run for run in baseline.values()}
    paired = [(run, by_seed[_seed(run)]) for run in group.values() if _seed(run) in by_seed]
    if paired:
        return paired, True
    return list(itertools.product(group.values(), baseline.values())), False


def describe_pairs(group: Runs, baseline: Runs) -> str:
    """What the average of a group is over, as in "3 seeds, 95 % interval"."""
    pairs, independent = pair_runs(group, baseline)
    if not independent:
        return "no seed in common, no interval"
    return "1 seed, no interval" if len(pairs) == 1 else f"{len(pairs)} seeds, 95 % interval"


def difference_curve(group: Runs, baseline: Runs, field: str, *, smoothed: bool = False) -> Curve:
    """The difference of a field of the metrics over training, where all pairs have it.

    Args:
      group, baseline: as for `pair_runs`.
      field: such as "loss".
      smoothed: whether to smooth the difference of each pair, which keeps it paired by step.
    """
    pairs, independent = pair_runs(group, baseline)
    curves = [_difference_of_pair(*pair, field) for pair in pairs]
    tokens = curves[0][0]
    for other, _ in curves[1:]:
        tokens = np.intersect1d(tokens, other)
    values = np.array([np.interp(tokens, x, y) if len(x) else x for x, y in curves])
    if smoothed:
        values = np.array([smooth(row) for row in values])
    return Curve(tokens, *_average(values, independent))


def _difference_of_pair(
    run: RecordedRun, other: RecordedRun, field: str
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, difference) at the points of `run` that lie between points of `other`."""
    (x, y), (other_x, other_y) = (_finite_curve(one, field) for one in (run, other))
    if not len(other_x):
        return x[:0], y[:0]
    inside = (x >= other_x[0]) & (x <= other_x[-1])
    return x[inside], y[inside] - np.interp(x[inside], other_x, other_y)


def _finite_curve(run: RecordedRun, field: str) -> tuple[np.ndarray, np.ndarray]:
    tokens, values = run_reader.read_curve(run, field)
    return tokens[np.isfinite(values)], values[np.isfinite(values)]


def final_difference(group: Runs, baseline: Runs, name: str) -> Interval:
    """The difference of a loss in the summaries, of pairs of equal seeds and numbers of tokens.

    It is NaN if there is none.

    Args:
      group, baseline: as for `pair_runs`.
      name: the format of the weights, such as "master".
    """
    pairs = _final_pairs(group, baseline)
    values = [final_loss(run, name) - final_loss(other, name) for run, other in pairs]
    finite = np.array([value for value in values if np.isfinite(value)])
    return Interval(*map(float, intervals.mean_interval(finite)))


def describe_final_pairs(group: Runs, baseline: Runs) -> str:
    """What `final_difference` is over, or why there is none."""
    pairs = _final_pairs(group, baseline)
    if pairs:
        return "1 seed, no interval" if len(pairs) == 1 else f"{len(pairs)} seeds, 95 % interval"
    has_common_seed = pair_runs(group, baseline)[1]
    return "another number of tokens" if has_common_seed else "no seed in common"


def _final_pairs(group: Runs, baseline: Runs) -> list[tuple[RecordedRun, RecordedRun]]:
    pairs, has_common_seed = pair_runs(group, baseline)
    tokens = lambda run: run_reader.tokens_at(run, run_reader.steps_done(run))  # noqa: E731
    return [pair for pair in pairs if has_common_seed and tokens(pair[0]) == tokens(pair[1])]


def final_loss(run: RecordedRun, name: str) -> float:
    """The loss in the summary of a run; NaN if it is not finished, or the loss is not finite."""
    value = metrics.numeric_fields(run.summary or {}).get(name)
    return np.nan if value is None else value


def _average(values: np.ndarray, independent: bool) -> tuple[np.ndarray, ...]:
    """(mean, low, high) over the pairs; the bounds are NaN unless the pairs are independent."""
    mean, low, high = intervals.mean_interval(values)
    return (mean, low, high) if independent else (mean, *[np.full_like(mean, np.nan)] * 2)


def _seed(run: RecordedRun) -> object:
    return run.fields.get(SEED)
