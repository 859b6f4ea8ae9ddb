# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Measure what quantization does to each matrix: formats, sizes and errors.

    parameters, plan → a `MatrixReport` for each matrix → a table, JSON (`report_figure`: a picture)

For a matrix w and its rounded ŵ:

    error        ‖ŵ − w‖ / ‖w‖
    worst block  max_B ‖ŵ_B − w_B‖ / ‖w_B‖
    saturated    share of the weights that exceed the largest value of their block's grid
    flushed      share of the weights that are not zero but round to zero
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pqt_jax.console import format_row
from pqt_jax.interchange import files
from pqt_jax.numerics import blocks, reference
from pqt_jax.numerics.deterministic_rounding import FormatAssignment, round_parameter
from pqt_jax.numerics.formats import as_format
from pqt_jax.numerics.mixed_formats import MIXED_FORMATS
from pqt_jax.numerics.spec import Spec
from pqt_jax.quantization import sizes
from pqt_jax.quantization.quantize import Plan
from pqt_jax.quantization.sizes import StoredSize
from pqt_jax.transform.tree_paths import paths_and_leaves

_WIDTHS = (28, -7, -9, -13, -11, -9, 0)  # of the text table


class MatrixReport(NamedTuple):
    """What quantization does to one matrix.

    Attributes:
      path: the path of its parameter.
      layer: its index among the matrices that are stacked in the parameter.
      formats: the number of weights in each format, by name.
      size: bits of codes, scales and tags.
      error, worst_block, saturated, flushed: see above; NaN if a weight is not finite.
    """

    path: str
    layer: int
    formats: dict[str, int]
    size: StoredSize
    error: float
    worst_block: float
    saturated: float
    flushed: float


def measure_matrices(params: Any, plan: Plan) -> list[MatrixReport]:
    """Quantize each matrix of a plan and measure the result, in the order of the parameters.

    Example:
      >>> from pqt_jax import Rule, quantize
      >>> params = {"kernel": jnp.full((32, 32), 0.7)}
      >>> (row,) = measure_matrices(params, quantize.plan_uniform(params, [Rule("kernel")], "E2M1"))
      >>> round(row.error, 4), row.size.mean_bits
      (0.0714, 4.0078125)

    Args:
      params: pytree of arrays.
      plan: from `quantize.plan_uniform` or `plan_mixed`.
    """
    rows = []
    for path, w in paths_and_leaves(params).items():
        if path in plan:
            rows += _measure_stack(path, w, plan[path])
    return rows


def _measure_stack(path: str, w: jax.Array, assignment: FormatAssignment) -> list[MatrixReport]:
    spec, index = assignment
    leads, m, n = blocks.matrix_shape(w.shape, spec.matrix_axes)
    matrices = w.reshape(leads, m, n)
    matrix_spec = dataclasses.replace(spec, matrix_axes=(1, 1))
    index = [None] * leads if index is None else np.asarray(index).reshape(leads, *index.shape[-2:])
    rows = []
    for layer in range(leads):  # a stack of a large model does not fit several times into memory
        matrix = FormatAssignment(matrix_spec, index[layer])
        errors = _measure_errors(matrices[layer], matrix.index, matrix_spec.fitted((m, n)))
        relative, worst_block, saturated, flushed = map(float, jax.device_get(errors))
        rows.append(
            MatrixReport(
                path=path,
                layer=layer,
                formats=sizes.count_by_format((m, n), matrix),
                size=sizes.parameter_size((m, n), matrix),
                error=relative,
                worst_block=worst_block,
                saturated=saturated,
                flushed=flushed,
            )
        )
    return rows


