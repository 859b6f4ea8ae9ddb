# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a sweep says, as tables of a page: cells → HTML."""

import math
from collections.abc import Callable

import numpy as np

from pqt_jax.analysis import html_page
from pqt_jax.analysis.html_page import text
from pqt_jax.analysis.intervals import Interval
from pqt_jax.lab import outcomes
from pqt_jax.lab.prediction import Alarm
from pqt_jax.lab.runs import FORMATS
from pqt_jax.lab.statistics import paired, share
from pqt_jax.lab.sweep_table import Cells

_LABELS = dict(zip(FORMATS, ("as they are", "FP8 E4M3", "FP6 E3M2", "FP4 E2M1"), strict=True))


def usable_level(cells: Cells, nats: float) -> float:
    """So many nats above the first arm's median final loss at its best rate; NaN without one."""
    first = cells.arms[0]
    best = cells.best(first)
    if best is None:
        return math.nan
    finals = cells.whole(first, "final_loss")[:, best]
    finals = finals[np.isfinite(finals)]
    return nats + float(np.median(finals)) if finals.size else math.nan


def overview(cells: Cells, level: float) -> str:
    """A row for each arm: how many failed, where it is best, and how wide its range is."""
    head = ["arm", "runs", "diverged", "stuck", "best rate", "final loss there"]
    head += ["usable decades of rates", "sensitivity to the rate, nats", "spikes per run"]
    rows = []
    for arm in cells.arms:
        best, total = cells.best(arm), int(cells.known(arm).sum())
        if not total:
            rows.append([text(arm), "0", *["—"] * (len(head) - 2)])
            continue
        there = _at(cells, arm, "final_loss", best)
        count = lambda what, arm=arm: int(cells.became(arm, what).sum())  # noqa: E731
        own = [
            f"{total}",
            *(_percent(share(count(what), total)) for what in ("diverged", "stuck")),
            "—" if best is None else f"{cells.rates[best]:g}",
            _mean(there, ".4f"),
            _mean(_usable(cells, arm, level), ".3f"),
            _mean(_sensitivity(cells, arm), ".3f"),
            f"{np.mean(cells.grid(arm, 'spikes')[cells.known(arm)]):.2f}",
        ]
        rows.append([text(arm), *own])
    return html_page.table(head, rows, "numbers")


def differences(cells: Cells, level: float) -> str:
    """Every arm against the first: range and sensitivity, seed by seed."""
    head = ["arm", "usable decades", "sensitivity, nats"]
    kinds: list[Callable[[str], np.ndarray]] = [
        lambda arm: _usable(cells, arm, level),
        lambda arm: _sensitivity(cells, arm),
    ]
    first = cells.arms[0]
    rows = [
        [text(arm), *(_difference(paired(of(arm), of(first)), "+.3f") for of in kinds)]
        for arm in cells.arms[1:]
    ]
    return html_page.table(head, rows, "numbers")


def paired_losses(cells: Cells, field: str) -> str:
    """A field of every arm minus that of the first, at each rate, over seeds whole with both."""
    head = ["arm", *(f"rate {rate:g}" for rate in cells.rates)]
    others = cells.whole(cells.arms[0], field)
    rows = []
    for arm in cells.arms[1:]:
        columns = zip(cells.whole(arm, field).T, others.T, strict=True)
        rows.append([text(arm), *(_difference(paired(a, b), "+.4f", a - b) for a, b in columns)])
    return html_page.table(head, rows, "numbers")


def survival(cells: Cells) -> str:
    """Held-out loss at each arm's best rate, of its weights and of what formats add to it."""
    head = ["arm", "rate", "mean bits", *(_LABELS[name] for name in FORMATS)]
    rows = []
    for arm in cells.arms:
        best = cells.best(arm)
        of = lambda name, arm=arm, best=best: _at(cells, arm, name, best)  # noqa: E731
        master, *others = (of(f"held_out_losses.{name}") for name in FORMATS)
        bits = of("bits_mean")
        mean_bits = f"{np.nanmean(bits):.2f}" if np.isfinite(bits).any() else "—"
        added = [_difference(paired(other, master), "+.4f") for other in others]
        rate = "—" if best is None else f"{cells.rates[best]:g}"
        rows.append([text(arm), rate, mean_bits, _mean(master, ".4f"), *added])
    return html_page.table(head, rows, "numbers")


def alarms(found: dict[str, Alarm]) -> str:
    """A row for each score: what its threshold would have told, and how early."""
    head = ["score", "threshold", "told, of the runs that diverged", "median lead, steps"]
    found = {name: own for name, own in found.items() if name != "learning rate"}  # never crosses
    rows = []
    for name, own in found.items():
        lead = f"{np.median(own.lead):.0f}" if own.lead else "—"
        rows.append([text(name), f"{own.threshold:.3g}", _percent(own.told), lead])
    return html_page.table(head, rows, "numbers")


def _at(cells: Cells, arm: str, field: str, rate: int | None) -> np.ndarray:
    """float64[seeds] of a field at a rate, NaN where a run diverged or there is no such rate."""
    every = cells.whole(arm, field)
    return np.full(len(every), math.nan) if rate is None else every[:, rate]


def _by_seed(cells: Cells, arm: str, of: Callable[[dict[float, float], int], float]) -> np.ndarray:
    """float64[seeds] of a function of (rate → final loss, NaN where it diverged; which seed).

    NaN for a seed that has not been trained at every rate yet.
    """
    found = np.full(len(cells.seeds), math.nan)
    for i in np.flatnonzero(cells.known(arm).all(axis=1)).tolist():
        found[i] = of(dict(zip(cells.rates, cells.whole(arm, "final_loss")[i], strict=True)), i)
    return found


def _usable(cells: Cells, arm: str, level: float) -> np.ndarray:
    return _by_seed(cells, arm, lambda finals, _: outcomes.usable(finals, level))


def _sensitivity(cells: Cells, arm: str) -> np.ndarray:
    firsts = cells.grid(arm, "first_loss")
    return _by_seed(
        cells, arm, lambda finals, i: outcomes.sensitivity(finals, np.nanmax(firsts[i]))
    )


def _mean(values: np.ndarray, form: str) -> str:
    found = paired(values, np.zeros(values.shape))
    if math.isnan(found.value):
        return "—"
    return f"{found.value:{form}}{_inside(found, form)}"


def _difference(found: Interval, form: str, pairs: np.ndarray | None = None) -> str:
    """A difference with its interval, a star where that leaves out 0, and the number of pairs."""
    if math.isnan(found.value):
        return "—"
    star = "*" if found.low > 0 or found.high < 0 else ""
    count = "" if pairs is None else f" of {np.isfinite(pairs).sum()}"
    return f"{found.value:{form}}{star}{_inside(found, form, count)}"


def _inside(found: Interval, form: str, more: str = "") -> str:
    within = "" if math.isnan(found.low) else f"[{found.low:{form}}, {found.high:{form}}]"
    return f"<small>{within}{more}</small>" if within or more else ""


def _percent(found: Interval) -> str:
    return f"{found.value:.0%}<small>[{found.low:.0%}, {found.high:.0%}]</small>"
