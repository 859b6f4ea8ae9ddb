# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Pictures of several runs over one another, or side by side, by tokens."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pqt_jax.analysis import plot_style, run_reader
from pqt_jax.analysis.plot_style import Runs, look
from pqt_jax.analysis.run_reader import Recorded
from pqt_jax.training.run.run_plots import finish, leave_empty, smoothed

B_T = "mean bit-width $b_t$ (bits)"


def losses(runs: Runs) -> Figure:
    """Training loss, raw and smoothed, beside validation loss."""
    figure = Figure(figsize=(12, 4.6), dpi=150, layout="constrained")
    training, validation = figure.subplots(1, 2)
    notes, shown = {}, {training: [], validation: []}
    for i, run in runs.items():
        style = look(i)
        tokens, values = run_reader.curve(run, "loss")
        good = np.isfinite(values)
        notes[i] = _note(tokens, good)
        at, smooth = tokens[good], smoothed(values[good])
        training.plot(at, values[good], color=style.color, lw=0.6, alpha=0.25)
        plot_style.line(training, at, smooth, style)
        if notes[i] and len(at):
            training.plot(at[-1], smooth[-1], "x", color=style.color, ms=9, mew=2.5)
        shown[training].append(values)
        tokens, values = run_reader.curve(run, "validation_loss")
        plot_style.line(validation, tokens, values, style, markers=True)
        shown[validation].append(values)
    training.set(title="training loss, smoothed (faint: as recorded)")
    validation.set(title="validation loss of the master weights")
    for axes, curves in shown.items():
        axes.set(ylabel="loss (nats per token)")
        lasting = _lasting(curves)
        _scale(axes, [values.min() for values in lasting], [_top(values) for values in lasting])
        plot_style.by_tokens(axes)
    plot_style.legend(figure, runs, notes)
    return figure


def _note(tokens: np.ndarray, good: np.ndarray) -> str:
    """What is to be said of a curve that is not whole."""
    if not len(tokens):
        return "nothing recorded yet"
    ends = int(np.flatnonzero(good).max(initial=-1)) + 1
    return f"not finite from {plot_style.count(tokens[ends])} tokens" if ends < len(tokens) else ""


