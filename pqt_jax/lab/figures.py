# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Figures of a sweep, drawn from its table."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pqt_jax.analysis.intervals import Interval
from pqt_jax.analysis.plot_style import escape_dollars, run_style
from pqt_jax.lab.prediction import PredictionAtStep
from pqt_jax.lab.statistics import proportion
from pqt_jax.lab.sweep_table import SweepTable
from pqt_jax.training.run.run_plots import leave_empty, widen

_QUANTILES = (0.1, 0.5, 0.9)  # over seeds: lower edge of the band, median, upper edge
_MOST_POINTS = 80  # of a curve; neighbouring points of longer curves are averaged
_LEAST_LOSSES = 0.1  # nats per token, the least range of colors of final losses
_LEAST_RATIO = 3  # of the ends of a logarithmic scale, so that noise does not look like structure
_MARKS = {"diverged": "×", "stuck": "○"}  # of outcomes
_RED, _GREY = "#d9302a", "#888"


def draw_heat_maps(table: SweepTable) -> Figure:
    """Final loss of every run: one map for each arm, seeds by learning rates."""
    figure, axes = _grid_of_axes(len(table.arms), 2.3 + 0.22 * len(table.rates), 3.0)
    low, high = widen(*_color_limits(table), _LEAST_LOSSES)
    image = None
    for arm, ax in zip(table.arms, axes, strict=False):
        finals = table.values(arm, "final_loss")
        values = np.where(table.has_run(arm) & ~np.isfinite(finals), high, finals)
        image = ax.imshow(values, vmin=low, vmax=high, cmap="cividis", aspect="auto")
        for outcome, mark in _MARKS.items():
            for row, column in np.argwhere(table.has_outcome(arm, outcome)):
                ax.text(column, row, mark, ha="center", va="center", color=_RED, fontsize=11)
        ax.set_title(escape_dollars(arm), fontsize=10)
        ax.set_xticks(range(len(table.rates)), [f"{rate:g}" for rate in table.rates], fontsize=8)
        ax.set_yticks(range(len(table.seeds)), [str(seed) for seed in table.seeds], fontsize=7)
        ax.set_xlabel("learning rate", fontsize=8)
    axes[0].set_ylabel("seed", fontsize=8)
    if image is not None and _all_stable_finals(table).size:
        figure.colorbar(image, ax=list(axes), label="final loss, nats", shrink=0.8)
    found = {row["outcome"] for row in table.rows.values()}
    shown = [f"{mark} {outcome}" for outcome, mark in _MARKS.items() if outcome in found]
    if shown:
        figure.supxlabel("     ".join(shown), fontsize=9, color=_RED)
    return figure


