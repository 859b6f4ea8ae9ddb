# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Pictures of a run: `loss.png` and `bits.png`."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pqt_jax.interchange import files
from pqt_jax.transform.tree_paths import paths_and_leaves

BLUE, ORANGE, GREY = "#2f6db3", "#d9822b", "#8a8a8a"


def loss(path: Path, records: Sequence[Mapping[str, Any]], title: str) -> None:
    """Training loss, raw and smoothed, and validation losses by step.

    Args:
      path: of the PNG to write.
      records: of `metrics.jsonl`.
      title: one line.
    """
    steps, losses = _series(records, "loss")
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.plot(steps, losses, color=BLUE, lw=0.7, alpha=0.45, label="training, one step")
    axes.plot(steps, smoothed(losses), color=BLUE, lw=2, label="training, smoothed")
    at, validation = _series(records, "validation_loss")
    if len(at):
        label = f"validation, master weights ({validation[-1]:.3f} at the end)"
        axes.plot(at, validation, "o", color=ORANGE, ms=5, label=label)
    axes.legend(frameon=False)
    finish(axes)
    _say_where_it_ends(axes, records, "loss")
    _save(figure, path)


def bits(
    path: Path, records: Sequence[Mapping[str, Any]], b_t: Mapping[str, Any], title: str
) -> None:
    """Bit-widths: by step, over all blocks at the end, and by layer and kernel at the end.

    Args:
      path: of the PNG to write.
      records: of `metrics.jsonl`.
      b_t: the final bit-widths, a nested dict; stacked parameters have the layer as first axis.
        What is not finite is left out.
      title: one line.
    """
    figure = Figure(figsize=(12, 4), dpi=150, layout="constrained")
    over_steps, histogram, by_layer = figure.subplots(1, 3, width_ratios=(1.1, 1, 1.1))
    figure.suptitle(title)

    names = ("bits_mean", "bits_min", "bits_max")
    whole = [r for r in records if all(len(_series([r], name)[0]) for name in names)]
    (steps, mean), (_, low), (_, high) = (_series(whole, name) for name in names)
    over_steps.fill_between(steps, low, high, color=BLUE, alpha=0.2, lw=0, label="min to max")
    over_steps.plot(steps, mean, color=BLUE, lw=2, label="mean")
    over_steps.set(xlabel="step", ylabel="bit-width $b_t$ (bits)", title="all blocks, by step")
    over_steps.legend(frameon=False)
    finish(over_steps)
    _say_where_it_ends(over_steps, records, "bits_mean")

    leaves = {path: np.asarray(leaf) for path, leaf in paths_and_leaves(b_t).items()}
    every = np.concatenate([np.empty(0), *(leaf.ravel() for leaf in leaves.values())])
    every = every[np.isfinite(every)]
    if not len(every):  # a run that diverged may have no bit-width left
        leave_empty(histogram, "no finite bit-width")
    else:
        histogram.hist(every, bins=40, color=BLUE)
        histogram.axvline(every.mean(), color=ORANGE, lw=1.5, label=f"mean {every.mean():.2f}")
        histogram.legend(frameon=False, loc="upper right")
        histogram.margins(y=0.25)  # room for the legend
        histogram.yaxis.set_major_locator(MaxNLocator(integer=True))
    histogram.set(xlabel="bit-width $b_t$ (bits)", ylabel="blocks", title="all blocks, at the end")
    finish(histogram)

    rows = {name: leaf.reshape(-1, *leaf.shape[-2:]).mean((1, 2)) for name, leaf in leaves.items()}
    widest = max(map(len, rows.values()), default=1)
    grid = np.full((len(rows), widest), np.nan)
    for i, row in enumerate(rows.values()):
        grid[i, : len(row)] = row
    if np.isfinite(grid).any():
        image = by_layer.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest")
        figure.colorbar(image, ax=by_layer, label="mean bit-width $b_t$ (bits)")
        names = [name.removeprefix("h/").removesuffix("/kernel") for name in rows]
        by_layer.set_yticks(range(len(names)), names)
        by_layer.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        leave_empty(by_layer, "no finite bit-width")
    by_layer.set(xlabel="layer", title="mean by layer and kernel, at the end")
    _save(figure, path)


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    chosen = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    steps, values = zip(*chosen, strict=True) if chosen else ((), ())
    return np.array(steps), np.array(values, float)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a tenth of the points; fewer at the start, and none beyond the end.

    Example:
      >>> smoothed(np.array([8.0, 4.0, *[2.0] * 37, 6.0]))[[0, 1, 2, -1]].round(2).tolist()
      [8.0, 4.67, 3.6, 3.33]
    """
    index = np.arange(len(values))
    half = np.minimum(index, len(values) // 20)
    ends = np.minimum(index + half + 1, len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[ends] - total[index - half]) / (ends - index + half)


def _say_where_it_ends(axes: Axes, records: Sequence[Mapping[str, Any]], name: str) -> None:
    """Write the step from which a value is not finite on axes that show it by step."""
    finite, _ = _series(records, name)
    last = max(finite, default=-1)
    if after := [r["step"] for r in records if name in r and r["step"] > last]:
        text = f"not finite from step {after[0]}"
        if not len(finite):
            return leave_empty(axes, text)
        axes.set_xlim(right=after[-1])
        axes.text(0.98, 0.5, text, transform=axes.transAxes, ha="right", color=GREY)
    elif not len(finite):
        leave_empty(axes, "nothing recorded")


def leave_empty(axes: Axes, reason: str) -> None:
    """Axes without a scale, since there is nothing to show."""
    if legend := axes.get_legend():
        legend.remove()
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=GREY)


def _save(figure: Figure, path: Path) -> None:
    files.write(path, png(figure))


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # a name may hold a letter that the font lacks
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def finish(axes: Axes) -> None:
    """Open axes with a light grid behind what they show."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
