# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Blocks: parameters as stacks of matrices, reductions over blocks, and numbers per block.

A parameter becomes a stack of matrices [leads, M, N] by `matrix_axes = (r, c)`. Its last c axes are
the columns, the r axes before them are the rows, and all axes before those are the stack.

    kernel [D, F]                    (1, 1)   one D × F matrix                       (the default)
    stacked kernel [L, D, F]         (1, 1)   L matrices
    convolution [kh, kw, in, out]    (1, 1)   kh·kw matrices, in × out
                                     (3, 1)   one (kh·kw·in) × out matrix
    attention query [D, heads, dim]  (1, 2)   one D × (heads·dim) matrix
    attention out [heads, dim, D]    (2, 1)   one (heads·dim) × D matrix

A matrix of M × N has ⌈M/bm⌉ × ⌈N/bn⌉ blocks of bm × bn; blocks at its right and lower edge may be
smaller.
"""

import functools
import math
import operator
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from pqt_jax.numerics import cast

Block = tuple[int, int]
MAX_SIDE = 2**15


def check_block(block: Block) -> Block:
    """Return the block as two ints, if the noise stream supports it.

    Raises:
      ValueError: unless each side divides 32 or is a multiple of 32, up to `MAX_SIDE`.
    """
    try:
        rows, columns = map(_side, block)
    except (TypeError, ValueError):
        raise ValueError(
            f"block={block!r}; it must be two integers that divide 32 or are multiples of 32 (up "
            f"to {MAX_SIDE}), since the noise stream comes in runs of 32 rows"
        ) from None
    return rows, columns


def parse_block(text: str) -> Block:
    """The block of a text with its rows and columns.

    Example:
      >>> parse_block("32x1")
      (32, 1)

    Raises:
      ValueError: unless the text is two sides of `check_block`, with an x between them.
    """
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    try:
        return check_block((int(sides[1]), int(sides[2])) if sides else (0, 0))
    except ValueError:
        raise ValueError(
            f"{text!r}; it must be two sides such as 32x32 or 1x32, each a divisor or a multiple "
            "of 32"
        ) from None


def fit_block(block: Block, m: int, n: int) -> Block:
    """Limit a block to the size of an m × n matrix, rounded up to a multiple of 32.

    The grid of blocks stays the same, and the matrix is padded no further than to that size.

    Example:
      >>> fit_block((8192, 16), 100, 70)
      (128, 16)
    """
    rows, columns = (max(32, -(-size // 32) * 32) for size in (m, n))
    return min(block[0], rows), min(block[1], columns)


def _side(side: Any) -> int:
    if isinstance(side, bool):
        raise TypeError
    side = operator.index(side)
    if not 1 <= side <= MAX_SIDE or (32 % side and side % 32):
        raise ValueError
    return side


def matrix_shape(shape: tuple[int, ...], matrix_axes: tuple[int, int]) -> tuple[int, int, int]:
    """Return `(leads, M, N)` of a parameter shape.

    Example:
      >>> matrix_shape((12, 768, 12, 64), (1, 2))
      (12, 768, 768)

    Raises:
      ValueError: if the parameter has fewer axes than the matrices need.
    """
    rows, columns = matrix_axes
    if rows < 1 or columns < 1 or len(shape) < rows + columns:
        raise ValueError(
            f"matrix_axes={matrix_axes!r} does not fit a parameter of shape {tuple(shape)}; give "
            "(row axes, column axes), both at least 1, together at most its number of axes"
        )
    first_column = len(shape) - columns
    first_row = first_column - rows
    return (
        math.prod(shape[:first_row]),
        math.prod(shape[first_row:first_column]),
        math.prod(shape[first_column:]),
    )


def first_axes(ndim: int, matrix_axes: tuple[int, int]) -> list[int | None]:
    """The first of a parameter's axes that become the stack, the rows and the columns."""
    rows, columns = matrix_axes
    return [0 if ndim > rows + columns else None, ndim - columns - rows, ndim - columns]


