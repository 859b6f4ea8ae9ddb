# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""What a kernel does with one run of 32 rows, in jnp: the same for every back-end.

A run is eight slices of four rows (see `bits`): slice s takes draw s of one Philox call for each of
its elements, so nothing here shuffles or reduces but the block maximum and the block sum, which
each back-end does in its own way. The arithmetic is that of the reference
(`pqt_jax.numerics.reference`): the same functions where a GPU runs them well, and functions proved
equal where it has better.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pqt_jax.numerics import noise, philox, reference
from pqt_jax.numerics.formats import BF16, FP32
from pqt_jax.numerics.spec import Spec

Spread = Callable[[jax.Array], jax.Array]
Noise = Callable[[int], jax.Array]  # slice s → its R, float32

ENTRIES = 6  # of a row of the table, see `partition.make_table`


def noise_of(spec: Spec, row: Sequence[jax.Array], run, q, column) -> Noise:
    """The noise of one run of a matrix.

    Args:
      spec: static.
      row: the matrix's row of the table, as scalars.
      run: uint32 scalar, the run in this array.
      q, column: uint32[...] of one shape: row in its slice, column in this array.
    """
    k0, k1, lead, first_run, first_column, one = row
    group = (run + first_run) * np.uint32(philox.GROUP) + q
    zero = jnp.zeros_like(column)
    words = philox.philox4x32((k0, k1), (column + first_column, group, zero + lead, zero))
    return functools.partial(noise.of_words, spec.noise, words, one=one)


def forward(
    spec: Spec,
    rows: Sequence[jax.Array],
    noise_at: Noise,
    absmax: jax.Array,
    b_i: jax.Array,
    spread: Spread,
) -> Iterator[jax.Array]:
    """ŵ of the eight slices of a run.

    Args:
      spec: static.
      rows: eight float32 slices of w.
      noise_at: from `noise_of`.
      absmax, b_i: of each block, in whatever shape the back-end holds them.
      spread: takes such a number to the shape of a slice.

    Yields:
      Slices in the dtype `spec.storage`.
    """
    unit, scale = spread(absmax * reference.step_of(spec, b_i)), reference.grid_scale(spec, absmax)
    scale = None if scale is None else spread(scale)
    for s, w in enumerate(rows):
        noisy = w + noise_at(s) * unit
        if spec.dtype not in (BF16, FP32):
            noisy = reference.to_grid(spec, noisy, scale)
        yield noisy.astype(spec.storage)


def backward(rows: Sequence[jax.Array], noise_at: Noise) -> jax.Array:
    """`Σ_s ∂L/∂ŵ · R` over the eight slices of a run, float32, still to be summed over blocks."""
    products = [g * noise_at(s) for s, g in enumerate(rows)]
    return sum(products[1:], start=products[0])


def magnitude(rows: Sequence[jax.Array]) -> jax.Array:
    """Largest magnitude over the eight slices, as int32 bit patterns, whose order is theirs.

    Integers, since a float maximum loses NaN or denormals on some back-ends. The sign is shifted
    out, not masked: a GPU shifts by multiplying, in a pipe that has room.
    """
    words = [lax.bitcast_convert_type(w, jnp.uint32) << np.uint32(1) for w in rows]
    largest = functools.reduce(jnp.maximum, words) >> np.uint32(1)
    return lax.bitcast_convert_type(largest, jnp.int32)
