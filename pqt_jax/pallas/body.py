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

from pqt_jax.numerics import cast, noise, philox, reference
from pqt_jax.numerics.formats import BF16, FP32
from pqt_jax.numerics.spec import Spec

Spread = Callable[[jax.Array], jax.Array]  # a number per block → the shape of a slice
Noise = Callable[[int], jax.Array]  # index s of a slice → its R, float32
Decode = Callable[[jax.Array], jax.Array]  # word of two draws → their R, a pair of bfloat16
MultiplyAdd = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

TABLE_ENTRIES = 6  # entries in a row of the table that are used, see `partition.make_table`


def multiply_add(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """Return `a · b + c`."""
    return c + a * b


def make_words(row: Sequence[jax.Array], run, q, column) -> philox.Words:
    """Return the words of the Philox calls of one run of a matrix.

    Args:
      row: the row of the table for this matrix, as scalars.
      run: uint32 scalar, index of the run in this array.
      q, column: uint32[...] of one shape: index of the row in its slice, and of the column in this
        array.
    """
    k0, k1, lead, first_run, first_column, _ = row
    group = (run + first_run) * np.uint32(philox.GROUP) + q
    zero = jnp.zeros_like(column)
    counter = (column + first_column, group, zero + lead, zero)
    return philox.philox4x32((k0, k1), counter, multiply=philox.multiply_once)


def make_noise(
    spec: Spec, row: Sequence[jax.Array], words: philox.Words, decode: Decode | None
) -> Noise:
    """Return the noise of one run of a matrix.

    Args:
      spec: static options.
      row: the row of the table for this matrix, as scalars.
      words: from `make_words`.
      decode: the back-end's way to R by a text of `ptx`; None for that of `noise`, for uniform
        noise and in interpreters.
    """
    if decode is None:
        return functools.partial(noise.noise_from_words, spec.noise, words, one=row[-1])
    pairs = [decode(word) for word in words]

    def noise_at(s: int) -> jax.Array:
        pair = pairs[s // 2]
        upper = pair & np.uint32(0xFFFF0000) if s % 2 else pair << np.uint32(16)
        return lax.bitcast_convert_type(upper, jnp.float32)

    return noise_at


def forward(
    spec: Spec,
    rows: Sequence[jax.Array],
    noise_at: Noise,
    absmax: jax.Array,
    b_i: jax.Array,
    spread: Spread,
    multiply_add: MultiplyAdd = multiply_add,
) -> Iterator[jax.Array]:
    """Yield ŵ of the eight slices of a run.

    Args:
      spec: static options.
      rows: eight float32 slices of w.
      noise_at: from `make_noise`.
      absmax, b_i: one number per block, in a shape that `spread` takes.
      spread: spreads numbers per block to the shape of a slice.
      multiply_add: the back-end's way to `a · b + c`. Products with rounded normal noise are exact,
        so that it may round once.

    Yields:
      Slices in the dtype `spec.storage`.
    """
    unit = spread(absmax * reference.block_step_size(spec, b_i))
    scale = reference.grid_scale(spec, absmax)
    if scale is not None:
        # A block whose b_i is NaN is NaN. Triton's minimum, in the cast, would lose that.
        scale = jnp.where(jnp.isnan(unit), unit, spread(scale))
    for s, w in enumerate(rows):
        noisy = multiply_add(noise_at(s), unit, w)
        if spec.dtype in (BF16, FP32):
            yield noisy.astype(spec.storage)
        elif scale is None or spec.encoded or spec.storage != jnp.bfloat16:
            yield reference.round_to_grid(spec, noisy, scale).astype(spec.storage)
        else:  # the same, as a power of two is exact: a GPU multiplies pairs of bfloat16
            rounded = cast.round_to(cast.divide(noisy, scale), spec.dtype)
            yield rounded.astype(jnp.bfloat16) * scale.astype(jnp.bfloat16)


def backward(
    rows: Sequence[jax.Array], noise_at: Noise, multiply_add: MultiplyAdd = multiply_add
) -> jax.Array:
    """Return `Σ_s ∂L/∂ŵ · R` over the eight slices of a run, float32; not yet a block sum.

    `multiply_add` is as for `forward`.
    """
    wide = [g.astype(jnp.float32) for g in rows]
    total = wide[0] * noise_at(0)
    for s, g in enumerate(wide[1:], start=1):
        total = multiply_add(g, noise_at(s), total)
    return total


def largest_magnitude(rows: Sequence[jax.Array]) -> jax.Array:
    """Return the largest magnitude over the eight slices, as int32 bit patterns.

    The order of the patterns is that of the magnitudes. A float maximum would lose NaN or denormals
    on some back-ends. The sign is shifted out, not masked: a GPU shifts in its multiply pipe, which
    is less busy.
    """
    words = [lax.bitcast_convert_type(w, jnp.uint32) << np.uint32(1) for w in rows]
    largest = functools.reduce(jnp.maximum, words) >> np.uint32(1)
    return lax.bitcast_convert_type(largest, jnp.int32)
