# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The picture of runs against a baseline: differences over training, averaged over seeds."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pqt_jax.analysis import differences, plot_style, run_reader
from pqt_jax.analysis.plot_style import Runs, escape_dollars, run_style
from pqt_jax.training.run.run_plots import leave_empty

SPAN = 0.02  # nats per token, the least range of a scale: another seed changes about as much


def draw_differences(runs: Runs, baseline: int) -> Figure:
    """Training and validation loss minus the baseline's, by tokens.

    A group of seeds has the style of its first run.

    Args:
      runs: runs by their numbers, in two groups of seeds or more.
      baseline: the number of a run of the baseline.
    """
    base, groups = differences.split(runs, baseline)
    figure = Figure(figsize=(12, 4.6), dpi=150, layout="constrained")
    training, validation = figure.subplots(1, 2)
    _draw(training, base, groups, "loss", smoothed=True)
    _draw(validation, base, groups, "validation_loss", smoothed=False)
    training.set(title="training loss minus the baseline's, smoothed")
    validation.set(title="validation loss minus the baseline's, master weights")
    texts = {}
    for group in (base, *groups):
        about = "baseline" if group is base else differences.describe_pairs(group, base)
        diverged = sum(map(run_reader.has_diverged, group.values()))
        if diverged:
            about += "; diverged" if len(group) == 1 else f"; {diverged} of {len(group)} diverged"
        texts[min(group)] = f"{differences.group_label(group)} ({about})"
    plot_style.add_legend(figure, {i: escape_dollars(text) for i, text in texts.items()})
    return figure


def _draw(axes: Axes, base: Runs, groups: list[Runs], field: str, *, smoothed: bool) -> None:
    curves = [
        differences.difference_curve(group, base, field, smoothed=smoothed) for group in groups
    ]
    axes.set(ylabel="difference (nats per token)")
    plot_style.style_token_axes(axes)
    if not any(np.isfinite(curve.mean).any() for curve in curves):
        return leave_empty(axes, "no tokens in common")
    style = run_style(min(base))
    axes.axhline(0, color=style.color, ls=style.dash, lw=1.7)
    learned, all_ranges = [], []
    for group, curve in zip(groups, curves, strict=True):
        style = run_style(min(group))
        plot_style.draw_band(axes, curve.tokens, curve.low, curve.high, style)
        if len(curve.tokens) == 1:  # a band has no width there
            axes.vlines(curve.tokens, curve.low, curve.high, color=style.color, lw=1.7)
        plot_style.draw_curve(axes, curve.tokens, curve.mean, style, markers=not smoothed)
        finite = [v[np.isfinite(v)] for v in (curve.low, curve.mean, curve.high)]
        ranges = [plot_style.later_range(v) for v in finite if len(v)]
        all_ranges += ranges
        if not any(map(run_reader.has_diverged, group.values())):
            learned += ranges
    plot_style.set_scale(axes, [(0.0, 0.0), *(learned or all_ranges)], SPAN)
