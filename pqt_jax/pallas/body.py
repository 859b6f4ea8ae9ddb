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
from typing import Any

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


def make_words(
    row: Sequence[jax.Array], run, q, column, multiply: philox.Multiply = philox.multiply_once
) -> philox.Words:
    """Return the words of the Philox calls of one run of a matrix, or of several.

    Args:
      row: the row of the table for this matrix, as scalars.
      run: uint32, index of the run in this array; a scalar, or of the shape of `q`.
      q, column: uint32[...] of one shape: index of the row in its slice, and of the column in this
        array.
      multiply: the back-end's way to products of 64 bits.
    """
    k0, k1, lead, first_run, first_column, _ = row
    group = (run + first_run) * np.uint32(philox.GROUP) + q
    zero = jnp.zeros_like(column)
    counter = (column + first_column, group, zero + lead, zero)
    return philox.philox4x32((k0, k1), counter, multiply=multiply)


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


def unit_and_scale(
    spec: Spec, absmax: jax.Array, step: jax.Array, spread: Spread = lambda x: x
) -> tuple[jax.Array, jax.Array | None]:
    """Return what noise of 1 adds, `max_B|w| · 2^(1 − b_t)`, and the scale of the grid.

    Args:
      spec: static options.
      absmax, step: one number per block, in a shape that `spread` takes; the step size is that of
        `reference.block_step_size`.
      spread: spreads numbers per block to the shape of a slice.

    Returns:
      (unit, scale), spread; the scale is None for a format with the exponents of float32.
    """
    unit, scale = spread(absmax * step), reference.grid_scale(spec, absmax)
    if scale is not None:
        # A block whose b_i is NaN is NaN. Triton's minimum, in the cast, would lose that.
        scale = jnp.where(jnp.isnan(unit), unit, spread(scale))
    return unit, scale


def forward(
    spec: Spec,
    rows: Sequence[jax.Array],
    noise_at: Noise,
    unit: jax.Array,
    scale: jax.Array | None,
    multiply_add: MultiplyAdd = multiply_add,
) -> Iterator[jax.Array]:
    """Yield ŵ of the slices of a run.

    Args:
      spec: static options.
      rows: float32 slices of w.
      noise_at: from `make_noise`.
      unit, scale: from `unit_and_scale`.
      multiply_add: the back-end's way to `a · b + c`. Products with rounded normal noise are exact,
        so that it may round once.

    Yields:
      Slices in the dtype `spec.storage`.
    """
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
    """Return `Σ_s ∂L/∂ŵ · R` over the slices of a run, float32; not yet a block sum.

    `multiply_add` is as for `forward`.
    """
    wide = [g.astype(jnp.float32) for g in rows]
    total = wide[0] * noise_at(0)
    for s, g in enumerate(wide[1:], start=1):
        total = multiply_add(g, noise_at(s), total)
    return total


def largest_magnitude(rows: Sequence[jax.Array]) -> jax.Array:
    """Return the largest magnitude over the slices of a run, as int32 bit patterns.

    The order of the patterns is that of the magnitudes. A float maximum would lose NaN or denormals
    on some back-ends. The sign is shifted out, not masked: a GPU shifts in its multiply pipe, which
    is less busy.
    """
    words = [lax.bitcast_convert_type(w, jnp.uint32) << np.uint32(1) for w in rows]
    largest = functools.reduce(jnp.maximum, words) >> np.uint32(1)
    return lax.bitcast_convert_type(largest, jnp.int32)


def like(shape: tuple[int, ...], dtype: Any, x: jax.Array) -> jax.ShapeDtypeStruct:
    """Return the type of a result that varies over what x varies over, under shard_map."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
