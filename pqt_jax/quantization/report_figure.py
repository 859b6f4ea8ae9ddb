# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The picture of a quantization report."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pqt_jax.models.decoder import short_kernel_name
from pqt_jax.numerics.formats import as_format
from pqt_jax.quantization.report import MatrixReport, count_formats, total_size

_COLORS = ("#b3452f", "#d9822b", "#2f6db3", "#5fa55a", "#8a8a8a", "#7a5ca8", "#444444")


def draw_report(rows: Sequence[MatrixReport], title: str) -> Figure:
    """Formats by layer and by kind of matrix, and the error of each matrix.

    Args:
      rows: from `report.measure_matrices`, at least one.
      title: one line.
    """
    figure = Figure(figsize=(13, 4.2), dpi=150, layout="constrained")
    by_layer, by_kind, errors = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    figure.suptitle(f"{title}: {total_size(rows).mean_bits:.2f} bits per weight")
    kinds = list(dict.fromkeys(row.path for row in rows))
    layers = sorted({row.layer for row in rows})
    names = [short_kernel_name(kind) for kind in kinds]
    _draw_bars(
        by_layer,
        [str(i) for i in layers],
        [[row for row in rows if row.layer == i] for i in layers],
    )
    by_layer.set(xlabel="layer", ylabel="share of the weights", title="formats by layer")
    _draw_bars(by_kind, names, [[row for row in rows if row.path == kind] for kind in kinds])
    by_kind.tick_params("x", rotation=45)
    by_kind.set(title="formats by kind")
    handles, labels = by_layer.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)
    grid = np.full((len(kinds), len(layers)), np.nan)
    for row in rows:
        grid[kinds.index(row.path), layers.index(row.layer)] = 100 * row.error
    if np.isfinite(grid).any():
        # From 0 on, so that errors that are nearly equal have nearly equal colors.
        options = {"cmap": "viridis", "interpolation": "nearest", "vmin": 0.0}
        image = errors.imshow(grid, aspect="auto", **options)
        figure.colorbar(image, ax=errors, label="relative error (%)")
    errors.set_yticks(range(len(kinds)), names)
    errors.xaxis.set_major_locator(MaxNLocator(integer=True))
    errors.set(xlabel="layer", title="error of each matrix")
    return figure


def _draw_bars(axes: Axes, names: Sequence[str], groups: Sequence[Sequence[MatrixReport]]) -> None:
    """A bar for each group of matrices: the share of its weights in each format."""
    formats = count_formats([row for group in groups for row in group])
    bottom = np.zeros(len(groups))
    for color, fmt in zip(_COLORS, formats, strict=False):
        share = [count_formats(g).get(fmt, 0) / max(total_size(g).weights, 1) for g in groups]
        axes.bar(names, share, bottom=bottom, color=color, label=as_format(fmt).label, width=0.8)
        bottom += share
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(0, 1)
