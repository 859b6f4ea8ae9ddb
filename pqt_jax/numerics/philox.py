# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The noise stream, version 1: Philox4x32-10 counters → 16-bit draws.

The stream is a public format, tested by golden vectors. The draw of an element depends only on the
key and on the element's global index, so it is the same on any mesh and in any back-end.

    key      the two uint32 words of a JAX threefry key
    counter  (column, row group, lead index, 0)
    row      r = 32·a + 4·s + q  takes draw s of the call with row group 4·a + q,  s < 8, q < 4
    draw     draws 2k and 2k+1 are the low and the high half of output word k

One call gives the draws of eight rows of one column. A run of 32 rows is eight slices of four rows,
and all arithmetic is elementwise, without a shuffle. The lead index numbers the stacked matrices:
layers, experts.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC'11).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

STREAM_VERSION = 1
ROWS = 32  # rows of a run
DRAWS = 8  # 16-bit draws of one call
GROUP = ROWS // DRAWS  # rows of a slice: those that use the same draw of their calls

_MULTIPLIERS = (np.uint32(0xD2511F53), np.uint32(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)

Words = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
Multiply = Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]]


def multiply(a: jax.Array, b: jax.Array | np.uint32) -> tuple[jax.Array, jax.Array]:
    """Return the high and the low word of the 64-bit product of uint32 numbers.

    The low word is a product of its own, which a CPU vectorizes better.
    """
    return multiply_once(a, b)[0], a * b


def multiply_once(a: jax.Array, b: jax.Array | np.uint32) -> tuple[jax.Array, jax.Array]:
    """Return what `multiply` does, of one product, which is one instruction of a GPU."""
    with jax.enable_x64(True):  # the GPU kernel languages have no lax.mulhi
        wide = _to_uint64(a) * (np.uint64(b) if isinstance(b, np.generic) else _to_uint64(b))
        high, low = (lax.convert_element_type(x, jnp.uint32) for x in (wide >> np.uint64(32), wide))
    return high, low


def multiply_by_mulhi(a: jax.Array, b: jax.Array | np.uint32) -> tuple[jax.Array, jax.Array]:
    """Return what `multiply` does, where the high word is an instruction, as on some TPUs."""
    return lax.mulhi(a, jnp.broadcast_to(b, a.shape)), a * b


def multiply_by_halves(a: jax.Array, b: jax.Array | np.uint32) -> tuple[jax.Array, jax.Array]:
    """Return what `multiply` does, without a number of more than 32 bits, which a TPU lacks.

    With a multiplier of Philox for b, two sums that could overflow do not.
    """
    a_low, a_high = a & np.uint32(0xFFFF), a >> np.uint32(16)
    b_low, b_high = b & np.uint32(0xFFFF), b >> np.uint32(16)
    above = a_low * b_high + ((a_low * b_low) >> np.uint32(16))  # a_low · b / 2^16
    if isinstance(b, np.generic) and b in _MULTIPLIERS:
        middle = above + a_high * (b_low & np.uint32(0x7FFF))
        if b_low & np.uint32(0x8000):  # a_high · 2^15 is left to be added
            carry = ((middle >> np.uint32(15)) + a_high) >> np.uint32(1)
        else:
            carry = middle >> np.uint32(16)
    else:
        middle = (above & np.uint32(0xFFFF)) + a_high * b_low
        carry = (above >> np.uint32(16)) + (middle >> np.uint32(16))
    return a_high * b_high + carry, a * b


def _to_uint64(x: jax.Array) -> jax.Array:
    return lax.convert_element_type(x, jnp.uint64)


def philox4x32_wide(key: tuple[jax.Array, jax.Array], counter: Words) -> Words:
    """Return what `philox4x32` does, by 64-bit numbers whose upper halves are not cleared.

    A CPU multiplies the lower halves of 64-bit lanes without looking at the upper halves. Words of
    32 bits would have to be spread over such lanes, and collected again, in every round.
    """

    def multiply_lower_halves(a, b):
        product = (a & np.uint64(0xFFFFFFFF)) * np.uint64(b)
        return product >> np.uint64(32), product

    with jax.enable_x64(True):
        k0, k1, c0, c1, c2, c3 = map(_to_uint64, (*key, *counter))
        words = philox4x32((k0, k1), (c0, c1, c2, c3), multiply=multiply_lower_halves)
        c0, c1, c2, c3 = (lax.convert_element_type(c, jnp.uint32) for c in words)
    return c0, c1, c2, c3


def philox4x32(
    key: tuple[jax.Array, jax.Array],
    counter: Words,
    rounds: int = 10,
    multiply: Multiply = multiply,
) -> Words:
    """Philox4x32: four random words from a counter of four words and a key of two.

    Args:
      key: two uint32 arrays, which broadcast against the counter.
      counter: four uint32 arrays whose shapes broadcast.
      rounds: 10 in stream version 1.
      multiply: `multiply`; in kernels one of the others above.

    Returns:
      Four uint32 arrays of the counter's shape, as broadcast.
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for i in range(rounds):
        if i:
            k0, k1 = k0 + np.uint32(_WEYL[0]), k1 + np.uint32(_WEYL[1])
        high0, low0 = multiply(c0, _MULTIPLIERS[0])
        high1, low1 = multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5), inline=True)  # one trace for each shape
def stream_words(
    key: jax.Array,
    offset: jax.Array,
    leads: int,
    runs: int,
    columns: int,
    rows: int = GROUP,
) -> Words:
    """Return the four words of every Philox call for a stack of matrices.

    A tile of a TPU has eight rows, and a TPU has no 64-bit numbers. Both are served by `rows=8`:
    the four calls of a column stand there twice. An array of four rows would leave half of every
    tile empty, so that this takes no more instructions.

    Args:
      key: uint32[2], see `keys.key_words`.
      offset: uint32[3], global index of the first element: (lead, row, column), row in units of 32.
      leads: number of stacked matrices.
      runs: runs of 32 rows in each.
      columns: columns in each.
      rows: 4, or 8 for a TPU.

    Returns:
      Four uint32[leads, runs, rows, columns].
    """
    # Each index is an array along its own axis, so that the first rounds, which depend on few of
    # them, are small: XLA would take large ones out of a loop over layers, and store them.
    lead, run, row, column = (
        lax.iota(jnp.uint32, extent).reshape([extent if d == axis else 1 for d in range(4)])
        for axis, extent in enumerate((leads, runs, rows, columns))
    )
    group = (run + offset[1]) * np.uint32(GROUP) + row % np.uint32(GROUP)
    counter = (column + offset[2], group, lead + offset[0], jnp.zeros((1, 1, 1, 1), jnp.uint32))
    generate = philox4x32_wide if rows == GROUP else philox4x32
    return generate((key[0], key[1]), counter)


def draw(words: Sequence[jax.Array], s: int) -> jax.Array:
    """Return draw `s` of each call, for rows 4·s … 4·s + 3 of every run of 32: uint32 < 2^16."""
    word = words[s // 2]
    return word >> np.uint32(16) if s % 2 else word & np.uint32(0xFFFF)
