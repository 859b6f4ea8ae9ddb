# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Pictures that compare runs, by tokens: in the same axes, or in axes for each run."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pqt_jax.analysis import plot_style, run_reader
from pqt_jax.analysis.plot_style import Runs, run_style, set_scale
from pqt_jax.analysis.run_reader import RecordedRun
from pqt_jax.models.decoder import short_kernel_name
from pqt_jax.training.run.run_plots import BITS_SPAN, leave_empty, smooth, style_axes, widen

LOSS_SPAN = 0.05  # least range of a scale of losses, in nats per token
B_T = "mean bit-width $b_t$ (bits)"


def draw_losses(runs: Runs) -> Figure:
    """Training loss, raw and smoothed, and validation loss."""
    figure = Figure(figsize=(12, 4.6), dpi=150, layout="constrained")
    training, validation = figure.subplots(1, 2)
    notes, shown = {}, {training: {}, validation: {}}
    for i, run in runs.items():
        style = run_style(i)
        tokens, values = run_reader.read_curve(run, "loss")
        finite = np.isfinite(values)
        notes[i] = "gave up" if run_reader.gave_up(run) else _note_gap(tokens, finite)
        notes[i] = notes[i] or ("diverged" if run_reader.has_diverged(run) else "")
        x, y = tokens[finite], smooth(values[finite])
        training.plot(x, values[finite], color=style.color, lw=0.6, alpha=0.25)
        plot_style.draw_curve(training, x, y, style)
        if notes[i] and len(x):
            training.plot(x[-1], y[-1], "x", color=style.color, ms=9, mew=2.5)
        shown[training][i] = values
        tokens, values = run_reader.read_curve(run, "validation_loss")
        plot_style.draw_curve(validation, tokens, values, style, markers=True)
        shown[validation][i] = values
    training.set(title="training loss, smoothed (faint: as recorded)")
    validation.set(title="validation loss of the master weights")
    for axes, curves in shown.items():
        axes.set(ylabel="loss (nats per token)")
        learned = [v for i, v in curves.items() if not run_reader.has_diverged(runs[i])]
        scaled = _select_for_scale(learned) or _select_for_scale([*curves.values()])
        set_scale(axes, [(v.min(), plot_style.later_range(v)[1]) for v in scaled], LOSS_SPAN)
        plot_style.style_token_axes(axes)
        plot_style.leave_empty_without_data(axes, [*curves.values()])
    plot_style.add_run_legend(figure, runs, notes)
    return figure


def _note_gap(tokens: np.ndarray, finite: np.ndarray) -> str:
    """The note of a curve that is empty or ends with values that are not finite; else empty."""
    if not len(tokens):
        return "nothing recorded yet"
    end = int(np.flatnonzero(finite).max(initial=-1)) + 1
    if end == len(tokens):
        return ""
    return f"not finite from {plot_style.format_count(tokens[end])} tokens"


