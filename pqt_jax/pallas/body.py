# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The arithmetic of a kernel on one run of 32 rows, in jnp, for every back-end.

A run is eight slices of four rows (see `philox`). Each element of slice s uses draw s of its Philox
call, so that nothing is shuffled. Only the block maximum and the block sum reduce; each back-end
does that in its own way. The arithmetic is that of `pqt_jax.numerics.reference`: the same functions
where a GPU runs them well, and otherwise functions that tests prove equal.
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

Spread = Callable[[jax.Array], jax.Array]  # a number per block → the shape of a slice
Noise = Callable[[int], jax.Array]  # index s of a slice → its R, float32

TABLE_ENTRIES = 6  # entries in a row of the table that are used, see `partition.make_table`


def make_noise(spec: Spec, row: Sequence[jax.Array], run, q, column) -> Noise:
    """Return the noise of one run of a matrix.

    Args:
      spec: static options.
      row: the row of the table for this matrix, as scalars.
      run: uint32 scalar, index of the run in this array.
      q, column: uint32[...] of one shape: index of the row in its slice, and of the column in this
        array.
    """
    k0, k1, lead, first_run, first_column, one = row
    group = (run + first_run) * np.uint32(philox.GROUP) + q
    zero = jnp.zeros_like(column)
    words = philox.philox4x32((k0, k1), (column + first_column, group, zero + lead, zero))
    return functools.partial(noise.noise_from_words, spec.noise, words, one=one)


def forward(
    spec: Spec,
    rows: Sequence[jax.Array],
    noise_at: Noise,
    absmax: jax.Array,
    b_i: jax.Array,
    spread: Spread,
) -> Iterator[jax.Array]:
    """Yield ŵ of the eight slices of a run.

    Args:
      spec: static options.
      rows: eight float32 slices of w.
      noise_at: from `make_noise`.
      absmax, b_i: one number per block, in a shape that `spread` takes.
      spread: spreads numbers per block to the shape of a slice.

    Yields:
      Slices in the dtype `spec.storage`.
    """
    unit, scale = (
        spread(absmax * reference.block_step_size(spec, b_i)),
        reference.grid_scale(spec, absmax),
    )
    scale = None if scale is None else spread(scale)
    for s, w in enumerate(rows):
        noisy = w + noise_at(s) * unit
        if spec.dtype not in (BF16, FP32):
            noisy = reference.round_to_grid(spec, noisy, scale)
        yield noisy.astype(spec.storage)


def backward(rows: Sequence[jax.Array], noise_at: Noise) -> jax.Array:
    """Return `Σ_s ∂L/∂ŵ · R` over the eight slices of a run, float32; not yet a block sum."""
    products = [g * noise_at(s) for s, g in enumerate(rows)]
    return sum(products[1:], start=products[0])


def largest_magnitude(rows: Sequence[jax.Array]) -> jax.Array:
    """Return the largest magnitude over the eight slices, as int32 bit patterns.

    The order of the patterns is that of the magnitudes. A float maximum would lose NaN or denormals
    on some back-ends. The sign is shifted out, not masked: a GPU shifts in its multiply pipe, which
    is less busy.
    """
    words = [lax.bitcast_convert_type(w, jnp.uint32) << np.uint32(1) for w in rows]
    largest = functools.reduce(jnp.maximum, words) >> np.uint32(1)
    return lax.bitcast_convert_type(largest, jnp.int32)
