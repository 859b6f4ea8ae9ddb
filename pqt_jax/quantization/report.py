# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What quantization does to a model: formats, sizes and errors, matrix by matrix.

    parameters, plan → rows, one for each matrix → a table, a picture, JSON

For a matrix w and its rounded ŵ:

    error        ‖ŵ − w‖ / ‖w‖
    worst block  max_B ‖ŵ_B − w_B‖ / ‖w_B‖
    saturated    share of the weights beyond the largest value of their block's grid
    flushed      share of the weights that are not zero and become zero
"""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pqt_jax.interchange import files
from pqt_jax.numerics import blocks, reference
from pqt_jax.numerics.deterministic_rounding import FormatAssignment, round_parameter
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.quantization import sizes
from pqt_jax.quantization.quantize import Plan
from pqt_jax.quantization.sizes import Size
from pqt_jax.transform.tree_paths import paths_and_leaves

_COLORS = ("#b3452f", "#d9822b", "#2f6db3", "#5fa55a", "#8a8a8a", "#7a5ca8", "#444444")


class Row(NamedTuple):
    """One matrix.

    Attributes:
      path: of the parameter that it belongs to.
      layer: its number among those stacked in the parameter.
      formats: weights in each format, by name.
      size: bits of codes, scales and tags.
      error, worst_block, saturated, flushed: see above; NaN where a weight is not finite.
    """

    path: str
    layer: int
    formats: dict[str, int]
    size: Size
    error: float
    worst_block: float
    saturated: float
    flushed: float


def rows(params: Any, plan: Plan) -> list[Row]:
    """One row for each quantized matrix, in the order of the parameters.

    Example:
      >>> from pqt_jax import Rule, quantize
      >>> params = {"kernel": jnp.full((32, 32), 0.7)}
      >>> (row,) = rows(params, quantize.plan_uniform(params, [Rule("kernel")], "E2M1"))
      >>> round(row.error, 4), row.size.mean_bits
      (0.0714, 4.0078125)

    Args:
      params: pytree of arrays.
      plan: from `quantize.plan_uniform` or `plan_mixed`.
    """
    found = []
    for path, w in paths_and_leaves(params).items():
        if path in plan:
            found += _rows_of(path, w, plan[path])
    return found


def _rows_of(path: str, w: jax.Array, assigned: FormatAssignment) -> list[Row]:
    spec, index = assigned
    measured = jax.device_get(_measure(w, assigned))
    leads, m, n = blocks.matrix_shape(w.shape, spec.matrix_axes)
    own = dataclasses.replace(spec, matrix_axes=(1, 1))
    index = [None] * leads if index is None else np.asarray(index).reshape(leads, *index.shape[-2:])
    parts = [FormatAssignment(own, i) for i in index]
    return [
        Row(
            path,
            layer,
            sizes.formats_of((m, n), part),
            sizes.parameter_size((m, n), part),
            *(float(values[layer]) for values in measured),
        )
        for layer, part in enumerate(parts)
    ]


def _measure(w: jax.Array, assigned: FormatAssignment) -> tuple[jax.Array, ...]:
    """Errors and shares of each matrix of a stack, float32 [leads] each."""
    spec, index = assigned.spec.fitted(w.shape), assigned.index
    shape = blocks.matrix_shape(w.shape, spec.matrix_axes)
    if index is not None:
        index = index.reshape(shape[0], *index.shape[-2:])

    @jax.jit
    def measure(w, rounded):
        wide = blocks.pad_to(w.reshape(shape).astype(jnp.float32), *spec.block)
        rounded = blocks.pad_to(rounded.reshape(shape).astype(jnp.float32), *spec.block)
        # Relative to the largest of a block, so that squares neither overflow nor vanish.
        absmax = blocks.block_absmax(wide, spec.block)
        unit = jnp.where(absmax == 0, 1.0, absmax)
        own = blocks.spread(unit, spec.block)
        square = lambda x: blocks.block_sum(jnp.square(x / own), spec.block)  # noqa: E731
        error, norm = square(rounded - wide), square(wide)
        worst = jnp.max(jnp.sqrt(error / jnp.where(norm == 0, 1.0, norm)), axis=(1, 2))
        largest = jnp.max(unit, axis=(1, 2), keepdims=True)
        whole = [jnp.sum(x * jnp.square(unit / largest), axis=(1, 2)) for x in (error, norm)]
        relative = jnp.sqrt(whole[0] / jnp.where(whole[1] == 0, 1.0, whole[1]))
        top = blocks.spread(_largest(assigned.spec, index, absmax), spec.block)
        finite = jnp.isfinite(wide).all(axis=(1, 2))

        def share(x):
            return jnp.where(finite, jnp.sum(x, axis=(1, 2)) / (shape[1] * shape[2]), jnp.nan)

        saturated = share(jnp.abs(wide) > top)
        flushed = share((wide != 0) & (rounded == 0))
        return relative, worst, saturated, flushed

    return measure(w, round_parameter(w, assigned))


def _largest(spec: Any, index: jax.Array | None, absmax: jax.Array) -> jax.Array:
    """The largest value on the grid of each block."""

    def of(fmt):
        scale = reference.grid_scale(dataclasses.replace(spec, dtype=fmt), absmax)
        top = jnp.full_like(absmax, fmt.max)
        return top if scale is None else scale * top

    if index is None:
        return of(spec.dtype)
    return jnp.select(
        [index == i for i in range(len(MIXED_FORMATS))], [of(fmt) for fmt in MIXED_FORMATS]
    )


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON can hold them; what is not finite is None."""
    finite = lambda x: None if isinstance(x, float) and not np.isfinite(x) else x  # noqa: E731
    return [
        {name: finite(value) for name, value in row._asdict().items()}
        | {"size": row.size._asdict() | {"mean_bits": row.size.mean_bits}}
        for row in rows
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one line for each parameter and one for all.

    Errors of a parameter with several layers are those of its worst; NaN wins.
    """
    lines = [f"{'parameter':<28}{'bits':>7}{'error':>9}{'worst block':>13}{'saturated':>11}"]
    lines[0] += f"{'flushed':>9}  formats"
    paths = list(dict.fromkeys(row.path for row in rows))
    for path in paths:
        lines.append(_line(path, [row for row in rows if row.path == path]))
    if len(paths) > 1:
        lines.append(_line("all", rows))
    return "\n".join(lines)


def _line(name: str, rows: Sequence[Row]) -> str:
    size = _total(rows)
    worst = [np.max([getattr(row, field) for row in rows]) for field in Row._fields[4:]]
    counts = _formats(rows)
    shares = [f"{fmt} {count / size.weights:.0%}" for fmt, count in counts.items()]
    error, block, saturated, flushed = worst
    text = f"{name:<28}{size.mean_bits:7.3f}{error:9.2%}{block:13.2%}{saturated:11.3%}"
    return f"{text}{flushed:9.3%}  {', '.join(shares)}"


def _total(rows: Sequence[Row]) -> Size:
    return sizes.total({str(i): row.size for i, row in enumerate(rows)})


def _formats(rows: Sequence[Row]) -> dict[str, int]:
    names = [fmt.name for fmt in MIXED_FORMATS]
    found = {name for row in rows for name in row.formats}
    order = [name for name in names if name in found] + sorted(found - set(names))
    return {name: sum(row.formats.get(name, 0) for row in rows) for name in order}


def picture(path: Path, rows: Sequence[Row], title: str) -> None:
    """Formats by layer and by kind, and the error of each matrix.

    Args:
      path: of the PNG to write.
      rows: at least one.
      title: one line.
    """
    figure = Figure(figsize=(13, 4.2), dpi=150, layout="constrained")
    by_layer, by_kind, errors = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    figure.suptitle(f"{title}: {_total(rows).mean_bits:.2f} bits per weight")
    kinds = list(dict.fromkeys(row.path for row in rows))
    layers = sorted({row.layer for row in rows})
    short = [kind.removeprefix("h/").removesuffix("/kernel") for kind in kinds]
    own = {i: [row for row in rows if row.layer == i] for i in layers}
    _bars(by_layer, [str(i) for i in layers], list(own.values()))
    by_layer.set(xlabel="layer", ylabel="share of the weights", title="formats by layer")
    _bars(by_kind, short, [[row for row in rows if row.path == kind] for kind in kinds])
    by_kind.tick_params("x", rotation=45)
    by_kind.set(title="formats by kind")
    handles, labels = by_layer.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)
    grid = np.full((len(kinds), len(layers)), np.nan)
    for row in rows:
        grid[kinds.index(row.path), layers.index(row.layer)] = 100 * row.error
    if np.isfinite(grid).any():
        image = errors.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest")
        figure.colorbar(image, ax=errors, label="relative error (%)")
    errors.set_yticks(range(len(kinds)), short)
    errors.xaxis.set_major_locator(MaxNLocator(integer=True))
    errors.set(xlabel="layer", title="error of each matrix")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    files.write(path, buffer.getvalue())


def _bars(axes: Axes, names: Sequence[str], groups: Sequence[Sequence[Row]]) -> None:
    every = _formats([row for group in groups for row in group])
    bottom = np.zeros(len(groups))
    for color, fmt in zip(_COLORS, every, strict=False):
        share = [_formats(g).get(fmt, 0) / max(_total(g).weights, 1) for g in groups]
        axes.bar(names, share, bottom=bottom, color=color, label=fmt, width=0.8)
        bottom += share
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(0, 1)