def _select_for_scale(curves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The finite values of the curves that set a scale.

    These are the curves that do not end in NaN, or all if there are no such.
    """
    chosen = [values for values in curves if np.isfinite(values[-1:]).all()]
    finite = [values[np.isfinite(values)] for values in chosen or curves]
    return [values for values in finite if len(values)]


def _set_bits_scale(axes: Axes, curves: Sequence[np.ndarray]) -> None:
    set_scale(axes, [(v.min(), v.max()) for v in curves], BITS_SPAN)


def draw_bits(runs: Runs) -> Figure:
    """Mean b_t over training, and for each kernel by layer in the newest record."""
    paths = list(dict.fromkeys(path for run in runs.values() for path in latest_layers(run)))
    columns = min(4, len(paths) + 1)
    rows = math.ceil((len(paths) + 1) / columns)
    figure = Figure(figsize=(max(3.2 * columns, 8), 2.7 * rows), dpi=150, layout="constrained")
    over_training, *by_kernel = figure.subplots(rows, columns, squeeze=False).ravel()
    curves = {i: run_reader.read_curve(run, "bits_mean") for i, run in runs.items()}
    for i, (tokens, means) in curves.items():
        plot_style.draw_curve(over_training, tokens, means, run_style(i))
    scaled = _select_for_scale([means for _, means in curves.values()])
    _set_bits_scale(over_training, scaled)
    over_training.set(title="all blocks, over training", ylabel=B_T)
    plot_style.style_token_axes(over_training)
    plot_style.leave_empty_without_data(over_training, [means for _, means in curves.values()])
    for axes, path in zip(by_kernel, paths, strict=False):
        by_layer = {i: latest_layers(run).get(path, np.empty(0)) for i, run in runs.items()}
        for i, means in by_layer.items():
            plot_style.draw_curve(
                axes, np.arange(len(means)), means, run_style(i), markers=len(means) <= 32
            )
        axes.set(title=short_kernel_name(path), xlabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        style_axes(axes)
        plot_style.leave_empty_without_data(axes, [*by_layer.values()])
    for axes in by_kernel[len(paths) :]:
        axes.set_visible(False)
    layers = [means for run in runs.values() for means in latest_layers(run).values()]
    scaled = _select_for_scale([means for means in layers if np.isfinite(means).any()])
    for axes in by_kernel[: len(paths)]:
        _set_bits_scale(axes, scaled)
    notes = {i: _note_gap(tokens, np.isfinite(means)) for i, (tokens, means) in curves.items()}
    plot_style.add_run_legend(figure, runs, notes)
    return figure


def latest_layers(run: RecordedRun) -> dict[str, np.ndarray]:
    """Path → mean b_t of each layer, in the newest record."""
    return run.bits[-1].layers if run.bits else {}


def draw_bits_over_training(runs: Runs) -> Figure:
    """Mean b_t of each layer over training, with axes for each run.

    Args:
      runs: each has at least one record of bits.
    """
    figure, axes_per_run = plot_style.make_axes_per_run(runs)
    grids = {i: _mean_by_layer(run) for i, run in runs.items()}
    values = np.concatenate([grid.ravel() for grid in grids.values()])
    values = values[np.isfinite(values)]
    low, high = widen(values.min(), values.max(), BITS_SPAN) if len(values) else (0, 1)
    image = None
    for (i, run), axes in zip(runs.items(), axes_per_run, strict=True):
        edges, layers = run_reader.bit_record_edges(run), np.arange(len(grids[i]) + 1) - 0.5
        image = axes.pcolormesh(edges, layers, grids[i], vmin=low, vmax=high, cmap="viridis")
        axes.set(ylabel="layer")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if not np.isfinite(grids[i]).any():
            leave_empty(axes, "no finite bit-width")
    assert image is not None
    figure.colorbar(image, ax=axes_per_run, label=B_T)
    return figure


def _mean_by_layer(run: RecordedRun) -> np.ndarray:
    """[layers, records]: mean over the kernels that have the largest number of layers."""
    depth = max(len(means) for means in latest_layers(run).values())
    columns = []
    for record in run.bits:
        deepest = [means for means in record.layers.values() if len(means) == depth]
        columns.append(np.mean(deepest, axis=0) if deepest else np.full(depth, np.nan))
    return np.stack(columns, axis=1)


def draw_formats(runs: Runs) -> Figure:
    """The share of the weights in each format, a bar for each run."""
    figure = Figure(figsize=(11, 0.42 * len(runs) + 1), dpi=150, layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(runs))
    for name, color in plot_style.FORMATS.items():
        shares = np.array([run_reader.latest_formats(run).get(name, 0.0) for run in runs.values()])
        axes.barh(range(len(runs)), shares, left=left, color=color, height=0.72)
        for y, (x, share) in enumerate(zip(left, shares, strict=True)):
            if share >= 0.04:
                options = {"ha": "center", "va": "center", "fontsize": 9}
                color = plot_style.TEXT_COLORS[name]
                axes.text(x + share / 2, y, f"{100 * share:.0f} %", color=color, **options)
        left += shares
    axes.set_yticks(range(len(runs)), [plot_style.run_label(i, run) for i, run in runs.items()])
    for tick, i in zip(axes.get_yticklabels(), runs, strict=True):
        tick.set_color(run_style(i).color)
    axes.set(xlim=(0, 1), ylim=(len(runs) - 0.5, -0.5), xlabel="share of the sampled weights (%)")
    plot_style.format_as_percent(axes.xaxis)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params("y", length=0)
    present = {name for run in runs.values() for name in run_reader.latest_formats(run)}
    plot_style.add_format_legend(figure, present)
    return figure


def draw_formats_over_training(runs: Runs) -> Figure:
    """The share of the weights in each format over training, with axes for each run.

    Args:
      runs: each has at least one record of bits.
    """
    figure, axes_per_run = plot_style.make_axes_per_run(runs)
    for run, axes in zip(runs.values(), axes_per_run, strict=True):
        first, records = run.bits[0], run.bits
        shares = [
            [record.formats.get(name, 0.0) for record in (first, *records)]
            for name in plot_style.FORMATS
        ]
        axes.stackplot(
            run_reader.bit_record_edges(run),
            shares,
            colors=list(plot_style.FORMATS.values()),
            step="pre",
            lw=0,
        )
        axes.set(ylim=(0, 1), ylabel="share of weights (%)")
        plot_style.format_as_percent(axes.yaxis)
        axes.margins(x=0)
        if not np.any(shares):
            leave_empty(axes, "no finite bit-width")
    present = {name for run in runs.values() for record in run.bits for name in record.formats}
    plot_style.add_format_legend(figure, present)
    return figure
