# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Numbers per block in the vector registers of a TPU, which have eight rows of 128 lanes.

compact   [8, 128]   one number for each block of eight runs and 128 · 32 columns
spread    [8, 128]   those of eight runs and 128 columns, in each of the 32 lanes of a block
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import tpu as pltpu

ROWS, LANES = 8, 128
BLOCKS = LANES // 32  # across a register


def index(axis: int) -> jax.Array:
    """Return the index of each element along an axis, int32 [8, 128]."""
    return lax.broadcasted_iota(jnp.int32, (ROWS, LANES), axis)


def _swap(x: jax.Array, distance: int, axis: int) -> jax.Array:
    """Move what is at index i of an axis to index i ^ distance; the distance is a power of two."""
    size = x.shape[axis]
    if 2 * distance == size:
        return pltpu.roll(x, distance, axis)
    is_low = (index(axis) & np.int32(distance)) == 0
    return jnp.where(is_low, pltpu.roll(x, size - distance, axis), pltpu.roll(x, distance, axis))


def reduce_blocks(operation: Callable[..., jax.Array], runs: Sequence[jax.Array]) -> jax.Array:
    """Reduce eight registers, one for each run, over their rows and blocks of 32 columns.

    Args:
      operation: of two arrays, such as a sum.
      runs: eight arrays [8, 128].

    Returns:
      [8, 128], spread: row r has the results of run r.
    """
    registers = list(runs)
    for distance in (4, 2, 1):  # two registers become one, half of whose rows belong to each
        is_low = (index(0) & np.int32(distance)) == 0
        registers = [
            operation(jnp.where(is_low, x, y), _swap(jnp.where(is_low, y, x), distance, 0))
            for x, y in zip(registers[:distance], registers[distance:], strict=True)
        ]
    (reduced,) = registers
    for distance in (1, 2, 4, 8, 16):
        reduced = operation(reduced, _swap(reduced, distance, 1))
    return reduced


def _take_lanes(x: jax.Array, lanes: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, lanes, axis=1, mode="promise_in_bounds")


def spread(per_block: jax.Array, c: jax.Array) -> jax.Array:
    """Spread compact numbers over the c-th 128 columns."""
    return _take_lanes(per_block, index(1) // 32 + c * np.int32(BLOCKS))


def collect(per_block: jax.Array, c: jax.Array, wide: jax.Array) -> jax.Array:
    """Put numbers that are spread over the c-th 128 columns into compact ones."""
    lane = index(1)
    ours = _take_lanes(wide, lane % BLOCKS * np.int32(32))
    return jnp.where(lane // BLOCKS == c, ours, per_block)