@functools.partial(jax.jit, static_argnums=2)
def _measure_errors(w: jax.Array, index: jax.Array | None, spec: Spec) -> tuple[jax.Array, ...]:
    """(error, worst block, saturated, flushed) of a matrix, float32 scalars."""
    rounded = round_parameter(w, FormatAssignment(spec, index))
    wide = blocks.pad_to(w[None].astype(jnp.float32), *spec.block)
    rounded = blocks.pad_to(rounded[None].astype(jnp.float32), *spec.block)
    # Squares are relative to the largest weight of a block: they neither overflow nor vanish.
    absmax = blocks.block_absmax(wide, spec.block)
    unit = jnp.where(absmax == 0, 1.0, absmax)
    unit_of_weight = blocks.spread(unit, spec.block)

    def sum_squares(x):
        return blocks.block_sum(jnp.square(x / unit_of_weight), spec.block)

    error, norm = sum_squares(rounded - wide), sum_squares(wide)
    worst = jnp.max(jnp.sqrt(error / jnp.where(norm == 0, 1.0, norm)))
    largest = jnp.max(unit)
    whole = [jnp.sum(x * jnp.square(unit / largest)) for x in (error, norm)]
    relative = jnp.sqrt(whole[0] / jnp.where(whole[1] == 0, 1.0, whole[1]))
    index = None if index is None else index[None]
    top = blocks.spread(_largest_values(spec, index, wide), spec.block)
    finite = jnp.isfinite(wide).all()

    def share(x):
        return jnp.where(finite, jnp.sum(x) / w.size, jnp.nan)

    saturated = share(jnp.abs(wide) > top)
    flushed = share((wide != 0) & (rounded == 0))
    return relative, worst, saturated, flushed


def _largest_values(spec: Spec, index: jax.Array | None, w: jax.Array) -> jax.Array:
    """The largest value on the grid of each block."""

    def largest_value(fmt):
        scale = reference.scale_blocks(dataclasses.replace(spec, dtype=fmt), w)
        if scale is not None:
            return scale * np.float32(fmt.max)
        return jnp.full_like(blocks.block_absmax(w, spec.block), fmt.max)

    if index is None:
        return largest_value(spec.dtype)
    return jnp.select(
        [index == i for i in range(len(MIXED_FORMATS))],
        [largest_value(fmt) for fmt in MIXED_FORMATS],
    )


def as_json(rows: Sequence[MatrixReport]) -> list[dict[str, Any]]:
    """The reports as JSON values; numbers that are not finite become None."""
    return [
        files.replace_nonfinite(row._asdict())
        | {"size": row.size._asdict() | {"mean_bits": row.size.mean_bits}}
        for row in rows
    ]


def format_table(rows: Sequence[MatrixReport]) -> str:
    """The reports as text: a line for each parameter, and one for all.

    Errors and shares of a parameter are those of its worst layer, or NaN if a layer's are NaN.
    """
    titles = ["parameter", "bits", "error", "worst block", "saturated", "flushed", "  formats"]
    lines = [format_row(titles, _WIDTHS)]
    paths = list(dict.fromkeys(row.path for row in rows))
    for path in paths:
        lines.append(_line(path, [row for row in rows if row.path == path]))
    if len(paths) > 1:
        lines.append(_line("all", rows))
    lines.append("Errors and shares of several matrices are those of the worst one.")
    return "\n".join(lines)


def _line(name: str, rows: Sequence[MatrixReport]) -> str:
    size = total_size(rows)
    counts = count_formats(rows)
    shares = [f"{as_format(fmt).label} {count / size.weights:.0%}" for fmt, count in counts.items()]
    error, block, saturated, flushed = (
        np.max([getattr(row, field) for row in rows])
        for field in ("error", "worst_block", "saturated", "flushed")
    )
    cells = [name, f"{size.mean_bits:.3f}", f"{error:.2%}", f"{block:.2%}", f"{saturated:.3%}"]
    return format_row([*cells, f"{flushed:.3%}", f"  {', '.join(shares)}"], _WIDTHS)


def total_size(rows: Sequence[MatrixReport]) -> StoredSize:
    """The size of all matrices together."""
    return sizes.total_size(row.size for row in rows)


def count_formats(rows: Sequence[MatrixReport]) -> dict[str, int]:
    """The number of weights in each format; mixed formats come first, the narrowest first."""
    names = [fmt.name for fmt in MIXED_FORMATS]
    present = {name for row in rows for name in row.formats}
    order = [name for name in names if name in present] + sorted(present - set(names))
    return {name: sum(row.formats.get(name, 0) for row in rows) for name in order}