def draw_losses(table: SweepTable) -> Figure:
    """Training loss by step: median over seeds, and the band of the middle eighty percent."""
    figure, axes = _grid_of_axes(len(table.rates), 4.4, 3.3)
    record_every = table.options.record_every
    lowest, first_losses = [], []
    for rate, ax in zip(table.rates, axes, strict=False):
        for i, arm in enumerate(table.arms):
            curves = table.loss_curves(arm, rate)
            group = max(1, curves.shape[1] // _MOST_POINTS)
            points = curves.shape[1] // group
            curves = curves[:, : points * group].reshape(len(curves), points, group).mean(2)
            steps = record_every * group * (1 + np.arange(points))
            band = _quantiles_over_runs(curves)
            _draw_band(ax, steps, band, i, arm)
            lowest.extend(band[0][np.isfinite(band[0])])
            rows = table.rows_of(arm, rate)
            first_losses.extend(row["first_loss"] for row in rows if row["first_loss"])
        ax.set_title(f"learning rate {rate:g}", fontsize=10)
        ax.set_xlabel("step")
        _leave_empty_without_data(ax, "no finite loss")
    if lowest and first_losses and (height := max(first_losses) - min(lowest)) > 0:
        for ax in axes:  # curves of diverged runs may leave the axes
            ax.set_ylim(min(lowest) - 0.05 * height, max(first_losses) + 0.3 * height)
    axes[0].set_ylabel("loss, nats per token")
    return _add_legend(figure, axes)


def draw_final_losses(table: SweepTable) -> Figure:
    """Final loss and the share of diverged seeds, by learning rate.

    The median is taken over the seeds that have been trained. A run that diverged counts as
    infinitely bad.
    """
    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    losses, shares = figure.subplots(1, 2)
    for i, arm in enumerate(table.arms):
        finals = table.stable_values(arm, "final_loss")
        trained = zip(finals.T, table.has_run(arm).T, strict=True)
        band = [_quantiles_over_runs(values[has_run, None]) for values, has_run in trained]
        _draw_band(losses, np.array(table.rates), np.hstack(band), i, arm, markers=True)
        _draw_diverged_shares(shares, table, i, arm)
    if (finals := _all_stable_finals(table)).size:
        losses.set_ylim(finals.min() - 0.1, min(finals.max(), finals.min() + 4) + 0.1)
        label = "token frequencies alone"
        losses.axhline(table.unigram_loss, color=_GREY, lw=1, ls=":", label=label)
    for ax in (losses, shares):
        ax.set_xscale("log")
        ax.set_xticks(table.rates, [f"{rate:g}" for rate in table.rates])
        ax.set_xlim(min(table.rates) / 1.6, max(table.rates) * 1.6)
        ax.minorticks_off()
        ax.set_xlabel("learning rate")
        ax.grid(alpha=0.3)
    losses.set_ylabel("final loss, nats per token")
    shares.set_ylabel("share of seeds that diverged")
    shares.set_ylim(-0.03, 1.03)
    losses.set_title(_describe_seeds(table), fontsize=10)
    if not finals.size:
        leave_empty(losses, "every run diverged")
    return _add_legend(figure, [losses, shares])


def draw_sharpness(table: SweepTable) -> Figure:
    """Sharpness at the logits of the last token, by step: median and band over seeds."""
    return _draw_sharpness_curves(table, "sharpness", "sharpness, %")


def draw_weight_sharpness(table: SweepTable) -> Figure:
    """Sharpness in the space of weights, by step: median and band over seeds."""
    return _draw_sharpness_curves(table, "sharpness_of_weights", "sharpness of weights, %")


def draw_predictions(predictions: Mapping[str, Sequence[PredictionAtStep]]) -> Figure:
    """How well scores predict, at each step, which of the remaining runs will diverge.

    Args:
      predictions: name of a score → its predictions by step. For the first score, ROC curves are
        drawn as well.
    """
    figure = Figure(figsize=(15, 4.4), dpi=150, layout="constrained")
    over_all, within, curves = figure.subplots(1, 3)
    every_step = {prediction.step for by_step in predictions.values() for prediction in by_step}
    for i, (name, by_step) in enumerate(predictions.items()):
        style, steps = run_style(i), [prediction.step for prediction in by_step]
        stroke = {"color": style.color, "ls": style.dash, "marker": style.marker, "ms": 3}
        area = np.array([p.roc.area for p in by_step]).reshape(-1, 3).T
        over_all.fill_between(steps, area[1], area[2], color=style.color, alpha=0.12, lw=0)
        over_all.plot(steps, area[0], label=name, **stroke)
        if i == 0:
            by_chance = np.array([p.within for p in by_step]).reshape(-1, 3).T
            within.fill_between(steps, by_chance[1], by_chance[2], color=_GREY, alpha=0.2, lw=0)
        if name != "learning rate":  # it is constant within a stratum
            within.plot(steps, [p.within.value for p in by_step], **stroke)
    for ax, runs in ((over_all, "all runs"), (within, "runs of one arm and rate")):
        ax.set_ylim(0, 1.02)
        ax.set_xlabel("step at which it is measured")
        ax.set_ylabel(f"area under the ROC, {runs}")
        if len(every_step) == 1:
            ax.set_xticks([*every_step])
        if not _leave_empty_without_data(ax, "no arm and rate has runs of both outcomes"):
            ax.axhline(0.5, color=_GREY, lw=1, ls=":")
    name, by_step = next(iter(predictions.items()))
    _draw_roc_curves(curves, name, by_step, first_style=len(predictions))
    return _add_legend(figure, [over_all])


def _draw_roc_curves(
    ax: Axes, name: str, predictions: Sequence[PredictionAtStep], first_style: int
) -> None:
    """ROC curves of a score at up to three steps."""
    ax.set_title(f"ROC of {name}", fontsize=10)
    quarter = len(predictions) // 4
    for i, p in enumerate(predictions[quarter :: max(1, quarter)][:3]):
        label = f"step {p.step}: {p.diverging} of {p.diverging + p.stable} diverge later"
        style = run_style(i + first_style)
        ax.plot(p.roc.false_alarms, p.roc.hits, color=style.color, label=label)
    ax.plot([0, 1], [0, 1], color=_GREY, lw=1, ls=":")
    ax.set_xlabel("false alarms, share of the others")
    ax.set_ylabel("hits, share of runs that diverge")
    ax.legend(fontsize=8, loc="best")


def _draw_diverged_shares(ax: Axes, table: SweepTable, i: int, arm: str) -> None:
    """Share of diverged seeds at each rate; each arm is shifted a little along the rate axis."""
    diverged = table.diverged(arm).sum(0).tolist()
    runs = table.has_run(arm).sum(0).tolist()
    unknown = Interval(np.nan, np.nan, np.nan)
    shares = [
        proportion(bad, count) if count else unknown
        for bad, count in zip(diverged, runs, strict=True)
    ]
    rates = np.array(table.rates) * 1.04 ** (i - len(table.arms) / 2)
    errors = [[s.value - s.low for s in shares], [s.high - s.value for s in shares]]
    style = run_style(i)
    values = np.array([share.value for share in shares])
    ax.errorbar(rates, values, errors, color=style.color, fmt="none", lw=1, capsize=2)
    label = escape_dollars(arm)
    ax.plot(rates, values, color=style.color, marker=style.marker, ms=4, ls="", label=label)


def _draw_sharpness_curves(table: SweepTable, name: str, label: str) -> Figure:
    figure, axes = _grid_of_axes(len(table.rates), 4.4, 3.3)
    for rate, ax in zip(table.rates, axes, strict=False):
        has_points = False
        for i, arm in enumerate(table.arms):
            steps, values = table.sharpness_curves(arm, rate, name)
            band = _quantiles_over_runs(np.where(values > 0, values, np.nan))
            _draw_band(ax, steps, band, i, arm)
            has_points |= bool(np.isfinite(band[1]).any())
        ax.set_title(f"learning rate {rate:g}", fontsize=10)
        ax.set_xlabel("step")
        _leave_empty_without_data(ax, "no finite value")
        if has_points:
            ax.set_yscale("log")
            low, high = (math.log10(end) for end in ax.get_ylim())
            low, high = widen(low, high, math.log10(_LEAST_RATIO))
            ax.set_ylim(10**low, 10**high)
    axes[0].set_ylabel(label)
    return _add_legend(figure, axes)


def _describe_seeds(table: SweepTable) -> str:
    """How many seeds each median of final losses is over."""
    counts = np.array([table.has_run(arm).sum(0) for arm in table.arms])
    low, high = counts[counts > 0].min(), counts.max()
    if high == 1:
        return "one seed, so no interval"
    return f"median of {high if low == high else f'{low} to {high}'} seeds"


def _leave_empty_without_data(ax: Axes, reason: str) -> bool:
    """Write the reason on axes whose lines have no finite value; whether there is none."""
    is_empty = not any(np.isfinite(np.asarray(line.get_ydata(), float)).any() for line in ax.lines)
    if is_empty:
        leave_empty(ax, reason)
    return is_empty


def _all_stable_finals(table: SweepTable) -> np.ndarray:
    finals = [table.stable_values(arm, "final_loss").ravel() for arm in table.arms]
    finals = np.concatenate(finals)
    return finals[np.isfinite(finals)]


def _color_limits(table: SweepTable) -> tuple[float, float]:
    """Limits of the color scale. Diverged runs do not count, and the worst tenth saturates."""
    finals = _all_stable_finals(table)
    return (finals.min(), np.quantile(finals, 0.9)) if finals.size else (0.0, 1.0)


def _grid_of_axes(count: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, list(axes[:count])


def _quantiles_over_runs(values: np.ndarray) -> np.ndarray:
    """The `_QUANTILES` at each point, float64[3, points] of float64[runs, points].

    A NaN counts as worse than any number, since it comes from divergence. A quantile that is
    infinite for this reason is returned as NaN.
    """
    if not values.size:
        return np.full((3, values.shape[1]), np.nan)
    ordered = np.sort(np.where(np.isnan(values), np.inf, values), axis=0)
    position = np.array(_QUANTILES) * (len(ordered) - 1)
    below, above = ordered[np.floor(position).astype(int)], ordered[np.ceil(position).astype(int)]
    fraction = (position % 1)[:, None]
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        quantiles = np.where(above == below, below, below + fraction * (above - below))
    return np.where(np.isfinite(quantiles), quantiles, np.nan)


def _draw_band(
    ax: Axes, x: np.ndarray, quantiles: np.ndarray, i: int, arm: str, markers: bool = False
) -> None:
    """The median as a line, in the style of arm i, and the band around it."""
    low, middle, high = quantiles
    style = run_style(i)
    marker = style.marker if markers or len(x) == 1 else None
    stroke = {"color": style.color, "ls": style.dash, "marker": marker, "ms": 4, "lw": 1.4}
    ax.plot(x, middle, label=escape_dollars(arm), **stroke)
    top = np.where(np.isnan(high), middle, high)
    ax.fill_between(x, low, top, color=style.color, alpha=0.12, lw=0)


def _add_legend(figure: Figure, axes: Sequence[Axes]) -> Figure:
    """Add a legend of the lines that are in view in any of the axes."""
    lines: dict[str, list[bool]] = {}
    handles = {}
    for ax in axes:
        low, high = ax.get_ylim()
        for line, label in zip(*ax.get_legend_handles_labels(), strict=True):
            y = np.asarray(cast(Line2D, line).get_ydata(), float)
            lines.setdefault(label, []).append(bool(((low <= y) & (y <= high)).any()))
            handles.setdefault(label, line)
    shown = [label for label, in_view in lines.items() if any(in_view)]
    options = {"ncols": 5, "fontsize": 8, "frameon": False}
    figure.legend([handles[n] for n in shown], shown, loc="outside lower center", **options)
    return figure
