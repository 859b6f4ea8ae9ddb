# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Colors, line styles and legends of runs and formats, shared by all pictures and the page."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pqt_jax.analysis.run_reader import RecordedRun
from pqt_jax.console import shorten
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.training.run.run_plots import leave_empty, style_axes, widen

Runs = Mapping[int, RecordedRun]  # by their numbers, which start at 0

# All are dark enough for white paper. Lines and markers differ where two are alike in grey.
_COLORS = ("#1f5fa8", "#d9731a", "#00876c", "#b0307a", "#1a1a1a")
_COLORS += ("#3d8fc9", "#a58200", "#5a9a3a", "#8063c0", "#8c4a32")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX<>*"
# From the narrowest format to the widest. The middle ones are pale, so their text is black.
_FORMAT_COLORS = ("#174a7e", "#6aa5d8", "#f0cf7a", "#dd8452", "#8f2a20")
FORMATS = dict(zip([fmt.name for fmt in MIXED_FORMATS], _FORMAT_COLORS, strict=True))
TEXT_COLORS = dict(zip(FORMATS, ("white", "black", "black", "black", "white"), strict=True))


class RunStyle(NamedTuple):
    """How a run is drawn: color, line style and marker, as matplotlib names them."""

    color: str
    dash: str
    marker: str


def run_style(i: int) -> RunStyle:
    """The style of run i: ten colors, with a new line style after every five runs.

    Example:
      >>> run_style(2).dash, run_style(7).dash, run_style(2).color == run_style(12).color
      ('-', '--', True)
    """
    n = len(_COLORS)
    return RunStyle(_COLORS[i % n], _DASHES[i // 5 % len(_DASHES)], _MARKERS[i % n])


def run_label(i: int, run: RecordedRun, max_length: int = 40) -> str:
    """Number and name of a run, for a picture."""
    return escape_dollars(f"{i + 1}  {shorten(run.name, max_length)}")


def escape_dollars(text: str) -> str:
    """Text for Matplotlib, in which a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def format_count(n: float, _: object = None) -> str:
    """A number of tokens or parameters, in three digits.

    Example:
      >>> format_count(0), format_count(950), format_count(124_439_808), format_count(2.5e9)
      ('0', '950', '124M', '2.5B')
    """
    for power, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= 0.9995 * power:
            return f"{n / power:.3g}{letter}"
    return f"{n:.3g}"


def draw_curve(axes: Axes, x: Any, y: Any, style: RunStyle, markers: bool = False) -> None:
    """Draw a curve of a run; a single point gets a marker, since a line would not show it."""
    options = {
        "marker": style.marker if markers or len(x) == 1 else None,
        "markevery": max(1, len(x) // 12),
        "ms": 4.5,
    }
    axes.plot(x, y, color=style.color, ls=style.dash, lw=1.7, **options)


def draw_band(axes: Axes, x: Any, low: Any, high: Any, style: RunStyle) -> None:
    """Draw the interval around a curve of a run."""
    axes.fill_between(x, low, high, color=style.color, alpha=0.15, lw=0)


def later_range(values: np.ndarray) -> tuple[float, float]:
    """The range of a curve for a scale, without its first fifth and without spikes.

    Args:
      values: float64[N], N > 0, finite.
    """
    later = values[len(values) // 5 :]
    low, median, high = np.percentile(later, [5, 50, 95])
    return max(later.min(), 2 * low - median), min(later.max(), 2 * high - median)


def set_scale(axes: Axes, ranges: Sequence[tuple[float, float]], span: float) -> None:
    """Scale the vertical axis to all ranges, and to no less than `span`; nothing without any."""
    if ranges:
        low, high = widen(min(low for low, _ in ranges), max(high for _, high in ranges), span)
        margin = 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def leave_empty_without_data(axes: Axes, curves: Sequence[np.ndarray]) -> None:
    """Write that there is nothing to show on axes whose curves have no finite value."""
    if not any(np.isfinite(values).any() for values in curves):
        leave_empty(axes, "no finite value" if any(map(len, curves)) else "nothing recorded yet")


def style_token_axes(axes: Axes) -> None:
    """Style axes whose x is a number of tokens."""
    axes.set(xlabel="tokens")
    axes.xaxis.set_major_formatter(FuncFormatter(format_count))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    style_axes(axes)


def format_as_percent(axis: Axis) -> None:
    """Label an axis of shares in percent."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}"))


def add_run_legend(figure: Figure, runs: Runs, notes: Mapping[int, str] | None = None) -> None:
    """Add a legend of all runs below the axes, each with its note if it has one."""
    texts = {}
    for i, run in runs.items():
        note = (notes or {}).get(i)
        texts[i] = run_label(i, run) + (f" ({note})" if note else "")
    add_legend(figure, texts)


def add_legend(figure: Figure, texts: Mapping[int, str]) -> None:
    """Add a legend below the axes: a text for each style, by the number of its run."""
    handles = []
    for color, dash, marker in map(run_style, texts):
        handles.append(Line2D([], [], color=color, ls=dash, lw=1.7, marker=marker, ms=4.5))
    width = int(figure.get_figwidth() * 11)  # in characters
    columns = max(1, min(len(texts), width // (max(map(len, texts.values())) + 9)))
    _add_legend_below(figure, handles, list(texts.values()), columns)


def add_format_legend(figure: Figure, present: Collection[str]) -> None:
    """Add a legend of mixed formats below the axes, the narrowest first.

    Args:
      figure: the figure.
      present: names of the formats that it shows.
    """
    formats = [fmt for fmt in MIXED_FORMATS if fmt.name in present]
    if not formats:
        return
    columns = len(formats) if figure.get_figwidth() > 9 else min(3, len(formats))
    handles = [Patch(color=FORMATS[fmt.name]) for fmt in formats]
    _add_legend_below(figure, handles, [fmt.label for fmt in formats], columns)


def _add_legend_below(
    figure: Figure, handles: Sequence[Any], texts: Sequence[str], columns: int
) -> None:
    """Matplotlib fills a legend by columns; this one is read by rows."""
    figure.set_figheight(figure.get_figheight() + 0.25 * math.ceil(len(texts) / columns))
    order = [i for start in range(columns) for i in range(start, len(texts), columns)]
    options = {"loc": "outside lower center", "ncols": columns, "frameon": False}
    chosen = [handles[i] for i in order], [texts[i] for i in order]
    figure.legend(*chosen, handlelength=3.2, **options)


def make_axes_per_run(runs: Runs) -> tuple[Figure, list[Axes]]:
    """Make a figure with axes for each run: x is tokens, and the title is the run's name."""
    columns = min(len(runs), 4 if len(runs) > 4 else 3)
    rows = math.ceil(len(runs) / columns)
    size = (max(3.3 * columns, 7), max(2.4 * rows, 2.9))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for (i, run), axes in zip(runs.items(), all_axes, strict=False):
        axes.set_title(run_label(i, run, 26), color=run_style(i).color, fontsize=10)
        style_token_axes(axes)
        axes.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in all_axes[len(runs) :]:
        axes.set_visible(False)
    return figure, all_axes[: len(runs)]