def _lasting(curves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The finite values of the curves that a scale is made for: if any, those that have not ended
    in NaN.
    """
    lasting = [values for values in curves if np.isfinite(values[-1:]).all()]
    found = [values[np.isfinite(values)] for values in lasting or curves]
    return [values for values in found if len(values)]


def _top(values: np.ndarray) -> float:
    """Where a scale may end: what is above, the first fifth and spikes, would hide the rest."""
    later = values[len(values) // 5 :]
    median, high = np.percentile(later, [50, 95])
    return min(later.max(), 2 * high - median)


def _scale(axes: Axes, lows: Sequence[float], highs: Sequence[float]) -> None:
    if lows:
        margin = 0.05 * (max(highs) - min(lows)) or 0.5
        axes.set_ylim(min(lows) - margin, max(highs) + margin)


def bits(runs: Runs) -> Figure:
    """Mean b_t over training, and by layer in the newest record, kernel by kernel."""
    paths = list(dict.fromkeys(path for run in runs.values() for path in newest(run)))
    columns = min(4, len(paths) + 1)
    rows = math.ceil((len(paths) + 1) / columns)
    figure = Figure(figsize=(max(3.2 * columns, 8), 2.7 * rows), dpi=150, layout="constrained")
    over_training, *panels = figure.subplots(rows, columns, squeeze=False).ravel()
    curves = {i: run_reader.curve(run, "bits_mean") for i, run in runs.items()}
    for i, (tokens, means) in curves.items():
        plot_style.line(over_training, tokens, means, look(i))
    lasting = _lasting([means for _, means in curves.values()])
    _scale(over_training, [v.min() for v in lasting], [v.max() for v in lasting])
    over_training.set(title="all blocks, over training", ylabel=B_T)
    plot_style.by_tokens(over_training)
    for axes, path in zip(panels, paths, strict=False):
        for i, run in runs.items():
            means = newest(run).get(path, np.empty(0))
            plot_style.line(axes, np.arange(len(means)), means, look(i), markers=len(means) <= 32)
        axes.set(title=short(path), xlabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        finish(axes)
    for axes in panels[len(paths) :]:
        axes.set_visible(False)
    every = [means for run in runs.values() for means in newest(run).values()]
    finite = _lasting([means for means in every if np.isfinite(means).any()])
    for axes in panels[: len(paths)]:
        _scale(axes, [v.min() for v in finite], [v.max() for v in finite])
    plot_style.legend(figure, runs, {i: _note(x, np.isfinite(y)) for i, (x, y) in curves.items()})
    return figure


def newest(run: Recorded) -> dict[str, np.ndarray]:
    """Path → mean b_t of each layer, as recorded last."""
    return run.bits[-1].layers if run.bits else {}


def short(path: str) -> str:
    """The name of a kernel: h/attn/q/kernel is attn/q."""
    return path.removeprefix("h/").removesuffix("/kernel")


def bits_over_training(runs: Runs) -> Figure:
    """Mean b_t of each layer over training, one panel for each run; runs have recorded bits."""
    figure, panels = plot_style.panels(runs)
    grids = {i: _by_layer(run) for i, run in runs.items()}
    every = np.concatenate([grid.ravel() for grid in grids.values()])
    every = every[np.isfinite(every)]
    low, high = (every.min(), every.max()) if len(every) else (0, 1)
    image = None
    for (i, run), axes in zip(runs.items(), panels, strict=True):
        sides = np.arange(len(grids[i]) + 1) - 0.5
        image = axes.pcolormesh(
            run_reader.stretches(run), sides, grids[i], vmin=low, vmax=high, cmap="viridis"
        )
        axes.set(ylabel="layer")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if not np.isfinite(grids[i]).any():
            leave_empty(axes, "no finite bit-width")
    assert image is not None
    figure.colorbar(image, ax=panels, label=B_T)
    return figure


def _by_layer(run: Recorded) -> np.ndarray:
    """[layers, records]: mean over the kernels that are stacked as deep as the deepest."""
    depth = max(len(means) for means in newest(run).values())
    columns = []
    for record in run.bits:
        deep = [means for means in record.layers.values() if len(means) == depth]
        columns.append(np.mean(deep, axis=0) if deep else np.full(depth, np.nan))
    return np.stack(columns, axis=1)


def formats(runs: Runs) -> Figure:
    """The share of the weights in each format, a bar for each run."""
    figure = Figure(figsize=(11, 0.42 * len(runs) + 1), dpi=150, layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(runs))
    for name, color in plot_style.FORMATS.items():
        shares = np.array([run_reader.formats(run).get(name, 0.0) for run in runs.values()])
        axes.barh(range(len(runs)), shares, left=left, color=color, height=0.72)
        for y, (x, share) in enumerate(zip(left, shares, strict=True)):
            if share >= 0.04:
                place = {
                    "ha": "center",
                    "va": "center",
                    "color": plot_style.INKS[name],
                    "fontsize": 9,
                }
                axes.text(x + share / 2, y, f"{100 * share:.0f} %", **place)
        left += shares
    axes.set_yticks(range(len(runs)), [plot_style.label(i, run) for i, run in runs.items()])
    for tick, i in zip(axes.get_yticklabels(), runs, strict=True):
        tick.set_color(look(i).color)
    axes.set(xlim=(0, 1), ylim=(len(runs) - 0.5, -0.5), xlabel="share of the sampled weights (%)")
    plot_style.percent(axes.xaxis)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params("y", length=0)
    plot_style.format_legend(figure)
    return figure


def formats_over_training(runs: Runs) -> Figure:
    """The share of the weights in each format over training, one panel for each run."""
    figure, panels = plot_style.panels(runs)
    for run, axes in zip(runs.values(), panels, strict=True):
        shares = [
            [record.formats.get(name, 0.0) for record in run.bits] for name in plot_style.FORMATS
        ]
        shares = [[own[0], *own] for own in shares]
        axes.stackplot(
            run_reader.stretches(run),
            shares,
            colors=list(plot_style.FORMATS.values()),
            step="pre",
            lw=0,
        )
        axes.set(ylim=(0, 1), ylabel="share of weights (%)")
        plot_style.percent(axes.yaxis)
        axes.margins(x=0)
        if not np.any(shares):
            leave_empty(axes, "no finite bit-width")
    plot_style.format_legend(figure)
    return figure
