# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Pictures of one run: the losses, and the bit-widths. Also the style that all pictures share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pqt_jax.models.decoder import short_kernel_name
from pqt_jax.transform.tree_paths import paths_and_leaves

BLUE, ORANGE, GREY = "#2f6db3", "#d9822b", "#8a8a8a"
BITS_SPAN = 1.0  # least range of a scale of bit-widths: learned ones scatter by a tenth of it
Records = Sequence[Mapping[str, Any]]


def draw_losses(records: Records, title: str) -> Figure:
    """Training loss, raw and smoothed, and validation losses by step.

    Args:
      records: the records of `metrics.jsonl`.
      title: one line.
    """
    steps, losses = _read_series(records, "loss")
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.plot(steps, losses, color=BLUE, lw=0.7, alpha=0.45, label="training, one step")
    axes.plot(steps, smooth(losses), color=BLUE, lw=2, label="training, smoothed")
    validation_steps, validation = _read_series(records, "validation_loss")
    if len(validation):
        label = f"validation, master weights ({validation[-1]:.3f} at the end)"
        axes.plot(validation_steps, validation, "o", color=ORANGE, ms=5, label=label)
    axes.legend(frameon=False)
    style_axes(axes)
    _note_end_of_finite_values(axes, records, "loss")
    return figure


def draw_bits(records: Records, b_t: Mapping[str, Any], title: str) -> Figure:
    """Bit-widths in three pictures: by step; at the end, over all blocks; by layer and kernel.

    Args:
      records: the records of `metrics.jsonl`.
      b_t: the final bit-widths, a nested dict; stacked parameters have the layer as first axis.
        Bit-widths that are not finite are left out.
      title: one line.
    """
    figure = Figure(figsize=(12, 4), dpi=150, layout="constrained")
    by_step, histogram, by_layer = figure.subplots(1, 3, width_ratios=(1.1, 1, 1.1))
    figure.suptitle(title)
    leaves = {path: np.asarray(leaf) for path, leaf in paths_and_leaves(b_t).items()}
    _draw_bits_by_step(by_step, records)
    _draw_histogram(histogram, leaves)
    image = _draw_bits_by_layer(by_layer, leaves)
    if image is not None:
        figure.colorbar(image, ax=by_layer, label="mean bit-width $b_t$ (bits)")
    return figure


def _draw_bits_by_step(axes: Axes, records: Records) -> None:
    names = ("bits_mean", "bits_min", "bits_max")
    finite = [r for r in records if all(len(_read_series([r], name)[0]) for name in names)]
    (steps, mean), (_, low), (_, high) = (_read_series(finite, name) for name in names)
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.2, lw=0, label="min to max")
    axes.plot(steps, mean, color=BLUE, lw=2, label="mean")
    axes.set(xlabel="step", ylabel="bit-width $b_t$ (bits)", title="all blocks, by step")
    if len(steps):
        axes.set_ylim(widen(low.min() - 0.05, high.max() + 0.05, BITS_SPAN))
    axes.legend(frameon=False)
    style_axes(axes)
    _note_end_of_finite_values(axes, records, "bits_mean")


def _draw_histogram(axes: Axes, leaves: Mapping[str, np.ndarray]) -> None:
    values = np.concatenate([np.empty(0), *(leaf.ravel() for leaf in leaves.values())])
    values = values[np.isfinite(values)]
    if not len(values):  # a run that diverged may have no bit-width left
        leave_empty(axes, "no finite bit-width")
    else:
        axes.hist(values, bins=40, range=widen(values.min(), values.max(), BITS_SPAN), color=BLUE)
        axes.axvline(values.mean(), color=ORANGE, lw=1.5, label=f"mean {values.mean():.2f}")
        axes.legend(frameon=False, loc="upper right")
        axes.margins(y=0.25)  # room for the legend
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="bit-width $b_t$ (bits)", ylabel="blocks", title="all blocks, at the end")
    style_axes(axes)


def _draw_bits_by_layer(axes: Axes, leaves: Mapping[str, np.ndarray]) -> Any:
    """The heat map of kernels and layers; returns the image, or None if nothing is finite."""
    rows = {name: leaf.reshape(-1, *leaf.shape[-2:]).mean((1, 2)) for name, leaf in leaves.items()}
    grid = np.full((len(rows), max(map(len, rows.values()), default=1)), np.nan)
    for i, row in enumerate(rows.values()):
        grid[i, : len(row)] = row
    image = None
    if np.isfinite(grid).any():
        low, high = widen(np.nanmin(grid), np.nanmax(grid), BITS_SPAN)
        options = {"cmap": "viridis", "interpolation": "nearest", "vmin": low, "vmax": high}
        image = axes.imshow(grid, aspect="auto", **options)
        axes.set_yticks(range(len(rows)), [short_kernel_name(name) for name in rows])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        leave_empty(axes, "no finite bit-width")
    axes.set(xlabel="layer", title="mean by layer and kernel, at the end")
    return image


def _read_series(records: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the records that have a finite value of a field."""
    pairs = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a tenth of the points; over fewer near both ends.

    Example:
      >>> smooth(np.array([8.0, 4.0, *[2.0] * 37, 6.0]))[[0, 1, 2, -1]].round(2).tolist()
      [8.0, 4.67, 3.6, 3.33]
    """
    index = np.arange(len(values))
    half = np.minimum(index, len(values) // 20)
    ends = np.minimum(index + half + 1, len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[ends] - total[index - half]) / (ends - index + half)


def widen(low: float, high: float, span: float) -> tuple[float, float]:
    """The limits of a scale, moved apart where they are closer than `span`.

    A scale that is fitted to noise makes the noise look like structure.

    Example:
      >>> widen(4.5, 4.75, 1.0), widen(2.0, 6.0, 1.0)
      ((4.125, 5.125), (2.0, 6.0))
    """
    missing = max(0.0, span - (high - low)) / 2
    return float(low - missing), float(high + missing)


def _note_end_of_finite_values(axes: Axes, records: Records, name: str) -> None:
    """Write the step from which a value is not finite on axes that show it by step."""
    finite_steps, _ = _read_series(records, name)
    last = max(finite_steps, default=-1)
    if later := [r["step"] for r in records if name in r and r["step"] > last]:
        text = f"not finite from step {later[0]}"
        if not len(finite_steps):
            return leave_empty(axes, text)
        axes.set_xlim(right=later[-1])
        axes.text(0.98, 0.5, text, transform=axes.transAxes, ha="right", color=GREY)
    elif not len(finite_steps):
        leave_empty(axes, "nothing recorded")


def leave_empty(axes: Axes, reason: str) -> None:
    """Remove the scales of axes that have nothing to show, and write the reason on them."""
    if legend := axes.get_legend():
        legend.remove()
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=GREY)


def style_axes(axes: Axes) -> None:
    """Remove the upper and right borders, and draw a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