def matrix_sharding(
    sharding: PartitionSpec, ndim: int, matrix_axes: tuple[int, int]
) -> PartitionSpec:
    """Return how the matrices [leads, M, N] of a parameter are sharded.

    Where several axes of a parameter become one, the first of them may be sharded.

    Example:
      >>> tuple(matrix_sharding(PartitionSpec("fsdp", "tensor"), 3, (1, 1)))
      (None, 'fsdp', 'tensor')

    Args:
      sharding: of the last axes of the parameter.
      ndim: number of its axes.
      matrix_axes: (row axes, column axes).

    Raises:
      ValueError: if the sharding has more entries than there are axes, or names an axis that the
        mesh lacks.
    """
    if len(sharding) > ndim:
        raise ValueError(f"sharding={sharding}; it has more entries than w has axes, {ndim}")
    mesh = jax.sharding.get_abstract_mesh()
    groups = [entry if isinstance(entry, tuple) else (entry,) for entry in sharding]
    names = {name for group in groups for name in group}
    if not mesh.empty and not names <= {None, *mesh.axis_names}:
        known = ", ".join(mesh.axis_names)
        raise ValueError(f"sharding={sharding}; the mesh has the axes {known}")
    entries = [*[None] * (ndim - len(sharding)), *sharding]
    firsts = first_axes(ndim, matrix_axes)
    return PartitionSpec(*(None if axis is None else entries[axis] for axis in firsts))


def grid_shape(
    shape: tuple[int, ...], block: Block, matrix_axes: tuple[int, int]
) -> tuple[int, ...]:
    """Return the shape of an array with one number per block: the leading axes, then the grid.

    Example:
      >>> grid_shape((100, 70), (32, 32), (1, 1)), grid_shape((12, 768, 3072), (32, 32), (1, 1))
      ((4, 3), (12, 24, 96))
    """
    _, m, n = matrix_shape(shape, matrix_axes)
    lead = tuple(shape[: len(shape) - sum(matrix_axes)])
    return (*lead, -(-m // block[0]), -(-n // block[1]))


def check_grid(b: jax.Array | None, w: jax.Array, block: Block, matrix_axes: tuple[int, int]):
    """Raise ValueError unless b holds one number per block of w."""
    grid = grid_shape(w.shape, block, matrix_axes)
    if b is None or jnp.shape(b) != grid:
        bits = "no bits" if b is None else f"bits of shape {jnp.shape(b)}"
        sides = "x".join(map(str, block))
        raise ValueError(f"{bits} for w of shape {w.shape}; blocks of {sides} need {grid}")


def pad_to(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Zero-pad [leads, M, N] so that M and N are multiples of `rows` and `columns`."""
    extra = ((0, 0), (0, -x.shape[1] % rows), (0, -x.shape[2] % columns))
    return jnp.pad(x, extra) if any(e != (0, 0) for e in extra) else x


def block_absmax(x: jax.Array, block: Block) -> jax.Array:
    """Return the largest magnitude in each block, `max_B |x|`; NaN is above Inf.

    The maximum is taken over bit patterns as integers, whose order is that of the magnitudes. XLA
    vectorizes an integer maximum, but not a float maximum that must propagate NaN.

    Slices of eight rows, the tile of a TPU, are compared before any reduction. On a TPU, XLA would
    store the bit patterns of all of x otherwise.

    Args:
      x: float32 or bfloat16 [leads, M, N], M and N multiples of the block.
      block: (bm, bn).

    Returns:
      float32 [leads, M/bm, N/bn].
    """
    leads, m, n = x.shape
    bm, bn = block
    rows = 8 if bm % 8 == 0 else bm
    count = min(bm, 32) // rows
    slices = x.reshape(leads, m // bm, bm // (count * rows), count, rows, n)
    words = [cast.to_word(slices[:, :, :, i]) & np.uint32(0x7FFFFFFF) for i in range(count)]
    over_rows = jnp.max(functools.reduce(jnp.maximum, words), axis=(2, 3))
    over_both = jnp.max(over_rows.reshape(leads, m // bm, n // bn, bn), axis=3)
    return lax.bitcast_convert_type(over_both, jnp.float32)


def block_sum(x: jax.Array, block: Block) -> jax.Array:
    """Sum over each block: [leads, M, N] → [leads, M/bm, N/bn], of the same dtype."""
    leads, m, n = x.shape
    bm, bn = block
    over_rows = jnp.sum(x.reshape(leads, m // bm, bm, n), axis=2)
    return jnp.sum(over_rows.reshape(leads, m // bm, n // bn, bn), axis=3)


def spread(per_block: jax.Array, block: Block) -> jax.Array:
    """Repeat numbers per block for each element: [leads, gm, gn] → [leads, gm·bm, gn·bn]."""
    over_columns = repeat(per_block, block[1], axis=2)
    return repeat(over_columns, block[0], axis=1)


def repeat(x: jax.Array, times: int, axis: int) -> jax.Array:
    """Repeat each element along an axis, as `jnp.repeat` does, for arrays of any sharding."""
    shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    wide = lax.broadcast_in_dim(x, shape, [d for d in range(x.ndim + 1) if d != axis + 1])
    return wide.reshape(*x.shape[:axis], x.shape[axis] * times, *x.shape[axis + 1 :])
