# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""How runs and formats look: the same in every picture and on the page, in color and in grey."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pqt_jax.analysis.run_reader import Recorded
from pqt_jax.errors import cut
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.training.run.run_plots import finish

Runs = Mapping[int, Recorded]  # by their numbers, from 0 on

# All dark enough for white paper; where two are alike in grey, lines and markers tell them apart.
_COLORS = ("#1f5fa8", "#d9731a", "#00876c", "#b0307a", "#1a1a1a")
_COLORS += ("#3d8fc9", "#a58200", "#5a9a3a", "#8063c0", "#8c4a32")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX<>*"
# From the narrowest format on, the cheap ones cold; dark, pale, dark where ink is laid on them.
_FORMAT_COLORS = ("#174a7e", "#6aa5d8", "#f0cf7a", "#dd8452", "#8f2a20")
FORMATS = dict(zip([fmt.name for fmt in MIXED_FORMATS], _FORMAT_COLORS, strict=True))
INKS = dict(zip(FORMATS, ("white", "black", "black", "black", "white"), strict=True))


class Look(NamedTuple):
    """How a run is drawn."""

    color: str
    dash: str
    marker: str


def look(i: int) -> Look:
    """The look of run i: five colors, five others with dashes, and again with other dashes.

    Example:
      >>> look(2).dash, look(7).dash, look(2).color == look(12).color
      ('-', '--', True)
    """
    n = len(_COLORS)
    return Look(_COLORS[i % n], _DASHES[i // 5 % len(_DASHES)], _MARKERS[i % n])


def label(i: int, run: Recorded, longest: int = 40) -> str:
    """Number and name of a run, as the text of a picture; a $ in it begins no formula."""
    return f"{i + 1}  {cut(run.name, longest)}".replace("$", r"\$")


def count(n: float, _: object = None) -> str:
    """A number of tokens or parameters in three digits.

    Example:
      >>> count(0), count(950), count(124_439_808), count(2.5e9)
      ('0', '950', '124M', '2.5B')
    """
    for power, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= 0.9995 * power:
            return f"{n / power:.3g}{letter}"
    return f"{n:.3g}"


def line(axes: Axes, x: Any, y: Any, style: Look, markers: bool = False) -> None:
    """A run's curve; a point that is alone is marked, since no line would show it."""
    marker = style.marker if markers or len(x) == 1 else None
    every = max(1, len(x) // 12)
    shape = {"marker": marker, "markevery": every, "ms": 4.5}
    axes.plot(x, y, color=style.color, ls=style.dash, lw=1.7, **shape)


def by_tokens(axes: Axes) -> None:
    """Axes whose x is tokens."""
    axes.set(xlabel="tokens")
    axes.xaxis.set_major_formatter(FuncFormatter(count))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    finish(axes)


def percent(axis: Axis) -> None:
    """An axis of shares, in percent."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}"))


def legend(figure: Figure, runs: Runs, notes: Mapping[int, str] | None = None) -> None:
    """Every run below the pictures, with what is to be said of it."""
    handles, texts = [], []
    for i, run in runs.items():
        color, dash, marker = look(i)
        handles.append(Line2D([], [], color=color, ls=dash, lw=1.7, marker=marker, ms=4.5))
        note = (notes or {}).get(i)
        texts.append(label(i, run) + (f" ({note})" if note else ""))
    across = int(figure.get_figwidth() * 11)  # characters
    columns = max(1, min(len(texts), across // (max(map(len, texts)) + 9)))
    _below(figure, handles, texts, columns)


def format_legend(figure: Figure) -> None:
    """Every format of the ladder below the pictures."""
    names = ["BF16" if fmt.name == "BF16" else f"FP{fmt.bits} {fmt.name}" for fmt in MIXED_FORMATS]
    columns = max(1, min(len(names), int(figure.get_figwidth() * 11) // 18))
    _below(figure, [Patch(color=color) for color in FORMATS.values()], names, columns)


def _below(figure: Figure, handles: list[Any], texts: list[str], columns: int) -> None:
    figure.set_figheight(figure.get_figheight() + 0.25 * math.ceil(len(texts) / columns))
    place = {"loc": "outside lower center", "ncols": columns, "frameon": False}
    figure.legend(handles, texts, handlelength=3.2, **place)


def panels(runs: Runs) -> tuple[Figure, list[Axes]]:
    """A figure with axes by tokens for each run, under its name."""
    columns = min(len(runs), 4 if len(runs) > 4 else 3)
    rows = math.ceil(len(runs) / columns)
    size = (max(3.3 * columns, 7), max(2.4 * rows, 2.9))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for (i, run), axes in zip(runs.items(), every, strict=False):
        axes.set_title(label(i, run, 26), color=look(i).color, fontsize=10)
        by_tokens(axes)
        axes.grid(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in every[len(runs) :]:
        axes.set_visible(False)
    return figure, every[: len(runs)]
